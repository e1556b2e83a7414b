#!/usr/bin/env python3
"""What Rails does beside ringcable, in one file: logs a visitor in by cookie, answers the RPC calls, broadcasts.

    ANYCABLE_SECRET=… ANYCABLE_HTTP_BROADCAST_URL=http://anycable:8080/_broadcast python3 app.py     serves on :3000 (PORT)
    python3 app.py --check                                                                      asks that server for /up

One room, one channel, no storage. It keeps to what Rails does where ringcable can see it: tokens derived from the
secret, identifiers as JSON text, 401 without the token, a refusal as status 2.
"""

import hashlib
import hmac
import http.server
import json
import os
import secrets
import sys
import urllib.request

PORT = int(os.environ.get("PORT", "3000"))
MOUNT = "/_anycable/"
STREAM = "room"
SUCCESS, FAILURE = 1, 2
BODY_BYTES_MAX = 64 * 1024

PAGE = """<!doctype html><meta charset="utf-8"><title>A room</title>
<h1>A room</h1><form><input name="text" autofocus autocomplete="off"> <button>Say</button></form><ul></ul>
<script>
const identifier = JSON.stringify({channel: "RoomChannel"});
const list = document.querySelector("ul");
const show = (text) => { const item = document.createElement("li"); item.textContent = text; list.prepend(item); };
function connect() {
  const cable = new WebSocket(location.origin.replace("http", "ws") + "/cable", "actioncable-v1-json");
  cable.onmessage = ({data}) => {
    const {type, message} = JSON.parse(data);
    if (type === "welcome") cable.send(JSON.stringify({command: "subscribe", identifier}));
    if (type === "confirm_subscription") show("connected");
    if (message) show(`${message.from}: ${message.text}`);
  };
  cable.onclose = () => { show("gone; again in a second"); setTimeout(connect, 1000); };
}
connect();
document.querySelector("form").onsubmit = (event) => {
  event.preventDefault();
  fetch("/messages", {method: "POST", body: event.target.text.value});
  event.target.reset();
};
</script>
"""


def token(label):
    """The bearer token for one use, derived as the AnyCable gems derive it."""
    return hmac.new(os.environ["ANYCABLE_SECRET"].encode(), label.encode(), hashlib.sha256).hexdigest()


def broadcast(stream, message):
    request = urllib.request.Request(
        os.environ["ANYCABLE_HTTP_BROADCAST_URL"],
        data=json.dumps({"stream": stream, "data": json.dumps(message)}).encode(),
        headers={"Content-Type": "application/json", "Authorization": f"Bearer {token('broadcast-cable')}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        if answer.status != 201:
            raise OSError(f"the broadcast was answered with {answer.status}")


def visitor(cookies):
    """The name in the login cookie, or None."""
    pairs = (pair.strip().partition("=") for pair in (cookies or "").split(";"))
    return next((value for name, _, value in pairs if name == "visitor" and value), None)


def connect(call):
    name = visitor(call["env"].get("headers", {}).get("cookie"))
    if name is None:
        refusal = {"type": "disconnect", "reason": "unauthorized", "reconnect": False}
        return {"status": FAILURE, "transmissions": [json.dumps(refusal)]}
    welcome = json.dumps({"type": "welcome"})
    return {"status": SUCCESS, "identifiers": json.dumps({"visitor": name}), "transmissions": [welcome], "env": {}}


def command(call):
    if call["command"] != "subscribe":
        return {"status": SUCCESS, "stop_streams": call["command"] == "unsubscribe", "env": {}}
    known = json.loads(call["identifier"]).get("channel") == "RoomChannel"
    verdict = {"identifier": call["identifier"], "type": "confirm_subscription" if known else "reject_subscription"}
    answer = {"status": SUCCESS if known else FAILURE, "transmissions": [json.dumps(verdict)], "env": {}}
    return {**answer, "streams": [STREAM]} if known else answer


CALLS = {"connect": connect, "command": command, "disconnect": lambda call: {"status": SUCCESS}}


class App(http.server.BaseHTTPRequestHandler):
    # Keep-alive: ringcable keeps its connections to the app.
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", content_type="text/plain", **headers):
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/up":
            return self.answer(200, b"up")
        if self.path != "/":
            return self.answer(404)
        login = {}
        if visitor(self.headers["Cookie"]) is None:
            login = {"Set_Cookie": f"visitor=guest-{secrets.token_hex(3)}; Path=/; HttpOnly; SameSite=Lax"}
        return self.answer(200, PAGE.encode(), "text/html; charset=utf-8", **login)

    def do_POST(self):
        length = int(self.headers["Content-Length"] or 0)
        if length > BODY_BYTES_MAX:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(length)
        path = self.path.partition("?")[0]
        if path.startswith(MOUNT):
            return self.rpc(path[len(MOUNT) :], body)
        name = visitor(self.headers["Cookie"])
        if path != "/messages" or name is None:
            return self.answer(404 if name else 401)
        broadcast(STREAM, {"from": name, "text": body.decode(errors="replace")})
        return self.answer(201)

    def rpc(self, name, body):
        expected = f"Bearer {token('rpc-cable')}"
        if not hmac.compare_digest(self.headers["Authorization"] or "", expected):
            return self.answer(401)
        if name not in CALLS:
            return self.answer(404)
        # ringcable's check at its start sends nothing else than the token, and the Ruby side answers this.
        if not body:
            return self.answer(422, b"Empty request body")
        return self.answer(200, json.dumps(CALLS[name](json.loads(body))).encode(), "application/json")


def main():
    if sys.argv[1:] == ["--check"]:
        with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/up", timeout=2):
            return
    if not os.environ.get("ANYCABLE_SECRET") or not os.environ.get("ANYCABLE_HTTP_BROADCAST_URL"):
        sys.exit("set ANYCABLE_SECRET and ANYCABLE_HTTP_BROADCAST_URL")
    http.server.ThreadingHTTPServer(("", PORT), App).serve_forever()


if __name__ == "__main__":
    main()
