"""Acknowledged means kept: kills under load with a ledger outside, and the kernel's own record of flush before answer."""

import os
import random
import signal
import subprocess
import time

import pytest

from support import exposition, oracle
from support.iotrace import IoTrace, dsync_shows
from support.ledger import Load
from support.server import eventually


def balanced(server, what):
    eventually(lambda: not exposition.imbalance(server.metrics()), 20,
               lambda: f"{what}: books: {exposition.imbalance(server.metrics())}")


@pytest.mark.slow
def test_no_acknowledged_point_is_lost_and_none_counted_twice_over_kills_under_load(make_server, long, tmp_path,
                                                                                   is_stand_in):
    kills = int(os.environ.get("METRICSTREAM_TEST_KILLS", 200 if long else 3 if is_stand_in else 15))
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    server = make_server(node={"shards": 2}, log={} if is_stand_in else {"segment_bytes": "4 MiB"}).start()
    load = Load(server.ingest_port, tmp_path / "ledger")
    known = 0
    for n in range(kills):
        time.sleep(rng.expovariate(1 / 0.6))
        server.kill()
        assert not load.faults, load.faults[:3]
        # Not at each: the log grows, and so does the time to read it whole.
        if n % (5 if n < 20 else 25) == 4 or n == kills - 1:
            # The log as the crash left it: readable before any recovery wrote to it.
            acked = set(load.acked)
            dumped = {(int(p["tags"]["w"]), int(float(p["value"]))) for p in server.log_dump() if p["name"] == "kill"}
            assert not acked - dumped, f"seed {seed}, kill {n}: {len(acked - dumped)} acknowledged points lost"
            assert len(dumped) >= known
            known = len(dumped)
        if not is_stand_in:
            server.log_verify()
        server.start()
        with load.rest():
            balanced(server, f"seed {seed}, after kill {n}")
    time.sleep(1)
    load.stop()
    assert len(load.acked) > kills * 20, "the load hardly ran"
    balanced(server, f"seed {seed}")
    code = server.terminate()
    assert code == 0, server.log_tail()
    server.log_verify()
    found, _ = load.check_log(server.log_dump())
    print(f"{kills} kills, {len(load.acked)} acknowledged, {len(load.unknown)} unknown, {len(found)} in the log")

    # Windows: exactly the points in the log, once each. Those older than the horizon are frozen, not lost.
    server.start()
    expected = oracle.windows(load.points(found), 10)
    total = sum(w["count"] for w in expected.values())
    last_end_ms = max(start for _, _, start in expected) + 10_000
    rows = server.wait_windows(lambda rows: sum(r["count"] for r in rows) >= total,
                               max(5, last_end_ms / 1000 - time.time() + 30), name="kill", window="10s")
    different = oracle.differences(expected, oracle.by_key(rows))
    assert not different, f"seed {seed}\n" + "\n".join(different)
    assert is_stand_in or not any(r["incomplete"] for r in rows)


def test_sigterm_under_load_answers_what_it_took_and_exits_0(make_server, tmp_path):
    server = make_server().start()
    load = Load(server.ingest_port, tmp_path / "ledger")
    for _ in range(2):
        time.sleep(0.7)
        assert server.terminate() == 0, server.log_tail()
        server.start()
    load.stop()
    assert server.terminate() == 0
    load.check_log(server.log_dump())


def test_a_damaged_block_costs_only_its_own_points_and_does_not_stop_a_start(real_server_only, make_server):
    server = make_server(node={"shards": 1}).start()
    for i in range(300):
        server.write_lines(f"damage,i={i} value={i}")
    server.kill()
    segments = sorted((server.data_dir / "log" / "0").glob("*.seg"), key=lambda p: p.stat().st_mtime)
    assert segments, f"no segments under {server.data_dir}"
    assert len(list(server.log_dump())) == 300
    at = 4096 * 100 + 8  # in the header of a block: one write is one block here
    with open(segments[-1], "r+b") as f:
        f.seek(at)
        was = f.read(64)
        f.seek(at)
        f.write(bytes(b ^ 0xFF for b in was))
    assert server.cli("log", "verify", "--data-dir", str(server.data_dir), check=False).returncode == 3
    server.start()
    server.write_lines("damage,i=after value=1")
    server.kill()
    left = len(list(server.log_dump(exit_code=3)))
    assert 300 <= left <= 301, f"one block, of one point or of names, was damaged; {301 - left} points are gone"


def test_the_last_block_before_a_clean_stop_is_counted_when_it_rots(real_server_only, make_server):
    server = make_server(node={"shards": 1}).start()
    for i in range(10):
        server.write_lines(f"rot,i={i} value={i}")
    assert server.terminate() == 0
    segment, page = max((p, at) for p in (server.data_dir / "log" / "0").glob("*.seg")
                        for at, points in blocks(p) if points)
    with open(segment, "r+b") as f:
        f.seek(page + 140)
        was = f.read(1)
        f.seek(page + 140)
        f.write(bytes([was[0] ^ 1]))
    assert "1 points known to be lost" in server.cli("log", "verify", "--data-dir", str(server.data_dir), check=False).stdout
    server.start()
    eventually(lambda: server.metrics().sum("metricstream_log_damaged_points_at_start") == 1, 5, "the loss is counted")
    rows = server.wait_windows(lambda rows: len(rows) == 9, 25, name="rot", window="10s")
    assert all(r["count"] == 1 for r in rows)


def blocks(segment):
    """(offset, points) of a segment's blocks."""
    data = segment.read_bytes()
    for at in range(4096, len(data), 4096):
        if data[at:at + 8] == b"MSblock\0":
            yield at, int.from_bytes(data[at + 48:at + 52], "little")


def test_other_numbers_of_shards_and_kills_during_a_start_change_no_window(real_server_only, make_server):
    seed = random.SystemRandom().randrange(2**32)
    rng = random.Random(seed)
    server = make_server(log={"segment_bytes": "4 MiB"})
    sent = []
    for n, shards in enumerate((4, 1, 3, 2, 4, 1)):
        server.settings["node"]["shards"] = shards
        for _ in range(n and 3):
            server.spawn()
            time.sleep(rng.uniform(0, 0.25))
            if rng.random() < 0.7:
                server.kill()
            else:
                assert server.terminate() in (0, -signal.SIGTERM), server.log_tail()  # or before it handles signals
        server.start()
        for _ in range(30):
            now = time.time_ns()
            batch = [(f"m{i % 3}", (("k", str(rng.randrange(50))),), float(rng.randrange(1000)), now + i) for i in range(10)]
            batch += rng.sample(sent, min(len(sent), 5))  # sent again, over another connection
            lines = "\n".join(f"{name},k={tags[0][1]} value={value} {t}" for name, tags, value, t in batch)
            server.session.close()
            server.write_lines(lines)
            sent += batch
        balanced(server, f"seed {seed}, {shards} shards")
        server.kill() if n % 2 else server.terminate()
        server.log_verify()
    # From here on there are no new points: time alone closes what is open.
    server.start()
    for window_s in (10, 60):
        expected = oracle.windows(sent, window_s)
        total = sum(w["count"] for w in expected.values())
        rows = server.wait_windows(lambda rows: sum(r["count"] for r in rows) >= total, 80, window=f"{window_s}s")
        different = oracle.differences(expected, oracle.by_key(rows))
        assert not different, f"seed {seed}\n" + "\n".join(different)
        assert not any(r["incomplete"] for r in rows), f"seed {seed}"
    metrics = server.metrics()
    assert metrics.sum("metricstream_reducer_points_refolded_total") > 0
    assert metrics.sum("metricstream_reducer_points_held") == 0
    balanced(server, f"seed {seed}, at the end")


SHIFTED_CLOCK = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static long shift_s = -1;
    int result = syscall(SYS_clock_gettime, clock, now);
    if (shift_s == -1) shift_s = atol(getenv("CLOCK_SHIFT_S"));
    if (clock == CLOCK_REALTIME) now->tv_sec += shift_s;
    return result;
}
"""


def test_windows_close_again_after_a_run_whose_clock_was_an_hour_ahead(real_server_only, make_server, tmp_path):
    (tmp_path / "clock.c").write_text(SHIFTED_CLOCK)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", tmp_path / "clock.so", tmp_path / "clock.c"], check=True)
    shifted = {"LD_PRELOAD": str(tmp_path / "clock.so"), "CLOCK_SHIFT_S": "3600"}
    server = make_server(environment=shifted).start()
    ahead = time.time_ns() + 3600 * 10**9
    server.write_lines(f"era,run=1 value=1 {ahead}")
    first = server.wait_windows(lambda rows: rows, 25, name="era", window="10s")
    assert first[0]["start_ms"] == ahead // 10**10 * 10**4
    assert server.terminate() == 0
    server.environment["CLOCK_SHIFT_S"] = "0"
    server.start()
    now = time.time_ns()
    server.write_lines(f"era,run=2 value=2 {now}")
    rows = server.wait_windows(lambda rows: len(rows) == 2, 25, name="era", window="10s")
    assert {(r["tags"]["run"], r["start_ms"], r["sum"]) for r in rows} == {
        ("1", ahead // 10**10 * 10**4, 1.0), ("2", now // 10**10 * 10**4, 2.0)}
    # M went back with the clock: else all that comes within the hour would be closed as it comes.
    assert server.metrics().sum("metricstream_reducer_mark_seconds") <= time.time()
    balanced(server, "in the new era")


def traced(server, dsync):
    with IoTrace(server.process.pid, server.data_dir) as trace:
        for i in range(100):
            server.write_lines(f"traced value={i}")
    return trace.early_answers(dsync)


@pytest.mark.parametrize("flush", ["fdatasync", "dsync"])
def test_no_2xx_leaves_before_its_flush_has_completed(real_server_only, make_server, tmp_path, flush):
    if flush == "dsync" and (why_not := dsync_shows(tmp_path)):
        pytest.skip(why_not)
    early, answers = traced(make_server(node={"shards": 1}, log={"flush": flush}).start(), flush == "dsync")
    assert answers >= 100, f"the trace has {answers} answers only"
    assert early == [], early[:3]


def test_the_flush_check_catches_a_server_that_does_not_wait(real_server_only, make_server):
    """The same check against durability = "memory", which answers before the flush by design."""
    server = make_server(node={"shards": 1}, listen={"durability": "memory"}, log={"flush": "fdatasync"}).start()
    early, answers = traced(server, dsync=False)
    assert answers >= 100 and len(early) > 50, (len(early), answers)


@pytest.mark.parametrize("flush", ["fdatasync", "dsync"])
def test_the_flush_check_catches_a_build_without_the_flush(real_server_only, make_server, tmp_path, flush):
    """A build with the flush taken out, when one is at hand."""
    if flush == "dsync" and (why_not := dsync_shows(tmp_path)):
        pytest.skip(why_not)
    program = os.environ.get("METRICSTREAM_BIN_WITHOUT_FLUSH")
    if not program:
        pytest.skip("METRICSTREAM_BIN_WITHOUT_FLUSH names no such build")
    server = make_server(program=program, node={"shards": 1}, log={"flush": flush}).start()
    early, answers = traced(server, dsync=flush == "dsync")
    # With RWF_DSYNC the flush of a segment that is being prepared can pass for one of a write: it hides an answer or two.
    least = answers if flush == "fdatasync" else 0.9 * answers
    assert answers >= 100 and len(early) >= least, (len(early), answers)


def test_many_starts_do_not_fill_the_logs_bound_with_empty_segments(real_server_only, make_server):
    """A start begins a new segment. What the one before did not use must not count, or a process that starts again and again
    loses its windows to the bound, or refuses points, with a few KiB in its logs."""
    server = make_server(node={"shards": 1}, windows={"windows": ["10 s"], "lateness": "1 s"},
                         log={"segment_bytes": "1 MiB", "bytes_max": "4 MiB", "aggregate_bytes_max": "4 MiB"}).start()
    # In a window that is closed already: each is logged at once.
    at = time.time_ns() - 60 * 10**9

    def closed():
        return {row["name"] for row in server.windows()}

    written = set()
    for n in range(12):
        server.write_lines(f"start{n} value=1 {at}")
        written.add(f"start{n}")
        eventually(lambda: written <= closed(), 20, lambda: f"{sorted(closed())} of {sorted(written)}\n{server.log_tail()}")
        server.restart(kill=True)
    eventually(lambda: closed() == written, 20, lambda: sorted(closed()))
