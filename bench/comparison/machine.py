"""What a result is worth nothing without: the machine, its kernel, and the commit."""

import os
import platform
import subprocess

from . import ROOT


def _first(path, prefix):
    with open(path) as f:
        return next((line.split(":", 1)[1].strip() for line in f if line.startswith(prefix)), "?")


def commit():
    """Short hash, and whether the tree is what was committed."""
    git = lambda *command: subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True).stdout.strip()  # noqa: E731
    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" with local changes" if changed else "")


def describe(data):
    """`data`: where the servers keep theirs."""
    disk = subprocess.run(["findmnt", "-no", "FSTYPE,SOURCE", "-T", data], capture_output=True, text=True).stdout.split()
    return {
        "cpu": _first("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_gib": round(int(_first("/proc/meminfo", "MemTotal").split()[0]) / 2**20, 1),
        "kernel": platform.release(),
        "disk": " on ".join(disk) or "?",
        "load_before": os.getloadavg()[0],
    }
