"""The kernel's own trace of a process's io_uring: which answers left before a write and a flush had completed.

Meant for one client that sends one request at a time and waits for the answer: then between two answers there must be a
completed write, followed by a completed fsync (or the write must itself be one with RWF_DSYNC, whose completion the
kernel gives only when the data is stable).
"""

import re
from pathlib import Path
import subprocess
import time

TRACEFS = Path("/sys/kernel/tracing")
_SUBMIT = re.compile(r"(\d+\.\d+): io_uring_submit_req: .*?req (\S+), user_data (\S+?),.*?opcode (\S+?),")
_COMPLETE = re.compile(r"(\d+\.\d+): io_uring_complete: .*?req (\S+), user_data (\S+?), result (-?\d+)")


def available():
    """None, or why not."""
    if not (TRACEFS / "events").exists():
        mounted = subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACEFS)], capture_output=True, text=True)
        if mounted.returncode != 0:
            return f"tracefs cannot be mounted: {mounted.stderr.strip()}"
    if not (TRACEFS / "events/io_uring/io_uring_complete").exists():
        return "this kernel has no io_uring trace events"
    return None


class IoTrace:
    def __init__(self, pid):
        self.pid = pid
        self.instance = TRACEFS / "instances" / f"metricstream-{pid}"

    def __enter__(self):
        why_not = available()
        if why_not:
            import pytest
            pytest.skip(why_not)
        self.instance.mkdir()
        (self.instance / "buffer_size_kb").write_text("16384")
        (self.instance / "trace_clock").write_text("mono")
        for event in ("io_uring_submit_req", "io_uring_complete"):
            (self.instance / "events/io_uring" / event / "enable").write_text("1")
        (self.instance / "tracing_on").write_text("1")
        return self

    def __exit__(self, *_):
        time.sleep(0.1)
        (self.instance / "tracing_on").write_text("0")
        self.text = (self.instance / "trace").read_text()
        self.instance.rmdir()

    def events(self):
        """(time_s, "submit" or "complete", opcode, result) of the rings that send; other processes' are left out by
        their rings: only rings that submitted SEND count."""
        sending, rows, opcode_of = set(), [], {}
        for line in self.text.splitlines():
            ring = re.search(r"ring (\S+?),", line)
            if not ring:
                continue
            ring = ring.group(1)
            match = _SUBMIT.search(line)
            if match:
                opcode = match.group(4).upper()
                opcode_of[match.group(2)] = opcode
                if opcode.startswith("SEND"):
                    sending.add(ring)
                rows.append((ring, float(match.group(1)), "submit", opcode, None))
                continue
            match = _COMPLETE.search(line)
            if match:
                rows.append((ring, float(match.group(1)), "complete", opcode_of.get(match.group(2), "?"),
                             int(match.group(4))))
        return [row[1:] for row in rows if row[0] in sending]

    def early_answers(self, dsync=None):
        """([answers that left too early], number of answers)."""
        early, answers = [], 0
        written = flushed = False
        flushes = any(op == "FSYNC" for _, _, op, _ in self.events())
        for at, what, opcode, result in self.events():
            if what == "complete" and opcode.startswith("WRITE") and result > 0:
                written, flushed = True, not flushes  # without any fsync in the trace, writes are RWF_DSYNC
            elif what == "complete" and opcode == "FSYNC" and result == 0 and written:
                flushed = True
            elif what == "submit" and opcode.startswith("SEND"):
                answers += 1
                if not flushed:
                    early.append(f"answer {answers} at {at:.6f} s, before its flush")
                written = flushed = False
        return early, answers
