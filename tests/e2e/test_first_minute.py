"""The smallest round trip: a point goes in, its window comes out, across a stop, a kill and a second process."""

import json
import subprocess
import time

from support import exposition
from support.server import binary, eventually


def now_ns():
    return time.time_ns()


def test_a_point_becomes_a_window(server):
    at_ms = now_ns() // 1_000_000
    answer = server.post("/metrics", json.dumps({"metrics": [
        {"name": "api.latency", "value": 42.5, "timestamp": at_ms, "tags": {"region": "eu"}}]}).encode())
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"accepted": 1, "rejected": 0, "errors": []}
    rows = server.wait_windows(lambda rows: rows, 20, name="api.latency", window="10s")
    assert len(rows) == 1
    row = rows[0]
    assert (row["name"], row["tags"], row["window_s"], row["start_ms"]) == (
        "api.latency", {"region": "eu"}, 10, at_ms // 10_000 * 10_000)
    assert [row[k] for k in ("count", "sum", "min", "max", "avg", "p50", "p95", "p99")] == [1] + [42.5] * 7
    assert row["series"] == 1 and row["client"] == "127.0.0.1" and row["incomplete"] is False


def test_points_survive_sigterm_and_sigkill_before_their_window_closes(server):
    t = now_ns()
    server.write_lines(f"kept,how=term value=1 {t}")
    server.restart()
    server.write_lines(f"kept,how=kill value=2 {t}")
    server.restart(kill=True)
    server.write_lines(f"kept,how=term value=1 {t}")  # the same point again: counted once
    rows = server.wait_windows(lambda rows: len(rows) == 2, 25, name="kept", window="10s")
    assert {(r["tags"]["how"], r["count"], r["sum"]) for r in rows} == {("term", 1, 1.0), ("kill", 1, 2.0)}
    eventually(lambda: not exposition.imbalance(server.metrics()), 5,
               lambda: exposition.imbalance(server.metrics()))


def test_windows_are_found_by_name_tag_window_and_time_and_come_in_pages(real_server_only, server):
    start_ms = (time.time_ns() // 10**10 - 3) * 10_000
    lines = [f"paged,host=h{i},dc=d{i % 2} value={i} {(start_ms + 10_000 * w) * 10**6}"
             for i in range(1500) for w in range(3)]
    server.write_lines("\n".join(lines))
    rows = server.wait_windows(lambda rows: len(rows) == 4500, 30, name="paged", window="10s")
    assert len({(r["start_ms"], r["tags"]["host"]) for r in rows}) == 4500
    one = server.windows(name="paged", window="10s", **{"tag.host": "h7"})
    assert sorted(r["start_ms"] for r in one) == [start_ms, start_ms + 10_000, start_ms + 20_000]
    assert len(server.windows(name="paged", window="10s", **{"tag.dc": "d1"})) == 2250
    middle = server.windows(name="paged", window="10s", since=start_ms + 10_000, until=start_ms + 20_000)
    assert {r["start_ms"] for r in middle} == {start_ms + 10_000}
    assert server.windows(name="nothing") == []
    # The next page is found by another process, too, and holds what was revised meanwhile.
    first = server.get("/api/v1/windows", name="paged", window="10s", limit=2000).json()
    server.write_lines(f"paged,host=h99,dc=d1 value=1 {(start_ms + 20_001) * 10**6}")
    server.wait_windows(lambda rows: [r["count"] for r in rows] == [1, 1, 2], 20, name="paged", window="10s",
                        **{"tag.host": "h99"})
    server.restart(kill=True)
    rest = server.windows(name="paged", window="10s", cursor=first["next"])
    assert len(first["windows"]) == 2000 and len(rest) == 2500
    assert len({(r["start_ms"], r["tags"]["host"]) for r in first["windows"] + rest}) == 4500
    assert [r["count"] for r in rest if r["tags"]["host"] == "h99"][-1] == 2
    assert server.session.get(server.admin_url("/api/v1/windows?window=ten")).status_code == 400


def test_a_second_process_on_the_same_data_or_port_is_refused(real_server_only, server, make_server):
    same_data = make_server("second", data_dir=server.data_dir)
    same_port = make_server("third", listen={"addresses": [f"127.0.0.1:{server.ingest_port}"]})
    for other in (same_data, same_port):
        other.spawn()
        assert other.process.wait(10) == 4, other.log_tail()
        assert other.log_tail().strip(), "no sentence says why"
    server.write_lines("still,serves=yes value=1")


def test_a_start_with_fewer_shards_keeps_what_the_missing_ones_had(real_server_only, make_server):
    server = make_server(node={"shards": 4}).start()
    t = now_ns()
    for i in range(64):  # a connection each, so that the kernel spreads them over the shards
        server.session.close()
        server.write_lines(f"fewer,i={i} value={i} {t}")
    server.settings["node"]["shards"] = 1
    server.restart()
    rows = server.wait_windows(lambda rows: len(rows) == 64, 25, name="fewer", window="10s")
    assert sum(r["sum"] for r in rows) == sum(range(64))


def test_check_config_and_help_work(real_server_only, server, tmp_path):
    assert "--config" in server.cli("--help").stdout
    printed = server.cli("config", "--config", str(server.config_path)).stdout
    again = tmp_path / "again.toml"
    again.write_text(printed)
    assert server.cli("config", "--config", str(again)).stdout == printed
    assert server.cli("check", "--config", str(again)).returncode == 0
    again.write_text("[windows]\nlatenes = \"1 s\"\n")
    refused = server.cli("check", "--config", str(again), check=False)
    assert refused.returncode == 2 and "lateness" in refused.stderr, refused.stderr
    for shell in ("bash", "zsh", "fish"):
        assert server.cli("completions", shell).stdout


def test_run_without_any_configuration_serves_on_loopback(real_server_only, tmp_path):
    import socket
    with socket.socket() as s:
        if s.connect_ex(("127.0.0.1", 8186)) == 0:
            import pytest
            pytest.skip("port 8186 is taken on this machine")
    import requests
    process = subprocess.Popen([str(binary()), "run"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        def ready():
            try:
                return requests.get("http://127.0.0.1:9186/readyz", timeout=1).status_code == 200
            except requests.RequestException:
                return False
        eventually(ready, 20, "ready on the default ports")
        assert requests.post("http://127.0.0.1:8186/write", data="m value=1").status_code == 204
        assert (tmp_path / "metricstream-data").is_dir()
    finally:
        process.terminate()
        assert process.wait(20) == 0
