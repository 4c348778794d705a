"""The InfluxDB sink: a scripted server for every answer there is, and real servers for what they really do."""

import email.utils
import json
import math
import random
import threading
import time

import pytest

from support.influxdb import VictoriaMetrics
from support.ledger import Load
from support.scripted import HALF, HANG, RESET, ScriptedServer, reply
from support.server import eventually

pytestmark = pytest.mark.usefixtures("real_server_only")
POINTS = 40


def influx_sink(url, **more):
    return {"name": "influx", "type": "influx", "url": url, "send": "raw", "retry_every_max": "300 ms",
            "batch_within": "50 ms", "request_within": "20 s"} | more


@pytest.fixture
def scripted():
    made = []

    def make(answer):
        made.append(ScriptedServer(answer))
        return made[-1]

    yield make
    for server in made:
        server.close()


def write(server, count=POINTS, name="m", base_ns=None):
    base_ns = base_ns or time.time_ns()
    server.write_lines("\n".join(f"{name},k={n % 8} value={n} {base_ns + n}" for n in range(count)))


def books(server, sink="influx"):
    metrics = server.metrics()

    def value(what):
        return metrics.sum(f"metricstream_sink_points_{what}", sink=sink)
    parts = {what: value(f"{what}_total")
             for what in ("delivered", "refused", "dead_lettered", "filtered", "dropped", "lost_to_damage")}
    assert value("read_total") == sum(parts.values()) + value("waiting"), parts
    return {what: count for what, count in parts.items() if count}


def lag(server, sink="influx"):
    return server.metrics().sum("metricstream_sink_lag_points", sink=sink)


def drained(server, timeout_s=30):
    eventually(lambda: lag(server) == 0, timeout_s, lambda: f"lag {lag(server)}, {books(server)}\n{server.log_tail()}")


def state(server):
    return one(server, "metricstream_sink_state", "state")


def breaker(server):
    return one(server, "metricstream_sink_breaker_state", "state")


def one(server, family, label):
    return next(dict(labels)[label] for (name, labels), value in server.metrics().items()
                if name == family and value == 1)


def calls(server):
    return {kind: n for kind, n in server.metrics().by("metricstream_sink_calls_total", "answer").items() if n}


def letters(server):
    answer = server.cli("--config", str(server.config_path), "dead-letter", "list")
    return [json.loads(line) for line in answer.stdout.splitlines()]


def error(text):
    return json.dumps({"error": text})


PARTIAL = error("partial write: field type conflict: input field \"value\" on measurement \"m\" is type string, "
                "already exists as type float dropped=3")
REDIRECT = reply(302, Location="http://127.0.0.1:1/")

# What every write is answered until the test heals the server; what is then counted, and in which state the sink waits.
WAITING = [
    ("200", 200, "held", "held"),
    ("302", REDIRECT, "held", "held"),
    ("401", reply(401, error("authorization failed")), "held", "held"),
    ("403", reply(403, error("not allowed")), "held", "held"),
    ("404", reply(404, error("database not found: \"metrics\"")), "held", "held"),
    ("408", 408, "busy", "retrying"),
    ("429 in seconds", reply(429, "", Retry_After="1"), "busy", "retrying"),
    ("429 with a date", "date", "busy", "retrying"),
    ("500", reply(500, error("engine is closed")), "busy", "retrying"),
    ("503", 503, "busy", "retrying"),
    ("reset", RESET, "network", "retrying"),
    ("hang", HANG, "timeout", "retrying"),
    ("half a reply", HALF, "network", "retrying"),
    ("half a refusal", reply(400, error("unable to parse"), half=True), "network", "retrying"),
]


@pytest.mark.parametrize("answer,kind,waits_as", [case[1:] for case in WAITING], ids=[case[0] for case in WAITING])
def test_an_answer_that_decides_nothing_holds_the_cursor_and_loses_nothing(
        make_server, scripted, answer, kind, waits_as):
    healed = threading.Event()

    def script(_):
        if healed.is_set():
            return 204
        if answer == "date":
            return reply(429, "", Retry_After=email.utils.formatdate(time.time() + 2, usegmt=True))
        return answer

    sink = scripted(script)
    # Long enough that a busy machine is not taken for a server that hangs.
    within = "500 ms" if answer == HANG else "20 s"
    server = make_server(sink=[influx_sink(sink.url, in_flight=1, request_within=within)]).start()
    write(server)
    eventually(lambda: calls(server).get(kind, 0) >= 1, 20, lambda: f"{calls(server)}\n{server.log_tail()}")
    eventually(lambda: state(server) == waits_as, 10, lambda: f"{state(server)}\n{server.log_tail()}", every_s=0.02)
    assert lag(server) == POINTS and set(calls(server)) == {kind}
    assert books(server) == {} and letters(server) == []
    healed.set()
    drained(server, 40)
    assert books(server) == {"delivered": POINTS}
    assert state(server) == "running"
    # One batch, always the same bytes.
    assert {tuple(request.lines()) for request in sink.requests} == {tuple(sink.requests[0].lines())}
    assert len(sink.requests[0].lines()) == POINTS


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(make_server, scripted, form):
    times = []

    def script(_):
        times.append(time.time())
        if len(times) > 1:
            return 204
        value = "3" if form == "seconds" else email.utils.formatdate(math.ceil(times[0]) + 3, usegmt=True)
        return reply(503, "", Retry_After=value)

    server = make_server(sink=[influx_sink(scripted(script).url, in_flight=1)]).start()
    write(server)
    drained(server)
    assert 2.9 <= times[1] - times[0] <= 6, times


def test_written_partly_counts_what_was_dropped_and_goes_on(make_server, scripted):
    sink = scripted(lambda _: reply(400, PARTIAL))
    server = make_server(sink=[influx_sink(sink.url, in_flight=1)]).start()
    write(server)
    drained(server)
    assert books(server) == {"delivered": POINTS - 3, "refused": 3}
    assert calls(server) == {"partial": 1} and letters(server) == [] and breaker(server) == "closed"


@pytest.mark.parametrize("words", ["unable to parse '..': bad", "partial write: unable to parse '..': bad dropped=0"])
def test_bad_lines_are_found_and_kept_with_the_reason(make_server, scripted, words):
    taken = []

    def script(request):
        if any("metric_name=bad" in line for line in request.lines()):
            return reply(400, error(words))
        taken.extend(request.lines())
        return 204

    sink = scripted(script)
    server = make_server(sink=[influx_sink(sink.url)]).start()
    base = time.time_ns()
    names = ["bad" if n in (7, 8, 33) else "good" for n in range(POINTS)]
    server.write_lines("\n".join(f"{name},n={n} value={n} {base + n}" for n, name in enumerate(names)))
    drained(server)
    assert books(server) == {"delivered": POINTS - 3, "dead_lettered": 3}
    assert sorted(set(taken)) == sorted(f"server_metrics,metric_name=good,client_id=127.0.0.1,n={n} value={n}.0 {base + n}"
                                        for n, name in enumerate(names) if name == "good")
    found = letters(server)
    assert sorted(entry["body"].split("n=")[1] for entry in found) == sorted(
        f"{n} value={n}.0 {base + n}" for n in (7, 8, 33))
    assert {entry["reason"] for entry in found} == {words} and len({entry["id"] for entry in found}) == 3
    assert {entry["target"] for entry in found} == {"db=metrics rp=raw"}
    assert breaker(server) == "closed"

    # The server learns better: what was set aside is sent once more, beside the running process.
    sink.answer = lambda request: 204
    answer = server.cli("--config", str(server.config_path), "dead-letter", "retry", "--sink", "influx")
    assert "3 of 3 sent" in answer.stdout and letters(server) == []
    assert [line for request in sink.requests[-3:] for line in request.lines()] == [e["body"] for e in found]


def test_a_retry_of_dead_letters_that_is_refused_again_keeps_them(make_server, scripted):
    sink = scripted(lambda _: reply(400, error("no")))
    server = make_server(sink=[influx_sink(sink.url)]).start()
    write(server, 2)
    drained(server)
    sink.answer = lambda _: reply(400, error("still no"))
    answer = server.cli("--config", str(server.config_path), "dead-letter", "retry")
    assert "0 of 2 sent, 2 refused again" in answer.stdout
    assert [entry["reason"] for entry in letters(server)] == ["still no"] * 2
    sink.answer = lambda _: 503
    answer = server.cli("--config", str(server.config_path), "dead-letter", "retry", check=False)
    assert answer.returncode == 1 and len(letters(server)) == 2


def test_writes_that_are_too_large_are_halved_and_stay_smaller(make_server, scripted):
    taken = []

    def script(request):
        if len(request.lines()) > 10:
            return 413
        taken.extend(request.lines())
        return 204

    sink = scripted(script)
    server = make_server(sink=[influx_sink(sink.url, in_flight=1)]).start()
    base = time.time_ns()
    write(server, 400, base_ns=base)
    drained(server)
    assert books(server) == {"delivered": 400}
    times = [int(line.rsplit(" ", 1)[1]) for line in taken]
    assert times == sorted(times) == [base + n for n in range(400)], "in order, each once"
    refused = calls(server)["too_large"]
    write(server, 400)
    drained(server)
    assert calls(server)["too_large"] - refused < refused / 2, "the second load was cut smaller from the start"


def test_the_breaker_opens_probes_and_closes(make_server, scripted):
    healed = threading.Event()
    sink = scripted(lambda _: 204 if healed.is_set() else 503)
    server = make_server(sink=[influx_sink(sink.url, in_flight=4)]).start()
    write(server)
    eventually(lambda: breaker(server) == "open", 30, lambda: f"{calls(server)}\n{server.log_tail()}", every_s=0.01)
    metrics = server.metrics()
    assert metrics.sum("metricstream_sink_breaker_opened_total", sink="influx") >= 1
    assert metrics.sum("metricstream_sink_retries_total", sink="influx") >= 9
    before = len(sink.requests)
    time.sleep(3)
    assert len(sink.requests) - before <= 4, "an open breaker lets only probes through"
    assert lag(server) == POINTS
    healed.set()
    drained(server, 40)
    assert breaker(server) == "closed" and books(server) == {"delivered": POINTS}


def test_points_of_a_series_stay_in_order_over_many_writes_in_flight(make_server, scripted):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    taken, lock = {}, threading.Lock()

    def script(request):
        if rng.random() < 0.2:
            return 503
        for line in request.lines():
            head, _, at = line.rsplit(" ", 2)
            taken.setdefault(head, []).append(int(at))
        return 204

    sink = scripted(script)
    server = make_server(sink=[influx_sink(sink.url, in_flight=8, batch_points=50)]).start()
    for _ in range(20):
        write(server, 500)
    drained(server, 60)
    with lock:
        assert len(taken) == 8 and all(times == sorted(times) for times in taken.values()), f"seed {seed}"
        assert sum(map(len, taken.values())) == 20 * 500
    assert len(sink.requests) >= 200 and sink.connections < len(sink.requests) / 2, "connections are used again"


@pytest.mark.flaky(reruns=1, reruns_delay=5)  # bounds a time, on a machine that others use too
def test_a_dead_sink_delays_a_stop_by_no_more_than_its_bound(make_server, scripted):
    sink = scripted(lambda _: HANG)
    server = make_server(sink=[influx_sink(sink.url, request_within="60 s", stop_within="1 s")]).start()
    write(server)
    eventually(lambda: sink.requests, 10, "a write hangs")
    begun = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - begun < 5
    sink.answer = lambda _: 204
    server.start()
    drained(server)
    assert books(server) == {"delivered": POINTS}


def test_credentials_and_targets_go_where_they_belong(make_server, scripted, tmp_path):
    (tmp_path / "secret").write_text("s3cr et\n")
    sink = scripted(lambda _: 204)
    for more, path, query, authorization in [
        ({"username": "u", "password_file": str(tmp_path / "secret"), "database": "a b", "retention_policy": ""},
         "/write", {"db": "a b", "precision": "ns"}, "Basic dTpzM2NyIGV0"),
        ({"token_file": str(tmp_path / "secret"), "api": "v2", "org": "o&o"},
         "/api/v2/write", {"org": "o&o", "bucket": "metrics_raw", "precision": "ns"}, "Token s3cr et"),
    ]:
        server = make_server(name=path.strip("/").replace("/", "-"), sink=[influx_sink(sink.url, **more)]).start()
        write(server, 1)
        drained(server)
        request = sink.requests[-1]
        assert (request.path, request.query) == (path, query)
        assert request.headers["authorization"] == authorization
        assert "s3cr" not in server.cli("--config", str(server.config_path), "config").stdout
        server.close()


# The real one

def init(server, influxdb, *more):
    return server.cli("influx", "init", "--url", influxdb.url, *more).stdout


def test_init_makes_everything_once_and_says_what_is_there(make_server, influxdb):
    server = make_server()
    dry = init(server, influxdb, "--dry-run")
    assert influxdb.values("SHOW DATABASES") == [], "a dry run changes nothing"
    assert dry.count("would make:") == 9 and "RESAMPLE EVERY 1m" in dry
    assert "9 made, 0 there already" in init(server, influxdb)
    policies = {row["name"]: row["duration"] for row in influxdb.rows("SHOW RETENTION POLICIES ON metrics")}
    assert policies == {"raw": "168h0m0s", "agg_1m": "720h0m0s", "agg_5m": "2160h0m0s", "agg_1h": "8760h0m0s",
                        "agg_1d": "0s"}
    queries = influxdb.rows("SHOW CONTINUOUS QUERIES")
    assert len(queries) == 4
    again = init(server, influxdb)
    assert "0 made, 10 there already" in again and "differ" not in again
    assert influxdb.rows("SHOW CONTINUOUS QUERIES") == queries
    influxdb.query("ALTER RETENTION POLICY agg_5m ON metrics DURATION 100d")
    changed = init(server, influxdb)
    assert "0 made, 10 there already, 1 differ and stay as they are" in changed and "2400h0m0s" in changed


def test_every_kind_of_point_arrives_as_it_was(make_server, influxdb):
    server = make_server(sink=[influx_sink(influxdb.url),
                               influx_sink(influxdb.url, name="natural", schema="natural", database="natural")])
    init(server, influxdb)
    init(server, influxdb, "--database", "natural", "--schema", "natural")
    server.start()
    now = time.time_ns()
    odd = {"k 1": "a, b=c", "disk": "C:\\", "q\"x": "\"é\"", "unit": "B"}
    metrics = [{"name": "f", "value": 0.1}, {"name": "#odd, name", "value": -1.5e300, "tags": odd},
               {"name": "tiny", "value": 5e-324}]
    answer = server.post("/metrics", json.dumps({"metrics": [m | {"timestamp": now} for m in metrics]}))
    assert answer.json()["accepted"] == 3, answer.text
    server.write_lines(f'kinds i=9007199254740993i,b=true,s="two \\"words\\"\nand \\\\ more",n=-7i {now}')
    eventually(lambda: all(lag(server, sink) == 0 for sink in ("influx", "natural")), 30, server.log_tail)
    for sink in ("influx", "natural"):
        assert books(server, sink) == {"delivered": 7}, server.log_tail()

    rows = {row["metric_name"]: row for row in influxdb.rows("SELECT * FROM metrics.raw.server_metrics")}
    assert {row["time"] for row in rows.values()} == {now} and len(rows) == 7
    assert (rows["f"]["value"], rows["tiny"]["value"], rows["#odd, name"]["value"]) == (0.1, 5e-324, -1.5e300)
    row = rows["#odd, name"]
    assert (row["k 1"], row["disk"], row["q\"x"], row["client_id"]) == ("a, b=c", "C:\\ ", "\"é\"", "127.0.0.1")
    assert row["unit"] == "B", "the field"
    assert (rows["kinds_i"]["value"], rows["kinds_i"]["value_int"]) == (2**53, 2**53 + 1)
    assert rows["kinds_n"]["value"] == -7 and rows["kinds_b"]["value_bool"] is True
    assert rows["kinds_s"]["value_text"] == 'two "words"\nand \\ more'

    # (client_id and the measurement's own name in the series)
    assert sorted(influxdb.values("SHOW MEASUREMENTS ON natural")) == sorted(
        ["f", "tiny", "\\#odd, name", "kinds_i", "kinds_b", "kinds_s", "kinds_n"])
    assert influxdb.rows("SELECT value FROM natural.raw.kinds_i")[0]["value"] == 2**53 + 1
    assert influxdb.rows("SELECT value FROM natural.raw.kinds_s")[0]["value"] == 'two "words"\nand \\ more'


def test_real_causes_have_their_effects(make_server, influxdb):
    """A missing database, a dropped retention policy, points beyond it, a field type conflict."""
    server = make_server(sink=[influx_sink(influxdb.url, schema="natural", in_flight=1)]).start()
    write(server, 10)
    eventually(lambda: state(server) == "held", 20, server.log_tail, every_s=0.02)
    assert lag(server) == 10 and "database not found" in server.log_tail()
    init(server, influxdb)
    drained(server)
    assert books(server) == {"delivered": 10}

    influxdb.query("DROP RETENTION POLICY raw ON metrics")
    write(server, 10, name="later")
    eventually(lambda: state(server) == "held", 20, server.log_tail, every_s=0.02)
    assert "retention policy not found" in server.log_tail()
    init(server, influxdb)
    drained(server)
    assert books(server) == {"delivered": 20}
    assert influxdb.values("SELECT count(value) FROM metrics.raw.later") is not None

    # One of three is older than the policy keeps.
    now = time.time_ns()
    server.write_lines(f"old value=1 {now - 30 * 86_400 * 10**9}\nold value=2 {now}\nold value=3 {now + 1}")
    drained(server)
    assert books(server) == {"delivered": 22, "refused": 1}

    server.write_lines(f"mixed value=1 {now}")
    drained(server)
    server.write_lines(f'mixed value="text" {now + 1}\nmixed value=2 {now + 2}')
    drained(server)
    found = books(server)
    assert found["delivered"] == 24 and found.get("refused", 0) + found.get("dead_lettered", 0) == 2, found
    assert [row["value"] for row in influxdb.rows("SELECT value FROM metrics.raw.mixed")] == [1, 2]


def test_continuous_queries_fill_the_minutes_and_equal_our_own_windows(make_server, influxdb):
    server = make_server(sink=[influx_sink(influxdb.url, send="both")],
                         windows={"windows": ["10 s", "60 s"], "lateness": "1 s"})
    init(server, influxdb)
    server.start()
    minute_ns = 60 * 10**9
    # Both look at whole minutes that have ended; both take late points in.
    start = (time.time_ns() // minute_ns - 2) * minute_ns
    rng = random.Random(5)
    points = [(k, start + n * 10**9 + k, rng.randrange(-1000, 1000) / 4) for n in range(120) for k in range(3)]
    server.write_lines("\n".join(f"cq,k={k} value={v} {t}" for k, t, v in points))
    where = "WHERE metric_name = 'cq' GROUP BY *"
    ours = eventually(lambda: (rows := influxdb.rows(
        f"SELECT * FROM metrics.agg_1m.server_metrics_windows WHERE metric_name = 'cq' AND \"window\" = '60s' GROUP BY *"))
        and len(rows) == 6 and rows, 60, server.log_tail, every_s=1)
    theirs = eventually(lambda: (rows := influxdb.rows(f"SELECT * FROM metrics.agg_1m.server_metrics {where}"))
                        and len(rows) == 6 and rows, 100, "the continuous query has run", every_s=1)
    expected = {}
    for k, t, v in points:
        expected.setdefault((str(k), t // minute_ns * minute_ns), []).append(v)
    for rows in (ours, theirs):
        figures = {(row["k"], row["time"]): (row["count"], row["sum"], row["min"], row["max"]) for row in rows}
        assert figures == {key: (len(v), math.fsum(v), min(v), max(v)) for key, v in expected.items()}


def test_points_arrive_exactly_through_kills_of_both_sides(make_server, influxdb, tmp_path, long):
    influx_kills, server_kills = (20, 50) if long else (3, 5)
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    server = make_server(sink=[influx_sink(influxdb.url, request_within="5 s")])
    init(server, influxdb)
    server.start()
    load = Load(server.ingest_port, tmp_path / "ledger")
    turns = ["influx"] * influx_kills + ["server"] * server_kills
    rng.shuffle(turns)
    for turn in turns:
        time.sleep(rng.uniform(0.3, 1.2))
        if turn == "influx":
            influxdb.kill()
            time.sleep(rng.uniform(0.1, 1.5))
            influxdb.start()
        else:
            server.restart(kill=True)
    load.stop()
    drained(server, 90)
    books(server)
    found = {}
    for series in influxdb.query("SELECT value FROM metrics.raw.server_metrics WHERE metric_name = 'kill' GROUP BY w, k"):
        for at, value in series["values"]:
            assert found.setdefault((int(series["tags"]["w"]), int(value)), at) == at, f"seed {seed}: twice, two times"
            assert series["tags"]["k"] == str(int(value) % 512)
    missing = load.acked - found.keys()
    assert not missing, f"seed {seed}: {len(missing)} acknowledged points are not in InfluxDB, such as {sorted(missing)[:5]}"
    assert all(load.time_of[key] == at for key, at in found.items()), f"seed {seed}"
    foreign = found.keys() - load.acked - load.unknown - load.refused
    assert not foreign, f"seed {seed}: {sorted(foreign)[:5]}"
    (total,) = [row[1] for series in influxdb.query("SELECT count(value) FROM metrics.raw.server_metrics")
                for row in series["values"]]
    assert total == len(found), "no point twice"


@pytest.mark.parametrize("api", ["v1", "v2"])
def test_victoria_metrics_takes_both_apis(make_server, tmp_path, api):
    victoria = VictoriaMetrics(tmp_path / "victoria").start()
    try:
        server = make_server(sink=[influx_sink(victoria.url, api=api, org="o", schema="natural")]).start()
        base_ms = time.time_ns() // 10**6 - 60_000
        server.write_lines("\n".join(f"vm,k={n % 4} value={n} {(base_ms + n) * 10**6}" for n in range(1000)))
        drained(server)
        assert books(server) == {"delivered": 1000}

        def found():
            return sorted((int(series["metric"]["k"]), at, value) for series in victoria.export("vm_value")
                          for at, value in zip(series["timestamps"], series["values"]))
        eventually(lambda: len(found()) == 1000, 20, "all points are searchable", every_s=0.5)
        assert found() == sorted((n % 4, base_ms + n, n) for n in range(1000))
    finally:
        victoria.close()


def test_init_of_version_2_makes_buckets_and_tasks_once(make_server, scripted):
    """No InfluxDB 2 can be installed where these tests run: this server follows its documented API."""
    made = {"buckets": [], "tasks": []}

    def script(request):
        assert request.headers.get("authorization") is None
        kind = request.path.removeprefix("/api/v2/")
        if kind == "orgs":
            orgs = [{"id": "0123456789abcdef", "name": "example"}] if request.query["org"] == "example" else []
            return reply(200, json.dumps({"orgs": orgs}))
        if request.method == "GET":
            found = [thing for thing in made[kind] if thing["name"] == request.query["name"]]
            return reply(200, json.dumps({kind: found}))
        body = json.loads(request.body)
        assert body["orgID"] == "0123456789abcdef"
        if kind == "tasks":
            body["name"] = body["flux"].split('option task = {name: "')[1].split('"')[0]
        made[kind].append(body)
        return reply(201, json.dumps(body))

    sink = scripted(script)
    server = make_server()
    words = ["influx", "init", "--url", sink.url, "--api", "v2", "--org", "example"]
    assert "would make: bucket metrics_raw (7d)" in server.cli(*words, "--dry-run").stdout
    assert made == {"buckets": [], "tasks": []}
    assert "9 made, 0 there already" in server.cli(*words).stdout
    assert {b["name"]: [r["everySeconds"] for r in b["retentionRules"]] for b in made["buckets"]} == {
        "metrics_raw": [7 * 86400], "metrics_1m": [30 * 86400], "metrics_5m": [90 * 86400],
        "metrics_1h": [365 * 86400], "metrics_1d": []}
    assert [task["name"] for task in made["tasks"]] == [f"metricstream_{step}" for step in ("1m", "5m", "1h", "1d")]
    for task, source in zip(made["tasks"], ("raw", "1m", "5m", "1h")):
        assert f'from(bucket: "metrics_{source}")' in task["flux"] and "mean" not in task["flux"]
    assert "0 made, 9 there already" in server.cli(*words).stdout
    assert (len(made["buckets"]), len(made["tasks"])) == (5, 4)
    unknown = server.cli(*words[:-1], "nobody", check=False)
    assert unknown.returncode == 1 and "no organisation nobody" in unknown.stderr
