"""Real Kafka and real InfluxDB at once: everything acknowledged is in both, exactly once after removing equal ids, through
kills of each side; and the windows in both equal an independent computation.

Points come from the load generator, whose ledger says what was sent. Three judges look at what arrived: kcat, which
knows nothing of the appliance, a count by InfluxDB itself, and `metricstream-loadgen verify`.
"""

import json
import random
import shutil
import subprocess
import threading
import time

import pytest

from support.kafka import Kafka
from support.server import eventually
from support.verified import Load, loadgen, verify

pytestmark = [pytest.mark.usefixtures("real_server_only"), pytest.mark.slow]
RAW, AGGREGATED = "metrics-raw", "metrics-aggregated"
SINKS = ("kafka", "influx")
FATES = ("delivered", "refused", "dead_lettered", "filtered", "dropped", "lost_to_damage")
# What an InfluxDB sink writes at once, and by far more than a Kafka sink's unit: a cursor goes on in such steps.
BATCH_POINTS = 5_000


@pytest.fixture
def kafka(tmp_path):
    with Kafka(tmp_path / "kafka") as kafka:
        kafka.create_topic(RAW)
        kafka.create_topic(AGGREGATED)
        yield kafka


def start(make_server, kafka, influxdb, listen, **settings):
    """Two shards, both sinks for points and windows; windows of 10 s, so that they close while a test waits."""
    server = make_server(
        node={"shards": 2}, listen=listen, windows={"windows": ["10 s"], "lateness": "2 s"},
        sink=[{"name": "kafka", "type": "kafka", "brokers": kafka.brokers, "retry_every_max": "1 s"},
              {"name": "influx", "type": "influx", "url": influxdb.url, "batch_points": BATCH_POINTS,
               "retry_every_max": "1 s", "request_within": "10 s"}], **settings)
    server.cli("influx", "init", "--url", influxdb.url)
    return server.start()


def books(server):
    """Of each sink and log, checked: what was read of it is delivered, set aside for a reason that is counted, or waits."""
    metrics, found = server.metrics(), {}
    logs = sorted({(dict(labels)["sink"], dict(labels)["log"]) for name, labels in metrics
                   if name == "metricstream_sink_points_read_total"})
    for sink, log in logs:
        def value(what):
            return metrics.sum(f"metricstream_sink_points_{what}", sink=sink, log=log)
        fates = {fate: value(f"{fate}_total") for fate in FATES}
        assert value("read_total") == sum(fates.values()) + value("waiting"), (sink, log, fates, value("waiting"))
        found[sink, log] = fates
    assert {sink for sink, _ in logs} == set(SINKS), logs
    return found


def lag(server):
    metrics = server.metrics()
    return {sink: metrics.sum("metricstream_sink_lag_points", sink=sink) for sink in SINKS}


def drained(server, timeout_s):
    """Until both sinks have acknowledged all there is."""
    def done():
        return not any(lag(server).values())
    eventually(done, timeout_s, lambda: f"lag {lag(server)}, {books(server)}\n{server.log_tail(20)}", every_s=0.5)


def cursors(server):
    """`log cursors --json`, as it is while the appliance runs or does not."""
    answer = server.cli("--config", str(server.config_path), "log", "cursors", "--json")
    return {(c["sink"], c["log"]): c for c in json.loads(answer.stdout)["cursors"]}


@pytest.fixture
def printed(tmp_path):
    """Where topics are printed to: gigabytes with --long, which nobody keeps."""
    directory = tmp_path / "printed"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


def kcat(kafka, topic, path):
    """The topic to its present end, as `verify` reads it."""
    with path.open("wb") as out:
        subprocess.run(["kcat", "-C", "-q", "-e", "-J", "-b", ",".join(kafka.brokers), "-t", topic, "-o", "beginning",
                        "-X", "check.crcs=true"], stdout=out, check=True, timeout=600)
    return path


def ids(path):
    """How many records, and how many different ids, in a judge of its own: not one line of ours has read this."""
    records, seen = 0, set()
    with path.open() as lines:
        for line in lines:
            headers = json.loads(line)["headers"]
            seen.add(headers[headers.index("id") + 1])
            records += 1
    return records, len(seen)


def count(influxdb):
    rows = influxdb.rows("SELECT count(value) FROM metrics.raw.server_metrics")
    return rows[0]["count"] if rows else 0


def all_windows_closed(server, ledger, acknowledged, timeout_s=90):
    """Until the listener shows every acknowledged point in a closed window; how many windows these are."""
    last = []

    def closed():
        done = loadgen("verify", "--json", "--ledger", ledger, "--window-lengths", "10", "--windows",
                       f"http://127.0.0.1:{server.admin_port}", timeout=300)
        assert done.returncode in (0, 1), done.stderr
        [verdict] = json.loads(done.stdout)
        last[:] = [{total["name"]: total["count"] for total in verdict["totals"]}, verdict["ok"], verdict["first"]]
        return last[1] and last[0]["points in closed windows"] == acknowledged
    eventually(closed, timeout_s, lambda: f"all windows have closed: {last}", every_s=2)
    return last[0]["windows found"]


def test_every_point_is_in_both_sinks_once_and_the_windows_are_right(
        make_server, kafka, influxdb, tmp_path, printed, long):
    """--long: 5 million points; otherwise 300,000."""
    requests, batch, rate = (10_000, 500, 100) if long else (3_000, 100, 250)
    server = start(make_server, kafka, influxdb, {"trust_client_id_header": True})
    flags = ["--clients", 200, "--connections", 200, "--identity", "header", "--series", 2_000, "--batch", batch,
             "--rate", rate, "--duration", f"{requests // rate}s", "--timeout", "60s"]
    begun = time.monotonic()
    with Load(server, tmp_path, *flags) as load:
        totals = load.wait(600)
    sent_s = time.monotonic() - begun
    points = totals["points_acknowledged"]
    assert points == totals["points_sent"] == requests * batch, totals
    by_shard = server.metrics().by("metricstream_points_accepted_total", "shard")
    assert len(by_shard) == 2 and all(by_shard.values()), f"both shards took part: {by_shard}"
    windows = all_windows_closed(server, load.ledger, points)
    drained(server, 900 if long else 120)

    def all_sent():
        return all(fates["delivered"] >= windows for (_, log), fates in books(server).items() if log == "aggregate")
    eventually(all_sent, 60, lambda: f"{windows} windows in both sinks: {books(server)}")
    found = books(server)
    for sink in SINKS:
        assert sum(found[sink, log]["delivered"] for log in ("0", "1")) == points, found
    assert not any(count for fates in found.values() for fate, count in fates.items() if fate != "delivered"), found
    drained_s = time.monotonic() - begun

    raw, aggregated = kcat(kafka, RAW, printed / "raw.json"), kcat(kafka, AGGREGATED, printed / "aggregated.json")
    records, different = ids(raw)
    assert different == points, f"{records} records with {different} ids"
    assert count(influxdb) == points
    verdicts = verify(load.ledger, "--kafka", raw, "--kafka-windows", aggregated, "--influx", influxdb.url,
                      "--influx-windows", influxdb.url, "--window-lengths", "10", timeout=900)
    assert len(verdicts) == 4
    for what, totals in verdicts.items():
        assert totals["points acknowledged"] == points, what
        if what.startswith("windows"):
            assert totals["points in closed windows"] == points and totals["windows compared"] == windows, (what, totals)
        else:
            assert totals["points found and sent"] == points and totals["repeats by retries"] == 0, (what, totals)
    print(f"{points} points in {sent_s:.0f} s, in both sinks after {drained_s:.0f} s, judged after "
          f"{time.monotonic() - begun:.0f} s; {records - different} records came again; {windows} windows")


def test_the_natural_schema_is_judged_as_well(make_server, influxdb, tmp_path):
    server = make_server(
        node={"shards": 2}, listen={"trust_client_id_header": True}, windows={"windows": ["10 s"], "lateness": "1 s"},
        sink=[{"name": "influx", "type": "influx", "url": influxdb.url, "schema": "natural", "database": "other"}])
    server.cli("influx", "init", "--url", influxdb.url, "--schema", "natural", "--database", "other")
    server.start()
    flags = ["--clients", 10, "--identity", "header", "--series", 500, "--rate", 50, "--duration", "2s"]
    with Load(server, tmp_path, *flags) as load:
        points = load.wait(60)["points_acknowledged"]
    windows = all_windows_closed(server, load.ledger, points)

    def delivered():
        return server.metrics().sum("metricstream_sink_points_delivered_total", sink="influx")
    eventually(lambda: delivered() >= points + windows, 60, lambda: f"{delivered()} of {points} + {windows}")
    source = ["--influx", influxdb.url, "--influx-windows", influxdb.url, "--influx-database", "other",
              "--influx-schema", "natural", "--window-lengths", "10"]
    verdicts = verify(load.ledger, *source)
    assert verdicts["points in InfluxDB"]["points found and sent"] == points == 10_000
    assert verdicts["windows in InfluxDB"]["windows compared"] == windows
    # And one that is taken out is missed, in both.
    [series] = influxdb.query("SELECT value FROM other.raw./.*/ WHERE host =~ /000003$/ ORDER BY time LIMIT 1")[:1]
    start = series["values"][0][0] // 10**10 * 10**10
    for policy, time in (("raw", series["values"][0][0]), ("agg_1m", start)):
        influxdb.query(f'DELETE FROM "{series["name"]}" WHERE host =~ /000003$/ AND time = {time}', db="other", rp=policy)
    done = loadgen("verify", "--ledger", load.ledger, *source)
    assert done.returncode == 1 and done.stdout.count(f"missing: {series['name']}{{") == 2, done.stdout


class Watch(threading.Thread):
    """Looks at the cursors until it is told to stop: they must never go back by more than a batch."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.stopping = server, threading.Event()
        self.highest, self.back_most, self.looks, self.faults = {}, 0, 0, []

    def run(self):
        try:
            while not self.stopping.is_set():
                self.look()
                self.stopping.wait(0.25)
        except Exception as error:  # noqa: BLE001 - reported by stop()
            self.faults.append(repr(error))

    def look(self):
        for key, cursor in cursors(self.server).items():
            if "error" in cursor:
                self.faults.append(str(cursor))
                continue
            at = cursor["next_point"]
            if sum(cursor[fate] for fate in FATES) != at - cursor["first_point"]:
                self.faults.append(f"a cursor's totals are not its way: {cursor}")
            self.back_most = max(self.back_most, self.highest.get(key, 0) - at)
            self.highest[key] = max(at, self.highest.get(key, 0))
        self.looks += 1

    def stop(self):
        self.stopping.set()
        self.join(60)
        self.look()
        assert not self.faults, self.faults[:3]
        assert self.back_most <= BATCH_POINTS, f"a cursor went back by {self.back_most} points"


def kill_sinks(kafka, influxdb, turns, rng, faults):
    """One after the other; each is away for a moment."""
    try:
        for turn in turns:
            time.sleep(rng.uniform(0.5, 2))
            sink = kafka if turn == "kafka" else influxdb
            sink.kill()
            time.sleep(rng.uniform(0.1, 2))
            sink.start()
    except Exception as error:  # noqa: BLE001 - reported by the test
        faults.append(f"{turn}: {error!r}")


def test_nothing_acknowledged_is_missing_in_either_after_kills_of_everything(
        make_server, kafka, influxdb, tmp_path, printed, long):
    """--long: Kafka and InfluxDB 20 times, the appliance 50 times; otherwise 2, 2 and 4."""
    of_each, of_appliance = (20, 50) if long else (2, 4)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    # By address: a client's connections are all one shard's, so that its order holds from one connection to the next.
    server = start(make_server, kafka, influxdb, {}, limiter={"steering": "address"})
    turns = ["kafka", "influx"] * of_each
    rng.shuffle(turns)
    watch, faults = Watch(server), []
    flags = ["--clients", 32, "--identity", "address", "--series", 320, "--batch", 50, "--rate", 100, "--duration", "3600s",
             "--retry", "same", "--timeout", "5s", "--seed", seed]
    with Load(server, tmp_path, *flags) as load:
        watch.start()
        sinks = threading.Thread(target=kill_sinks, args=(kafka, influxdb, turns, rng, faults), daemon=True)
        sinks.start()
        for n in range(of_appliance):
            time.sleep(rng.uniform(0.5, 3))
            load.running()
            books(server)
            server.restart(kill=True)
        while sinks.is_alive():
            sinks.join(1)
            load.running()
        assert not faults, faults
        time.sleep(1)
        totals = load.stop()
    points = totals["points_acknowledged"]
    windows = all_windows_closed(server, load.ledger, points)
    drained(server, 300)
    watch.stop()

    # Logged = delivered + refused + dead-lettered + filtered + dropped + waiting, for each sink and log: in this life of
    # the process by its metrics, over all of them by the cursors, which are made durable a moment later.
    books(server)

    def balanced():
        found = cursors(server)
        for cursor in found.values():
            logged = cursor["log_next_point"] - cursor["first_point"]
            waiting = cursor["log_next_point"] - cursor["next_point"]
            assert logged == sum(cursor[fate] for fate in FATES) + waiting, cursor
        return all(cursor["next_point"] == cursor["log_next_point"] for cursor in found.values()) and found
    found = eventually(balanced, 30, lambda: f"{books(server)}, {cursors(server)}")
    assert found.keys() >= {(sink, log) for sink in SINKS for log in ("0", "1", "aggregate")}, found.keys()
    for cursor in found.values():
        assert not any(cursor[fate] for fate in FATES if fate != "delivered"), cursor
    raw = kcat(kafka, RAW, printed / "raw.json")
    records, different = ids(raw)
    logged = {sink: sum(found[sink, log]["delivered"] for log in ("0", "1")) for sink in SINKS}
    assert logged["kafka"] == logged["influx"] == different, (logged, records, different)
    aggregated = kcat(kafka, AGGREGATED, printed / "aggregated.json")
    verdicts = verify(load.ledger, "--kafka", raw, "--kafka-windows", aggregated, "--influx", influxdb.url,
                      "--window-lengths", "10", timeout=900)
    in_kafka, in_influx = verdicts["points in Kafka"], verdicts["points in InfluxDB"]
    assert in_kafka["points found and sent"] == in_influx["points found and sent"] == count(influxdb), verdicts
    assert in_kafka["points found and sent"] + in_kafka["repeats by retries"] == different, verdicts
    assert in_kafka["points acknowledged"] == points > 0
    assert verdicts["windows in Kafka"]["windows compared"] == windows, verdicts
    print(f"{points} points acknowledged, {in_kafka['points unknown']} unknown, "
          f"{in_kafka['repeats by retries']} logged twice by retries; {records - different} of {records} records came again "
          f"under their ids; cursors looked at {watch.looks} times, went back by {watch.back_most} at most")
