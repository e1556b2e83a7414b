"""A terminal in which the commands of one page are typed, with an app beside it. A server that is started goes on, as in a second
terminal, until the page starts another one or ends."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from pages import ROOT

PATIENCE_SECS = 60
SECRET = "development-secret"
BINARY = os.environ["RINGCABLE_BIN"]
WORK = pathlib.Path(os.environ["RINGCABLE_PAGES_WORK"])

# Stands for `ringcable` in PATH. What prints and exits is the binary itself. A server is left running: the command is over when it is ready.
WRAPPER = r"""#!/usr/bin/env python3
import os, pathlib, re, signal, subprocess, sys, time
binary, folder, arguments = os.environ["RINGCABLE_BIN"], pathlib.Path(os.environ["RINGCABLE_SHELL"]), sys.argv[1:]
if any(re.match(r"--?(generate|print-config|check|check-config|help|version|h|v)(=|$)", argument) for argument in arguments):
    os.execv(binary, [binary, *arguments])
pid, log = folder / "pid", folder / "log"
if pid.exists():
    sys.exit("another server is still running")
with log.open("wb") as output:
    server = subprocess.Popen([binary, *arguments], stdout=output, stderr=output, start_new_session=True)
deadline = time.monotonic() + 60
while server.poll() is None and b"ringcable is ready" not in log.read_bytes():
    if time.monotonic() > deadline:
        sys.exit("not ready in time: " + log.read_text())
    time.sleep(0.02)
print(log.read_text())
if server.poll() is not None:
    sys.exit(server.returncode)
pid.write_text(str(server.pid))
"""


def fulfils(expected, text):
    """Whether the expected lines stand in the text in their order, `…` for anything. The first that does not is the answer."""
    rest = text.splitlines()
    for line in expected:
        if line.strip() in ("", "…"):
            continue
        pattern = ".*".join(re.escape(part) for part in line.rstrip().split("…"))
        while rest and not re.fullmatch(pattern, rest[0].rstrip()):
            rest = rest[1:]
        if not rest:
            return line
        rest = rest[1:]
    return None


class Shell:
    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=WORK))
        for name in ("bin", "home"):
            (self.folder / name).mkdir()
        (self.folder / "bin/ringcable").write_text(WRAPPER)
        (self.folder / "bin/ringcable").chmod(0o755)
        (self.folder / "home/.zfunc").mkdir()
        # Caddy's certificates here are signed by nobody.
        (self.folder / "home/.curlrc").write_text("insecure\n")
        self.cwd = str(ROOT)
        self.left = None
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANYCABLE_") and name != "PORT"},
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "HOME": str(self.folder / "home"),
            "CARGO_HOME": os.environ.get("CARGO_HOME", os.path.expanduser("~/.cargo")),
            "RUSTUP_HOME": os.environ.get("RUSTUP_HOME", os.path.expanduser("~/.rustup")),
            "RINGCABLE_SHELL": str(self.folder),
        }
        self.app_log = (self.folder / "app").open("wb")
        self.app = subprocess.Popen(
            [sys.executable, str(ROOT / "deploy/compose/app/app.py")],
            env={**self.env, "ANYCABLE_SECRET": SECRET, "ANYCABLE_HTTP_BROADCAST_URL": "http://localhost:8080/_broadcast"},
            stdout=self.app_log, stderr=subprocess.STDOUT,
        )
        self.wait("the app", lambda: subprocess.run(
            [sys.executable, str(ROOT / "deploy/compose/app/app.py"), "--check"], capture_output=True, check=False).returncode == 0)

    def close(self):
        try:
            self.stop_server()
        finally:
            self.app.kill()
            self.app.wait()
            self.app_log.close()
        trouble = (self.folder / "app").read_text()
        assert "Traceback" not in trouble, f"the app: {trouble}"
        shutil.rmtree(self.folder)

    @staticmethod
    def wait(what, probe):
        deadline = time.monotonic() + PATIENCE_SECS
        while not probe():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.02)

    @property
    def log(self):
        return (self.folder / "log").read_text()

    def stop_server(self):
        """Ends it as an operator does, and wants it to say nothing wrong on the way."""
        pid = self.folder / "pid"
        if not pid.exists():
            return
        number = int(pid.read_text())
        pid.unlink()
        os.kill(number, signal.SIGTERM)
        if self.left and self.left.pid == number:
            self.left.wait(PATIENCE_SECS)
            self.left = None
        self.wait("the end of the server", lambda: not pathlib.Path(f"/proc/{number}").exists() or self.is_zombie(number))
        assert "panicked" not in self.log, self.log

    @staticmethod
    def is_zombie(number):
        try:
            return pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    def server_is_running(self):
        return (self.folder / "pid").exists()

    def type(self, command, **env):
        """Runs it as a line of bash and gives (exit code, output). The folder, variables and functions stay."""
        if re.search(r"(^|[ /])ringcable( |$)", command) and not re.search(r"\bringcable\b.*--(generate|print-config|check|help|version)", command):
            self.stop_server()
        if re.match(r"cargo run |\S+/ringcable ", command):
            self.stop_server()
            return self.type_and_leave(command)
        script = f"set -e -a -o pipefail\n{command}\npwd >{self.folder}/cwd\n{{ export -p; declare -f; }} >{self.folder}/exports\n"
        exports = self.folder / "exports"
        before = exports.read_text() if exports.exists() else ""
        done = subprocess.run(
            ["bash", "-c", f"{before}\n{script}"], cwd=self.cwd, env={**self.env, **env}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900 if "release/" in command else PATIENCE_SECS, check=False,
        )
        if (self.folder / "cwd").exists():
            self.cwd = (self.folder / "cwd").read_text().strip()
        return done.returncode, done.stdout

    def type_and_leave(self, command):
        """A server that the wrapper cannot stand for: it is not called `ringcable`, or not by PATH."""
        with (self.folder / "log").open("wb") as output:
            server = self.left = subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=self.cwd, env=self.env, stdout=output, stderr=output)
        deadline = time.monotonic() + 900
        while server.poll() is None and "ringcable is ready" not in self.log:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)
        if server.poll() is None:
            (self.folder / "pid").write_text(str(server.pid))
        return server.poll() or 0, self.log
