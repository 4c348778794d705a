"""Windows equal an independent computation, for any number of shards, order of arrival, and crash in between.

The same points go to several servers at once: 1, 2 and 4 shards, one with the requests shuffled, one with a SIGKILL and
a SIGTERM in the middle (requests that got no answer are sent again, so that repeats cross restarts). All of them must
answer the same rows byte for byte, the revision aside, and these rows must equal the oracle's.
"""

import json
import random
import struct
import threading
import time

import pytest
import requests

from support import exposition, oracle
from support.server import eventually

SPECIAL = [1e-9, 0.0, -0.0, 0.1, 0.2, 0.3, 1e300, -1e300, 1.0, -1.0, 2.0**53, 5e-324, 1e16, -1e16, 123456.789]


def workload(points, series, hot, start_ns, span_s, seed):
    """Requests [(is hot, path, body bytes)] and the points they hold. Deterministic for a seed and start."""
    rng = random.Random(seed)
    names = [(f"m{i % 97}", (("dc", f"d{i % 3}"), ("host", f"h{i}"))) for i in range(series)]
    hot_names = [("hot", (("n", str(i)),)) for i in range(hot)]
    sent, sent_requests, recent = [], [], []
    kinds = ("uniform", "log", "special", "integer")
    span_us = span_s * 1_000_000
    serial = 0

    def value(kind):
        if kind == "uniform":
            return rng.uniform(-1000, 1000)
        if kind == "log":
            return rng.choice((1, 1, 1, -1)) * 10 ** rng.uniform(-9, 12)
        if kind == "special":
            return rng.choice(SPECIAL)
        return float(rng.randint(-5, 1000))

    while len(sent) < points:
        batch = []
        # Every tenth request holds only points of series with more points a window than are told apart (`unchecked`):
        # those must not be repeated, so the server that is killed does not get them.
        is_hot = hot > 0 and len(sent_requests) % 10 == 9
        for _ in range(2000):
            draw = rng.random()
            serial += 1
            if is_hot:
                at = (serial * 50_000 + serial // 1_000_000) % (span_s * 10**9)
                batch.append((*hot_names[serial % hot], value("log"), start_ns + at))
            elif draw < 0.02 and recent:  # a repeat, as after a lost answer
                batch.append(rng.choice(recent))
            elif draw < 0.03 and recent:  # one identity, another value
                name, tags, _, t = rng.choice(recent)
                batch.append((name, tags, value("uniform"), t))
            else:
                i = rng.randrange(series)
                point = (*names[i], value(kinds[i % 4]), start_ns + rng.randrange(span_us) * 1000)
                batch.append(point)
                if len(recent) < 5000:
                    recent.append(point)
                else:
                    recent[rng.randrange(5000)] = point
        sent += batch
        sent_requests.append((is_hot, *encode(batch, as_json=len(sent_requests) // 10 % 2 == len(sent_requests) % 2)))
    return sent_requests, sent


def encode(batch, as_json):
    if as_json:
        return "/metrics", json.dumps({"metrics": [
            {"name": n, "value": v, "timestamp": t, "tags": dict(tags)} for n, tags, v, t in batch]}).encode()
    lines = []
    for name, tags, v, t in batch:
        tags = "".join(f",{k}={x}" for k, x in tags)
        if "_" not in name and struct.pack("<d", v)[0] % 2:
            lines.append(f"{name}{tags} value={v!r} {t}")
        else:
            lines.append(f'{name}{tags} note="a b",value={v!r},ok=true {t}')  # neighbours that are not aggregated
    return "/write", "\n".join(lines).encode()


def send(server, sent_requests, restarts=()):
    """Over 4 connections. With `restarts`, kills or stops the server at these request numbers, and sends again what got
    no answer."""
    position, lock, up = [0], threading.Lock(), threading.Event()
    up.set()
    failures = []

    def worker():
        session = requests.Session()
        while not failures:
            with lock:
                at = position[0]
                if at == len(sent_requests):
                    return
                position[0] += 1
                if at in restarts:
                    up.clear()
                    try:
                        server.restart(kill=restarts[at] == "kill")
                    except BaseException as e:  # the other workers must not wait for ever
                        failures.append(repr(e))
                    up.set()
            _, path, body = sent_requests[at]
            deadline = time.monotonic() + 60
            while True:
                up.wait()
                try:
                    answer = session.post(server.url(path), data=body, timeout=30)
                    if answer.status_code in (200, 204):
                        break
                    if answer.status_code != 503:
                        failures.append(f"{path}: {answer.status_code} {answer.text[:300]}")
                        return
                except requests.RequestException as e:
                    if not restarts:
                        failures.append(repr(e))
                        return
                if time.monotonic() > deadline:
                    failures.append(f"{path}: no acknowledgement in 60 s")
                    return
                time.sleep(0.05)

    threads = [threading.Thread(target=worker) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures[:3]


def exact_rows(server):
    """Rows as text without the revision, in one order."""
    rows = server.windows(exact_text=True)
    for row in rows:
        row.pop("revision")
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@pytest.mark.slow
def test_windows_equal_exact_arithmetic_and_do_not_depend_on_shards_order_or_crashes(make_server, long, is_stand_in):
    size = (20_000, 500, 1) if is_stand_in else (3_000_000, 10_000, 4) if long else (1_000_000, 10_000, 4)
    points, series, hot = size
    big = {"series": {"per_client_max": 1_000_000}, "http": {"body_bytes_max": "64 MiB"}}
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    start_ns = (time.time_ns() // 10**9 - 10) // 10 * 10 * 10**9  # some are late, most are on time
    span_s = 50
    sent_requests, sent = workload(points, series, hot, start_ns, span_s, seed)
    shuffled = sent_requests[:]
    random.Random(seed).shuffle(shuffled)
    repeatable = [r for r in sent_requests if not r[0]]
    third = len(repeatable) // 3
    plan = {
        "1 shard": (1, sent_requests, {}),
        "2 shards": (2, sent_requests, {}),
        "4 shards": (4, sent_requests, {}),
        "shuffled": (2, shuffled, {}),
        "killed": (2, repeatable, {third: "kill", 2 * third: "term", 2 * third + 5: "kill"}),
    }
    servers = {}
    for name, (shards, order, restarts) in plan.items():
        servers[name] = make_server(name.replace(" ", "-"), node={"shards": shards}, **big).start()
        send(servers[name], order, restarts)

    last_end_s = (start_ns // 10**9 + span_s + 59) // 60 * 60
    expected = oracle.windows(sent, 10), oracle.windows(sent, 60)
    cold = tuple({k: v for k, v in windows.items() if k[0] != "hot"} for windows in expected)
    time.sleep(max(0.0, last_end_s + 1 - time.time()))
    rows_of = {}
    for name, server in servers.items():
        wanted = cold if name == "killed" else expected
        total = sum(w["count"] for windows in wanted for w in windows.values())
        rows = server.wait_windows(lambda rows: sum(r["count"] for r in rows) >= total, 60, every_s=2)
        assert not any(r["incomplete"] for r in rows), name
        for window_s, windows in zip((10, 60), wanted):
            different = oracle.differences(windows, oracle.by_key([r for r in rows if r["window_s"] == window_s]))
            assert not different, f"{name}, {window_s} s windows, seed {seed}:\n" + "\n".join(different)
        assert name == "killed" or any(r["unchecked"] for r in rows) or hot == 1
        rows_of[name] = exact_rows(server)
        if name != "killed":
            eventually(lambda: not exposition.imbalance(server.metrics()), 10,
                       lambda: f"{name}: {exposition.imbalance(server.metrics())}")
    first = rows_of["1 shard"]
    for name, rows in rows_of.items():
        same = [r for r in first if json.loads(r)["name"] != "hot"] if name == "killed" else first
        if rows != same:
            a, b = set(same), set(rows)
            raise AssertionError(f"{name} differs from 1 shard, seed {seed}:\n{sorted(a - b)[:3]}\n{sorted(b - a)[:3]}")


def test_points_without_a_timestamp_are_each_counted(server):
    for _ in range(5):
        server.write_lines("bare value=1")
    rows = server.wait_windows(lambda rows: sum(r["count"] for r in rows) == 5, 25, name="bare", window="10s")
    assert sum(r["sum"] for r in rows) == 5.0


def test_a_late_point_revises_its_window_and_a_pure_repeat_does_not(real_server_only, server):
    t = (time.time_ns() // 10**10 - 6) * 10**10  # a minute ago: closed long since
    server.write_lines(f"late value=1 {t}")
    first = server.wait_windows(lambda rows: rows, 20, name="late", window="10s")[0]
    server.write_lines(f"late value=1 {t}")
    server.write_lines(f"other value=1 {t}")
    server.wait_windows(lambda rows: rows, 20, name="other", window="10s")
    assert server.windows(name="late", window="10s") == [first]
    server.write_lines(f"late value=2 {t + 1}")
    second = server.wait_windows(lambda rows: rows[0]["count"] == 2, 20, name="late", window="10s")[0]
    assert second["revision"] > first["revision"] and second["sum"] == 3.0


def test_two_values_for_one_identity_leave_the_greater(server):
    t = time.time_ns()
    for value in (5, 9, 7):
        server.write_lines(f"conflict value={value} {t}")
    rows = server.wait_windows(lambda rows: rows, 25, name="conflict", window="10s")
    assert [(r["count"], r["sum"]) for r in rows] == [(1, 9.0)]


def test_points_too_late_and_too_far_ahead_are_counted_and_not_lost_from_the_books(real_server_only, server):
    now = time.time_ns()
    server.write_lines(f"edge value=1 {now - 3600 * 10**9}\nedge value=2 {now + 3600 * 10**9}\nedge value=3 {now}")
    server.write_lines('edge text="only",flag=true')
    rows = server.wait_windows(lambda rows: rows, 25, name="edge", window="10s")
    assert [r["sum"] for r in rows] == [3.0]
    metrics = server.metrics()
    assert metrics.sum(exposition.LATE_BEYOND) + (metrics.sum(exposition.LATE_IN_REDUCER) or 0) == 1
    assert metrics.sum(exposition.TOO_FAR_AHEAD) == 1
    assert metrics.sum(exposition.NOT_AGGREGATED) == 2
    eventually(lambda: not exposition.imbalance(server.metrics()), 10,
               lambda: exposition.imbalance(server.metrics()))


def test_an_aggregate_rule_folds_series_into_fewer_with_their_exact_number(real_server_only, make_server):
    server = make_server(aggregate=[{"name": "latency.by_region", "match": {"name": "api.latency"}, "by": ["region"],
                                     "windows": ["10 s"]}]).start()
    t = time.time_ns()
    server.write_lines("\n".join(f"api.latency,host=h{i},region=r{i % 2} value={i} {t}" for i in range(100)))
    rows = server.wait_windows(lambda rows: len(rows) == 2, 25, name="latency.by_region", window="10s")
    for row in rows:
        parity = int(row["tags"]["region"][1])
        values = [float(i) for i in range(100) if i % 2 == parity]
        assert row["series"] == 50 and row["count"] == 50 and row["sum"] == sum(values)
        assert row["min"] == min(values) and row["max"] == max(values)
        assert abs(row["p99"] - values[990 * 49 // 1000]) <= 0.01 * values[990 * 49 // 1000]
    text = server.get("/aggregates").text
    found = exposition.Exposition.parse(text)
    assert found.sum("metricstream_window_count", name="latency.by_region") == 100, text


def test_series_beyond_the_limit_fold_into_overflow_and_old_ones_go_on(real_server_only, make_server):
    server = make_server(series={"per_client_max": 10}, node={"shards": 1}).start()
    t = time.time_ns()
    server.write_lines("\n".join(f"limited,i={i} value=1 {t}" for i in range(25)))
    server.write_lines(f"limited,i=3 value=1 {t + 1}")
    rows = server.wait_windows(lambda rows: sum(r["count"] for r in rows) == 26, 25, window="10s")
    over = [r for r in rows if r["name"] == "__overflow__"]
    assert sum(r["count"] for r in over) == 15
    assert [r["count"] for r in rows if r["tags"].get("i") == "3"] == [2]
