"""Client libraries and tools as people install them, unmodified, each writing what its own documentation shows."""

import json
import os
import subprocess
import time
from datetime import datetime, timezone

import pytest

from support.server import eventually


def expect(server, name, values, **tags):
    """Waits until the 10 s windows of `name` hold exactly `values`, once each."""
    rows = server.wait_windows(lambda rows: sum(r["count"] for r in rows) >= len(values), 30, name=name, window="10s")
    rows = [r for r in rows if tags.items() <= r["tags"].items()]
    assert sum(r["count"] for r in rows) == len(values), rows
    assert abs(sum(r["sum"] for r in rows) - sum(values)) < 1e-9, rows
    assert min(r["min"] for r in rows) == min(values) and max(r["max"] for r in rows) == max(values)
    return rows


def test_python_influxdb_v1(server):
    from influxdb import InfluxDBClient
    client = InfluxDBClient("127.0.0.1", server.ingest_port, "user", "pass", "metrics")
    assert client.ping()
    client.create_database("metrics")
    client.get_list_database()
    now = time.time_ns()
    points = [{"measurement": "v1", "tags": {"host": "a b,c=d"}, "time": now + i, "fields": {"value": i + 0.5}}
              for i in range(50)]
    assert client.write_points(points, batch_size=20)
    assert client.write_points([{"measurement": "v1_seconds", "time": now // 10**9, "fields": {"value": 3, "s": "text"}}],
                               time_precision="s")
    rows = expect(server, "v1", [i + 0.5 for i in range(50)])
    assert all(r["tags"] == {"host": "a b,c=d"} for r in rows)
    expect(server, "v1_seconds", [3])


def test_python_influxdb_client_synchronous(server):
    from influxdb_client import InfluxDBClient, Point, WritePrecision
    from influxdb_client.client.write_api import SYNCHRONOUS
    with InfluxDBClient(url=server.url(""), token="", org="org") as client:
        assert client.ping()
        write = client.write_api(write_options=SYNCHRONOUS)
        now = time.time_ns()
        write.write("bucket", record=[Point("sync").tag("k", "v").field("value", i).time(now + i, WritePrecision.NS)
                                      for i in range(30)])
        write.write("bucket", record="sync,k=line value=100 " + str(now // 10**6), write_precision=WritePrecision.MS)
        write.write("bucket", record={"measurement": "sync", "tags": {"k": "dict"}, "fields": {"value": 200},
                                      "time": datetime.now(timezone.utc)})
    expect(server, "sync", [*range(30), 100, 200])


def test_python_influxdb_client_batching_through_an_outage(server):
    from influxdb_client import InfluxDBClient, Point, WriteOptions
    from support.proxy import Proxy
    proxy = Proxy(server.ingest_port)
    errors = []
    with InfluxDBClient(url=proxy.url(), token="", org="org", enable_gzip=True) as client:
        write = client.write_api(
            write_options=WriteOptions(batch_size=50, flush_interval=200, retry_interval=500, max_retries=10,
                                       jitter_interval=0),
            error_callback=lambda *a: errors.append(a))
        now = time.time_ns()
        for i in range(500):
            proxy.mode = "503" if 150 <= i < 300 else "pass"
            write.write("bucket", record=Point("batching").field("value", i).tag("n", str(i)).time(now + i))
            time.sleep(0.004)
        proxy.mode = "pass"
        write.close()
    assert not errors, errors[0]
    assert proxy.seen["503"] > 0
    expect(server, "batching", list(range(500)))
    proxy.close()


def test_questdb_line_protocol_over_http(server):
    from questdb.ingress import Sender, TimestampNanos
    now = time.time_ns()
    with Sender.from_conf(f"http::addr=127.0.0.1:{server.ingest_port};protocol_version=1;") as sender:
        for i in range(40):
            sender.row("quest", symbols={"side": "buy"}, columns={"value": i * 0.25, "size": i}, at=TimestampNanos(now + i))
        sender.flush()
    expect(server, "quest", [i * 0.25 for i in range(40)])
    expect(server, "quest_size", list(range(40)))


def test_questdb_finds_the_protocol_version_by_itself(server):
    """Without protocol_version it asks GET /settings, and takes a 404 for "version 1"."""
    from questdb.ingress import Sender, TimestampNanos
    with Sender.from_conf(f"http::addr=127.0.0.1:{server.ingest_port};") as sender:
        sender.row("quest_auto", columns={"value": 1.5}, at=TimestampNanos(time.time_ns()))
        sender.flush()
    expect(server, "quest_auto", [1.5])


NODE = """
const { InfluxDB, Point } = require('@influxdata/influxdb-client')
const api = new InfluxDB({ url: process.argv[2], token: '' }).getWriteApi('org', 'bucket', 'ms', { gzipThreshold: 200 })
api.useDefaultTags({ client: 'node' })
for (let i = 0; i < 60; i++) {
  api.writePoint(new Point('javascript').tag('n', String(i)).floatField('value', i / 4).intField('whole', i)
    .stringField('text', 'say "hi"\\n').timestamp(new Date()))
}
api.close().then(() => console.log('done'), (e) => { console.error(e); process.exit(1) })
"""


def test_javascript_influxdb_client(server, cache, tmp_path):
    script = tmp_path / "write.js"
    script.write_text(NODE)
    done = subprocess.run(["node", str(script), server.url("")], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "NODE_PATH": str(cache / "npm" / "node_modules")})
    assert done.returncode == 0, done.stderr
    rows = expect(server, "javascript", [i / 4 for i in range(60)])
    assert all(r["tags"]["client"] == "node" for r in rows)
    expect(server, "javascript_whole", list(range(60)))


def curl(*words, stdin=None):
    done = subprocess.run(["curl", "-sS", "-w", "\n%{http_code}", *words], input=stdin, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition(b"\n")
    return int(status), body


def test_curl_plain_gzip_zstd_chunked_and_expect_100(server, tmp_path):
    import gzip
    import zstandard
    lines = "".join(f"curl,how={{how}},n={i} value={i}\n" for i in range(10))
    bodies = {how: lines.replace("{how}", how).encode()
              for how in ("plain", "gzip", "zstd", "chunked", "members", "expect", "chunkedgzip")}
    bodies["gzip"] = gzip.compress(bodies["gzip"])
    half = len(bodies["members"]) // 2
    bodies["members"] = gzip.compress(bodies["members"][:half]) + gzip.compress(bodies["members"][half:])
    bodies["zstd"] = zstandard.compress(bodies["zstd"])
    bodies["chunkedgzip"] = gzip.compress(bodies["chunkedgzip"])
    bodies["expect"] += b"# " + b"x" * 1_100_000 + b"\n"  # above 1 MiB curl waits for 100 Continue
    headers = {"gzip": ["Content-Encoding: gzip"], "members": ["Content-Encoding: gzip"],
               "zstd": ["Content-Encoding: zstd"], "chunked": ["Transfer-Encoding: chunked"],
               "chunkedgzip": ["Transfer-Encoding: chunked", "Content-Encoding: gzip"],
               "expect": ["Expect: 100-continue"], "plain": []}
    for how, body in bodies.items():
        path = tmp_path / how
        path.write_bytes(body)
        words = [w for h in headers[how] for w in ("-H", h)]
        status, answer = curl(*words, "--data-binary", f"@{path}", server.url("/write?db=metrics"))
        assert (status, answer) == (204, b""), (how, status, answer)
    expect(server, "curl", [i for _ in bodies for i in range(10)])


def test_curl_sends_json_in_all_three_shapes_and_reads_ping_and_health(server):
    at = time.time_ns()
    for document in ({"metrics": [{"name": "shape", "value": 1, "timestamp": at}]},
                     [{"name": "shape", "value": 2, "timestamp": at // 1000 + 1, "unknown": {"a": [None]}}],
                     {"name": "shape", "value": 3, "timestamp": at // 10**6 + 2, "tags": {}}):
        status, body = curl("-H", "Content-Type: text/plain", "-d", json.dumps(document), server.url("/api/v1/metrics"))
        assert status == 200 and json.loads(body) == {"accepted": 1, "rejected": 0, "errors": []}
    status, _ = curl(server.url("/ping"))
    assert status == 204
    status, _ = curl("-I", server.url("/ping"))
    assert status == 204
    for path in ("/health", "/ready"):
        status, body = curl(server.url(path))
        assert status == 200 and json.loads(body)
    expect(server, "shape", [1, 2, 3])


RULE = [{"name": "scraped.by_host", "match": {"name": "scraped"}, "by": ["host"], "windows": ["10 s"]}]


def test_promtool_finds_nothing_to_say_about_metrics_and_aggregates(make_server):
    server = make_server(aggregate=RULE).start()
    server.write_lines('scraped,host=quo"te\\\\back,weird-tag.name=x value=1\nscraped,host=b value=2')
    server.post("/write", b"not a line")
    server.wait_windows(lambda rows: any(r["name"] == "scraped" for r in rows), 25)
    eventually(lambda: "metricstream_window_count{" in server.get("/aggregates").text, 10, "a row in /aggregates")
    for path in ("/metrics", "/aggregates"):
        answer = server.get(path)
        assert answer.headers["Content-Type"].startswith("text/plain"), answer.headers
        done = subprocess.run(["promtool", "check", "metrics"], input=answer.text, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr.strip(), f"{path}: {done.stdout}{done.stderr}"


def test_the_size_of_metrics_does_not_grow_with_clients_or_series(real_server_only, server):
    server.write_lines("first value=1")
    before = len(server.get("/metrics").text.splitlines())
    server.write_lines("\n".join(f"grow,n={i} value=1" for i in range(5000)))
    time.sleep(0.5)
    assert len(server.get("/metrics").text.splitlines()) <= before + 20


def test_prometheus_scrapes_metrics_and_aggregates(make_server, tmp_path):
    import requests
    from support.server import free_ports
    server = make_server(aggregate=RULE).start()
    (port,) = free_ports(1)
    (tmp_path / "prometheus.yml").write_text(
        "global:\n  scrape_interval: 1s\nscrape_configs:\n" + "".join(
            f"  - job_name: {job}\n    metrics_path: /{job}\n    static_configs:\n"
            f"      - targets: ['127.0.0.1:{server.admin_port}']\n" for job in ("metrics", "aggregates")))
    with open(tmp_path / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)

    def query(expr):
        try:
            answer = requests.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": expr}, timeout=5).json()
            return answer.get("data", {}).get("result")
        except requests.RequestException:
            return None

    try:
        server.write_lines("".join(f"scraped,host=h{i % 2},n={i} value={i}\n" for i in range(10)))
        up = eventually(lambda: (r := query("up == 1")) and len(r) == 2 and r, 30, "both targets are up")
        assert {r["metric"]["job"] for r in up} == {"metrics", "aggregates"}
        eventually(lambda: query('sum(metricstream_points_accepted_total) == 10'), 20, "the books in Prometheus")
        eventually(lambda: query('sum(metricstream_window_count{name="scraped.by_host"}) == 10'), 30,
                   lambda: f"the aggregates in Prometheus: {server.get('/aggregates').text}")
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.parametrize("path", ["/write", "/api/v2/write", "/api/v3/write_lp"])
def test_telegrafs_empty_bodies_are_fine(real_server_only, server, path):
    assert server.post(path, b"", **({"db": "x"} if "v3" in path else {})).status_code == 204

