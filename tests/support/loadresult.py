"""Results of the load generator, made up: a document as `run --json` writes it, with histograms encoded here and not by
the program that reads them (HdrHistogram V2, https://github.com/HdrHistogram/HdrHistogram)."""

import base64
import os
import random
import struct
from pathlib import Path

from support.server import ROOT

HIGHEST_US = 3_600_000_000


def loadgen_binary():
    given = os.environ.get("METRICSTREAM_LOADGEN_BIN")
    if given:
        return Path(given).resolve()
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "metricstream-loadgen"


def index(us):
    """Of a counter: 2048 of width 1, then 1024 for each further power of two."""
    power = max(us.bit_length() - 11, 0)
    return power * 1024 + (us >> power)


def encode(values_us):
    counts = {}
    for us in values_us:
        us = min(max(int(us), 1), HIGHEST_US)
        counts[index(us)] = counts.get(index(us), 0) + 1
    payload = bytearray()
    at = 0
    for place in sorted(counts):
        if place - at == 1:
            payload += varint(zigzag(0))
        elif place > at:
            payload += varint(zigzag(at - place))
        payload += varint(zigzag(counts[place]))
        at = place + 1
    head = struct.pack(">IIIIQQd", 0x1C849313, len(payload), 0, 3, 1, HIGHEST_US, 1.0)
    return base64.b64encode(head + payload).decode()


def zigzag(number):
    return number * 2 if number >= 0 else -number * 2 - 1


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return out


def quantile(values, q):
    return int(sorted(values)[min(int(q * len(values)), len(values) - 1)])


def steady(seed, seconds=60, rate=500, base_us=600, **top):
    """A run at a constant rate, with a stall at half time and some refusals after it."""
    rng = random.Random(seed)
    every_latency, every_service, every_lateness, lines = [], [], [], []
    for second in range(seconds):
        stall = 40 if second == seconds // 2 else 1
        latency = [stall * rng.lognormvariate(0, 0.5) * base_us for _ in range(rate)]
        lateness = [rng.expovariate(1 / 12) + 2 for _ in range(rate)]
        refused = 7 if second == seconds // 2 + 1 else 0
        every_latency += latency
        every_service += [us * 0.95 for us in latency]
        every_lateness += lateness
        lines.append({
            "at_s": float(second), "due": rate, "sent": rate, "acknowledged": rate - refused, "refused": refused, "unknown": 0,
            "p50_us": quantile(latency, 0.5), "p99_us": quantile(latency, 0.99), "max_us": int(max(latency)),
            "lateness_p99_us": quantile(lateness, 0.99),
        })
    bounds_s = [0.0001 * 2 ** n for n in range(15)]
    buckets = [[bound, 0] for bound in bounds_s]
    for us in every_service:
        for bucket in buckets:
            if us * 0.9 <= bucket[0] * 1e6:
                bucket[1] += 1
                break
    sent = rate * seconds
    return {
        "version": 1, "tool": "metricstream-loadgen 0.1.0",
        "command": "metricstream-loadgen run --target http://127.0.0.1:8186 --rate 500 --duration 60s --json run.json",
        "machine": {"host": "fixture", "cpu": "A Processor @ 3.00 GHz", "cores": 2, "memory_mib": 7936, "kernel": "6.1.0-18-amd64"},
        "started_unix_ms": 1_767_225_600_000, "target": "http://127.0.0.1:8186",
        "plan": plan(rate, seconds),
        "totals": {
            "duration_s": float(seconds), "due": sent, "sent": sent, "acknowledged": sent - 7, "refused": {"503": 7}, "unknown": {},
            "retries": 0, "given_up": 0, "points_sent": sent * 100, "points_acknowledged": (sent - 7) * 100,
            "sent_bytes": sent * 11_800, "received_bytes": sent * 142, "connections_opened": 32, "generator_cpu_s": seconds * 0.23,
        },
        "histograms": {"latency_us": encode(every_latency), "service_us": encode(every_service), "lateness_us": encode(every_lateness)},
        "seconds": lines, "steps": [],
        "server": {"acknowledge": buckets, "cpu_s": seconds * 0.31, "rss_bytes": 51_000_000},
        **top,
    }


def sweep(seed, capacity=42_000, **top):
    """Rates that rise to the knee of a server, and some around it."""
    rng = random.Random(seed)
    steps = []
    for n, rate in enumerate([1000, 2000, 4000, 8000, 16000, 32000, 64000, 45300, 38100, 41500]):
        full = rate >= capacity
        latency = [rng.lognormvariate(0, 0.4) * (2_000_000 if full else 500 / (1 - rate / capacity)) for _ in range(2000)]
        steps.append({
            "rate": float(rate), "from_s": n * 6.0, "to_s": n * 6.0 + 5.0, "due": rate * 5, "acknowledged": min(rate, capacity) * 5,
            "errors": 120 if rate == 64000 else 0, "latency_us": encode(latency),
        })
    return steady(seed, **{"steps": steps, "command": "metricstream-loadgen sweep --target http://127.0.0.1:8186 --p99 5ms", **top})


def plan(rate, seconds):
    return {
        "seed": 7, "epoch_ns": 1_767_225_600_000_000_000,
        "workload": {
            "protocol": "line", "clients": 10, "series": 10_000, "tags": 3, "batch_points": 100, "churn_per_minute": 0.0,
            "values": "gauge", "timestamps": "now", "bad_share": 0.0,
        },
        "shape": {"constant": {"rate": float(rate), "duration_ms": seconds * 1000}},
        "transport": {
            "path": "/write?db=bench", "connections": 32, "connection": "keep_alive", "compression": "none", "identity": "none",
            "token": None, "retry": "never", "timeout_ms": 10_000,
        },
    }
