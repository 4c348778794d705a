"""A server under measurement: on one core, in a directory of its own, ended by its process id."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

from . import SERVER_CORE, Failure

HERTZ = os.sysconf("SC_CLK_TCK")
START_TIMEOUT_S = 60


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(url, timeout=10, data=None):
    try:
        with urllib.request.urlopen(url, data=data, timeout=timeout) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise OSError(f"{error}: {error.read()[:200].decode(errors='replace')}") from error


def _stat(pid):
    """Parent and CPU ticks (user and system, its reaped children included) of a process."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return int(fields[1]), sum(int(n) for n in fields[11:15])


def _all_the_files():
    """As a service manager would: as many open files as the machine lets it have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for wanted in (1_048_576, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
            return
        except (OSError, ValueError):
            continue


class Process:
    def __init__(self, command, cwd, port, ready=None, after=None):
        """`ready`: an address that answers once it serves. `after` runs when it has stopped."""
        self.port, self.cwd, self.command, self.after = port, cwd, command, after
        self.log = open(os.path.join(cwd, "output"), "wb")
        self.process = subprocess.Popen(["taskset", "-c", str(SERVER_CORE), *command], cwd=cwd, stdin=subprocess.DEVNULL,
                                        stdout=self.log, stderr=self.log, start_new_session=True,
                                        preexec_fn=_all_the_files)
        self.pid = self.process.pid
        try:
            self._wait_until_ready(ready)
        except Failure:
            self.stop()
            raise

    def _wait_until_ready(self, ready):
        until = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until:
            if not self.is_alive():
                raise Failure(f"{os.path.basename(self.command[0])} ended while it started: {self.last_words()}")
            try:
                if ready:
                    get(ready, timeout=2)
                else:
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise Failure(f"{os.path.basename(self.command[0])} was not ready within {START_TIMEOUT_S} s: {self.last_words()}")

    def is_alive(self):
        return self.process.poll() is None

    def last_words(self):
        self.log.flush()
        with open(os.path.join(self.cwd, "output"), "rb") as f:
            return f.read()[-300:].decode(errors="replace").strip().replace("\n", " / ") or "it said nothing"

    def cpu_s(self):
        """User and system time of the process and what it started; the kernel's workers of its ring are threads of it."""
        ticks, family = 0, {self.pid}
        stats = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    stats[int(name)] = _stat(name)
                except OSError:
                    continue
        while more := {pid for pid, (parent, _) in stats.items() if parent in family} - family:
            family |= more
        ticks = sum(stats[pid][1] for pid in family if pid in stats)
        return ticks / HERTZ

    def memory_mib(self):
        """Resident now, and the most it was."""
        found = {}
        with open(f"/proc/{self.pid}/status") as f:
            for line in f:
                name, value = line.split(":", 1)
                if name in ("VmRSS", "VmHWM"):
                    found[name] = int(value.split()[0]) / 1024
        return found.get("VmRSS"), found.get("VmHWM")

    def stop(self):
        if self.is_alive():
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.pid, signal.SIGKILL)  # the session that was started for it
                self.process.wait(20)
        self.log.close()
        if self.after:
            self.after()
        shutil.rmtree(self.cwd, ignore_errors=True)
