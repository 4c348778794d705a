"""`metricstream log replay`: a time range goes out again, under the ids of the first time, beside a running server or without one."""

import collections
import json
import os
import pty
import random
import signal
import subprocess
import time

import pytest

from support import output
from support.kafka import Kafka
from support.scripted import ScriptedServer
from support.server import eventually, free_ports

pytestmark = pytest.mark.usefixtures("real_server_only")

CLIENTS = [{"name": name, "token": f"token-of-{name}-0123456789"} for name in ("alpha", "beta")]
STEP_NS = 1_000_000


@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    with Kafka(tmp_path_factory.mktemp("kafka") / "k") as kafka:
        yield kafka


def file_sink(path, name="out", **more):
    return {"name": name, "type": "file", "path": str(path), "send": "raw", "rotate_every": "300 ms"} | more


def write(server, count, base_ns, client="alpha", name="m", value=float):
    """Points 1 ms apart; two series."""
    text = "\n".join(f"{name},k={n % 2} value={value(n)} {base_ns + n * STEP_NS}" for n in range(count))
    token = next(c["token"] for c in CLIENTS if c["name"] == client)
    answer = server.post("/write", text.encode(), headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 204, answer.text


def drained(server, sink, timeout_s=60):
    def lag():
        return server.metrics().sum("metricstream_sink_lag_points", sink=sink)
    eventually(lambda: lag() == 0, timeout_s, lambda: f"lag {lag()}\n{server.log_tail()}")


def replay_words(server, *words):
    return ["--config", str(server.config_path), "log", "replay", *words]


def replay(server, sink, from_ns, to_ns, *words, exit_code=0):
    """The summary."""
    done = server.cli(*replay_words(server, "--sink", sink, "--from", str(from_ns), "--to", str(to_ns), "--json", *words),
                      check=False)
    assert done.returncode == exit_code, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    summary = json.loads(done.stdout)
    parts = sum(summary[part] for part in ("outside_range", "filtered", "older_revisions", "sent", "rejected",
                                           "dead_lettered", "unreadable"))
    assert parts == summary["read"], summary
    return summary | {"stderr": done.stderr}


def base():
    return time.time_ns() // 10**10 * 10**10 - 120 * 10**9


def test_kafka_sees_equal_records_under_equal_ids(make_server, kafka, tmp_path):
    suffix = f"{time.time_ns() % 10**10}"
    raw, aggregated = f"raw-{suffix}", f"agg-{suffix}"
    [kafka.create_topic(topic) for topic in (raw, aggregated)]
    sink = {"name": "kafka", "type": "kafka", "brokers": kafka.brokers, "topic": raw, "topic_aggregates": aggregated}
    out = tmp_path / "out"
    server = make_server(node={"shards": 2}, sink=[sink, file_sink(out, send="both")], client=CLIENTS,
                         windows={"lateness": "0 s", "windows": ["10 s"]}).start()
    base_ns = base()
    for client in ("alpha", "beta"):
        write(server, 1000, base_ns, client)
    write(server, 100, base_ns - 30 * 10**9, name="early")
    kafka.wait_ids(raw, 2100, 90)
    windows = 2 * 2 + 2

    def closed():
        return len({(r.value["name"], r.value["client_id"], r.value["tags"]["k"], r.value["start_ms"])
                    for r in kafka.read(aggregated)}) == windows
    eventually(closed, 90, lambda: f"{windows} windows in Kafka\n{server.log_tail()}", every_s=1)
    drained(server, "kafka")
    drained(server, "out")
    first, first_windows = kafka.read(raw), kafka.read(aggregated)
    for kind, records in (("raw", first), ("aggregates", first_windows)):
        mine = {row["id"]: row for row in output.rows(out, kind)}
        assert mine.keys() == {r.id for r in records}, "one scheme of ids"
        for record in records:
            known = {field: value for field, value in mine[record.id].items() if field not in ("id", "request_id", "traceparent")}
            assert known == record.value, "one document"

    summary = replay(server, "kafka", base_ns, base_ns + 10**12)
    assert summary["sent"] == 2000 + 4 and summary["outcome"] == "done"
    again = kafka.read(raw)[:]
    check_repeats(first, again, {r.id for r in first if r.value["name"] == "m"}, 2)
    latest = {}
    for record in first_windows:
        if record.value["start_ms"] * 10**6 >= base_ns:
            place = (record.value["client_id"], record.value["tags"]["k"], record.value["start_ms"])
            latest[place] = max(latest.get(place, (-1, "")), (record.value["revision"], record.id))
    assert len(latest) == 4
    check_repeats(first_windows, kafka.read(aggregated), {id for _, id in latest.values()}, 2)

    # Nobody serves, and when somebody does again, shard 1 is gone: its log's ids are what they were.
    assert server.terminate() == 0
    assert replay(server, "kafka", base_ns, base_ns + 500 * STEP_NS, "--client", "beta")["sent"] == 500 + 2
    halves = {r.id for r in first if r.value["client_id"] == "beta" and r.value["timestamp"] * 10**6 < base_ns + 500 * STEP_NS
              and r.value["name"] == "m"}
    assert len(halves) == 500
    counts = collections.Counter(r.id for r in kafka.read(raw))
    assert all(counts[id] == (3 if id in halves else 2) for id in counts if id in {r.id for r in first if r.value["name"] == "m"})
    server.settings["node"]["shards"] = 1
    server.start()
    assert replay(server, "kafka", base_ns, base_ns + 10**12, "--name", "m")["sent"] == 2004
    again = kafka.read(raw)
    assert {r.id for r in again} == {r.id for r in first}, "no new ids"
    by_id = {r.id: r for r in first}
    assert all((r.value, r.key, r.headers) == (by_id[r.id].value, by_id[r.id].key, by_id[r.id].headers) for r in again)


def check_repeats(first, again, repeated, times):
    counts = collections.Counter(record.id for record in again)
    before = collections.Counter(record.id for record in first)
    assert set(counts) == set(before), "no new ids"
    wrong = {id: n for id, n in counts.items() if n != (times if id in repeated else before[id])}
    assert not wrong, f"{len(repeated)} to come {times} times; {wrong}"
    by_id = {record.id: record for record in first}
    for record in again:
        known = by_id[record.id]
        assert (record.value, record.key, record.headers) == (known.value, known.key, known.headers)


def test_influxdb_has_the_same_points_and_values_afterwards(make_server, influxdb):
    sink = {"name": "influx", "type": "influx", "url": influxdb.url}
    server = make_server(node={"shards": 2}, sink=[sink], client=CLIENTS,
                         windows={"lateness": "0 s", "windows": ["10 s"], "horizon": "300 s"})
    server.write_config()
    server.cli("influx", "init", "--url", influxdb.url)
    server.start()
    base_ns = base()
    write(server, 500, base_ns)
    write(server, 300, base_ns, "beta", name="other")

    def in_windows(name):
        rows = influxdb.rows(f'SELECT * FROM "metrics"."agg_1m"."server_metrics_windows" WHERE metric_name = \'{name}\'')
        return {(row["time"], row["k"]): (row["count"], row["sum"], row["revision"]) for row in rows}
    eventually(lambda: sum(count for count, *_ in in_windows("m").values()) == 500, 90,
               lambda: f"windows in InfluxDB: {in_windows('m')}\n{server.log_tail()}", every_s=0.5)
    # Corrected by the client, and late: a later value of one point, and another revision of its window.
    write(server, 1, base_ns, value=lambda _: 1e6)
    eventually(lambda: any(revision > 0 for *_, revision in in_windows("m").values()), 90, "a revision", every_s=0.5)
    drained(server, "influx")

    def everything():
        points = influxdb.rows('SELECT * FROM "metrics"."raw"."server_metrics"')
        return sorted(json.dumps(row, sort_keys=True) for row in points), in_windows("m"), in_windows("other")
    before = everything()
    assert len(before[0]) == 800 and any('"value": 1000000' in row for row in before[0])
    assert replay(server, "influx", base_ns, base_ns + 10**12, "--name", "m")["filtered"] >= 300
    summary = replay(server, "influx", base_ns, base_ns + 10**12)
    assert summary["sent"] >= 801 + 4 and summary["older_revisions"] >= 1, summary
    assert summary["rejected"] == summary["dead_lettered"] == 0
    assert everything() == before
    # What InfluxDB has lost is there again.
    influxdb.query('DELETE FROM "server_metrics" WHERE metric_name = \'m\'', db="metrics")
    assert server.terminate() == 0
    assert replay(server, "influx", base_ns, base_ns + 250 * STEP_NS, "--client", "alpha", "--name", "m")["sent"] >= 250
    points = influxdb.rows('SELECT * FROM "metrics"."raw"."server_metrics"')
    assert collections.Counter(row["metric_name"] for row in points) == {"m": 250, "other": 300}


def test_influxdb_2_gets_the_same_lines_and_of_windows_the_latest_revisions_alone(make_server, tmp_path):
    scripted = ScriptedServer(lambda _: 204)
    (tmp_path / "token").write_text("secret")
    sink = {"name": "influx", "type": "influx", "url": scripted.url, "api": "v2", "org": "example", "bucket": "points",
            "bucket_aggregates": "windows", "token_file": str(tmp_path / "token")}
    server = make_server(sink=[sink], client=CLIENTS,
                         windows={"lateness": "0 s", "windows": ["10 s"], "horizon": "300 s"}).start()
    base_ns = base()
    try:
        write(server, 200, base_ns)
        write(server, 100, base_ns - 30 * 10**9, name="early")

        def lines(bucket):
            requests = [request for request in scripted.requests if request.query["bucket"] == bucket]
            return [line for request in requests for line in request.lines()]

        def latest():
            """Of each window the last line that was written: its revisions rise."""
            return {(line.split(" ")[0], line.rsplit(" ", 1)[1]): line for line in lines("windows")}
        eventually(lambda: len(latest()) == 4, 90, lambda: f"4 windows: {latest()}\n{server.log_tail()}", every_s=0.5)
        write(server, 1, base_ns, value=lambda _: 1e6)
        eventually(lambda: any("value=1000000" in line for line in lines("points"))
                   and any("max=1000000" in line for line in latest().values()), 90,
                   lambda: f"another revision: {latest()}\n{server.log_tail()}", every_s=0.5)
        drained(server, "influx")
        points, windows, written = lines("points"), latest(), len(lines("windows"))
        assert len(points) == 301 and written > len(windows) == 4

        scripted.requests.clear()
        summary = replay(server, "influx", base_ns - 30 * 10**9, base_ns + 10**12)
        assert (summary["sent"], summary["older_revisions"]) == (301 + 4, written - 4), summary
        assert sorted(lines("points")) == sorted(points), "late and early ones alike, each once"
        assert sorted(lines("windows")) == sorted(windows.values()), "older revisions are not sent"
        for request in scripted.requests:
            assert (request.method, request.path, request.query["org"]) == ("POST", "/api/v2/write", "example")
            assert request.headers["authorization"] == "Token secret" and request.query["precision"] == "ns"

        scripted.requests.clear()
        assert replay(server, "influx", base_ns, base_ns + 10**12, "--name", "m")["sent"] == 201 + 2
        for k in (0, 1):
            series = [[line for line in found if f"metric_name=m,client_id=alpha,k={k} " in line]
                      for found in (points, lines("points"))]
            assert series[0] == series[1] and series[0], "in the order they came"
        assert sorted(lines("windows")) == sorted(line for line in windows.values() if "metric_name=m" in line)
    finally:
        scripted.close()


def test_a_file_sink_writes_a_replay_apart_from_what_it_had_written(make_server, tmp_path):
    out = tmp_path / "out"
    server = make_server(sink=[file_sink(out, keep_files=50)], client=CLIENTS).start()
    base_ns = base()
    write(server, 200, base_ns, "alpha", "cpu.user")
    write(server, 100, base_ns, "beta", "cpu.system")
    write(server, 50, base_ns, "beta", "mem")
    drained(server, "out")
    files = {path: path.read_bytes() for path in out.iterdir()}
    first = {row["id"]: row for row in output.rows(out)}
    assert len(first) == 350
    for words, wanted in [
        ((), 350),
        (("--client", "beta"), 150),
        (("--client", "beta", "--name", "cpu.*"), 100),
        (("--name", "mem", "--name", "cpu.u*"), 250),
        (("--client", "alpha", "--client", "b*", "--name", "*.system"), 100),
    ]:
        counted = replay(server, "out", base_ns, base_ns + 10**12, "--dry-run", *words)
        assert counted["files"] is None and counted["sent"] == wanted
        summary = replay(server, "out", base_ns, base_ns + 10**12, *words)
        assert summary["sent"] == wanted and summary["filtered"] == 350 - wanted, (words, summary)
        rows = output.rows(summary["files"])
        assert len(rows) == wanted and all(first[row["id"]] == row for row in rows)
    received = replay(server, "out", base_ns, "now", "--received-from", "-1h", "--received-to", "now", "--dry-run")
    assert (received["sent"], received["passed_over"]) == (350, 0) and received["read_bytes"] > 0
    earlier = replay(server, "out", base_ns, "now", "--received-to", "-1h", "--dry-run", exit_code=1)
    assert (earlier["read"], earlier["passed_over"]) == (0, 350) and "350 points were received outside" in earlier["stderr"]
    part = replay(server, "out", base_ns + 10 * STEP_NS, base_ns + 20 * STEP_NS)
    assert part["sent"] == 30, "from is in the range, to is not"
    assert {row["timestamp"] - base_ns // 10**6 for row in output.rows(part["files"])} == set(range(10, 20))
    assert {path: path.read_bytes() for path in out.iterdir() if path.is_file()} == files, "as they were"
    # Times in all the ways they are written.
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(base_ns // 10**9))
    for start in (text, str(base_ns // 10**6), str(base_ns // 10**9), "-10 min", "-600s"):
        assert replay(server, "out", start, "now", "--dry-run")["sent"] == 350, start
    assert server.terminate() == 0
    assert replay(server, "out", base_ns, "now")["sent"] == 350
    assert "clean" in server.log_verify().stdout


def test_a_rate_is_kept_and_progress_is_said(make_server, tmp_path):
    out = tmp_path / "out"
    server = make_server(sink=[file_sink(out)], client=CLIENTS).start()
    base_ns = base()
    write(server, 300, base_ns)
    begun = time.monotonic()
    summary = replay(server, "out", base_ns, "now", "--rate", "45")
    took = time.monotonic() - begun
    assert summary["sent"] == 300 and took > 0.9 * (300 - 5) / 45, took
    assert "of 300 points read" in summary["stderr"], "a line every few seconds"
    # On a terminal there is a bar.
    leader, follower = pty.openpty()
    process = subprocess.Popen([server.program, *replay_words(server, "--sink", "out", "--from", str(base_ns), "--rate", "150")],
                               stdout=subprocess.PIPE, stderr=follower, text=True)
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(leader)
    text = process.communicate()[0]
    assert process.returncode == 0 and text.startswith("replayed to out, ")
    for words in ("300 read", "0 filtered", "300 sent", "0 rejected", "0 dead-lettered", " s, "):
        assert words in text, text
    assert b"[==" in shown and b" %" in shown, shown[-300:]


def test_ctrl_c_ends_it_with_the_place_from_which_the_rest_is_sent(make_server, tmp_path):
    out = tmp_path / "out"
    server = make_server(node={"shards": 2}, sink=[file_sink(out)], client=CLIENTS).start()
    base_ns = base()
    for n in range(4):
        write(server, 500, base_ns + n * 500 * STEP_NS, CLIENTS[n % 2]["name"])
    process = subprocess.Popen([server.program, *replay_words(
        server, "--sink", "out", "--from", str(base_ns), "--rate", "20", "--json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    eventually(lambda: list(out.glob("replay-*/*.ndjson")), 30, "a file of the replay")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1, stderr
    summary = json.loads(stdout)
    assert summary["outcome"] == "stopped" and 0 < summary["sent"] < 2000
    assert f"--resume {summary['resume']}" in stderr, stderr
    rest = replay(server, "out", summary["from_ns"], summary["to_ns"], "--resume", summary["resume"])
    assert rest["sent"] + summary["sent"] == 2000
    ids = [row["id"] for s in (summary, rest) for row in output.rows(s["files"])]
    assert len(ids) == len(set(ids)) == 2000


def test_what_is_asked_wrongly_or_cannot_be_done_is_one_sentence(make_server, tmp_path, influxdb):
    [port] = free_ports(1)
    nobody = {"name": "nobody", "type": "influx", "url": f"http://127.0.0.1:{port}", "send": "raw"}
    missing = {"name": "missing", "type": "influx", "url": influxdb.url, "send": "raw"}
    away = {"name": "away", "type": "kafka", "brokers": [f"127.0.0.1:{port}"], "send": "raw"}
    server = make_server(sink=[file_sink(tmp_path / "out"), nobody, missing, away], client=CLIENTS).start()
    base_ns = base()
    write(server, 100, base_ns)

    def asked(*words):
        return server.cli(*replay_words(server, *words), check=False)
    answer = asked("--sink", "nosuch", "--from", "-1h")
    assert answer.returncode == 2 and "no sink \"nosuch\"" in answer.stderr
    assert "out, nobody, missing, away" in answer.stderr
    answer = asked("--sink", "out", "--from", "-1h", "--to", "-2h")
    assert answer.returncode == 2 and "the range is empty" in answer.stderr
    answer = asked("--sink", "out", "--from", "yesterday")
    assert answer.returncode == 2 and "2026-01-31T12:00:00Z" in answer.stderr
    answer = asked("--sink", "out", "--from", "-10d", "--to", "-9d")
    assert answer.returncode == 1 and "nothing to send has a time from" in answer.stderr
    assert "those that pass the filters are from 20" in answer.stderr
    answer = asked("--sink", "out", "--from", "-1h", "--client", "nosuch")
    assert answer.returncode == 1 and "no point passes the filters" in answer.stderr
    answer = asked("--sink", "out", "--from", "-1h", "--data-dir", str(tmp_path / "nowhere"))
    assert answer.returncode == 1 and "no data directory" in answer.stderr
    for sink in ("nobody", "away"):
        answer = asked("--sink", sink, "--from", "-1h", "--give-up-after", "2 s")
        assert answer.returncode == 1 and "2 s (--give-up-after)" in answer.stderr, answer.stderr
        assert "to go on from there: metricstream log replay" in answer.stderr and "0 sent" in answer.stdout
    begun = time.monotonic()
    answer = asked("--sink", "missing", "--from", "-1h", "--give-up-after", "600 s")
    assert answer.returncode == 1 and "database not found" in answer.stderr, answer.stderr
    assert time.monotonic() - begun < 300, "what an operator has to mend is not waited for"


def test_retention_under_a_replay_is_said_and_counted(make_server, tmp_path):
    out = tmp_path / "out"
    server = make_server(node={"shards": 1}, client=CLIENTS, sink=[file_sink(out)],
                         log={"segment_bytes": "1 MiB", "bytes_max": "8 MiB", "spare_segments": 1,
                              "when_full": "drop_oldest"}).start()
    base_ns = base()
    points = 20_000  # of 200 bytes: several segments

    def text(n):
        return f'"{random.Random(n).randbytes(100).hex()}"'
    for n in range(10):
        write(server, points // 10, base_ns + n * points // 10 * STEP_NS, name="old", value=text)
    drained(server, "out")
    process = subprocess.Popen([server.program, *replay_words(
        server, "--sink", "out", "--from", str(base_ns), "--to", str(base_ns + points * STEP_NS), "--name", "old",
        "--rate", "500", "--json")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        eventually(lambda: list(out.glob("replay-*/*")), 30, "the replay has begun", every_s=0.01)
        process.send_signal(signal.SIGSTOP)
        dropped = "metricstream_log_segments_dropped_total"
        eventually(lambda: write(server, 2_000, base_ns, name="new", value=text) or server.metrics().sum(dropped) >= 8, 120,
                   lambda: f"segments are dropped\n{server.log_tail()}", every_s=0.02)
        process.send_signal(signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=240)
    finally:
        process.kill()
    summary = json.loads(stdout)
    assert process.returncode == 1 and summary["outcome"] == "done", stderr
    assert summary["removed_meanwhile"] > 0 and "removed by retention" in stderr
    assert 0 < summary["sent"] < points <= summary["sent"] + summary["removed_meanwhile"], summary
    assert summary["damaged"] == summary["unreadable"] == 0
    rows = output.rows(summary["files"])
    assert len(rows) == summary["sent"] and {row["name"] for row in rows} == {"old"}
    assert server.alive() and server.metrics().sum("metricstream_sink_errors_total") == 0
