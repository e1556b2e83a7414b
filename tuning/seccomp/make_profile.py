#!/usr/bin/env python3
"""Writes a seccomp profile in Docker's format that lets ringcable use io_uring.

    make_profile.py --base default.json > mine.json    your Docker's own profile plus the three io_uring calls: best
    make_profile.py > ringcable.json                   a profile from the rules below, for when you have no such file

The rules: every system call that the kernel's headers name is allowed, except those that Docker's documentation lists as
blocked by default (https://docs.docker.com/engine/security/seccomp/), those of the same kinds that came later, and calls
that no kernel serves. Everything else, also what kernels will have after these headers, gets EPERM. Only the native
64-bit calls of x86-64 and arm64 are allowed: ringcable has no others.
"""

import argparse
import json
import re
import sys

# What ringcable needs and Docker blocks since version 25.
IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")

# Blocked, by reason. Source: the table "Significant syscalls blocked by the default profile" of Docker's documentation.
DOCUMENTED = {
    "accounting and quotas": "acct quotactl",
    "the kernel's keyring has no namespaces": "add_key keyctl request_key",
    "programs in the kernel": "bpf create_module delete_module finit_module init_module query_module get_kernel_syms",
    "the clock has no namespaces": "clock_adjtime clock_settime settimeofday stime",
    "ports of the machine": "ioperm iopl",
    "another kernel": "kexec_file_load kexec_load reboot",
    "placement of memory": "get_mempolicy mbind move_pages set_mempolicy",
    "mounts": "mount pivot_root umount umount2",
    "files by handle, an old way out": "open_by_handle_at",
    "a look into other processes": "kcmp process_vm_readv process_vm_writev lookup_dcookie perf_event_open userfaultfd",
    "namespaces": "setns unshare",
    "swap": "swapon swapoff",
    "obsolete": "nfsservctl sysfs _sysctl uselib ustat vm86 vm86old",
}

# The table names the significant calls only; these are of the same kinds.
SAME_KIND = {
    "accounting and quotas": "quotactl_fd",
    "the clock has no namespaces": "clock_adjtime64 clock_settime64",
    "placement of memory": "migrate_pages set_mempolicy_home_node",
    "mounts": "fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr",
    "a look into other processes": "pidfd_getfd process_madvise fanotify_init syslog",
    "the host's name and terminals": "sethostname setdomainname vhangup",
    "served by no kernel": "afs_syscall epoll_ctl_old epoll_wait_old getpmsg putpmsg security tuxcall vserver",
}

# Allowed with conditions: see rules().
CONDITIONAL = ("clone", "clone3", "personality", "ptrace", "socket")

# Newer than the headers of long-lived distributions (Linux 6.1). C libraries try them first and take only ENOSYS for
# "not there", so that EPERM would break what the older calls do.
NEWER = (
    "cachestat fchmodat2 futex_requeue futex_wait futex_wake getxattrat listxattrat map_shadow_stack mseal removexattrat "
    "setxattrat"
).split()

HEADERS = (
    "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
    "/usr/include/asm/unistd_64.h",
    "/usr/include/asm-generic/unistd.h",
)
NAME = re.compile(r"#define\s+__NR(?:3264)?_(\w+)\s")
# Defined there too, and no calls.
NOT_CALLS = {"syscalls", "arch_specific_syscall"}

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: clone(2).
CLONE_NAMESPACES = 0x7E020000
# PER_LINUX, PER_LINUX32, each also with UNAME26, and the question which it is: personality(2).
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# Addresses of virtual sockets have no namespaces.
AF_VSOCK = 40
EPERM, ENOSYS = 1, 38


def words(groups):
    return {name for names in groups.values() for name in names.split()}


BLOCKED = words(DOCUMENTED) | words(SAME_KIND)


def names_in(header_texts):
    """The system calls that these headers define."""
    return {name for text in header_texts for name in NAME.findall(text)} - NOT_CALLS


def allow(names, args=(), **more):
    return {"names": sorted(names), "action": "SCMP_ACT_ALLOW", "args": list(args), **more}


def argument(index, op, value, value_two=0):
    return {"index": index, "value": value, "valueTwo": value_two, "op": op}


def io_uring_rule():
    return allow(IO_URING, comment="ringcable: not in Docker's default profile")


def rules(names):
    """The rules of the profile for a kernel that has these calls."""
    plain = (set(names) | set(NEWER)) - BLOCKED - set(CONDITIONAL) - set(IO_URING)
    namespaces = argument(0, "SCMP_CMP_MASKED_EQ", CLONE_NAMESPACES)
    return [
        allow(plain),
        # Before 4.8 a tracer could change a call behind the filter's back.
        allow(["ptrace"], includes={"minKernel": "4.8"}),
        *(allow(["personality"], [argument(0, "SCMP_CMP_EQ", value)]) for value in PERSONALITIES),
        allow(["clone"], [namespaces]),
        # Its flags are in memory, where no filter sees them: C libraries take clone when told that it is not there.
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS, "args": []},
        allow(["socket"], [argument(0, "SCMP_CMP_NE", AF_VSOCK)]),
        io_uring_rule(),
    ]


def profile(names):
    """A whole profile."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules(names),
    }


def with_io_uring(base):
    """`base` with the three calls allowed; rules that name them are cut."""
    kept = []
    for rule in base["syscalls"]:
        names = [name for name in rule["names"] if name not in IO_URING]
        if names:
            kept.append({**rule, "names": names})
    return {**base, "syscalls": kept + [io_uring_rule()]}


def read_headers(paths):
    texts = []
    for path in paths or HEADERS:
        try:
            with open(path, encoding="utf-8") as file:
                texts.append(file.read())
        except FileNotFoundError:
            if paths:
                raise
    return texts


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base", metavar="FILE", help="a profile to add the three calls to")
    options.add_argument("--headers", nargs="+", metavar="FILE", help="headers that define __NR_*, instead of this host's")
    given = options.parse_args()
    if given.base:
        with open(given.base, encoding="utf-8") as file:
            result = with_io_uring(json.load(file))
    else:
        names = names_in(read_headers(given.headers))
        if len(names) < 300:
            sys.exit("no kernel headers here (Debian: linux-libc-dev); name them with --headers, or use --base")
        result = profile(names)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
