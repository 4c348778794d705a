"""`[windows] quantiles = false`, and a log that was written under both settings.

What was closed stays as it was closed; what closes or is revised later has quantiles or `null` as configured then. Count,
sum, min, max and avg are the same exact figures throughout, over a kill and a stop in the middle.
"""

import json
import random
import time

from support import exposition, oracle
from support.server import eventually

WINDOWS_S = (10, 20)
RULE = "folded"


def points(rng, start_s):
    """Of one 20 s window: some series with few points, one with more than are told apart in a base window."""
    start_ns = start_s * 10**9
    many = [("q.many", (), rng.choice((rng.uniform(-5, 5), 0.1, 1e300, -1e-9)), start_ns + i * 100_000_000)
            for i in range(200)]
    few = [("q.few", (("i", str(i % 7)),), rng.uniform(-1e3, 1e3), start_ns + i * 700_000_001) for i in range(28)]
    return [*many, *(p for p in few if p[3] < start_ns + 20 * 10**9),
            *(("q.dense", (), rng.uniform(1, 2), start_ns + 20_000_000 * i) for i in range(100))]


def write(server, batch):
    server.write_lines("\n".join(f"{name}{''.join(f',{k}={v}' for k, v in tags)} value={value!r} {t}"
                                 for name, tags, value, t in batch))


def wait_for(server, expected):
    """Rows of the windows in `expected` ({length: oracle windows}) once all of them hold all their points."""
    starts = {(key[2], window_s) for window_s, windows in expected.items() for key in windows}
    total = sum(w["count"] for windows in expected.values() for w in windows.values())

    def mine(rows):
        return [r for r in rows if (r["start_ms"], r["window_s"]) in starts and r["name"] != RULE]

    rows = server.wait_windows(lambda rows: sum(r["count"] for r in mine(rows)) >= total, 60)
    return mine(rows)


def check(rows, expected, quantiles):
    for window_s, windows in expected.items():
        different = oracle.differences(windows, oracle.by_key([r for r in rows if r["window_s"] == window_s]), quantiles=quantiles)
        assert not different, f"{window_s} s windows:\n" + "\n".join(different)


def kept(server, start_ms):
    """Rows of the 20 s from there as text, rule outputs included, byte for byte."""
    return [json.dumps(r) for r in server.windows(exact_text=True, since=start_ms, until=start_ms + 20_000)]


def test_quantiles_come_and_go_with_restarts_and_all_else_stays_exact(real_server_only, make_server):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    server = make_server(
        windows={"lateness": "1 s", "windows": [f"{s} s" for s in WINDOWS_S]},
        aggregate=[{"name": RULE, "match": {"name": "q.*"}, "by": [], "windows": ["20 s"]}]).start()
    past_s = int(time.time()) // 20 * 20 - 100
    past = points(rng, past_s)
    expected = {s: oracle.windows(past, s) for s in WINDOWS_S}
    write(server, past)
    check(wait_for(server, expected), expected, quantiles=True)
    server.wait_windows(lambda rows: rows, 20, name=RULE, window="20s", since=past_s * 1000)
    before = kept(server, past_s * 1000)

    # Points of windows that are still open when the server is killed: they close without.
    open_s = int(time.time()) // 20 * 20
    now = points(rng, open_s)
    write(server, now)
    server.settings["windows"]["quantiles"] = False
    server.restart(kill=True)
    expected_now = {s: oracle.windows(now, s) for s in WINDOWS_S}
    check(wait_for(server, expected_now), expected_now, quantiles=False)
    assert kept(server, past_s * 1000) == before, "closed windows stay as they were closed"
    rule = server.wait_windows(lambda rows: rows, 20, name=RULE, window="20s", since=open_s * 1000)[0]
    assert (rule["count"], rule["p50"], rule["p95"], rule["p99"]) == (len(now), None, None, None)
    text = server.get("/aggregates").text
    assert exposition.Exposition.parse(text).sum("metricstream_window_count", name=RULE) == len(now)
    assert "metricstream_window_p99{" not in text and "metricstream_window_max{" in text

    # A late point revises a closed window: that one has none from then on.
    late = ("q.many", (), 7.5, past_s * 10**9 + 1)
    write(server, [late])
    changed = {s: {k: v for k, v in oracle.windows([*past, late], s).items() if k[0] == "q.many"} for s in WINDOWS_S}

    def revised():
        rows = [r for r in server.windows(name="q.many", since=past_s * 1000, until=past_s * 1000 + 10_000)]
        return rows if [r["revision"] for r in rows] == [1, 1] else None

    rows = eventually(revised, 20, "both windows of the late point are revised")
    for window_s in WINDOWS_S:
        windows = {k: v for k, v in changed[window_s].items() if k[2] == past_s * 1000}
        check([r for r in rows if r["window_s"] == window_s], {window_s: windows}, quantiles=False)
    untouched = [r for r in map(json.loads, before) if r["name"] == "q.few"]
    assert untouched == [r for r in map(json.loads, kept(server, past_s * 1000)) if r["name"] == "q.few"]
    assert all(r["p99"] is not None for r in untouched)

    # On again, after an ordinary stop: nothing that is closed changes, what comes has them.
    before, before_now = kept(server, past_s * 1000), kept(server, open_s * 1000)
    server.settings["windows"]["quantiles"] = True
    server.restart()
    new_s = past_s - 40  # closed in the wall clock's eyes, but new
    new = points(rng, new_s)
    write(server, new)
    expected_new = {s: oracle.windows(new, s) for s in WINDOWS_S}
    check(wait_for(server, expected_new), expected_new, quantiles=True)
    assert (kept(server, past_s * 1000), kept(server, open_s * 1000)) == (before, before_now)
    eventually(lambda: not exposition.imbalance(server.metrics()), 10, lambda: exposition.imbalance(server.metrics()))

    # The log on disk says the same.
    server.terminate()
    server.log_verify()
    dumped = server.cli("log", "dump", "--shard", "aggregate", "--data-dir", str(server.data_dir)).stdout.splitlines()
    revisions = [row for row in map(json.loads, dumped)
                 if row.get("name") == "q.many" and (row["start_ms"], row["window_s"]) == (past_s * 1000, 10)]
    assert [(r["revision"], r["p50"] is None) for r in revisions] == [(0, False), (1, True)], revisions
