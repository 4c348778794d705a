"""Where the instructions of a path of bench-counts go: callgrind's output, each line's cost given to a stage."""

import collections
import os
import re
import subprocess
import tempfile

from . import RELEASE, Failure, stages


def by_stage(name):
    """(instructions by stage, units of work) of one path."""
    with tempfile.TemporaryDirectory(prefix="profile-") as where:
        out = os.path.join(where, "callgrind")
        done = subprocess.run(["valgrind", "-q", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*measured*",
                               f"--callgrind-out-file={out}", os.path.join(RELEASE, "bench-counts"), name],
                              capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise Failure(f"callgrind of {name} failed: {done.stderr.strip()[-300:]}")
        with open(out) as f:
            return parse(f), int(done.stdout.split()[-1])


def parse(lines):
    """Names are compressed: `(1) text` where first met, `(1)` later; files and functions each have their numbers."""
    known = {"f": {}, "n": {}}
    costs = collections.Counter()
    function = own = file = ""
    skip = False

    def name(kind, text):
        match = re.match(r"\((\d+)\)(?: (.*))?", text)
        if not match:
            return text
        if match[2]:
            known[kind][match[1]] = match[2]
        return known[kind].get(match[1], "")

    for line in lines:
        if line[0] in "0123456789+-*":
            if skip:  # what a call cost is counted where it was spent
                skip = False
                continue
            # The line's file first, which may be of an inlined function, then the function's own.
            costs[stages.of_files([file, own], function)] += int(line.split()[1])
            continue
        key, _, value = line.rstrip("\n").partition("=")
        if key == "fl":
            own = file = name("f", value)
        elif key in ("fi", "fe"):
            file = name("f", value)
        elif key == "fn":
            function = name("n", value)
            file = own
        elif key in ("cfi", "cfl"):
            name("f", value)
        elif key == "cfn":
            name("n", value)
        elif key == "calls":
            skip = True
    return costs
