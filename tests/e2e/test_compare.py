"""bench/compare on a small scale: it measures, counts, writes its page, and a system that fails does not stop the others."""

import json
import os
import subprocess
import sys

import pytest
from support.server import ROOT

sys.path.insert(0, str(ROOT / "bench"))
from comparison import counting, generator, page, stages  # noqa: E402

BUILT = ROOT / "target" / "release" / "bench-load"


def encoded(counts):
    """HdrHistogram's V2 encoding of {index: count}, written from its description and not from the reader."""
    import base64
    import struct

    payload, at = bytearray(), 0

    def put(number):
        zigzag = (number << 1) ^ (number >> 63)
        while zigzag > 0x7F:
            payload.append(zigzag & 0x7F | 0x80)
            zigzag >>= 7
        payload.append(zigzag)

    for index in sorted(counts):
        if index > at:
            put(at - index)
        put(counts[index])
        at = index + 1
    head = struct.pack(">iiiiqqd", 0x1C849303 | 0x10, len(payload), 0, 3, 1, 3_600_000_000, 1.0)
    return base64.b64encode(head + payload).decode()


def test_percentiles_are_read_from_the_histogram():
    # Below 2048 an index is its value; then 1024 buckets for each doubling: 2048 + 3 is 2 * (1024 + 3) and the one above.
    counts = generator.decode_histogram(encoded({5: 50, 2000: 49, 2051: 1}))
    assert counts == [(5, 50), (2000, 49), (2055, 1)]
    assert [generator.percentile(counts, q) for q in (50, 99, 99.9)] == [5, 2000, 2055]


def test_a_sample_belongs_to_the_stage_of_the_innermost_file_of_ours():
    library = "/home/x/.cargo/registry/src/index/hashbrown-0.16/src/raw.rs"
    assert stages.of_files([library, "/x/shards/src/series/table.rs", "/x/shards/src/decode/group.rs"]) == "series"
    assert stages.of_files(["/x/.cargo/registry/src/index/simd-json-0.19/src/stage1.rs"], "simd_json::find") == "decode"
    assert stages.of_files([], "__memcpy_avx_unaligned") == "copies and compares (libc)"
    assert stages.of_kernel(["tcp_ack", "tcp_v4_rcv", "tcp_sendmsg", "io_send"]).startswith("kernel: send")


def test_what_a_call_costs_is_counted_where_it_was_spent():
    text = """fl=(1) /x/shards/src/http/head.rs
fn=(1) parse
10 5
fi=(2) /x/.cargo/registry/src/index/memchr-2/src/lib.rs
20 3
cfi=(3) /x/shards/src/log/writer.rs
cfn=(2) append
calls=1 7
30 1000
fl=(3)
fn=(2)
+4 1000
"""
    costs = counting.parse(text.splitlines(keepends=True))
    assert costs == {"HTTP": 8, "log": 1000}


def test_ratios_say_whether_they_are_met():
    assert page.met(1.7, "at most 1.7") and not page.met(1.71, "at most 1.7")
    assert page.met(2.5, "at least 2.5") and not page.met(2.4, "at least 2.5")


@pytest.mark.skipif(not BUILT.exists() or (os.cpu_count() or 1) < 2, reason="needs the release build here and two cores")
def test_a_system_that_fails_is_named_and_the_others_are_measured(tmp_path, real_server_only):
    # An InfluxDB that ends as soon as it is started
    fake = tmp_path / "bin" / "influxd"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho disk on fire\nexit 1\n")
    fake.chmod(0o755)
    out = tmp_path / "results"
    command = [ROOT / "bench" / "compare", "--generator", "bench-load", "--rounds", "1", "--seconds", "0.5", "--points", "10",
               "--only", "noop,memory-line,influxdb", "--out", out]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600,
                         env={**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}"})
    assert run.returncode == 1 and "some systems failed" in run.stderr, run.stdout + run.stderr
    (document,) = [json.loads(path.read_text()) for path in out.glob("*.json")]
    (text,) = [path.read_text() for path in out.glob("*.md")]
    assert "**InfluxDB** failed in round 1: influxd ended while it started: disk on fire." in text
    (count,) = document["results"]["memory-line"]["counts"]
    assert count["held"] >= count["acknowledged"] > 0 and "all there" in text
    assert document["results"]["noop"]["closed"]["10"][0]["points"] > 0
    assert all(path.stat().st_size > 500 for path in out.glob("*.svg")) and len(list(out.glob("*.svg"))) >= 2
