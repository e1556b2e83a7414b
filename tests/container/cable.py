"""An Action Cable client over a WebSocket, by hand: nothing of ringcable's is trusted, and nothing has to be installed."""

import base64
import json
import os
import socket
import struct
import time

PATIENCE_SECS = 20
TEXT, CLOSE, PING = 1, 8, 9


class Cable:
    """One connection. Raises ConnectionError when it ends while something is waited for."""

    def __init__(self, port, path="/cable", cookie=None, origin=None, sid=None):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECS)
        self.received = b""
        self.close_code = None
        head = [
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Protocol: actioncable-v1-json",
            *([f"Cookie: {cookie}"] if cookie else []),
            *([f"Origin: {origin}"] if origin else []),
            *([f"X-Request-ID: {sid}"] if sid else []),
        ]
        self.socket.sendall("\r\n".join([*head, "", ""]).encode())
        while b"\r\n\r\n" not in self.received:
            self._read()
        answer, _, self.received = self.received.partition(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError(answer.decode(errors="replace"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, message):
        payload = json.dumps(message).encode()
        assert len(payload) < 65536, "longer frames are not needed here"
        length = bytes([0x80 | TEXT]) + (bytes([0x80 | len(payload)]) if len(payload) < 126 else struct.pack("!BH", 0xFE, len(payload)))
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self.socket.sendall(length + mask + masked)

    def next(self, matches):
        """The next message that `matches`; pings and others are skipped."""
        deadline = time.monotonic() + PATIENCE_SECS
        while time.monotonic() < deadline:
            kind, payload = self._frame()
            if kind == CLOSE:
                self.close_code = struct.unpack("!H", payload[:2])[0] if payload else None
                raise ConnectionError(f"closed with {self.close_code}")
            if kind == TEXT and matches(message := json.loads(payload)):
                return message
        raise TimeoutError("no such message")

    def subscribe(self, **identifier):
        text = json.dumps(identifier)
        self.next(lambda message: message.get("type") == "welcome")
        self.send({"command": "subscribe", "identifier": text})
        self.next(lambda message: message.get("type") == "confirm_subscription" and message["identifier"] == text)

    def _frame(self):
        first, second = self._take(2)
        length = second & 0x7F
        if length == 126:
            length = struct.unpack("!H", self._take(2))[0]
        elif length == 127:
            length = struct.unpack("!Q", self._take(8))[0]
        return first & 0x0F, self._take(length)

    def _take(self, count):
        while len(self.received) < count:
            self._read()
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def _read(self):
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError("the connection has ended")
        self.received += chunk
