"""Where a running server's time goes: perf's samples, each given to a stage."""

import collections
import os
import re
import subprocess

from . import Failure, stages


def event():
    """`cycles` where the machine counts them, a timer's ticks elsewhere, None without perf or the right to use it."""
    for candidate in ("cycles", "cpu-clock"):
        try:
            done = subprocess.run(["perf", "stat", "-e", candidate, "true"], capture_output=True, text=True, timeout=20)
        except OSError:
            return None
        if done.returncode == 0 and "not supported" not in done.stderr and "not counted" not in done.stderr:
            return candidate
    return None


def record(pid, seconds, which, out):
    command = ["perf", "record", "-q", "-e", which, "-F", "1999", "-g", "-p", str(pid), "-o", out, "--", "sleep", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    if done.returncode:
        raise Failure(f"perf record failed: {done.stderr.strip()[-300:]}")


FRAME = re.compile(r"^\s+([0-9a-f]+) (.*) \(([^()]*)\)$")


def executable_maps(pid):
    """(start, end, offset in the file, file) of the code of a running process: where its samples' addresses lie."""
    found = []
    with open(f"/proc/{pid}/maps") as f:
        for line in f:
            fields = line.split(None, 5)
            if "x" in fields[1] and len(fields) == 6:
                start, end = (int(part, 16) for part in fields[0].split("-"))
                found.append((start, end, int(fields[2], 16), fields[5].strip()))
    return found


def samples(path):
    """(thread's name, frames innermost first); a frame is (address, function, file)."""
    command = ["perf", "script", "-i", path, "-F", "comm,ip,sym,dso"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    thread, frames = None, []
    for line in [*text.splitlines(), ""]:
        if not line.strip():
            if thread and frames:
                yield re.sub(r"-\d+$", "", thread) if thread.startswith("iou-") else thread, frames
            thread, frames = None, []
        elif match := FRAME.match(line):
            frames.append((int(match[1], 16), match[2], match[3]))
        else:
            thread = line.strip()


def _program_headers(binary):
    """(file offset, virtual address, length) of what is loaded: an address in memory to one that addr2line knows."""
    text = subprocess.run(["readelf", "-lW", binary], capture_output=True, text=True).stdout
    found = re.findall(r"LOAD\s+0x([0-9a-f]+)\s+0x([0-9a-f]+)\s+0x[0-9a-f]+\s+0x([0-9a-f]+)", text)
    return [tuple(int(number, 16) for number in entry) for entry in found]


def _inlined(binary, addresses):
    """For each address the files of the functions that are inlined there, innermost first."""
    addresses = sorted(addresses)
    done = subprocess.run(["addr2line", "-a", "-i", "-e", binary], input="\n".join(map(hex, addresses)), capture_output=True,
                          text=True, timeout=300)
    files, current = {}, None
    for line in done.stdout.splitlines():
        if line.startswith("0x"):
            current = files.setdefault(int(line, 16), [])
        elif current is not None:
            current.append(line.rsplit(":", 1)[0])
    return files


def by_stage(path, binary, maps):
    """Samples by stage, by thread, and by function (with its stage). `maps`: see `executable_maps`."""
    binary = os.path.realpath(binary)
    headers = _program_headers(binary)
    code = [entry for entry in maps if os.path.realpath(entry[3]) == binary]
    taken, wanted = [], set()
    for thread, frames in samples(path):
        address, _, dso = frames[0]
        virtual = None
        if os.path.realpath(dso) == binary:
            # Some versions of perf print the place in memory, others that in the file.
            at = next((address - start + offset for start, end, offset, _ in code if start <= address < end), address)
            virtual = next((at - begin + base for begin, base, size in headers if begin <= at < begin + size), None)
            wanted.add(virtual)
        taken.append((thread, frames, virtual))
    files = _inlined(binary, wanted - {None})
    stage_of, threads, functions = collections.Counter(), collections.Counter(), collections.Counter()
    for thread, frames, virtual in taken:
        _, function, dso = frames[0]
        function = re.sub(r"\+0x[0-9a-f]+$", "", function)
        if dso.startswith("[") and dso not in ("[vdso]", "[unknown]"):
            stage = stages.of_kernel([frame[1] for frame in frames])
        else:
            stage = stages.of_files(files.get(virtual, []), function)
        stage_of[stage] += 1
        threads[thread] += 1
        functions[function, stage] += 1
    return stage_of, threads, functions
