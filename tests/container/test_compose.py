"""deploy/compose as it is, with podman-compose: browser → Caddy → ringcable and the app, on a network of their own.

Run by .ci/container, inside a network namespace of its own.
"""

import os
import pathlib
import resource
import subprocess
import tempfile
import unittest
import urllib.request

from cable import Cable
from support import ROOT, eventually, run, status

PORT = 8088
PAGE = f"http://localhost:{PORT}"
COMPOSE = ROOT / "deploy/compose"


# The limit on open files of the file, but not more than this machine gives. With any limit given, podman has one on
# processes too, which only a root with all rights may set.
LIMITS = """
services:
  anycable:
    ulimits: {{ nofile: {files}, nproc: {processes} }}
"""


def limits():
    file = tempfile.NamedTemporaryFile("w", suffix=".yml")
    processes = int(pathlib.Path("/proc/sys/kernel/pid_max").read_text())
    file.write(LIMITS.format(files=resource.getrlimit(resource.RLIMIT_NOFILE)[1], processes=processes))
    file.flush()
    return file


class Stack:
    def __init__(self, *files):
        self.limits = limits()
        self.command = ["podman-compose", "--project-name=ringcable-test"]
        for file in [*(COMPOSE / name for name in files), self.limits.name]:
            self.command += ["--file", str(file)]
        self.env = {**os.environ, "HTTP_PORT": str(PORT), "ANYCABLE_SECRET": "test-secret"}

    def __enter__(self):
        try:
            self.compose("up", "--detach", "--no-build")
        except AssertionError:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind=None, *_):
        if kind:
            # What a failure means is told by the services, and their containers are about to go.
            for service in ["web", "anycable"]:
                print(f"--- log of {service}\n{self.log(service)}")
        self.compose("down", "--timeout=5")
        self.limits.close()

    def compose(self, *args):
        done = subprocess.run([*self.command, *args], env=self.env, cwd=COMPOSE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{args}: {done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def container(self, service):
        names = run("podman", "ps", "--all", "--filter", f"label=com.docker.compose.service={service}", "--format={{.Names}}")
        return names.split()[0]

    def log(self, service):
        done = subprocess.run(["podman", "logs", self.container(service)], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr


def visit():
    """A visitor's login cookie, from the page behind Caddy."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5) as page:
        return page.headers["Set-Cookie"].split(";")[0]


class Topology(unittest.TestCase):
    def chat(self, stack):
        eventually("the page", lambda: status(f"http://127.0.0.1:{PORT}/") == 200, patience=60)
        for service in ["web", "anycable"]:
            healthy = ["podman", "healthcheck", "run", stack.container(service)]
            eventually(f"{service} is healthy", lambda: subprocess.run(healthy, check=False).returncode == 0)

        ann, bob = visit(), visit()
        self.assertNotEqual(ann, bob)
        with Cable(PORT, cookie=ann, origin=PAGE) as first, Cable(PORT, cookie=bob, origin=PAGE) as second:
            for cable in [first, second]:
                cable.subscribe(channel="RoomChannel")
            self.assertEqual(status(f"http://127.0.0.1:{PORT}/messages", b"hello", Cookie=ann), 201)
            for cable in [first, second]:
                message = cable.next(lambda message: "message" in message)["message"]
                self.assertEqual(message, {"from": ann.partition("=")[2], "text": "hello"})

        with Cable(PORT, origin=PAGE) as stranger:
            refusal = stranger.next(lambda message: message.get("type") == "disconnect")
            self.assertEqual((refusal["reason"], refusal["reconnect"]), ("unauthorized", False))
        with self.assertRaisesRegex(ConnectionError, "403"):
            Cable(PORT, cookie=ann, origin="https://evil.example.net")
        # What a user sees first: nothing is wrong.
        eventually("the check of the start", lambda: "answers, the path and the secret are right" in stack.log("anycable"))
        self.assertNotIn("Traceback", stack.log("web"))
        # Caddy hands nothing but /cable to ringcable: neither health nor broadcasts are reachable through it.
        self.assertEqual(status(f"http://127.0.0.1:{PORT}/_broadcast", b"{}"), 401)
        self.assertEqual(status(f"http://127.0.0.1:{PORT}/health"), 404)

    def test_the_file_as_it_is(self):
        with Stack("compose.yml") as stack:
            self.chat(stack)

    def test_with_io_uring(self):
        with Stack("compose.yml", "io_uring.yml") as stack:
            self.chat(stack)
            self.assertIn("driver io_uring (", stack.log("anycable"))


if __name__ == "__main__":
    unittest.main(verbosity=2)
