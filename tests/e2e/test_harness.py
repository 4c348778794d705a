"""The tests' own tools, tried on a stand-in with planted bugs: what cannot catch a fault proves nothing."""

import random
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import pytest

from support import exposition, lineproto, oracle
from support.ledger import Load
from support.pacer import Pacer
from support.proxy import Proxy
from support.rawhttp import exchange, request

STAND_IN = Path(__file__).resolve().parents[1] / "support" / "stand_in.py"


@pytest.fixture
def stand_in(make_server):
    return lambda bug="": make_server(program=STAND_IN, environment={"STAND_IN_BUG": bug}).start()


def kill_and_compare(server, tmp_path):
    load = Load(server.ingest_port, tmp_path / "ledger")
    time.sleep(1.0)
    server.kill()
    acked = set(load.acked)
    dumped = {(int(p["tags"]["w"]), int(p["value"])) for p in server.log_dump()}
    server.start()
    load.stop()
    assert len(acked) > 100
    return acked - dumped


def test_the_ledger_agrees_with_a_server_that_writes_before_it_answers(stand_in, tmp_path):
    assert not kill_and_compare(stand_in(), tmp_path)


def test_the_ledger_catches_a_server_that_answers_first(stand_in, tmp_path):
    assert kill_and_compare(stand_in("ack_early"), tmp_path)


@pytest.mark.parametrize("bug", ["", "double_count"])
def test_a_reset_before_the_answer_makes_a_repeat_and_counting_it_twice_is_noticed(stand_in, bug):
    server = stand_in(bug)
    proxy = Proxy(server.ingest_port)
    now = time.time_ns() // 10**6 * 10**6
    raw = request("POST", "/write", f"repeat value=1 {now}".encode())
    proxy.mode = "reset"
    with pytest.raises(ConnectionResetError):
        exchange(proxy.port, raw)
    proxy.mode = "503"
    assert exchange(proxy.port, raw)[0].status == 503
    proxy.mode = "pass"
    assert exchange(proxy.port, raw)[0].status == 204
    assert proxy.seen == {"pass": 1, "503": 1, "reset": 1, "refuse": 0}
    rows = server.wait_windows(lambda rows: rows, 20, name="repeat", window="10s")
    expected = oracle.windows([("repeat", (), 1.0, now)], 10)
    assert bool(oracle.differences(expected, oracle.by_key(rows))) == bool(bug)
    proxy.close()


@pytest.mark.flaky(reruns=1, reruns_delay=5)  # bounds a time, on a machine that others use too
def test_the_pacer_offers_its_rate_and_counts_answers(stand_in):
    server = stand_in()
    result = Pacer(server.ingest_port, request("POST", "/write", b"m value=1"), 200, 2, connections=8).wait()
    assert abs(result["offered"] - 400) <= 4
    assert result["counts"] == {204: result["offered"]} and result["p99_s"] < 1


def test_fsum_is_the_exact_sum_rounded_once():
    rng = random.Random(7)
    for _ in range(300):
        values = [rng.choice((1, -1)) * 10 ** rng.uniform(-300, 300) for _ in range(rng.randrange(1, 60))]
        values += [-v for v in values[: len(values) // 2]]
        assert oracle.summary(values)["sum"] == float(sum(map(Fraction, values)))


@pytest.mark.parametrize("field, value", [("count", 3), ("sum", 3.0000000000000004), ("min", 0.9), ("max", 2.1),
                                          ("p50", 1.011), ("p99", 0.98)])
def test_the_oracle_notices_one_wrong_number(field, value):
    expected = oracle.windows([("m", (), 1.0, 0), ("m", (), 2.0, 1)], 10)
    (key, right), = expected.items()
    assert oracle.differences(expected, {key: right | {"p50": 1.0099}}) == []
    assert oracle.differences(expected, {key: right | {field: value}})
    assert oracle.differences(expected, {}) and oracle.differences({}, expected)


def test_line_protocol_is_read_as_written():
    text = ('a\\ b,t\\,1=x\\=y,q="z" value=1.5,s="new\nline, \\"q\\" = x",n=3i,b=true 7\n# comment\n\nc u=4u\n')
    tags = (("q", '"z"'), ("t,1", "x=y"))
    assert list(lineproto.parse(text, default_timestamp_ns=9)) == [
        lineproto.Point("a b", tags, 1.5, 7), lineproto.Point("a b_n", tags, 3.0, 7), lineproto.Point("c_u", (), 4.0, 9)]


def test_an_exposition_is_read_and_unbalanced_books_are_noticed(stand_in):
    metrics = stand_in().metrics()
    assert exposition.imbalance(metrics) == []
    metrics[exposition.DURABLE, (("shard", "0"),)] += 1
    assert len(exposition.imbalance(metrics)) == 1
    parsed = exposition.Exposition.parse('a{x="q\\"\\\\n",y="2"} 4\na{x="b"} 1e3\n')
    assert parsed.sum("a") == 1004 and parsed.sum("a", x='q"\\n') == 4


def test_promtool_is_here_and_finds_faults():
    done = subprocess.run(["promtool", "check", "metrics"], input="wrongTotal 1\n", capture_output=True, text=True)
    assert done.returncode != 0
