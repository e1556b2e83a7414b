"""Names in the pages and in deploy/: variables, flags, links."""

import re
import subprocess
import unittest

import shell
from pages import ROOT, files, pages

# Variables that AnyCable's gems read (lib/anycable/config.rb of anycable-core, lib/anycable/rails/config.rb of anycable-rails-core), and
# which are no options of the server. What both know, such as ANYCABLE_SECRET, is in the table.
GEM = {
    "ANYCABLE_HTTP_BROADCAST_URL": "anycable-core: where the app posts its broadcasts",
    "ANYCABLE_WEBSOCKET_URL": "anycable-rails-core: where pages connect",
    "ANYCABLE_HTTP_RPC_MOUNT_PATH": "anycable-rails-core: where the app answers calls",
}
# Variables of one app, and misspelt ones that a page shows as such. {name: the files that may have it}
OTHERS = {
    "ANYCABLE_BROADCAST_URL": ["docs/campfire.md"],  # Campfire CE's config/anycable.yml
    "ANYCABLE_ENABLED": ["docs/campfire.md"],  # Campfire CE's config/cable.yml
    "ANYCABLE_MEMORY_METRICS": ["docs/COMPATIBILITY.md"],  # the reference's alone
    "ANYCABLE_RPC_HOTS": ["docs/configuration.md"],
    "ANYCABLE_FLY_RPC_APP_NAME": ["docs/configuration.md", "docs/COMPATIBILITY.md"],  # the reference's fly preset
}
NAME = re.compile(r"ANYCABLE_[A-Z0-9_]*[A-Z0-9]")
FLAG = re.compile(r"(?<![\w-])--([a-zA-Z][\w-]*)")


def table():
    return subprocess.run([shell.BINARY, "--generate=options"], check=True, capture_output=True, text=True).stdout


def texts():
    for name in [*pages(), *files("deploy/*", "Dockerfile", "tuning/*")]:
        try:
            yield name, (ROOT / name).read_text()
        except UnicodeDecodeError:
            pass


class Names(unittest.TestCase):
    def test_variables(self):
        known = set(NAME.findall(table()))
        self.assertGreater(len(known), 80, "the table of options")
        self.assertFalse(known & set(GEM), "an option of the server is no variable of the gem alone")
        seen, strange = set(), []
        for file, text in texts():
            for name in NAME.findall(text):
                seen.add(name)
                if name in known or name in GEM or file in OTHERS.get(name, []):
                    continue
                strange.append(f"{file}: {name}")
        self.assertEqual(strange, [], "neither the server nor the gem reads these")
        self.assertLessEqual({*GEM, *OTHERS}, seen | {"ANYCABLE_HTTP_RPC_MOUNT_PATH"}, "names that no page has any more")

    def test_inline_commands(self):
        """`ringcable --flag …` in the text of a page is taken as it stands, or has `…` where something is missing."""
        found = 0
        for page in pages():
            text = re.sub(r"(?ms)^\s*```.*?^\s*```$", "", (ROOT / page).read_text())
            for command in re.findall(r"`(ringcable [^`]+)`", text):
                if "…" in command or "N" in command.split() or "<" in command or "FILE" in command or "WORD" in command:
                    continue
                found += 1
                with self.subTest(f"{page}: {command}"):
                    self.try_command(command)
        self.assertGreater(found, 10)

    def try_command(self, command):
        words = command.partition(">")[0].split()
        if not any(re.match(r"--(generate|print-config|check|help|version)", word) for word in words):
            words.append("--check-config")
        if "--check-config" in words and not {"--demo", "--norpc"} & set(words) and not any(word.startswith("--rpc_host") for word in words):
            # With the flags, variables and file of the reader: these are its least.
            words.append("--norpc")
        done = subprocess.run([shell.BINARY, *words[1:]], cwd="/", env={}, capture_output=True, text=True, check=False)
        allowed = (0, 1) if "--check" in words else (0,)
        self.assertIn(done.returncode, allowed, done.stdout + done.stderr)

    def test_inline_questions(self):
        """`curl …` and others in the text of a page, put to a server with an app beside it. Any answer will do: it was understood."""
        terminal, found = shell.Shell(), 0
        try:
            code, output = terminal.type(f"ringcable --rpc_host=http://web:3000/_anycable --secret={shell.SECRET} --metrics_http=/metrics --console")
            self.assertEqual(code, 0, output)
            for page in pages():
                text = re.sub(r"(?ms)^\s*```.*?^\s*```$", "", (ROOT / page).read_text())
                for command in re.findall(r"`((?:curl|getent|openssl rand|printf) [^`]+)`", text):
                    if any(sign in command for sign in ("…", "<", "example")):
                        continue
                    found += 1
                    with self.subTest(f"{page}: {command}"):
                        code, output = terminal.type(command)
                        self.assertEqual(code, 0, output)
            self.assertGreater(found, 5)
        finally:
            terminal.close()

    def test_every_example_names_the_pages_that_may_connect(self):
        for name in ["compose/compose.yml", "kamal/deploy.yml", "kubernetes/base/deployment.yaml", "fly/fly.toml", "systemd/ringcable.default", "procfile/Procfile"]:
            text = (ROOT / "deploy" / name).read_text()
            self.assertRegex(text, "ANYCABLE_ALLOWED_ORIGINS|--allowed_origins=", name)

    def test_links(self):
        for page in pages():
            for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
                if target.startswith(("http:", "https:")):
                    continue
                path, _, anchor = target.partition("#")
                with self.subTest(f"{page}: {target}"):
                    file = (ROOT / page).parent / path if path else ROOT / page
                    self.assertTrue(file.exists())
                    if anchor:
                        self.assertIn(anchor, anchors(file.read_text()))


def anchors(text):
    """As GitHub makes them of headings."""
    text = re.sub(r"(?ms)^\s*```.*?^\s*```$", "", text)
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).strip().replace(" ", "-") for heading in headings}


if __name__ == "__main__":
    unittest.main(verbosity=2)
