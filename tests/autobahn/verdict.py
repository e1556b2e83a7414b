"""Reads the index of Autobahn's reports, prints a table by group, and fails when a case did."""

import collections
import json
import sys

# NON-STRICT: allowed, but later than could be. INFORMATIONAL: no right or wrong. UNIMPLEMENTED: the offer of compression
# was declined.
PASSED = ["OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"]
# They ask the server for a window of 512 bytes, which its compressor cannot keep: declining is right.
MAY_DECLINE = ("13.3.", "13.5.")


def is_passed(name, behavior):
    if behavior == "UNIMPLEMENTED":
        return name.startswith(MAY_DECLINE)
    return behavior in PASSED


def main(path):
    with open(path) as file:
        (cases,) = json.load(file).values()
    groups = collections.defaultdict(collections.Counter)
    failed = []
    for name, case in cases.items():
        behaviors = [case["behavior"], case["behaviorClose"]]
        wrong = [behavior for behavior in behaviors if not is_passed(name, behavior)]
        groups[int(name.split(".")[0])]["FAILED" if wrong else behaviors[0]] += 1
        if wrong:
            failed.append(f"{name}: {' / '.join(behaviors)}")
    print("| group | cases | " + " | ".join(PASSED) + " | failed |")
    print("| --- " * (3 + len(PASSED)) + "|")
    for group, counts in sorted(groups.items()):
        row = [counts[behavior] for behavior in PASSED]
        total = sum(counts.values())
        print(f"| {group} | {total} | " + " | ".join(map(str, row)) + f" | {total - sum(row)} |")
    print(f"{len(cases)} cases, {len(failed)} failed")
    for line in sorted(failed):
        print(f"FAILED {line}")
    if failed or not cases:
        sys.exit(1)


main(sys.argv[1])
