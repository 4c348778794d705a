#!/usr/bin/env python3
"""A stand-in for the server, small and slow, with which the tests test themselves.

`METRICSTREAM_BIN=tests/support/stand_in.py pytest tests/e2e` shows that clients, proxy, ledger and oracle work, before
anything is said about the real binary. One process, one lock, one file as its log: every point a JSON line, fsynced
before the answer. Not strict about HTTP (Python's parser is not), so the tables of hostile input are not for it.
`STAND_IN_BUG=ack_early` answers before anything reaches the file and `double_count` counts retries twice: the tests of
the tests must notice both.
"""

import argparse
import gzip
import json
import os
import signal
import sys
import threading
import time
import tomllib
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import lineproto, oracle  # noqa: E402

BUG = os.environ.get("STAND_IN_BUG", "")
LOCK = threading.Lock()
POINTS = []  # (name, tags, value, timestamp_ns, client)
REJECTED = defaultdict(int)
DRAINING = False
UNITS = {"": 1, "n": 1, "ns": 1, "u": 1000, "us": 1000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9,
         "auto": 1, "nanosecond": 1, "microsecond": 1000, "millisecond": 10**6, "second": 10**9}


def seconds(text):
    number, unit = text.split()
    return float(number) * {"ms": 0.001, "s": 1, "min": 60}[unit]


def by_magnitude(t):
    return t * (10**9 if abs(t) < 1e11 else 10**6 if abs(t) < 1e14 else 1000 if abs(t) < 1e17 else 1)


def json_points(document, now_ns):
    items = document["metrics"] if isinstance(document, dict) and "metrics" in document else document
    for item in items if isinstance(items, list) else [items]:
        tags = tuple(sorted((k, str(v)) for k, v in item.get("tags", {}).items()))
        if "fields" in item:
            for key, value in item["fields"].items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    yield (item["name"] if key == "value" else f"{item['name']}_{key}", tags, float(value),
                           int(item["timestamp"] * 10**9))
        elif not item.get("name") or isinstance(item.get("value"), bool) or not isinstance(item.get("value"), (int, float)):
            yield None
        else:
            t = item.get("timestamp")
            yield item["name"], tags, float(item["value"]), now_ns if t is None else by_magnitude(t)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", content_type="application/json", **headers):
        body = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while True:
                size = int(self.rfile.readline(), 16)
                body += self.rfile.read(size)
                self.rfile.readline()
                if size == 0:
                    break
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        elif self.headers.get("Content-Encoding") == "zstd":
            import zstandard
            body = zstandard.ZstdDecompressor().decompressobj().decompress(body)
        return body


class Ingest(Handler):
    def do_POST(self):
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query, keep_blank_values=True).items()}
        body, now_ns = self.body(), time.time_ns()
        client = self.client_address[0]
        if DRAINING:
            return self.answer(503, {"error": "draining"}, Retry_After="1")
        if url.path in ("/metrics", "/api/v1/metrics"):
            try:
                found = list(json_points(json.loads(body), now_ns))
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                return self.answer(400, {"error": str(e), "offset": 0})
            good = [p for p in found if p]
            self.store(good, client, "missing_value", len(found) - len(good))
            self.answer(200, {"accepted": len(good), "rejected": len(found) - len(good), "errors": [
                {"index": i, "reason": "missing_value: test"} for i, p in enumerate(found) if not p][:5]})
        elif url.path in ("/write", "/api/v2/write", "/api/v3/write_lp"):
            unit, good, bad = UNITS[query.get("precision", "")], [], 0
            for line in lineproto.split_lines(body.decode()):
                try:
                    if line and line[0] != "#":
                        good += [(p.name, p.tags, p.value, p.timestamp_ns)
                                 for p in lineproto.parse_line(line, now_ns, unit)]
                except (ValueError, IndexError):
                    bad += 1
            self.store(good, client, "malformed", bad)
            if bad:
                return self.answer(400, {"error": f"partial write: unable to parse dropped={bad}"})
            self.answer(204)
        elif url.path == "/query":
            self.answer(200, {"results": [{"statement_id": 0}]})
        else:
            self.answer(404, {"error": "not found"})

    def store(self, points, client, reason, rejected):
        with LOCK:
            REJECTED[reason] += rejected
            POINTS.extend((*p, client) for p in points)
            for name, tags, value, timestamp_ns in points:
                LOG.write(json.dumps({"name": name, "tags": dict(tags), "value": value, "timestamp_ns": timestamp_ns,
                                      "client_id": client}) + "\n")
            if BUG != "ack_early":
                LOG.flush()
                os.fdatasync(LOG.fileno())

    def do_GET(self):
        path = urlsplit(self.path).path
        if path == "/ping":
            self.answer(204, X_Influxdb_Version="1.8.10")
        elif path == "/query":
            self.answer(200, {"results": [{"statement_id": 0}]})
        elif path in ("/health", "/ready"):
            self.answer(200, {"status": "pass"})
        else:
            self.answer(404, {"error": "not found"})

    do_HEAD = do_GET


class Admin(Handler):
    def do_GET(self):
        url = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(url.query).items()}
        if url.path in ("/readyz", "/healthz"):
            self.answer(503 if DRAINING else 200, "ok")
        elif url.path == "/api/v1/status":
            self.answer(200, {"state": "running"})
        elif url.path == "/metrics":
            self.answer(200, metrics(), "text/plain; version=0.0.4")
        elif url.path == "/aggregates":
            self.answer(200, aggregates(), "text/plain; version=0.0.4")
        elif url.path == "/api/v1/windows":
            rows = [r for r in closed_windows() if all(r["tags"].get(k[4:]) == v for k, v in query.items()
                                                       if k.startswith("tag."))
                    and query.get("name") in (None, r["name"])
                    and query.get("window") in (None, f"{r['window_s']}s", {60: "1m"}.get(r["window_s"]))]
            at = int(query.get("cursor", 0))
            page = rows[at : at + 1000]
            self.answer(200, {"windows": page, "next": str(at + 1000) if at + 1000 < len(rows) else None})
        else:
            self.answer(404, {"error": "not found"})


def closed_windows():
    mark_ms = (time.time() - LATENESS_S) * 1000
    with LOCK:
        points = list(POINTS)
    clients = {(name, tags): client for name, tags, _, _, client in points}
    if BUG == "double_count":  # every point an identity of its own
        points = [(n, t, v, ts // 10**6 * 10**6 + i % 10**6, c) for i, (n, t, v, ts, c) in enumerate(points)]
    rows = []
    for window_s in WINDOWS_S:
        for (name, tags, start_ms), result in oracle.windows([p[:4] for p in points], window_s).items():
            if start_ms + window_s * 1000 <= mark_ms:
                rows.append({"name": name, "tags": dict(tags), "window_s": window_s, "start_ms": start_ms, **result,
                             "series": 1, "client": clients[name, tags], "revision": 0, "incomplete": False,
                             "unchecked": False})
    return sorted(rows, key=lambda r: (r["start_ms"], r["window_s"], r["name"], sorted(r["tags"].items())))


def metrics():
    with LOCK:
        n = len(POINTS)
        distinct = len({p[:2] + p[3:4] for p in POINTS})
        rejected = dict(REJECTED)
    lines = []
    for name, value in (("received", n + sum(rejected.values())), ("accepted", n), ("durable", n), ("folded", n),
                        ("late_beyond", 0), ("too_far_ahead", 0), ("not_aggregated", 0),
                        ("repeated_in_shard", 0)):
        full = f"metricstream_points_{name}_total"
        lines += [f"# HELP {full} Points {name}.", f"# TYPE {full} counter", f'{full}{{shard="0"}} {value}']
    for name, value in (("counted", distinct), ("repeated", n - distinct), ("late_beyond", 0)):
        full = f"metricstream_reducer_points_{name}_total"
        lines += [f"# HELP {full} Points {name}.", f"# TYPE {full} counter", f"{full} {value}"]
    for full in ("metricstream_window_open_points", "metricstream_reducer_points_held"):
        lines += [f"# HELP {full} Points not counted yet.", f"# TYPE {full} gauge", f"{full} 0"]
    full = "metricstream_points_rejected_total"
    lines += [f"# HELP {full} Points rejected.", f"# TYPE {full} counter", f'{full}{{shard="0",reason="none"}} 0']
    lines += [f'{full}{{shard="0",reason="{r}"}} {v}' for r, v in rejected.items()]
    lines += ["# HELP metricstream_points_pending Durable, not folded yet.", "# TYPE metricstream_points_pending gauge",
              'metricstream_points_pending{shard="0"} 0']
    return "\n".join(lines) + "\n"


def aggregates():
    """Only sums over all series, of one rule, without tags."""
    rows = [r for r in closed_windows() if r["window_s"] == WINDOWS_S[0]]
    last = max((r["start_ms"] for r in rows), default=None)
    # A summary without quantiles: promtool objects to gauges called _sum and _count.
    lines = ["# HELP metricstream_window Newest closed window.", "# TYPE metricstream_window summary"]
    for rule in RULES if last is not None else []:
        for field in ("sum", "count"):
            total = sum(r[field] for r in rows if r["start_ms"] == last)
            lines.append(f'metricstream_window_{field}{{name="{rule["name"]}",window="10s"}} {total}')
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("action", nargs="?")
    parser.add_argument("--config")
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    if args.command == "log":
        path = Path(args.data_dir) / "points.ndjson"
        if args.action == "dump" and path.exists():
            lines = path.read_text().splitlines()
            for n, line in enumerate(lines):
                try:
                    json.loads(line)
                except ValueError:
                    assert n == len(lines) - 1, "damage before the end"
                    break
                print(line)
        return
    global LOG, LATENESS_S, WINDOWS_S, RULES, DRAINING
    config = tomllib.loads(Path(args.config).read_text())
    LATENESS_S = seconds(config["windows"]["lateness"])
    WINDOWS_S = [int(seconds(w)) for w in config["windows"].get("windows", ["10 s", "60 s"])]
    RULES = config.get("aggregate", [])
    directory = Path(config["node"]["data_dir"])
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "points.ndjson"
    kept = b""
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            p = json.loads(line)
        except ValueError:
            break
        kept += line + b"\n"
        POINTS.append((p["name"], tuple(sorted(p["tags"].items())), p["value"], p["timestamp_ns"], p["client_id"]))
    path.write_bytes(kept)
    LOG = open(path, "a", buffering=1 << 20)
    ThreadingHTTPServer.request_queue_size = 1024
    ThreadingHTTPServer.daemon_threads = True
    servers = []
    for listen in config["listen"]:
        for address in listen["addresses"]:
            servers.append(ThreadingHTTPServer(("127.0.0.1", int(address.rsplit(":", 1)[1])), Ingest))
    servers.append(ThreadingHTTPServer(("127.0.0.1", int(config["admin"]["listen"].rsplit(":", 1)[1])), Admin))
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    DRAINING = True
    time.sleep(0.2)  # lets what is being answered finish
    with LOCK:
        LOG.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
