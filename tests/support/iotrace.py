"""The kernel's own trace of a process's io_uring: which answers left before a write and a flush had completed.

Meant for one client that sends one request at a time and waits for the answer: then between two answers there must be a
completed write, followed by a completed fsync. Where the server writes with RWF_DSYNC instead, io_uring's events do not
show that flag; then ext4 must have synced one of the server's files before the write completed.
"""

import os
import re
import subprocess
import time
from pathlib import Path

TRACEFS = Path("/sys/kernel/tracing")
_SUBMIT = re.compile(r"(\d+\.\d+): io_uring_submit_req: .*?req (\S+), user_data (\S+?),.*?opcode (\S+?),")
_COMPLETE = re.compile(r"(\d+\.\d+): io_uring_complete: .*?req (\S+), user_data (\S+?), result (-?\d+)")
_SYNCED = re.compile(r"ext4_sync_file_enter: dev \S+ ino (\d+)")


def available():
    """None, or why not."""
    if not (TRACEFS / "events").exists():
        mounted = subprocess.run(["mount", "-t", "tracefs", "tracefs", str(TRACEFS)], capture_output=True, text=True)
        if mounted.returncode != 0:
            return f"tracefs cannot be mounted: {mounted.stderr.strip()}"
    if not (TRACEFS / "events/io_uring/io_uring_complete").exists():
        return "this kernel has no io_uring trace events"
    return None


def dsync_shows(path):
    """None, or why a write with RWF_DSYNC leaves no trace of its flush at `path`: a disk that honours FUA, or has no
    volatile cache, needs none."""
    if subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True).stdout.strip() != "ext2/ext3":
        return "not on ext4"
    device = os.stat(path).st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    queue = next((d / "queue" for d in (block, block.parent) if (d / "queue").exists()), None)
    if queue is None or (queue / "fua").read_text().strip() != "0" or "back" not in (queue / "write_cache").read_text():
        return "this disk needs no separate flush"
    return None


class IoTrace:
    """`directory`: only syncs of files below it count for writes with RWF_DSYNC."""

    EVENTS = ("io_uring/io_uring_submit_req", "io_uring/io_uring_complete", "ext4/ext4_sync_file_enter")

    def __init__(self, pid, directory=None):
        self.pid, self.directory = pid, directory
        self.instance = TRACEFS / "instances" / f"metricstream-{pid}"

    def __enter__(self):
        why_not = available()
        if why_not:
            import pytest
            pytest.skip(why_not)
        self.instance.mkdir()
        (self.instance / "buffer_size_kb").write_text("16384")
        (self.instance / "trace_clock").write_text("mono")
        for event in self.EVENTS:
            if (self.instance / "events" / event).exists():
                (self.instance / "events" / event / "enable").write_text("1")
        return self

    def __exit__(self, *_):
        time.sleep(0.1)
        (self.instance / "tracing_on").write_text("0")
        self.text = (self.instance / "trace").read_text()
        self.threads = {p.name for p in Path(f"/proc/{self.pid}/task").iterdir()}
        self.instance.rmdir()
        self.inodes = {p.stat().st_ino for p in Path(self.directory).rglob("*")} if self.directory else set()

    def events(self):
        """(time_s, "submit" | "complete" | "sync", opcode, result). Of all rings on the machine, only those of the process
        that sent something count: its shards."""
        sending, rows, opcode_of = set(), [], {}
        lines = self.text.splitlines()
        # Thread ids in the trace are those of the machine: in a container they tell nothing, and all rings count.
        ours = {_ring(line) for line in lines if _SUBMIT.search(line) and _thread(line) in self.threads}
        for line in lines:
            if match := _SUBMIT.search(line):
                opcode_of[match[2]] = match[4].upper()
                rows.append((_ring(line), float(match[1]), "submit", match[4].upper(), None))
                if match[4].upper().startswith("SEND") and (not ours or _ring(line) in ours):
                    sending.add(_ring(line))
            elif match := _COMPLETE.search(line):
                rows.append((_ring(line), float(match[1]), "complete", opcode_of.get(match[2], "?"), int(match[4])))
            elif (match := _SYNCED.search(line)) and int(match[1]) in self.inodes:
                rows.append((None, 0.0, "sync", "", None))
        return [row[1:] for row in rows if row[0] in sending or row[2] == "sync"]

    def early_answers(self, dsync=False):
        """([answers that left too early], number of answers)."""
        early, answers = [], 0
        written = synced = flushed = False
        for at, what, opcode, result in self.events():
            if what == "sync":
                synced = True
            elif what == "complete" and opcode.startswith("WRITE") and result > 0:
                written, flushed = True, dsync and synced
            elif what == "complete" and opcode == "FSYNC" and result == 0 and written:
                flushed = True
            elif what == "submit" and opcode.startswith("WRITE"):
                synced = False  # what follows is this write's own
            elif what == "submit" and opcode.startswith("SEND"):
                answers += 1
                if not flushed:
                    early.append(f"answer {answers} at {at:.6f} s, before its flush")
                written = synced = flushed = False
        return early, answers


def _ring(line):
    return re.search(r"ring (\S+?),", line)[1]


def _thread(line):
    return re.match(r" *.*-(\d+) +(?:\(.{7}\) +)?\[\d+\]", line)[1]
