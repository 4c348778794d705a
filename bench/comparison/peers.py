"""The systems that are compared: how each is started, asked what it holds, and what it does not do."""

import json
import os
import re
import tempfile
import time
import urllib.parse

from . import CACHE, RELEASE, install
from .process import Process, free_port, get


class Peer:
    """`key` names it on the command line; `format` and `path` are how points are sent to it."""

    key = title = format = path = ""
    does_not = ""
    #: Fewer connections than the others get, where it cannot work with as many
    connections_max = None
    #: What `held` asks, for the page
    asked = ""

    def install(self):
        """Makes it available; its version."""
        raise NotImplementedError

    def start(self):
        """A running server with no data."""
        raise NotImplementedError

    def held(self, server, expected):
        """How many points it holds. It may wait a while for `expected`, where it makes points visible later."""
        return None

    def directory(self):
        # Not in /tmp, which may be memory: those that write to a disk shall all write to the same one.
        where = os.path.join(CACHE, "compare")
        os.makedirs(where, exist_ok=True)
        return tempfile.mkdtemp(prefix=f"{self.key}-", dir=where)


def write(cwd, name, text):
    path = os.path.join(cwd, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        f.write(text)


def settled(count, expected, patience_s=30):
    """Asks again until all is there, or nothing more has come for 3 s."""
    until = time.monotonic() + patience_s
    best, since = -1, time.monotonic()
    while time.monotonic() < until:
        now = count()
        if now > best:
            best, since = now, time.monotonic()
        if best >= expected or time.monotonic() - since > 3:
            break
        time.sleep(0.25)
    return best


class Noop(Peer):
    key, title, format, path = "noop", "no-op HTTP on the same ring", "line", "/write"
    does_not = "It finds the end of each request and answers 204: no parsing, nothing kept. It is the ceiling."

    def install(self):
        return "of this tree"

    def start(self):
        port = free_port()
        command = [f"{RELEASE}/bench-noop", "--listen", f"127.0.0.1:{port}", "--seconds", "3600"]
        return Process(command, self.directory(), port)


class Appliance(Peer):
    asked = "`accepted` of /api/v1/status"

    def __init__(self, durability, format):
        self.durability, self.format = durability, format
        self.key = f"{durability}-{format}"
        self.title = f"MetricStream, {'on disk' if durability == 'disk' else 'in memory'}, {'JSON' if format == 'json' else 'line'}"
        self.path = "/metrics" if format == "json" else "/write?precision=ns"
        when = {
            "disk": "Answers after its flush has completed.",
            "memory": "`durability = \"memory\"`: answers before its flush, which follows within a second.",
        }[durability]
        self.does_not = f"{when} Windows with quantiles, a limiter (unlimited here) and counting repeats once are on."

    def install(self):
        return install.run(f"{RELEASE}/metricstream", "--version").strip()

    def start(self):
        port, admin, cwd = free_port(), free_port(), self.directory()
        write(cwd, "ms.toml", f"""
[node]
shards = 1
[[listen]]
addresses = ["127.0.0.1:{port}"]
durability = "{self.durability}"
[admin]
listen = "127.0.0.1:{admin}"
[limiter]
requests_per_s = "unlimited"
[series]
per_client_max = 1_000_000
[windows]
lateness = "1 s"
[log]
bytes_max = "8 GiB"
""")
        command = [f"{RELEASE}/metricstream", "--config", "ms.toml", "run"]
        server = Process(command, cwd, port, f"http://127.0.0.1:{admin}/readyz")
        server.admin = admin
        return server

    def held(self, server, expected):
        status = lambda: json.loads(get(f"http://127.0.0.1:{server.admin}/api/v1/status"))["totals"]  # noqa: E731
        # What is answered is durable; what is durable at the end is all that was accepted.
        return settled(lambda: min(status()["accepted"], status()["durable"]), expected)


class Victoria(Peer):
    key, title, format, path = "victoria", "VictoriaMetrics", "line", "/write?precision=ns"
    asked = "`sum(count_over_time(...))`"
    does_not = ("Answers from memory: no flush before its answer. No windows and no quantiles while points come in, no limiter. "
                "Timestamps are cut to ms. Points sent twice are kept twice.")

    def install(self):
        return install.debian("victoria-metrics", "victoria-metrics")

    def start(self):
        port = free_port()
        command = ["victoria-metrics", f"-httpListenAddr=127.0.0.1:{port}", "-storageDataPath=data", "-loggerLevel=ERROR",
                   "-selfScrapeInterval=0", "-search.maxUniqueTimeseries=5000000", "-search.latencyOffset=0s",
                   "-search.disableCache", "-search.maxSamplesPerQuery=100000000000", "-search.maxQueryDuration=120s"]
        return Process(command, self.directory(), port, f"http://127.0.0.1:{port}/health")

    def held(self, server, expected):
        base = f"http://127.0.0.1:{server.port}"

        def count():
            get(f"{base}/internal/force_flush", timeout=60)
            query = urllib.parse.urlencode({"query": 'sum(count_over_time({__name__!=""}[2h]))', "time": int(time.time()) + 10})
            result = json.loads(get(f"{base}/api/v1/query?{query}", timeout=150))["data"]["result"]
            return int(float(result[0]["value"][1])) if result else 0

        return settled(count, expected)


class Influx(Peer):
    key, title, format, path = "influxdb", "InfluxDB", "line", "/write?db=bench&precision=ns"
    asked = "`SELECT COUNT(value)`"
    does_not = ("Writes and flushes its WAL before its answer, as the appliance does on disk. No windows and no quantiles while points come in, "
                "no limiter.")

    def install(self):
        return install.debian("influxd", "influxdb")

    def start(self):
        port, rpc, cwd = free_port(), free_port(), self.directory()
        write(cwd, "influxdb.conf", f"""
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
dir = "{cwd}/meta"
[data]
dir = "{cwd}/data"
wal-dir = "{cwd}/wal"
max-series-per-database = 0
max-values-per-tag = 0
[http]
bind-address = "127.0.0.1:{port}"
log-enabled = false
[monitor]
store-enabled = false
[logging]
level = "error"
""")
        server = Process(["influxd", "-config", "influxdb.conf"], cwd, port, f"http://127.0.0.1:{port}/ping")
        try:
            get(f"http://127.0.0.1:{port}/query", data=urllib.parse.urlencode({"q": "CREATE DATABASE bench"}).encode())
        except OSError:
            server.stop()
            raise
        return server

    def held(self, server, expected):
        query = urllib.parse.urlencode({"db": "bench", "q": "SELECT COUNT(value) FROM /.*/"})

        def count():
            answer = json.loads(get(f"http://127.0.0.1:{server.port}/query?{query}", timeout=300))
            series = answer["results"][0].get("series", [])
            return sum(row["values"][0][1] for row in series)

        return settled(count, expected)


def more_mappings(wanted=1_048_576, path="/proc/sys/vm/max_map_count"):
    """What QuestDB asks of a machine (its guide to capacity planning), for as long as it runs; gives what undoes it."""
    with open(path) as f:
        before = int(f.read())
    if before >= wanted:
        return None

    def put(value):
        with open(path, "w") as f:
            f.write(str(value))

    try:
        put(wanted)
    except OSError:
        return None  # without root it has to do with what there is
    return lambda: put(before)


class QuestDb(Peer):
    key, title, format, path = "questdb", "QuestDB", "line", "/write?precision=n"
    asked = "`SELECT count()` of each table"
    # With 64 it met a limit of 20,000 open files: some 12 for each of 100 names and each connection.
    connections_max = 4
    does_not = ("Commits each request to a WAL of each table without flushing it (its default). No windows and no quantiles while points come in, "
                "no limiter. Many names are its weak spot: each is a table, with a WAL for each connection, so it gets 4 connections only; its pages are set small, and vm.max_map_count is raised while it runs, where that is allowed.")

    def install(self):
        self.jar = install.questdb()
        return install.QUESTDB_VERSION

    def start(self):
        port, cwd = free_port(), self.directory()
        write(cwd, "conf/server.conf", f"""
http.bind.to=127.0.0.1:{port}
http.net.connection.limit=512
http.min.enabled=false
pg.enabled=false
line.tcp.enabled=false
telemetry.enabled=false
shared.worker.count=2
cairo.wal.writer.data.append.page.size=64k
cairo.writer.data.append.page.size=256k
cairo.o3.column.memory.size=256k
""")
        command = ["java", "-Xmx1g", "-p", self.jar, "-m", "io.questdb/io.questdb.ServerMain", "-d", cwd, "-n"]
        return Process(command, cwd, port, f"http://127.0.0.1:{port}/exec?query=select%201", after=more_mappings())

    def held(self, server, expected):
        def ask(query):
            url = f"http://127.0.0.1:{server.port}/exec?{urllib.parse.urlencode({'query': query})}"
            return json.loads(get(url, timeout=60))["dataset"]

        def count():
            return sum(ask(f'SELECT count() FROM "{name}"')[0][0] for (name,) in ask("SELECT table_name FROM tables()"))

        return settled(count, expected, patience_s=60)


class Telegraf(Peer):
    key, title, format, path = "telegraf", "Telegraf", "line", "/write?db=bench&precision=ns"
    asked = "`metrics_gathered` of its own statistics (it stores nothing)"
    does_not = ("Keeps nothing: it answers once the points are in its queue, and a crash loses what is not yet written out. Windows of 10 s by "
                "basicstats and quantile (t-digest), the nearest to ours; late points are dropped, points sent twice count twice. No limiter.")

    def install(self):
        self.binary = install.telegraf()
        return install.TELEGRAF_VERSION

    def start(self):
        port, cwd = free_port(), self.directory()
        write(cwd, "telegraf.conf", f"""
[agent]
interval = "1s"
round_interval = false
flush_interval = "1s"
metric_batch_size = 10000
metric_buffer_limit = 2000000
omit_hostname = true
quiet = true
[[inputs.influxdb_listener]]
service_address = "127.0.0.1:{port}"
[[inputs.internal]]
[[aggregators.basicstats]]
period = "10s"
drop_original = true
stats = ["count", "min", "max", "mean", "sum"]
namedrop = ["internal_*"]
[[aggregators.quantile]]
period = "10s"
drop_original = true
quantiles = [0.5, 0.95, 0.99]
algorithm = "t-digest"
namedrop = ["internal_*"]
[[outputs.discard]]
namedrop = ["internal_*"]
[[outputs.file]]
files = ["{cwd}/statistics"]
data_format = "influx"
namepass = ["internal_gather"]
""")
        return Process([self.binary, "--config", "telegraf.conf"], cwd, port)

    def held(self, server, expected):
        def count():
            with open(os.path.join(server.cwd, "statistics")) as f:
                found = re.findall(r"^internal_gather,.*input=influxdb_listener.*metrics_gathered=(\d+)", f.read(), re.M)
            return max(map(int, found), default=0)

        return settled(count, expected)


ALL = [
    Noop(),
    Appliance("memory", "line"),
    Appliance("disk", "line"),
    Appliance("memory", "json"),
    Appliance("disk", "json"),
    Victoria(),
    Influx(),
    QuestDb(),
    Telegraf(),
]
