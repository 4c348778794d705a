"""The forwarder with its file sink: every acknowledged point, exactly once after removing equal ids, whatever happens."""

import collections
import json
import os
import random
import shutil
import subprocess
import time

import jsonschema
import pytest
import requests

from support import output
from support.ledger import Load
from support.server import ROOT, eventually

MIB = 1 << 20
SMALL_LOG = {"segment_bytes": "1 MiB", "bytes_max": "4 MiB", "spare_segments": 1, "retention": "60 s"}
SHORT_WINDOWS = {"windows": ["10 s"], "horizon": "10 s", "future_bound": "10 s", "lateness": "1 s"}

pytestmark = pytest.mark.usefixtures("real_server_only")


def file_sink(path, name="out", **more):
    return {"name": name, "type": "file", "path": str(path), "send": "raw", "rotate_every": "300 ms",
            "retry_every_max": "500 ms"} | more


def valid(rows, schema):
    """Every row is what the schema of its kind says."""
    validator = jsonschema.Draft202012Validator(json.loads((ROOT / "src/forward/schema" / f"{schema}.json").read_text()))
    for row in rows:
        validator.validate(row)
        assert "id" in row
    return rows


def lag(server, sink="out"):
    return server.metrics().sum("metricstream_sink_lag_points", sink=sink)


def drained(server, sink="out", timeout_s=30):
    """Waits until the sink has acknowledged everything."""
    eventually(lambda: lag(server, sink) == 0, timeout_s,
               lambda: f"lag {lag(server, sink)}\n{server.log_tail()}")


def books(server):
    """Every sink's books in /metrics, checked."""
    metrics, found = server.metrics(), {}
    logs = {(dict(labels)["sink"], dict(labels)["log"]) for name, labels in metrics
            if name == "metricstream_sink_points_read_total"}
    for sink, log in logs:
        def value(what):
            return metrics.sum(f"metricstream_sink_points_{what}", sink=sink, log=log)
        parts = {what: value(f"{what}_total")
                 for what in ("delivered", "refused", "dead_lettered", "filtered", "dropped", "lost_to_damage")}
        assert value("read_total") == sum(parts.values()) + value("waiting"), (sink, log, parts)
        found[sink, log] = parts
    return found


def cursors(server):
    """`log cursors --json`, each one's totals checked against its place."""
    answer = server.cli("--config", str(server.config_path), "log", "cursors", "--json")
    found = {}
    for c in json.loads(answer.stdout)["cursors"]:
        totals = sum(c[part] for part in ("delivered", "refused", "dead_lettered", "filtered", "dropped", "lost_to_damage"))
        assert totals == c["next_point"] - c["first_point"], c
        found[c["sink"], c["log"]] = c
    return found


def write(server, name, numbers, **tags):
    extra = "".join(f",{k}={v}" for k, v in tags.items())
    base = time.time_ns()
    server.write_lines("\n".join(f"{name}{extra} value={n} {base + n}" for n in numbers))


@pytest.mark.parametrize("compression,suffix", [("none", ""), ("gzip", ".gz"), ("zstd", ".zst")])
def test_a_point_comes_out_as_it_went_in(make_server, tmp_path, compression, suffix):
    out = tmp_path / "out"
    server = make_server(sink=[file_sink(out, compression=compression)]).start()
    now_ns = time.time_ns() // 1000 * 1000 + 7
    answer = server.post("/metrics", json.dumps({"metrics": [
        {"name": "a \"b\"", "value": 2**53, "timestamp": now_ns, "tags": {"host": "é", "dc": "eu"}},
        {"name": "plain", "value": -0.25, "timestamp": now_ns // 1_000_000 * 1_000_000},
    ]}), headers={"X-Request-ID": "req-1"})
    assert answer.status_code == 200
    server.write_lines("kinds i=9007199254740993i,u=18446744073709551615u,b=true,s=\"two\\\"words\" 1700000000123000000")
    drained(server)
    assert all(path.name.endswith(f".ndjson{suffix}") for path in output.files(out, "raw"))
    rows = {row["name"]: row for row in valid(output.rows(out), "metrics-raw")}
    assert rows["a \"b\""]["value"] == 2**53 and rows["a \"b\""]["tags"] == {"host": "é", "dc": "eu"}
    assert output.time_ns(rows["a \"b\""]) == now_ns
    assert rows["plain"]["value"] == -0.25 and "timestamp_ns" not in rows["plain"]
    assert rows["plain"]["client_id"] == "127.0.0.1"
    kinds = {name.removeprefix("kinds_").removeprefix("kinds."): row["value"]
             for name, row in rows.items() if name.startswith("kinds")}
    assert set(kinds.values()) >= {9007199254740993, 18446744073709551615, True, 'two"words'}, kinds
    node = server.status()["node_id"][:16]
    assert {row["id"].rsplit("-", 2)[0] for row in rows.values()} <= {f"{node}-0", f"{node}-1"}
    assert server.terminate() == 0


def test_windows_come_out_with_their_numbers_and_line_protocol_with_its_escapes(make_server, tmp_path):
    server = make_server(
        sink=[file_sink(tmp_path / "json", "json", send="both"),
              file_sink(tmp_path / "line", "line", send="raw", format="line")],
        windows={"lateness": "0 s", "windows": ["10 s"]}).start()
    base_ns = (time.time_ns() // 10**10 - 1) * 10**10
    server.write_lines("\n".join(f"m\\ x,k=a\\,b value={n} {base_ns + n}" for n in range(5)))
    rows = eventually(lambda: output.rows(tmp_path / "json", "aggregates"), 30, "a window in a file")
    [row] = [row for row in valid(rows, "metrics-aggregated") if row["name"] == "m x"]
    assert (row["count"], row["sum"], row["min"], row["max"], row["window_s"]) == (5, 10, 0, 4, 10)
    assert row["start_ms"] == base_ns // 10**6 and row["tags"] == {"k": "a,b"} and row["revision"] == 0
    assert row["rule"] is None and row["state"]["sum"] == ["5", 1] and row["state"]["zeros"] == 1, "as Kafka gets it"
    drained(server, "line")
    assert list(output.lines(tmp_path / "line", "raw")) == [
        f"m\\ x,client_id=127.0.0.1,k=a\\,b value={n}.0 {base_ns + n}" for n in range(5)]
    books(server)


def test_a_filter_leaves_out_what_it_says_and_counts_it(make_server, tmp_path):
    server = make_server(sink=[file_sink(tmp_path / "api", "api", names=["api.*"], tags={"dc": "eu-?"}),
                               file_sink(tmp_path / "all", "all")]).start()
    write(server, "api.latency", range(10), dc="eu-1")
    write(server, "api.latency", range(20), dc="us-1")
    write(server, "db.latency", range(40), dc="eu-1")
    for sink in ("api", "all"):
        drained(server, sink)
    assert len(output.rows(tmp_path / "api")) == 10 and len(output.rows(tmp_path / "all")) == 70
    found = books(server)
    assert sum(b["filtered"] for (sink, _), b in found.items() if sink == "api") == 60
    assert sum(b["delivered"] for (sink, _), b in found.items() if sink == "all") == 70
    exposition = server.get("/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=exposition, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_acknowledged_point_comes_out_once_over_kills_and_other_numbers_of_shards(make_server, tmp_path, long):
    kills = 50 if long else 8
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    out = tmp_path / "out"
    server = make_server(node={"shards": 2}, log={"segment_bytes": "1 MiB"},
                         sink=[file_sink(out, rotate_every="200 ms")]).start()
    load = Load(server.ingest_port, tmp_path / "ledger")
    for _ in range(kills):
        time.sleep(rng.expovariate(1 / 0.6))
        server.kill()
        server.start()
    server.kill()
    server.settings["node"]["shards"] = 1  # what shard 1 has logged must still come out
    server.start()
    time.sleep(1)
    load.stop()
    drained(server)
    books(server)
    assert server.terminate() == 0, server.log_tail()
    every = output.rows(out)
    rows = output.once(every)
    counts = collections.Counter((int(r["tags"]["w"]), int(r["value"])) for r in rows)
    print(f"seed {seed}: {kills} kills, {len(load.acked)} acknowledged, {len(every)} lines, {len(rows)} ids")
    missing = load.acked - set(counts)
    assert not missing, f"seed {seed}: {len(missing)} acknowledged points are missing, such as {sorted(missing)[:5]}"
    for row in rows:
        assert load.time_of[int(row["tags"]["w"]), int(row["value"])] == output.time_ns(row), row
    # Odd workers never send anything twice.
    assert all(n == 1 for (w, _), n in counts.items() if w % 2 == 1)
    last = {}
    for row in rows:
        log, number = output.place(row)
        assert number > last.get(log, -1), f"seed {seed}: {row['id']} after {last[log]}"
        last[log] = number
    last = {}
    for row in sorted(rows, key=output.place):
        w, n = int(row["tags"]["w"]), int(row["value"])
        if w % 2 == 1:
            assert n > last.get((output.place(row)[0], w), -1), f"seed {seed}: order of worker {w}"
            last[output.place(row)[0], w] = n
    # The books of the cursors are over all starts.
    dumped = collections.Counter(str(p["log"]) for p in server.log_dump())
    for (_, log), c in cursors(server).items():
        assert c["delivered"] == c["next_point"] - c["first_point"] == dumped[log], (log, c, dumped)
        assert c["lag_points"] == 0 == c["lag_bytes"], c
    assert sum(dumped.values()) == len(rows)


def test_a_shard_that_comes_back_gives_no_id_a_second_time(make_server, tmp_path):
    """Its log is empty then, and counts points from 0 again."""
    out = tmp_path / "out"
    server = make_server(node={"shards": 2}, sink=[file_sink(out)]).start()

    def load(name):
        # Each on a connection of its own, until both shards have had some.
        logs = set()
        for n in range(200):
            requests.post(server.url("/write"), f"{name} value={n} {time.time_ns()}", timeout=20).raise_for_status()
            if n % 20 == 19:
                drained(server)
                logs = {output.place(row)[0] for row in output.rows(out) if row["name"] == name}
                if logs == {"0", "1"}:
                    return n + 1
        raise AssertionError(f"200 connections, and only {logs} had any")
    sent = load("before")
    assert server.terminate() == 0
    shutil.rmtree(server.data_dir / "log" / "1")  # as it goes when it was folded and its time is over
    server.settings["node"]["shards"] = 1
    server.start()
    assert server.terminate() == 0
    server.settings["node"]["shards"] = 2
    server.start()
    sent += load("after")
    rows = output.rows(out)
    assert len(rows) == sent == len({row["id"] for row in rows})
    numbers = [output.place(row) for row in rows]
    assert len(set(numbers)) < sent, "the same numbers, told apart by their epochs"


def test_a_full_output_disk_is_retried_memory_stays_flat_and_nothing_is_lost(make_server, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(out)], check=True)
    try:
        server = make_server(sink=[file_sink(out, rotate_bytes="64 KiB"),
                                   file_sink(tmp_path / "other", "other")]).start()
        load = Load(server.ingest_port, tmp_path / "ledger", workers=4, pause_s=0.001)
        errors = "metricstream_sink_errors_total"
        eventually(lambda: server.metrics().sum(errors, sink="out") > 0, 60, "the output disk is full")
        assert server.metrics().sum("metricstream_sink_state", sink="out", state="retrying") == 1
        time.sleep(5)  # what is kept of the last reads has its size now
        rss, behind, acked = server.rss_bytes(), lag(server), len(load.acked)
        time.sleep(8)
        assert lag(server) > behind and len(load.acked) > acked + 500, "clients go on"
        # On a busy machine the reader's cache may still grow, up to its bound of 32 MiB.
        assert server.rss_bytes() < rss + 44 * MIB, f"{rss} -> {server.rss_bytes()}"
        assert server.metrics().sum("metricstream_sink_errors_total", sink="other") == 0
        books(server)
        subprocess.run(["mount", "-o", "remount,size=256m", str(out)], check=True)
        load.stop()
        drained(server)
        assert server.metrics().sum("metricstream_sink_state", sink="out", state="running") == 1
        drained(server, "other")
        rows = output.once(output.rows(out))
        assert load.acked <= {(int(r["tags"]["w"]), int(r["value"])) for r in rows}
        assert {r["id"] for r in rows} == {r["id"] for r in output.once(output.rows(tmp_path / "other"))}
        assert not list(out.glob("*.part"))
        assert server.terminate() == 0
    finally:
        subprocess.run(["umount", "-l", str(out)])


def blocked(path):
    """A path where no directory can be made."""
    path.write_text("in the way")
    return path


def fill_until(server, name, done, most=400):
    """Sends batches of 2,000 points of few bytes each until `done(answer)`; how many were acknowledged."""
    sent = 0
    for _ in range(most):
        base = time.time_ns() - 60 * 10**9  # old enough for windows to be frozen soon
        lines = "\n".join(f"{name},k={n % 100} value={random.random()} {base + n}" for n in range(2000))
        answer = server.post("/write", lines.encode())
        sent += 2000 * (answer.status_code == 204)
        if done(answer):
            return sent
        if answer.status_code != 204:
            assert answer.status_code == 503 and answer.headers["Retry-After"], answer.text
            time.sleep(0.1)
    raise AssertionError(f"not after {sent} points\n{server.log_tail()}")


def test_the_log_is_kept_for_a_sink_that_is_away_and_names_it_at_the_bound(make_server, tmp_path):
    out = blocked(tmp_path / "out")
    server = make_server(node={"shards": 1}, log=SMALL_LOG, windows=SHORT_WINDOWS, sink=[file_sink(out, "away")]).start()
    sent = fill_until(server, "held", lambda answer: answer.status_code == 503)
    eventually(lambda: server.metrics().sum("metricstream_sink_holds_log", sink="away", log="0") == 1, 10, "it is named")
    assert "because these sinks have not read it" in server.log_path.read_text()
    assert "away" in [l for l in server.log_path.read_text().splitlines() if "have not read it" in l][0]
    assert server.metrics().sum("metricstream_log_at_bound") == 1
    out.unlink()
    drained(server, "away")
    eventually(lambda: server.post("/write", b"again value=1").status_code == 204, 40, lambda: server.log_tail())
    drained(server, "away")
    assert len(output.once(output.rows(out))) == sent + 1
    assert server.metrics().sum("metricstream_sink_holds_log", sink="away") == 0
    assert server.metrics().sum("metricstream_sink_points_dropped_total") == 0


def test_what_drop_oldest_takes_from_a_sink_is_counted_exactly(make_server, tmp_path):
    out = blocked(tmp_path / "out")
    server = make_server(node={"shards": 1}, log=SMALL_LOG | {"when_full": "drop_oldest"}, windows=SHORT_WINDOWS,
                         sink=[file_sink(out, "away"), file_sink(tmp_path / "near", "near")]).start()
    dropped = "metricstream_log_segments_dropped_total"
    sent = fill_until(server, "old", lambda _: server.metrics().sum(dropped) >= 3)
    server.kill()
    server.start()
    sent += fill_until(server, "old", lambda _: server.metrics().sum(dropped) >= 2)
    out.unlink()
    write(server, "last", range(10))
    drained(server, "away")
    drained(server, "near")
    rows = output.once(output.rows(out))
    eventually(lambda: cursors(server)["away", "0"]["lag_points"] == 0, 5, "its cursor is stored")
    c = cursors(server)["away", "0"]
    assert c["dropped"] > 0 and c["lost_to_damage"] == 0
    assert len(rows) == c["delivered"] and c["delivered"] + c["dropped"] == sent + 10 == c["next_point"], (c, sent)
    numbers = sorted(output.place(row)[1] for row in rows)
    assert numbers == list(range(c["dropped"], sent + 10)), "the oldest are gone and nothing else"
    assert len(output.once(output.rows(tmp_path / "near"))) == sent + 10, "the other sink had all of it"


def test_a_removed_sink_holds_nothing_a_new_one_begins_where_it_says(make_server, tmp_path):
    server = make_server(node={"shards": 1}, sink=[file_sink(tmp_path / "old", "old")]).start()
    write(server, "first", range(10))
    drained(server, "old")
    assert server.terminate() == 0
    server.settings["sink"] = [file_sink(tmp_path / "all", "all"), file_sink(tmp_path / "new", "new", start="now")]
    server.start()
    assert "this sink is not configured any more" in server.log_path.read_text()
    write(server, "second", range(10))
    drained(server, "all")
    drained(server, "new")
    assert {r["name"] for r in output.rows(tmp_path / "all")} == {"first", "second"}
    assert {r["name"] for r in output.rows(tmp_path / "new")} == {"second"}
    eventually(lambda: len(cursors(server)) == 3, 5, "all cursors are stored")
    table = server.cli("--config", str(server.config_path), "log", "cursors").stdout
    assert "old (not configured)" in table and "LAG POINTS" in table, table
    assert cursors(server)["new", "0"]["first_point"] == 10
    refused = server.cli("--config", str(server.config_path), "log", "cursors", "--forget", "all", check=False)
    assert refused.returncode == 2 and "is configured" in refused.stderr
    server.cli("--config", str(server.config_path), "log", "cursors", "--forget", "old")
    assert ("old", "0") not in cursors(server)
    assert server.terminate() == 0
    server.start()
    assert "not configured any more" not in server.log_path.read_text()


def test_a_damaged_cursor_begins_with_the_oldest_and_a_damaged_block_is_counted(make_server, tmp_path):
    out = tmp_path / "out"
    server = make_server(node={"shards": 1}, sink=[file_sink(out)]).start()
    for n in range(20):
        write(server, "kept", [n])
    drained(server)
    assert server.terminate() == 0
    cursor = server.data_dir / "cursors" / "out" / "0"
    cursor.write_bytes(bytes(8192))
    [segment, *_] = sorted((server.data_dir / "log" / "0").glob("*.seg"))
    with open(segment, "r+b") as f:
        f.seek(4096 * 8 + 200)
        was = f.read(8)
        f.seek(4096 * 8 + 200)
        f.write(bytes(b ^ 0xFF for b in was))
    server.start()
    assert "a cursor cannot be used" in server.log_path.read_text()
    drained(server)
    eventually(lambda: cursors(server)["out", "0"]["lag_points"] == 0, 5, "its cursor is stored")
    c = cursors(server)["out", "0"]
    assert (c["delivered"], c["lost_to_damage"]) == (19, 1), c
    assert len(output.once(output.rows(out))) == 20, "what came again has the same ids"


@pytest.mark.flaky(reruns=1, reruns_delay=5)  # bounds a time, on a machine that others use too
def test_a_stop_leaves_no_unfinished_file_and_a_dead_sink_does_not_delay_it(make_server, tmp_path):
    server = make_server(sink=[file_sink(tmp_path / "out", rotate_every="1 h"),
                               file_sink(blocked(tmp_path / "dead"), "dead", stop_within="1 s")]).start()
    write(server, "x", range(1000))
    began = time.monotonic()
    assert server.terminate() == 0, server.log_tail()
    assert time.monotonic() - began < 4
    assert len(output.rows(tmp_path / "out")) == 1000 and not list((tmp_path / "out").glob("*.part"))
    (tmp_path / "dead").unlink()
    server.start()
    drained(server, "dead")
    assert len(output.once(output.rows(tmp_path / "dead"))) == 1000
