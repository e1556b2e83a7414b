"""The files of deploy/: read by the programs that they are for, their variables by the server, and the proxies reloaded under clients."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import unittest

import yaml

import shell
from pages import ROOT, files
from test_blocks import CADDY_BIN, Caddy, caddy_version, run, validate_caddyfile, variables_of

sys.path.insert(0, str(ROOT / "tests/container"))
from cable import Cable  # noqa: E402

CLIENTS = 50
RPC = {"ANYCABLE_RPC_HOST": "http://localhost:3000/_anycable"}


def check_config(test, env, *arguments):
    done = run(shell.BINARY, *arguments, "--check-config", env=env, cwd="/")
    test.assertEqual(done.returncode, 0, done.stdout)
    test.assertNotRegex(done.stdout, "Unknown |has no effect")


class Files(unittest.TestCase):
    def test_every_file_has_a_reader(self):
        readers = (".yml", ".yaml", ".toml", ".sh", ".py", ".mjs", ".json", ".md", ".service", ".default", ".sysusers", ".txt",
                   "Caddyfile", "Dockerfile", "Procfile", "ringcable-health")
        for name in files("deploy/*"):
            self.assertTrue(name.endswith(readers), name)

    def test_yaml(self):
        for name in files("deploy/*.yml", "deploy/*.yaml"):
            with self.subTest(name):
                documents = list(yaml.safe_load_all((ROOT / name).read_text()))
                for env in (env for document in documents for env in variables_of(document)):
                    check_config(self, {**RPC, **env})

    def test_json(self):
        for name in files("deploy/*.json"):
            json.loads((ROOT / name).read_text())

    def test_toml(self):
        for name in files("deploy/*.toml"):
            with self.subTest(name):
                env = tomllib.loads((ROOT / name).read_text())["env"]
                # What the platform sets: the preset has to be found.
                platform = {"FLY_APP_NAME": "cable", "FLY_ALLOC_ID": "1", "FLY_REGION": "ams"} if "fly" in name else {}
                check_config(self, {**env, **platform})

    def test_scripts(self):
        scripts = [*files("deploy/*.sh"), "deploy/docker/ringcable-health", "tests/pages/run"]
        done = run("shellcheck", *scripts, cwd=ROOT)
        self.assertEqual(done.returncode, 0, done.stdout)
        for name in files("deploy/*.py"):
            compile((ROOT / name).read_text(), name, "exec")
        for name in files("deploy/*.mjs"):
            self.assertEqual(run("node", "--check", name, cwd=ROOT).returncode, 0, name)

    def test_caddyfile(self):
        validate_caddyfile(self, (ROOT / "deploy/compose/Caddyfile").read_text())

    def test_procfile(self):
        for line in (ROOT / "deploy/procfile/Procfile").read_text().splitlines():
            if line.startswith("#"):
                continue
            name, _, command = line.partition(": ")
            self.assertEqual(run("bash", "-n", "-c", command).returncode, 0, name)
            if command.startswith("ringcable"):
                done = run("bash", "-c", f"{command} --check-config", cwd="/", env={"PATH": f"{self.path()}:{os.environ['PATH']}"})
                self.assertEqual(done.returncode, 0, done.stdout)

    def path(self):
        folder = tempfile.mkdtemp(dir=shell.WORK)
        os.symlink(shell.BINARY, f"{folder}/ringcable")
        return folder

    def test_environment_file_of_systemd(self):
        """Each line that is commented out is a setting that works, alone and together."""
        lines = re.findall(r"(?m)^#(ANYCABLE_\w+)=(.*)$", (ROOT / "deploy/systemd/ringcable.default").read_text())
        self.assertGreater(len(lines), 5)
        check_config(self, {**RPC, **dict(lines)})
        for name, value in lines:
            check_config(self, {**RPC, name: value})

    def test_unit(self):
        with tempfile.TemporaryDirectory() as folder:
            unit = pathlib.Path(folder, "ringcable.service")
            text = (ROOT / "deploy/systemd/ringcable.service").read_text()
            # It is verified where its program is.
            unit.write_text(text.replace("/usr/bin/ringcable", shell.BINARY))
            done = run("systemd-analyze", "verify", "--man=no", str(unit))
            self.assertEqual(done.stdout.strip(), "")

    def test_prometheus(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(ROOT / "deploy/prometheus", folder, dirs_exist_ok=True)
            done = run("promtool", "check", "config", f"{folder}/prometheus.yml")
            self.assertEqual(done.returncode, 0, done.stdout)

    def test_kustomizations(self):
        kubectl = shutil.which("kubectl")
        for name in files("deploy/*kustomization.yaml"):
            folder = (ROOT / name).parent
            document = yaml.safe_load((ROOT / name).read_text())
            for resource in document["resources"]:
                self.assertTrue((folder / resource).exists(), f"{name}: {resource}")
            if kubectl:
                done = run(kubectl, "kustomize", str(folder), env={**os.environ, "HOME": "/tmp"})
                self.assertEqual(done.returncode, 0, done.stdout)
            else:
                print(f"not rendered: {name}: there is no kubectl")


class App(unittest.TestCase):
    def test_the_stand_in_passes_the_check_of_the_start(self):
        """The server says that all is well, and the app has nothing to say about an empty call."""
        terminal = shell.Shell()
        try:
            code, output = terminal.type(f"ringcable --rpc_host=http://web:3000/_anycable --secret={shell.SECRET}")
            self.assertEqual(code, 0, output)
            line = "RPC check: http://web:3000/_anycable/connect answers, the path and the secret are right"
            terminal.wait(line, lambda: "RPC check" in terminal.log)
            self.assertIn(line, terminal.log)
        finally:
            terminal.close()


NGINX = """
user root;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
  access_log off;
  server {{
    listen 127.0.0.1:80;
    location / {{ proxy_pass http://127.0.0.1:3000; }}
{block}
  }}
}}
"""


class Nginx:
    """The block of troubleshooting.md, as nginx is run in production: a master and its workers."""

    def __init__(self):
        from test_blocks import BLOCKS

        (block,) = [block.text for block in BLOCKS if block.page == "docs/troubleshooting.md" and block.language == "nginx"]
        self.folder = tempfile.TemporaryDirectory()
        self.file = pathlib.Path(self.folder.name, "nginx.conf")
        self.file.write_text(NGINX.format(folder=self.folder.name, block=block))

    def __enter__(self):
        self.process = subprocess.Popen(["nginx", "-c", str(self.file), "-g", "daemon off;"])
        shell.Shell.wait("nginx", lambda: run("curl", "--silent", "http://127.0.0.1/up").stdout == "up")
        return self

    def workers(self):
        return set(run("pgrep", "--parent", str(self.process.pid)).stdout.split())

    def reload(self):
        before = self.workers()
        done = run("nginx", "-c", str(self.file), "-s", "reload")
        assert done.returncode == 0, done.stdout
        shell.Shell.wait("new workers", lambda: self.workers() - before)

    def __exit__(self, *_):
        # At once, its old workers too.
        self.process.terminate()
        self.process.wait(shell.PATIENCE_SECS)
        self.folder.cleanup()


def is_open(cable):
    """Whether it gets one more ping, and another: what was on its way at the reload has come by then."""
    try:
        for _ in range(2):
            cable.next(lambda message: message.get("type") == "ping")
    except (ConnectionError, OSError):
        return False
    return True


class Reloads(unittest.TestCase):
    """What deploys.md says about proxies that reload."""

    def survivors(self, proxy):
        terminal = shell.Shell()
        try:
            code, output = terminal.type(f"ringcable --rpc_host=http://web:3000/_anycable --secret={shell.SECRET} --ping_interval=1")
            self.assertEqual(code, 0, output)
            with proxy:
                clients = [Cable(80, cookie=f"visitor={number}") for number in range(CLIENTS)]
                for client in clients:
                    client.next(lambda message: message.get("type") == "welcome")
                proxy.reload()
                alive = sum(is_open(client) for client in clients)
                for client in clients:
                    client.socket.close()
            return alive
        finally:
            terminal.close()

    def test_caddy_with_the_shipped_file(self):
        if caddy_version(CADDY_BIN) < (2, 7):
            self.skipTest(f"{CADDY_BIN} is older than 2.7, which has no stream_close_delay: set CADDY_BIN")
        self.assertEqual(self.survivors(Caddy((ROOT / "deploy/compose/Caddyfile").read_text())), CLIENTS)

    def test_caddy_without_the_line(self):
        """Which is why it is there."""
        text = (ROOT / "deploy/compose/Caddyfile").read_text()
        self.assertEqual(text.count("stream_close_delay 24h"), 1)
        self.assertEqual(self.survivors(Caddy(text.replace("stream_close_delay 24h", ""))), 0)

    def test_nginx(self):
        self.assertEqual(self.survivors(Nginx()), CLIENTS)


if __name__ == "__main__":
    unittest.main(verbosity=2)
