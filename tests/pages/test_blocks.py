"""Every code block of the pages is run or read by the program that it is for."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import tomllib
import unittest

import yaml

import shell
from pages import NEED_RELEASE, NOT_RUN, NOT_TYPED, ROOT, SHELLS, blocks, why_not_run

BLOCKS = blocks()
ASSIGNMENT = re.compile(r"^[A-Z][A-Z_]*=\S*(\s+#.*)?$")
RELEASE = os.environ.get("RINGCABLE_PAGES_RELEASE") == "1"
# A page starts this before its first command that asks a server; {page: arguments}.
SERVERS = {
    "docs/troubleshooting.md": ["--rpc_host=http://localhost:3000/_anycable", f"--secret={shell.SECRET}", "--metrics_http=/metrics"],
    "docs/campfire.md": ["--rpc_host=http://web:3000/_anycable", f"--secret={shell.SECRET}", "--allowed_origins=chat.example.com", "--host=127.0.0.1"],
    "docs/console.md": ["--norpc", f"--secret={shell.SECRET}", "--console", "--broker=memory"],
    "docs/configuration.md": ["--rpc_host=http://localhost:3000/_anycable", f"--secret={shell.SECRET}"],
}


def run(*command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **options)


def written(text, suffix):
    file = tempfile.NamedTemporaryFile("w", suffix=suffix)
    file.write(text)
    file.flush()
    return file


def certificate():
    """Where tls.md says it is."""
    folder = pathlib.Path("/etc/ringcable")
    folder.mkdir(exist_ok=True)
    done = run("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "90", "-subj", "/CN=cable.example",
               "-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem"))
    assert done.returncode == 0, done.stdout


class Blocks(unittest.TestCase):
    def of(self, *languages):
        found = [block for block in BLOCKS if block.language in languages]
        self.assertTrue(found, f"no block of {languages}: the search is broken")
        return found

    def test_every_language_has_a_reader(self):
        readers = {"ruby", "json", "toml", "yaml", "nginx", "caddyfile", "fish"} | SHELLS | NOT_TYPED
        for block in BLOCKS:
            with self.subTest(block.where):
                self.assertIn(block.language, readers)
                if block.language in NOT_TYPED:
                    self.assertNotRegex(block.text, r"(?m)^(\$ |ringcable |curl |docker |sudo )", "a command in a block that is not typed")

    def test_shell_syntax(self):
        for block in self.of(*SHELLS):
            with self.subTest(block.where):
                text = "".join(f"{command}\n" for command, _ in block.commands())
                self.assertTrue(text.strip())
                # `cd` without an exit, variables that a platform sets, a `$` that is meant for JSON: fine in a terminal.
                done = run("shellcheck", "--shell=bash", "--exclude=SC2034,SC2154,SC2164,SC1090,SC1091,SC2148,SC2239,SC2016", "-", input=text)
                self.assertEqual(done.returncode, 0, done.stdout)

    def test_typed(self):
        certificate()
        before = run("git", "status", "--porcelain", cwd=ROOT).stdout
        pages = {block.page for block in self.of(*SHELLS)}
        for page in sorted(pages - {"docs/api.md"}):  # A transcript: test_api.
            terminal = shell.Shell()
            proxy = Caddy(caddyfile_of(page)) if page == "docs/campfire.md" else contextlib.nullcontext()
            try:
                with proxy:
                    self.type_page(page, terminal)
            finally:
                terminal.close()
        self.assertEqual(run("git", "status", "--porcelain", cwd=ROOT).stdout, before, "a page leaves files behind")

    def type_page(self, page, terminal):
        folder = (ROOT / page).parent
        # Beside their scripts stand the pages of tuning/; the others speak of the repository.
        start = folder if page.startswith("tuning/seccomp") else ROOT
        for block in (block for block in BLOCKS if block.page == page and block.language in SHELLS):
            terminal.cwd = str(start)
            with self.subTest(block.where):
                if all(ASSIGNMENT.match(command) for command, _ in block.commands()):
                    self.check_variables(block)
                    continue
                if block.text.startswith("#!") and why_not_run(block.text):
                    print(f"not typed: {block.where}: {why_not_run(block.text)[1]}")
                    continue
                for command, expected in block.commands():
                    if not RELEASE and any(re.search(pattern, command) for pattern in NEED_RELEASE):
                        print(f"not typed: {block.where}, from here on: {command.splitlines()[0]}: makes a release build (RINGCABLE_PAGES_RELEASE=1)")
                        break
                    self.type(page, block, terminal, command, expected)

    def type(self, page, block, terminal, command, expected):
        if entry := why_not_run(command):
            print(f"not typed: {block.where}: {command.splitlines()[0]}: {entry[1]}; instead: {entry[2]}")
            return
        if "curl" in command and not terminal.server_is_running() and page in SERVERS:
            code, output = terminal.type(f"ringcable {' '.join(SERVERS[page])}")
            self.assertEqual(code, 0, output)
        code, output = terminal.type(command, **({"ANYCABLE_SECRET": shell.SECRET} if "ANYCABLE_SECRET" in command else {}))
        # `ringcable --check N` exits with 1 where a limit of this machine is too low, and says which: that is its job.
        allowed = (0, 1) if re.search(r"--check[ =]\d|tuning/check.sh", command) else (0,)
        self.assertIn(code, allowed, f"{command}\n{output}")
        missing = shell.fulfils(expected, output)
        # What a server says after it is ready: the check of the app.
        if missing is not None and terminal.server_is_running() and "ringcable" in command:
            terminal.wait(f"{missing}\nin\n{terminal.log}", lambda: shell.fulfils(expected, terminal.log) is None)
            missing = None
        self.assertIsNone(missing, f"{command}\nprinted\n{output}")

    def check_variables(self, block):
        """A block of variables is a configuration."""
        env = {"PATH": os.environ["PATH"], "ANYCABLE_RPC_HOST": "http://localhost:3000/_anycable"}
        for line in block.text.splitlines():
            name, _, value = re.sub(r"\s+#.*$", "", line).partition("=")
            env[name] = value
        self.check_config(env)

    def check_config(self, env, *arguments, cwd="/"):
        done = run(shell.BINARY, *arguments, "--check-config", env=env, cwd=cwd)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertNotRegex(done.stdout, r"Unknown |has no effect", done.stdout)

    def test_commands_for_channels(self):
        """What campfire.md and moving-from-action-cable.md let one type in the folder of an app."""
        commands = [command for block in self.of("sh") for command, _ in block.commands() if "app/channels/" in command]
        self.assertEqual(len(commands), 2, commands)
        with tempfile.TemporaryDirectory() as folder:
            channels = pathlib.Path(folder, "app/channels")
            channels.mkdir(parents=True)
            for name in ["presence_channel.rb", "typing_notifications_channel.rb"]:
                (channels / name).write_text("def membership\n  @room.memberships.find_by(user: current_user)\nend\n")
            (channels / "room_channel.rb").write_text("def subscribed\n  if @room = find_room\n    stream_for @room\n  end\nend\n")
            for command in sorted(commands):
                done = run("bash", "-c", command, cwd=folder)
                self.assertEqual(done.returncode, 0, done.stdout)
                if command.startswith("grep"):
                    self.assertEqual(done.stdout.splitlines(), ["app/channels/room_channel.rb:2:  if @room = find_room"])
            text = (channels / "presence_channel.rb").read_text()
            self.assertIn("  room.memberships", text)
            self.assertNotIn("@room", text)

    def test_toml(self):
        for block in self.of("toml"):
            with self.subTest(block.where), written(block.text, ".toml") as file:
                tomllib.loads(block.text)
                self.check_config({}, f"--config-path={file.name}")

    def test_the_file_that_the_generator_writes(self):
        """moving-from-anycable-go.md: the preset turns the broker on."""
        page = "docs/moving-from-anycable-go.md"
        (file,) = [block.text for block in BLOCKS if block.page == page and block.language == "toml"]
        self.assertIn('\npresets = ["broker"]', file)
        with written(file, ".toml") as written_anew:
            # Without a broker this option would have no effect, and a warning would say so.
            self.check_config({}, f"--config-path={written_anew.name}", "--history_limit=5")

    def test_json(self):
        for block in self.of("json"):
            with self.subTest(block.where):
                for document in block.text.strip().split("\n\n"):
                    json.loads(document)

    def test_yaml(self):
        for block in self.of("yaml"):
            with self.subTest(block.where):
                document = yaml.safe_load(block.text)
                self.assertIsInstance(document, (dict, list))
                for env in variables_of(document):
                    self.check_config({"ANYCABLE_RPC_HOST": "http://localhost:3000/_anycable", **env})

    def test_ruby(self):
        for block in self.of("ruby"):
            with self.subTest(block.where):
                done = run("ruby", "-wc", "-", input=block.text)
                self.assertEqual((done.returncode, done.stdout), (0, "Syntax OK\n"))

    def test_fish(self):
        for block in self.of("fish"):
            with self.subTest(block.where):
                wrapped = {**os.environ, "PATH": f"{pathlib.Path(shell.BINARY).parent}:{os.environ['PATH']}", "HOME": "/tmp"}
                done = run("fish", "--no-config", "-c", block.text, env=wrapped)
                self.assertEqual(done.returncode, 0, done.stdout)

    def test_nginx(self):
        for block in self.of("nginx"):
            with self.subTest(block.where), written(nginx(block.text), ".conf") as file:
                done = run("nginx", "-t", "-c", file.name)
                self.assertEqual(done.returncode, 0, done.stdout)

    def test_caddyfile(self):
        for block in self.of("caddyfile"):
            with self.subTest(block.where):
                validate_caddyfile(self, block.text)

    def test_what_is_left_out_exists(self):
        commands = [block.text for block in BLOCKS if block.language in SHELLS]
        commands += [command for block in BLOCKS if block.language in SHELLS for command, _ in block.commands()]
        for pattern, why, _ in NOT_RUN:
            self.assertTrue(any(re.search(pattern, command, re.DOTALL) for command in commands), f"nothing is left out by {pattern} ({why})")


def caddyfile_of(page):
    (text,) = [block.text for block in BLOCKS if block.page == page and block.language == "caddyfile"]
    return text


def variables_of(document):
    """The ANYCABLE_* maps and lists of a document that are the server's: those with something but the app's variables."""
    from test_names import GEM

    found = []

    def walk(value):
        if isinstance(value, dict):
            env = {name: str(text) for name, text in value.items() if str(name).startswith("ANYCABLE_") and name not in GEM}
            if env:
                found.append(env)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            pairs = [item for item in value if isinstance(item, dict) and str(item.get("name", "")).startswith("ANYCABLE_")]
            if pairs:
                found.append({item["name"]: str(item["value"]) for item in pairs})
            for item in value:
                walk(item)

    walk(document)
    # Compose's own variables have the value behind `:-`.
    return [{name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in env.items()} for env in found]


def nginx(text):
    """A block of the pages inside what nginx needs around it."""
    main = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("worker_"))
    server = "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("worker_"))
    return f"{main}pid {shell.WORK}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\nserver {{\nlisten 127.0.0.1:8081;\n{server}\n}}\n}}\n"


def caddy_version(program):
    numbers = re.match(r"v?(\d+)\.(\d+)", run(program, "version").stdout)
    return tuple(int(number) for number in numbers.groups())


CADDY_BIN = os.environ.get("CADDY_BIN") or shutil.which("caddy")


class Caddy:
    """A Caddy that runs a page's file: its names lead here, and its certificates are its own."""

    OPTIONS = "{\n\tlocal_certs\n\tskip_install_trust\n\tadmin 127.0.0.1:2019\n}\n"

    def __init__(self, text):
        self.home = tempfile.TemporaryDirectory()
        self.file = pathlib.Path(self.home.name, "Caddyfile")
        self.write(text)

    def write(self, text):
        self.file.write_text(self.OPTIONS + for_this_caddy(text))

    def command(self, *words):
        return [CADDY_BIN, *words, "--adapter", "caddyfile", "--config", str(self.file)]

    def __enter__(self):
        env = {**os.environ, "HOME": self.home.name, "XDG_DATA_HOME": self.home.name, "XDG_CONFIG_HOME": self.home.name}
        self.process = subprocess.Popen(self.command("run"), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        probe = ["curl", "--silent", "--output", "/dev/null", "http://127.0.0.1:2019/config/"]
        shell.Shell.wait("Caddy", lambda: subprocess.run(probe, check=False).returncode == 0)
        return self

    def reload(self):
        done = run(*self.command("reload"), "--force")
        assert done.returncode == 0, done.stdout

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.home.cleanup()


def for_this_caddy(text):
    """Before 2.7 there is no stream_close_delay: the pages say that the line goes then."""
    if caddy_version(CADDY_BIN) >= (2, 7):
        return text
    print(f"{CADDY_BIN} is older than 2.7: without stream_close_delay")
    return "".join(line for line in text.splitlines(keepends=True) if "stream_close_delay" not in line)


def validate_caddyfile(test, text):
    with written(for_this_caddy(text), "") as file:
        done = run(CADDY_BIN, "validate", "--adapter", "caddyfile", "--config", file.name, env={**os.environ, "HOME": "/tmp"})
        test.assertEqual(done.returncode, 0, done.stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
