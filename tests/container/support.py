"""Containers under podman, and waiting for what they do."""

import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.error
import urllib.request

from cable import PATIENCE_SECS, Cable

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMAGE = os.environ.get("RINGCABLE_IMAGE", "localhost/ringcable")
ALLOWING = ROOT / "tuning/seccomp/ringcable.json"


def run(*command, check=True):
    """What the command wrote on standard output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def eventually(what, attempt, patience=PATIENCE_SECS):
    """The first true answer of `attempt`, which may raise OSError or AssertionError until then."""
    deadline = time.monotonic() + patience
    trouble = None
    while time.monotonic() < deadline:
        try:
            if answer := attempt():
                return answer
        except (OSError, AssertionError) as error:
            trouble = error
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {patience} s ({trouble})")


def status(url, body=None, **headers):
    """The status of a request; 0 when there was none."""
    request = urllib.request.Request(url, data=body, headers={name.replace("_", "-"): text for name, text in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


class Container:
    """A container of the image in the network namespace of the tests, removed at the end."""

    def __init__(self, *args, options=(), image=IMAGE):
        self.id = run("podman", "run", "--detach", "--network=host", "--cgroups=disabled", *options, image, *args).strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        run("podman", "rm", "--force", "--time=1", self.id)

    def log(self):
        done = subprocess.run(["podman", "logs", self.id], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def line(self, part):
        """The first line of the log with `part`."""

        def find():
            lines = [line for line in self.log().splitlines() if part in line]
            if not lines and self.state()["Status"] == "exited":
                raise RuntimeError(f"it has ended:\n{self.log()}")
            return lines and lines[0]

        return eventually(f"a line with {part!r}", find)

    def state(self):
        return json.loads(run("podman", "inspect", self.id))[0]["State"]

    def execute(self, *command):
        """Exit code of a command in the container."""
        done = subprocess.run(["podman", "exec", self.id, *command], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{command}: {done.stderr.strip()}", file=sys.stderr)
        return done.returncode

    def healthy(self):
        """One run of the image's own health check."""
        return subprocess.run(["podman", "healthcheck", "run", self.id], capture_output=True, check=False).returncode == 0

    def ready(self):
        self.line("ringcable is ready")
        return self


def chat(port):
    """A client subscribes to a public stream, a broadcast is posted, and it arrives."""
    with Cable(port) as cable:
        cable.subscribe(channel="$pubsub", stream_name="news")
        body = json.dumps({"stream": "news", "data": json.dumps({"text": "hello"})}).encode()
        assert status(f"http://127.0.0.1:{port}/_broadcast", body) == 201
        return cable.next(lambda message: "message" in message)["message"]
