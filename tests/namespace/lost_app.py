#!/usr/bin/env python3
"""How many clients does it cost when the app freezes and its name moves to another address?

    sudo python3 tests/namespace/lost_app.py target/release/ringcable [auto|io_uring|epoll]

The server looks the name `web` up in an /etc/hosts of its own (a mount namespace). 24 calls at once leave 24 warm connections to
127.0.0.2. Then that app is stopped (SIGSTOP: its connections stay open and nobody answers), the name is moved to 127.0.0.3, where
another one answers, and 18 clients come one after the other. Exit code 0 when at most two of them are lost and the circuit breaker
stays closed. Needs root and unshare; every process is its own.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WARM = 24
CLIENTS = 18
LOST_MAX = 2
PATIENCE_SECS = 20
FROZEN, GOOD = "127.0.0.2", "127.0.0.3"
UPGRADE = (
    b"GET /cable?pi=0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
WELCOME = {"status": 1, "identifiers": "u", "transmissions": ['{"type":"welcome"}'], "env": {}}


class App(BaseHTTPRequestHandler):
    """Welcomes everybody, after `delay_secs`."""

    protocol_version = "HTTP/1.1"
    delay_secs = 0.0

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if body:
            time.sleep(self.delay_secs)
        status, answer = (200, json.dumps(WELCOME).encode()) if body else (422, b"Empty request body")
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class AppServer(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def start_app(address, port, delay_secs):
    """On a process of its own, so that it can be stopped. Gives its pid and its port."""
    App.delay_secs = delay_secs
    server = AppServer((address, port), App)
    pid = os.fork()
    if pid == 0:
        server.serve_forever()
    server.socket.close()
    return pid, server.server_address[1]


def start_server(binary, driver, hosts, port, log):
    command = [
        binary, "--host=127.0.0.1", "--port=0", "--cores=2", f"--driver={driver}", "--secret=s",
        f"--rpc_host=http://web:{port}/_anycable",
    ]
    script = f'mount --bind {hosts} /etc/hosts && exec "$0" "$@"'
    return subprocess.Popen(["unshare", "--mount", "sh", "-c", script, *command], stdout=log, stderr=log)


def read(path):
    with open(path) as file:
        return file.read()


def port_in(path):
    deadline = time.monotonic() + PATIENCE_SECS
    while time.monotonic() < deadline:
        found = re.search(r"Handle WebSocket connections at http://127.0.0.1:(\d+)", read(path))
        if found and "ringcable is ready" in read(path):
            return int(found[1])
        time.sleep(0.05)
    sys.exit(f"the server does not start:\n{read(path)}")


def client(port):
    """The socket of a new client, and whether it was welcomed."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECS)
    sock.sendall(UPGRADE)
    seen = b""
    while b"welcome" not in seen and b"Auth Error" not in seen:
        more = sock.recv(4096)
        if not more:
            break
        seen += more
    return sock, b"welcome" in seen


def warm_up(port):
    clients = []
    threads = [threading.Thread(target=lambda: clients.append(client(port))) for _ in range(WARM)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(welcomed for _, welcomed in clients):
        sys.exit("the first clients were not welcomed")
    return clients


def main():
    binary = os.path.abspath(sys.argv[1])
    driver = sys.argv[2] if len(sys.argv) > 2 else "epoll"
    with tempfile.TemporaryDirectory() as directory:
        hosts, log = os.path.join(directory, "hosts"), os.path.join(directory, "log")
        with open(hosts, "w") as file:
            file.write(f"127.0.0.1 localhost\n{FROZEN} web\n")
        frozen, app_port = start_app(FROZEN, 0, 0.4)
        good, _ = start_app(GOOD, app_port, 0)
        with open(log, "w") as output:
            server = start_server(binary, driver, hosts, app_port, output)
        try:
            port = port_in(log)
            clients = warm_up(port)
            os.kill(frozen, signal.SIGSTOP)
            # In place: the mount is of this very file.
            with open(hosts, "r+") as file:
                file.write(f"127.0.0.1 localhost\n{GOOD} web\n")
            started = time.monotonic()
            clients += [client(port) for _ in range(CLIENTS)]
            lost = sum(not welcomed for _, welcomed in clients)
            opened = "circuit breaker is open" in read(log)
            print(f"{driver}: {lost} of {CLIENTS} lost in {time.monotonic() - started:.1f} s, breaker opened: {opened}")
            return 0 if lost <= LOST_MAX and not opened else 1
        finally:
            for pid in (frozen, good):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            server.kill()
            server.wait()


if __name__ == "__main__":
    sys.exit(main())
