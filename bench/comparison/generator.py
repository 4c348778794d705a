"""One run of the load generator against a server, and what came of it. The only place that knows a generator's flags."""

import base64
import json
import os
import struct
import subprocess
import tempfile

from . import GENERATOR_CORE, RELEASE, Failure

LOADGEN = os.path.join(RELEASE, "metricstream-loadgen")
BENCH_LOAD = os.path.join(RELEASE, "bench-load")


def load(server, peer, points, series, seconds, connections, rate=None, name="loadgen", patience_s=10):
    """Sends for `seconds`: as fast as answers come, or at `rate` requests a second by the clock.

    Gives `requests` and `points` that were acknowledged, `failed` requests with a word on the first, the `seconds` it
    took, and with a rate the latency from the intended moment (`p50_ms`, `p99_ms`, `p999_ms`). An answer that takes longer
    than `patience_s` counts as failed.
    """
    if name == "bench-load":
        return _bench_load(server, peer, points, series, seconds, connections, rate)
    return _loadgen(server, peer, points, series, seconds, connections, rate, patience_s)


def _call(command, seconds):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120)
    except subprocess.TimeoutExpired:
        raise Failure(f"the generator was still running two minutes after its {seconds} s: {' '.join(command)}") from None
    if done.returncode:
        raise Failure(f"the generator ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def _loadgen(server, peer, points, series, seconds, connections, rate, patience_s):
    with tempfile.TemporaryDirectory(prefix="compare-") as where:
        out = os.path.join(where, "run.json")
        command = [LOADGEN, "run", "--target", f"http://127.0.0.1:{server.port}{peer.path}", "--protocol", peer.format,
                   "--connections", str(connections), "--batch", str(points), "--series", str(series),
                   "--duration", f"{round(seconds * 1000)}ms", "--core", str(GENERATOR_CORE), "--quiet",
                   "--timeout", f"{patience_s}s"]
        command += ["--closed"] if rate is None else ["--rate", str(max(1, round(rate)))]
        command += ["--json", out]
        _call(command, seconds)
        with open(out) as f:
            document = json.load(f)
    totals = document["totals"]
    failed = {**totals["refused"], **totals["unknown"]}
    result = {
        "requests": totals["acknowledged"],
        "points": totals["points_acknowledged"],
        "failed": sum(failed.values()),
        "first_failure": ", ".join(f"{count} x {what}" for what, count in failed.items()),
        "seconds": totals["duration_s"],
        "command": " ".join([os.path.basename(LOADGEN), *command[1:-2]]),
    }
    if rate is not None:
        counts = decode_histogram(document["histograms"]["latency_us"])
        result |= {f"{name}_ms": percentile(counts, q) / 1000 for name, q in (("p50", 50), ("p99", 99), ("p999", 99.9))}
    return result


def _bench_load(server, peer, points, series, seconds, connections, rate):
    """The small closed-loop generator of bench/spine: no latency."""
    if rate is not None:
        return None
    command = ["taskset", "-c", str(GENERATOR_CORE), BENCH_LOAD, "--target", f"127.0.0.1:{server.port}", "--path", peer.path,
               "--format", peer.format, "--points", str(points), "--series", str(series), "--seconds", str(seconds),
               "--warmup", "0", "--connections", str(connections)]
    figures = json.loads(_call(command, seconds))
    return {
        "requests": figures["ok"],
        "points": figures["ok"] * points,
        "failed": figures["failed"],
        "first_failure": figures["first_failure"],
        "seconds": seconds,
        "command": " ".join(["bench-load", *command[4:]]),
    }


V2_COOKIE = 0x1C849303


def decode_histogram(text):
    """(highest value of a bucket, count) of an HdrHistogram in base64 of its V2 encoding, lowest first.

    https://github.com/HdrHistogram/HdrHistogram: a header of 40 bytes, then counts as zigzag varints, a negative one
    being that many zeros.
    """
    data = base64.b64decode(text)
    cookie, length, _, digits, lowest, _ = struct.unpack(">iiiiqq", data[:32])
    if cookie & ~0xF0 != V2_COOKIE & ~0xF0 or lowest != 1:
        raise Failure("the generator's latency histogram is not in HdrHistogram's V2 encoding")
    # Values share a bucket when they agree in their first `digits` digits: 2048 sub-buckets for three of them.
    sub_bits = (2 * 10**digits - 1).bit_length()
    half = 1 << (sub_bits - 1)
    counts, at, index, end = [], 40, 0, 40 + length
    while at < end:
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            # The ninth byte has all its eight bits.
            value |= (byte if shift == 56 else byte & 0x7F) << shift
            shift += 7
            if shift > 56 or not byte & 0x80:
                break
        count = (value >> 1) ^ -(value & 1)
        if count < 0:
            index -= count
            continue
        if count:
            bucket, sub = (index >> (sub_bits - 1)) - 1, (index & (half - 1)) + half
            if bucket < 0:
                bucket, sub = 0, sub - half
            counts.append((((sub + 1) << bucket) - 1, count))
        index += 1
    return counts


def percentile(counts, q):
    """0 when nothing was recorded."""
    total = sum(count for _, count in counts)
    wanted, seen = q / 100 * total, 0
    for value, count in counts:
        seen += count
        if seen >= wanted:
            return value
    return 0
