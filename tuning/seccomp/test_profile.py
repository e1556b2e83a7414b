#!/usr/bin/env python3
"""Tests of the profile: what it allows, and that ringcable runs on io_uring under it and on epoll without the three calls.

    cargo build --release && python3 tuning/seccomp/test_profile.py

RINGCABLE names another binary. Needs Linux with seccomp and libseccomp.so.2, no container and no root.
"""

import copy
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
import urllib.request

import make_profile

HERE = pathlib.Path(__file__).resolve().parent
RINGCABLE = os.environ.get("RINGCABLE", str(HERE.parent.parent / "target/release/ringcable"))
PROFILE = json.loads((HERE / "ringcable.json").read_text())


def allowed(profile):
    """Calls that are allowed whatever their arguments are."""
    return {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule["args"] and not rule.get("includes")
        for name in rule["names"]
    }


def without_io_uring(profile):
    profile = copy.deepcopy(profile)
    profile["syscalls"] = [rule for rule in profile["syscalls"] if "io_uring_setup" not in rule["names"]]
    return profile


class Confined:
    """A program under a profile."""

    def __init__(self, profile, *command):
        self.file = tempfile.NamedTemporaryFile("w", suffix=".json")
        json.dump(profile, self.file)
        self.file.flush()
        command = [sys.executable, str(HERE / "run_under.py"), self.file.name, *command]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate(timeout=30)
        self.file.close()


def serve(profile):
    """Starts ringcable, asks for its health, and returns its line about the driver."""
    command = [RINGCABLE, "--norpc", "--secret=s", "--host=127.0.0.1", "--port=0", "--cores=2"]
    log = []
    with Confined(profile, *command) as confined:
        for line in confined.process.stdout:
            log.append(line)
            if "ringcable is ready" in line:
                break
        text = "".join(log)
        url = re.search(r"Handle health requests at (http://\S+)", text)
        if not url:
            raise AssertionError(f"it did not start:\n{text}")
        with urllib.request.urlopen(url[1], timeout=10) as answer:
            assert answer.status == 200
        if "refused to this shard" in text:
            raise AssertionError(f"a shard fell back:\n{text}")
        return re.search(r"driver .*", text)[0]


ASKED = """
import ctypes, os, platform, socket
libc = ctypes.CDLL(None, use_errno=True)
CLONE = 56 if platform.machine() == "x86_64" else 220
def raise_errno():
    raise OSError(ctypes.get_errno(), "")
try:
    {statement}
except OSError as error:
    print(error.errno)
else:
    print(0)
"""


def errno_of(statement):
    """What the kernel says to a Python statement under the profile: an errno, or 0."""
    program = ASKED.format(statement=statement)
    with Confined(PROFILE, sys.executable, "-c", program) as confined:
        output = confined.process.communicate(timeout=30)[0]
    return int(output)


class Contents(unittest.TestCase):
    def test_the_file_is_what_the_rules_say(self):
        names = allowed(PROFILE) | make_profile.BLOCKED | set(make_profile.CONDITIONAL)
        self.assertEqual(make_profile.profile(names), PROFILE)

    def test_what_docker_documents_as_blocked_is_blocked(self):
        self.assertEqual(allowed(PROFILE) & make_profile.words(make_profile.DOCUMENTED), set())

    def test_the_three_calls_are_all_that_is_added(self):
        added = allowed(PROFILE) - allowed(without_io_uring(PROFILE))
        self.assertEqual(added, set(make_profile.IO_URING))

    def test_a_base_keeps_its_rules_and_gets_the_three_calls(self):
        base = {
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": []},
                {"names": ["io_uring_setup", "bpf"], "action": "SCMP_ACT_ERRNO", "args": []},
                {"names": ["io_uring_enter"], "action": "SCMP_ACT_ERRNO", "args": []},
            ],
        }
        before = copy.deepcopy(base)
        result = make_profile.with_io_uring(base)
        self.assertEqual(base, before)
        self.assertEqual(allowed(result), {"read", "write", *make_profile.IO_URING})
        self.assertEqual([rule["names"] for rule in result["syscalls"][:2]], [["read", "write"], ["bpf"]])

    def test_headers_are_read(self):
        header = "#define __NR_read 0\n#define __NR3264_fcntl 25\n#define __NR_syscalls 451\n#define __NRX 1\n"
        self.assertEqual(make_profile.names_in([header]), {"read", "fcntl"})


class Enforced(unittest.TestCase):
    def test_ringcable_runs_on_io_uring(self):
        self.assertTrue(serve(PROFILE).startswith("driver io_uring "))

    def test_without_the_three_calls_it_runs_on_epoll_and_says_why(self):
        line = serve(without_io_uring(PROFILE))
        self.assertTrue(line.startswith("driver epoll "), line)
        self.assertIn("seccomp", line)

    def test_namespaces_and_virtual_sockets_are_refused(self):
        unshare = "libc.unshare(0x10000000) == 0 or raise_errno()"
        self.assertEqual(errno_of(unshare), make_profile.EPERM)
        # Flags of fork with a new user namespace, straight past the C library.
        clone = "libc.syscall(CLONE, 0x10000011, 0, 0, 0, 0) >= 0 or raise_errno()"
        self.assertEqual(errno_of(clone), make_profile.EPERM)
        clone3 = "libc.syscall(435, 0, 0) >= 0 or raise_errno()"
        self.assertEqual(errno_of(clone3), make_profile.ENOSYS)
        self.assertEqual(errno_of("socket.socket(40, socket.SOCK_STREAM)"), make_profile.EPERM)
        self.assertEqual(errno_of("socket.socket(socket.AF_INET, socket.SOCK_STREAM)"), 0)

    def test_processes_and_threads_start(self):
        self.assertEqual(errno_of("__import__('subprocess').run(['true'], check=True)"), 0)
        self.assertEqual(errno_of("t = __import__('threading').Thread(target=int); t.start(); t.join()"), 0)


if __name__ == "__main__":
    unittest.main()
