"""One appliance under a load by the clock, and what is seen of it: memory, CPU by thread, what each sink has and lacks.

The shard's thread has its core to itself: what is started after an appliance runs on the others.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time

from . import RELEASE
from .generator import decode_histogram, percentile
from .process import free_port, get

LOADGEN = os.path.join(RELEASE, "metricstream-loadgen")
BATCH = 100
# Windows are kept for revision for this long: after it their memory is what it stays at.
HORIZON_S = 60


ALL_CORES = os.sched_getaffinity(0)


def _goes_first():
    """Clients are other machines: nothing here may keep them waiting."""
    try:
        os.nice(-10)
    except PermissionError:
        pass


class Null:
    """The null server at the other end of a sink."""

    def __init__(self, port):
        self.port, self.process = port, None

    def start(self):
        self.process = subprocess.Popen([LOADGEN, "null-server", "--listen", f"127.0.0.1:{self.port}"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def sink(self):
        """The keys of a sink that delivers there."""
        return f'type = "influx"\nurl = "http://127.0.0.1:{self.port}"\ndatabase = "telemetry"\nsend = "raw"\n'


class Appliance:
    def __init__(self, where, sinks):
        """`sinks`: each the text of its table's keys, by name."""
        self.port, self.admin = free_port(), free_port()
        os.makedirs(where)
        config = os.path.join(where, "metricstream.toml")
        with open(config, "w") as f:
            f.write(f"""
[node]
shards = 1
data_dir = "{where}/data"
[[listen]]
addresses = ["127.0.0.1:{self.port}"]
[admin]
listen = "127.0.0.1:{self.admin}"
[limiter]
requests_per_s = "unlimited"
[log]
bytes_max = "32 GiB"
segment_bytes = "256 MiB"
[windows]
horizon = "{HORIZON_S} s"
""")
            for name, keys in sinks.items():
                f.write(f'[[sink]]\nname = "{name}"\n{keys}')
        self.output = open(os.path.join(where, "output"), "w+")
        os.sched_setaffinity(0, ALL_CORES)
        self.process = subprocess.Popen([os.path.join(RELEASE, "metricstream"), "--config", config, "run"],
                                        stdout=self.output, stderr=self.output)
        until = time.monotonic() + 30
        while True:
            try:
                get(f"http://127.0.0.1:{self.admin}/readyz", 1)
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.output.seek(0)
                    sys.exit("the appliance does not start:\n" + self.output.read()[-2000:])
                time.sleep(0.1)
        if len(ALL_CORES) > 1:
            # What is started from now on leaves the shard its core.
            os.sched_setaffinity(0, ALL_CORES - {self.shard_core()})

    def rss_mib(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmRSS"))

    def cpu_s(self):
        with open(f"/proc/{self.process.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def shard_core(self):
        """The one core that the shard's thread is pinned to."""
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            with open(f"/proc/{self.process.pid}/task/{task}/comm") as f:
                if f.read().startswith("ms-shard"):
                    cores = os.sched_getaffinity(int(task))
                    assert len(cores) == 1, f"the shard is not pinned: {cores}"
                    return cores.pop()
        raise AssertionError("no thread of a shard")

    def shard_cpu_s(self):
        """Of the shard's thread and the kernel's workers of its ring."""
        ticks, tasks = 0, f"/proc/{self.process.pid}/task"
        for task in os.listdir(tasks):
            with open(f"{tasks}/{task}/stat") as f:
                name, fields = f.read().split("(", 1)[1].rsplit(")", 1)
            if name.startswith(("ms-shard", "iou-")):
                ticks += sum(int(n) for n in fields.split()[11:13])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self):
        self.process.terminate()
        began = time.monotonic()
        self.process.wait()
        return time.monotonic() - began

    def sink(self, name, what):
        """Sum over logs."""
        text = get(f"http://127.0.0.1:{self.admin}/metrics").decode()
        lines = [line for line in text.splitlines() if line.startswith(f"metricstream_sink_{what}{{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if f'sink="{name}"' in line)


class Watch(threading.Thread):
    """Samples memory and the sinks' lags once a second."""

    def __init__(self, appliance, sinks):
        super().__init__(daemon=True)
        self.appliance, self.sinks, self.rows, self.over = appliance, sinks, [], threading.Event()
        self.start()

    def run(self):
        while not self.over.wait(1):
            a = self.appliance
            row = {"t": time.monotonic(), "rss_mib": a.rss_mib(), "cpu_s": a.cpu_s()}
            for name in self.sinks:
                row |= {f"{name}_lag_s": a.sink(name, "lag_seconds"), f"{name}_lag_points": a.sink(name, "lag_points"),
                        f"{name}_delivered": a.sink(name, "points_delivered_total")}
            self.rows.append(row)

    def between(self, start, end=float("inf")):
        return [row for row in self.rows if start <= row["t"] < end]


class Load:
    """The generator at a rate, until stopped or for `seconds`."""

    def __init__(self, appliance, points_per_s, series, seconds, where, name):
        self.out = os.path.join(where, name + ".json")
        self.process = subprocess.Popen(
            [LOADGEN, "run", "--target", f"http://127.0.0.1:{appliance.port}", "--batch", str(BATCH), "--series", str(series),
             "--clients", "64", "--connections", "64", "--rate", str(points_per_s // BATCH), "--duration", f"{seconds}s",
             "--quiet", "--json", self.out], stdout=subprocess.DEVNULL, preexec_fn=_goes_first)

    def result(self, stop=False):
        if stop:
            self.process.send_signal(signal.SIGINT)
        self.process.wait()
        with open(self.out) as f:
            document = json.load(f)
        totals = document["totals"]
        counts, late = (decode_histogram(document["histograms"][name]) for name in ("latency_us", "lateness_us"))
        return {"acknowledged": totals["points_acknowledged"], "failed": {**totals["refused"], **totals["unknown"]},
                "seconds": totals["duration_s"], "p50_ms": percentile(counts, 50) / 1000,
                "p99_ms": percentile(counts, 99) / 1000, "p999_ms": percentile(counts, 99.9) / 1000,
                "generator_late_p99_ms": percentile(late, 99) / 1000}
