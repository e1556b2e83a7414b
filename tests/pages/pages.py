"""The pages and their code blocks; what is not typed in a test, and why."""

import dataclasses
import functools
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^(\s*)```(\S*)(.*)$")

# Languages of blocks that nobody types: texts, and log lines with a test of their own (tests/integration/troubleshooting.rs).
NOT_TYPED = {"", "text", "log"}
SHELLS = {"sh", "console"}


@dataclasses.dataclass
class Block:
    page: str
    line: int
    language: str
    # What stands behind the language: who sends or gets a message (docs/api.md), the name of a log line.
    note: str
    text: str

    @property
    def where(self):
        return f"{self.page}:{self.line}"

    def commands(self):
        """(command, expected lines) of a shell block. In `console` a command begins with `$ ` and what it prints follows."""
        if self.language == "console":
            found = []
            for line in self.text.splitlines():
                if line.startswith("$ "):
                    found.append((line[2:], []))
                elif found and found[-1][0].endswith("\\") and not found[-1][1]:
                    found[-1] = (f"{found[-1][0]}\n{line}", [])
                else:
                    found[-1][1].append(line)
            return found
        found, open_lines = [], []
        for line in self.text.splitlines():
            if not open_lines and (not line.strip() or line.startswith("#") and not line.startswith("#!")):
                continue
            open_lines.append(line)
            if is_whole("\n".join(open_lines)):
                found.append(("\n".join(open_lines), []))
                open_lines = []
        assert not open_lines, f"{self.where} has a command without an end: {open_lines}"
        return found


@functools.cache
def is_whole(text):
    """Whether bash would run this, or wait for the next line."""
    if text.endswith("\\"):
        return False
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    return done.returncode == 0 and "here-document" not in done.stderr


def files(*patterns):
    listed = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # A file that is not committed yet is a page as well.
    new = ["git", "ls-files", "--others", "--exclude-standard", *patterns]
    listed += subprocess.run(new, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in listed.splitlines() if (ROOT / name).is_file()})


def pages():
    return files("README.md", "docs/*.md", "deploy/*.md", "tuning/*.md")


def blocks():
    found = []
    for page in pages():
        inside = None
        for number, line in enumerate((ROOT / page).read_text().splitlines(), 1):
            fence = FENCE.match(line)
            if inside is None and fence:
                inside = (number, fence[2], fence[3].strip(), len(fence[1]), [])
            elif fence and not fence[2]:
                start, language, note, indent, lines = inside
                found.append(Block(page, start, language, note, "".join(text[indent:] + "\n" for text in lines)))
                inside = None
            elif inside:
                inside[4].append(line)
        assert inside is None, f"{page}: a block that does not end"
    return found


# (what the command matches, why it is not typed here, what does it instead). Each must match something; each command that is left out is
# still read by `bash -n` and shellcheck.
NOT_RUN = [
    (r"^rustup toolchain |^cargo \+nightly fuzz ", "needs a nightly toolchain and ten minutes", "cargo test replays the corpora"),
    (r"^docker |^RINGCABLE_IMAGE=\S+ docker ", "needs Docker and base images", ".ci/container builds and runs the image and the Compose files"),
    (r"^curl -N ", "goes on until it is stopped", "tests/integration/sse.rs"),
    (r"^kamal ", "needs Kamal and a server", "nothing"),
    (r"^kubectl ", "needs a cluster", "`kubectl kustomize`, where kubectl is; .ci/container holds the manifests against the API's schemas"),
    (r"^sudo(edit)? |^systemctl ", "needs systemd as PID 1", ".ci/container installs the package into a Debian that boots systemd"),
    (r"^bin/rails |^bundle ", "needs a Rails app", "nothing"),
    (r"^(grep|sed) .* app/channels/", "needs the channels of an app", "test_commands_for_channels"),
    (r"^cargo install ", "compiles a tool for minutes", ".ci/container"),
    (r"^deploy/release/deb.sh", "needs cargo-deb", ".ci/container"),
    (r"^cargo test", "is a part of .ci/run of its own", ".ci/run"),
    (r"cargo bench ", "takes up to an hour", ".ci/run runs the short ones"),
    (r"^python3 make_profile.py", "needs a file of Docker's", "tuning/seccomp/test_profile.py"),
    (r"^#!/bin/sh\n.*RENEWED_LINEAGE", "is a hook of certbot", "nothing"),
]
# Need the release build.
NEED_RELEASE = [r"^cargo run --release", r"^deploy/release/tarball.sh"]


def why_not_run(command):
    return next((entry for entry in NOT_RUN if re.search(entry[0], command, re.DOTALL)), None)
