#!/usr/bin/env python3
"""Does every client get its goodbye when the server's network goes with its process, as a container's does?

    sudo python3 tests/namespace/drain.py target/release/ringcable [CLIENTS]

The server runs in a network namespace of its own behind a slow link (800 kbit/s), the clients in another one. The server gets
SIGTERM, and its link is removed as soon as it has exited. Exit code 0 when each client has read the message and the close frame.
Needs root, ip and tc; touches no network but its own.
"""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time

SERVER, CLIENTS = f"rc-server-{os.getpid()}", f"rc-clients-{os.getpid()}"
WIRE = "rc-wire"
ADDRESS = ("10.99.0.1", 8080)
PATIENCE_SECS = 30
# Silence after which nothing more is expected: the link is gone.
SILENCE_SECS = 3
UPGRADE = (
    b"GET /cable?pi=0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def ip(*words, namespace=None):
    inside = ["-n", namespace] if namespace else []
    subprocess.run(["ip", *inside, *words], check=True)


def lay_link():
    ip("netns", "add", SERVER)
    ip("netns", "add", CLIENTS)
    ip("link", "add", WIRE, "netns", SERVER, "type", "veth", "peer", "name", WIRE, "netns", CLIENTS)
    for namespace, address in ((SERVER, "10.99.0.1/24"), (CLIENTS, "10.99.0.2/24")):
        ip("addr", "add", address, "dev", WIRE, namespace=namespace)
        ip("link", "set", WIRE, "up", namespace=namespace)
    slow = ["rate", "800kbit", "burst", "3000", "latency", "20s"]
    subprocess.run(["tc", "-n", SERVER, "qdisc", "add", "dev", WIRE, "root", "tbf", *slow], check=True)


def main(binary, count):
    lay_link()
    flags = ["--host=0.0.0.0", f"--port={ADDRESS[1]}", "--norpc", "--public", "--ignore-config-path"]
    inside = ["ip", "netns", "exec", SERVER, os.path.abspath(binary), *flags]
    # `ip netns exec` becomes the server, so the signal reaches it.
    server = subprocess.Popen(inside, stdout=subprocess.DEVNULL, env={"PATH": os.environ["PATH"]})
    clients = None
    try:
        again = [sys.executable, __file__, "--clients", str(count)]
        clients = subprocess.Popen(["ip", "netns", "exec", CLIENTS, *again], stdout=subprocess.PIPE, text=True)
        if clients.stdout.readline().strip() != "ready":
            return 1
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=PATIENCE_SECS)
        ip("link", "del", WIRE, namespace=SERVER)
        print(clients.stdout.readline().strip())
        return clients.wait(timeout=PATIENCE_SECS)
    finally:
        for process in (server, clients):
            if process and process.poll() is None:
                process.kill()
                process.wait()


def connect(deadline):
    while True:
        try:
            return socket.create_connection(ADDRESS, timeout=PATIENCE_SECS)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def be_clients(count):
    deadline = time.monotonic() + PATIENCE_SECS
    selector, received = selectors.DefaultSelector(), []
    for number in range(count):
        client = connect(deadline)
        client.sendall(UPGRADE)
        client.setblocking(False)
        received.append(b"")
        selector.register(client, selectors.EVENT_READ, number)

    def read_some():
        ready = selector.select(0.1)
        for key, _ in ready:
            try:
                data = key.fileobj.recv(65536)
            except ConnectionError:
                data = b""
            received[key.data] += data
            if not data:
                selector.unregister(key.fileobj)
                key.fileobj.close()
        return bool(ready)

    while not all(b'"welcome"' in text for text in received):
        if time.monotonic() > deadline:
            print("not every client is welcome")
            return 1
        read_some()
    print("ready", flush=True)
    last = time.monotonic()
    while selector.get_map() and time.monotonic() < last + SILENCE_SECS:
        if read_some():
            last = time.monotonic()
    told = sum(b'"server_restart"' in text and text.endswith(b"\x03\xe9Server restart") for text in received)
    print(f"{told} of {count} clients got the message and the close frame with 1001", flush=True)
    return 0 if told == count else 1


if __name__ == "__main__":
    if sys.argv[1] == "--clients":
        sys.exit(be_clients(int(sys.argv[2])))
    try:
        code = main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200)
    finally:
        for name in (SERVER, CLIENTS):
            subprocess.run(["ip", "netns", "del", name], check=False)
    sys.exit(code)
