#!/usr/bin/env python3
"""Runs a program under a seccomp profile in Docker's format, without a container.

    run_under.py profile.json program [argument...]

Needs libseccomp.so.2. Of the conditions of a rule, minKernel is understood; a rule for a capability does not apply.
"""

import ctypes
import json
import os
import sys

ACTIONS = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_ERRNO": 0x00050000}
COMPARISONS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
EPERM = 1
UNKNOWN = -1


class Comparison(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


def library():
    lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    lib.seccomp_init.restype = ctypes.c_void_p
    lib.seccomp_init.argtypes = [ctypes.c_uint32]
    lib.seccomp_load.argtypes = [ctypes.c_void_p]
    lib.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(Comparison),
    ]
    return lib


def action(rule, name="action", errno="errnoRet"):
    number = ACTIONS[rule[name]]
    return number | rule.get(errno, EPERM) if rule[name] == "SCMP_ACT_ERRNO" else number


def version(text):
    major, minor = text.split(".")[:2]
    return int(major), int("".join(digit for digit in minor if digit.isdigit()))


def applies(rule):
    includes = rule.get("includes", {})
    if includes.get("caps") or includes.get("arches"):
        return False
    return version(os.uname().release) >= version(includes.get("minKernel", "0.0"))


def load(profile):
    """Puts the calling process, and what it becomes, under `profile`."""
    lib = library()
    default = action(profile, "defaultAction", "defaultErrnoRet")
    context = lib.seccomp_init(default)
    if not context:
        sys.exit("libseccomp refuses the default action")
    for rule in filter(applies, profile["syscalls"]):
        # libseccomp refuses a rule that says what the default says already.
        if action(rule) == default:
            continue
        comparisons = [
            Comparison(argument["index"], COMPARISONS[argument["op"]], argument["value"], argument.get("valueTwo", 0))
            for argument in rule.get("args") or []
        ]
        array = (Comparison * len(comparisons))(*comparisons)
        for name in rule["names"]:
            number = lib.seccomp_syscall_resolve_name(name.encode())
            # A runtime leaves out what its libseccomp does not know.
            if number == UNKNOWN:
                continue
            error = lib.seccomp_rule_add_array(context, action(rule), number, len(comparisons), array)
            if error:
                sys.exit(f"libseccomp refuses the rule for {name}: {os.strerror(-error)}")
    error = lib.seccomp_load(context)
    if error:
        sys.exit(f"the kernel refuses the filter: {os.strerror(-error)}")


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        load(json.load(file))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
