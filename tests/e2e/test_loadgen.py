"""The load generator against the real appliance: every kind of load, what was sent compared with what is held."""

import json
import re
import subprocess
import time

import pytest

from support import loadresult
from support.server import binary, eventually
from support.verified import loadgen

WINDOWS = {"lateness": "2 s", "horizon": "2 min"}

# Name, flags of the load, extra flags of verify. Rates are low: what is shown is that nothing is lost or altered.
LOADS = {
    "constant": ["--rate", "200", "--duration", "3s", "--batch", "50"],
    "steps": ["--steps", "50,100,200", "--each", "1s", "--json-body", "--batch", "20"],
    "ramp": ["--ramp", "50..300", "--duration", "3s", "--batch", "10", "--gzip"],
    "burst": ["--rate", "50", "--burst", "500:200ms/1s", "--duration", "3s", "--batch", "10", "--zstd"],
    "closed": ["--closed", "--duration", "2s", "--connections", "8", "--batch", "20"],
    "pipelined": ["--rate", "400", "--duration", "2s", "--connections", "2", "--pipeline", "8", "--batch", "5"],
    "reconnecting": ["--rate", "200", "--duration", "3s", "--reconnect", "--batch", "5"],
    "clients": ["--rate", "200", "--duration", "3s", "--clients", "50", "--identity", "header", "--series", "5000"],
    "addresses": ["--rate", "200", "--duration", "3s", "--clients", "20", "--identity", "address", "--json-body"],
    "churn, counters": ["--rate", "200", "--duration", "3s", "--churn", "0.5", "--values", "counter", "--tags", "8"],
    "latencies, shuffled": ["--rate", "200", "--duration", "3s", "--values", "latency", "--timestamps", "shuffled:1s"],
    "skewed": ["--rate", "200", "--duration", "3s", "--clients", "10", "--timestamps", "skewed:500ms"],
    "late": ["--rate", "200", "--duration", "3s", "--timestamps", "late:10%:1s", "--json-body"],
    "bad lines": ["--rate", "200", "--duration", "3s", "--bad", "1%"],
    "bad elements": ["--rate", "200", "--duration", "3s", "--bad", "1%", "--json-body"],
    "fleet": ["--fleet", "300", "--interval", "1s", "--metrics", "20", "--duration", "3s"],
}


def serving(make_server, **settings):
    return make_server(node={"shards": 2}, windows=WINDOWS,
                       listen={"trust_client_id_header": True}, **settings).start()


def run(server, flags, tmp_path, seed):
    ledger, out = tmp_path / "sent.ledger", tmp_path / "run.json"
    flags = [part for flag in flags for part in (["--protocol", "json"] if flag == "--json-body" else [flag])]
    done = loadgen("run", "--target", f"http://127.0.0.1:{server.ingest_port}", "--seed", seed, "--ledger", ledger,
                   "--json", out, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    return ledger, json.loads(out.read_text())


def dump(server, path):
    """The shards' logs as NDJSON, of a server that has stopped."""
    with path.open("w") as out:
        for shard in range(2):
            subprocess.run([binary(), "log", "dump", "--data-dir", server.data_dir, "--shard", str(shard)], stdout=out,
                           stderr=subprocess.PIPE, check=True)
    return path


@pytest.mark.parametrize("kind", LOADS)
def test_every_kind_of_load_is_held_as_it_was_sent_and_the_books_are_equal(real_server_only, make_server, tmp_path, kind):
    server = serving(make_server)
    ledger, result = run(server, LOADS[kind], tmp_path, seed=len(kind))
    totals = result["totals"]
    assert totals["sent"] == totals["due"] == totals["acknowledged"] > 100, totals
    assert not totals["refused"] and not totals["unknown"], totals

    accepted = server.metrics().sum("metricstream_points_accepted_total")
    assert accepted == totals["points_acknowledged"]
    rejected = server.metrics().sum("metricstream_points_received_total") - accepted
    assert rejected == totals["points_sent"] - totals["points_acknowledged"]
    assert (rejected > 0) == kind.startswith("bad"), rejected

    # All windows close: their end and the lateness pass.
    url = f"http://127.0.0.1:{server.admin_port}"
    windows = loadgen("verify", "--ledger", ledger, "--windows", url)
    assert windows.returncode == 0, windows.stdout + windows.stderr

    server.terminate()
    log = loadgen("verify", "--ledger", ledger, "--log-dump", dump(server, tmp_path / "dump"), "--json")
    assert log.returncode == 0, log.stdout + log.stderr


def test_a_line_taken_out_of_a_dump_or_altered_in_it_is_named(real_server_only, make_server, tmp_path):
    server = serving(make_server)
    ledger, _ = run(server, LOADS["constant"], tmp_path, seed=77)
    server.terminate()
    lines = dump(server, tmp_path / "dump").read_text().splitlines(keepends=True)
    at = next(n for n in range(len(lines) // 2, len(lines)) if '"value":' in lines[n])
    altered = re.sub(r'"value":\s*(-?[0-9.]+)', lambda m: m[0] + ("1" if "." in m[1] else ".5"), lines[at])
    assert altered != lines[at]
    for word, lie in (("missing", lines[:at] + lines[at + 1:]), ("doubled", lines[:at + 1] + lines[at:]),
                      ("altered", lines[:at] + [altered] + lines[at + 1:])):
        (tmp_path / "lie").write_text("".join(lie))
        done = loadgen("verify", "--ledger", ledger, "--log-dump", tmp_path / "lie")
        assert done.returncode == 1 and word in done.stdout + done.stderr, (word, done.stdout, done.stderr)


def test_retries_over_a_restart_lose_nothing_and_count_once(real_server_only, make_server, tmp_path):
    server = serving(make_server)
    ledger, out = tmp_path / "sent.ledger", tmp_path / "run.json"
    load = subprocess.Popen([loadresult.loadgen_binary(), "run", "--target", f"http://127.0.0.1:{server.ingest_port}",
                             "--rate", "200", "--duration", "6s", "--batch", "20", "--retry", "join", "--ledger", ledger,
                             "--json", out, "--clients", "8", "--identity", "header"], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)
    eventually(lambda: server.metrics().sum("metricstream_points_accepted_total") > 4000, 10, "points")
    server.kill()
    server.start()
    said, _ = load.communicate(timeout=60)
    assert load.returncode == 0, said
    totals = json.loads(out.read_text())["totals"]
    assert totals["retries"] > 0 and totals["given_up"] == 0, totals
    windows = loadgen("verify", "--ledger", ledger, "--windows", f"http://127.0.0.1:{server.admin_port}")
    assert windows.returncode == 0, windows.stdout + windows.stderr
    server.terminate()
    log = loadgen("verify", "--ledger", ledger, "--log-dump", dump(server, tmp_path / "dump"))
    assert log.returncode == 0, log.stdout + log.stderr


def test_a_fleet_of_10_000_for_two_minutes_loses_nothing(real_server_only, make_server, tmp_path, long):
    """--long: the platform's example, 50,000 points/s. Otherwise a fifth of it for ten seconds."""
    if long:
        flags = ["--fleet", "10000", "--interval", "10s", "--metrics", "50", "--duration", "120s"]
    else:
        flags = ["--fleet", "2000", "--interval", "5s", "--metrics", "50", "--duration", "10s"]
    server = serving(make_server, http={"connections_max": 30_000, "connections_per_address_max": 30_000})
    flags += ["--server-metrics", f"http://127.0.0.1:{server.admin_port}", "--server-pid", server.process.pid]
    ledger, result = run_long(server, flags, tmp_path)
    totals = result["totals"]
    assert totals["acknowledged"] == totals["due"] == totals["sent"], totals
    # Half a million series make millions of windows: they are read from the aggregate log, not page by page.
    time.sleep(5)
    server.terminate()
    with (tmp_path / "windows").open("w") as out:
        subprocess.run([binary(), "log", "dump", "--data-dir", server.data_dir, "--shard", "aggregate"], stdout=out, check=True)
    windows = loadgen("verify", "--ledger", ledger, "--windows", tmp_path / "windows", timeout=600)
    print(windows.stdout)
    assert windows.returncode == 0, windows.stdout + windows.stderr
    log = loadgen("verify", "--ledger", ledger, "--log-dump", dump(server, tmp_path / "dump"), timeout=600)
    print(log.stdout)
    assert log.returncode == 0, log.stdout + log.stderr


def run_long(server, flags, tmp_path):
    ledger, out = tmp_path / "sent.ledger", tmp_path / "run.json"
    done = loadgen("run", "--target", f"http://127.0.0.1:{server.ingest_port}", "--ledger", ledger, "--json", out, *flags,
                   timeout=300)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    return ledger, json.loads(out.read_text())


@pytest.mark.parametrize("arguments, says", [
    (["--target", "http://127.0.0.1:9", "--rate", "10", "--duration", "1s"], "127.0.0.1:9"),
    (["--target", "http://127.0.0.1:9", "--rate", "10", "--closed"], "--closed"),
    (["--target", "ftp://127.0.0.1:9", "--rate", "10"], "http://"),
    (["--target", "http://127.0.0.1:9", "--rate", "ten"], "ten"),
    (["--target", "http://127.0.0.1:9", "--rate", "10", "--fail-if", "p99 > 5 parsecs"], "parsecs"),
    (["--target", "http://127.0.0.1:9", "--rate", "10", "--ledger", "/nowhere/at/all"], "/nowhere/at/all"),
])
def test_what_cannot_be_done_is_one_clear_sentence(arguments, says):
    done = loadgen("run", *arguments)
    assert done.returncode == 2 and says in done.stderr, (done.returncode, done.stderr)
    assert "panicked" not in done.stderr


def test_a_full_disk_under_the_ledger_ends_the_run_and_the_ledger_stays_readable(real_server_only, make_server, small_disk):
    server = serving(make_server)
    ledger = small_disk / "sent.ledger"
    done = loadgen("run", "--target", f"http://127.0.0.1:{server.ingest_port}", "--closed", "--duration", "60s", "--batch", "1",
                   "--ledger", ledger)
    assert done.returncode == 2 and "ledger" in done.stderr and "panicked" not in done.stderr, done.stderr
    server.terminate()
    log = loadgen("verify", "--ledger", ledger, "--log-dump", dump(server, small_disk.parent / "dump"))
    assert log.returncode == 0, log.stdout + log.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 1 MiB."""
    where = tmp_path / "small"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)
