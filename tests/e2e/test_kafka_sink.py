"""The Kafka sink against real Kafka: every acknowledged point is there, once by id, in order, through kills of either side.

What a consumer sees is read with kcat. Points are (client, series, sequence number), so each can be told from all others.
"""

import json
import random
import subprocess
import threading
import time
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import jsonschema
import pytest
import requests

from support import oracle, output
from support.kafka import Kafka, first_of_each_id
from support.server import ROOT, eventually, free_ports

SCHEMAS = ROOT / "src" / "forward" / "schema"
RAW, AGGREGATED = "metrics-raw", "metrics-aggregated"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    with Kafka(tmp_path_factory.mktemp("kafka") / "k") as kafka:
        yield kafka


@pytest.fixture
def topics(kafka):
    """Fresh topics; tests name theirs by what they get."""
    suffix = f"{time.time_ns() % 10**10}"
    raw, aggregated = f"raw-{suffix}", f"agg-{suffix}"
    kafka.create_topic(raw)
    kafka.create_topic(aggregated)
    return raw, aggregated


def sink(kafka, topics, **more):
    raw, aggregated = topics
    return {"name": "kafka", "type": "kafka", "brokers": kafka.brokers, "topic": raw, "topic_aggregates": aggregated,
            "retry_every_max": "1 s"} | more


def schema(name):
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text()))


def start(make_server, kafka, topics, name="server", shards=2, log=None, windows=None, **more):
    """A server with two shards, as many tokens as there are senders, and the sink."""
    clients = [{"name": f"client-{n}", "token": f"token-{n}-0123456789"} for n in range(8)]
    return make_server(name, node={"shards": shards}, sink=[sink(kafka, topics, **more)],
                       client=clients, **({"log": log} if log else {}), **({"windows": windows} if windows else {}))


class Sender(threading.Thread):
    """One client on one connection: batches of points with rising numbers in a few series, each sent again until it is
    acknowledged (the same points under the same timestamps)."""

    def __init__(self, server, number, batches, points, pause_s=0.0, series=3):
        super().__init__(daemon=True)
        self.server, self.number, self.batches, self.points = server, number, batches, points
        self.pause_s, self.series = pause_s, series
        self.base_ms = int(time.time() * 1000) - 5000
        self.sent = 0
        self.retried = False
        self.stop = False

    def run(self):
        session = requests.Session()
        session.trust_env = False
        headers = {"Authorization": f"Bearer token-{self.number}-0123456789", "X-Request-Id": f"req-{self.number}",
                   "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        for _ in range(self.batches):
            if self.stop:
                break
            numbers = range(self.sent, self.sent + self.points)
            body = json.dumps({"metrics": [self.point(n) for n in numbers]})
            while not self.stop:
                try:
                    answer = session.post(self.server.url("/metrics"), data=body, headers=headers, timeout=10)
                    if answer.status_code == 200:
                        self.sent += self.points
                        break
                    self.retried = True
                except requests.RequestException:
                    self.retried = True
                time.sleep(0.05)
            time.sleep(self.pause_s)

    def series_of(self, n):
        return f"load.{n % self.series}"

    def point(self, n):
        return {"name": self.series_of(n), "value": self.value(n), "timestamp": self.base_ms + n,
                "tags": {"host": f"h{self.number}", "quote\"d": "a\\b, c=d"}}

    def value(self, n):
        return n + 0.25


def check_points(records, senders):
    """Each acknowledged point is there with its value; ids and identities tell repeats; order is that of sending."""
    found = defaultdict(list)
    for record in first_of_each_id(records):
        value = record.value
        found[value["client_id"]].append((value["timestamp"], value["name"], value["value"], value["tags"], record))
    for sender in senders:
        mine = found.pop(f"client-{sender.number}", [])
        seen, in_log, last = {}, set(), defaultdict(lambda: -1)
        for timestamp, name, value, tags, record in mine:
            n = timestamp - sender.base_ms
            assert tags == sender.point(n)["tags"] and name == sender.series_of(n) and value == sender.value(n), record
            identity = record.headers["point"]
            # The client sends one request after the other: the points of a connection come in their order, series by
            # series. A new connection may be another shard's, whose log goes out beside the first one's.
            log = record.id.split("-")[1]
            if (log, n) not in in_log:
                assert n > last[log, name], f"client {sender.number}: {name} {n} after {last[log, name]}"
                in_log.add((log, n))
                last[log, name] = n
            if n in seen:
                assert sender.retried, f"point {n} came under two ids, and its client had not sent it twice"
                assert seen[n] == identity, "a repeat has the same identity"
                continue
            seen[n] = identity
        missing = set(range(sender.sent)) - seen.keys()
        assert not missing, f"client {sender.number}: {len(missing)} acknowledged points are missing: {sorted(missing)[:5]}"
        assert len(set(seen.values())) == len(seen), "different points have different identities"
    assert not found, f"points nobody sent: {found.keys()}"


def acknowledged(senders):
    return sum(sender.sent for sender in senders)


def wait_delivered(server, kafka, topic, senders, timeout_s):
    def points():
        return len({r.headers["point"] for r in kafka.read(topic)}) >= acknowledged(senders)
    eventually(points, timeout_s, lambda: f"{acknowledged(senders)} points in {topic}; {server.log_tail(15)}", every_s=1)
    return kafka.read(topic)


def test_every_point_arrives_once_by_id_and_in_order(make_server, kafka, topics, long):
    server = start(make_server, kafka, topics, windows={"lateness": "1 s"}).start()
    senders = [Sender(server, n, 100 if long else 40, 250) for n in range(8)]
    [sender.start() for sender in senders]
    [sender.join() for sender in senders]
    records = wait_delivered(server, kafka, topics[0], senders, 60)
    check_points(records, senders)
    assert not any(sender.retried for sender in senders)
    assert len({r.id for r in records}) == acknowledged(senders)
    # Keys: by client, so that one client is in one partition.
    partitions = defaultdict(set)
    for record in records:
        assert record.key == record.value["client_id"]
        partitions[record.key].add(record.partition)
        assert record.headers["request_id"] and record.headers["traceparent"].startswith("00-0af7651916cd43dd")
    assert all(len(found) == 1 for found in partitions.values())
    validator = schema(RAW)
    for record in random.Random(1).sample(records, 500):
        validator.validate(record.value)


def test_windows_arrive_with_what_they_can_be_merged_from(make_server, kafka, topics):
    """Two appliances, one Kafka: a consumer merges their partial windows, and finds what one place would have computed."""
    rng = random.Random(7)
    servers = [start(make_server, kafka, topics, name=f"node-{n}", windows={"lateness": "0 s"}).start() for n in range(2)]
    # One client, so that both nodes have windows of the same series; values whose sum depends on the order of adding.
    start_ms = int(time.time() * 1000) // 10_000 * 10_000 - 10_000
    values = defaultdict(list)
    for n, server in enumerate(servers):
        points = []
        for i in range(400):
            name = f"merge.{i % 5}"
            value = rng.choice([rng.uniform(-50, 200), 0.1, 1e16, -1e16, 0.0, 7.0])
            values[name].append(value)
            # Distinct times on both nodes.
            points.append({"name": name, "value": value, "timestamp": start_ms + (2 * i + n) * 12})
        answer = server.post("/metrics", json.dumps({"metrics": points}),
                             {"Authorization": "Bearer token-0-0123456789"})
        assert answer.json()["accepted"] == 400, answer.text

    def whole():
        # Of each node and window, the greatest (era, revision) is what it says.
        newest = {}
        for record in kafka.read(topics[1]):
            value = record.value
            if value["window_s"] != 10 or value["start_ms"] != start_ms or not value["name"].startswith("merge."):
                continue
            of = (record.id.split("-")[0], value["name"])
            if of not in newest or (newest[of]["era"], newest[of]["revision"]) <= (value["era"], value["revision"]):
                newest[of] = value
        return newest if sum(v["count"] for v in newest.values()) == 800 else None
    newest = eventually(whole, 60, lambda: f"all windows\n{servers[0].log_tail(10)}", every_s=1)
    validator = schema(AGGREGATED)
    for record in kafka.read(topics[1]):
        validator.validate(record.value)
        assert record.value["state"] is not None
    assert len({node for node, _ in newest}) == 2 and len(newest) == 10
    for name, expected in values.items():
        merged = merge([value for (_, of), value in newest.items() if of == name])
        negative, zeros, positive = merged["negative"], merged["zeros"], merged["positive"]
        assert merged["count"] == len(expected) == zeros + sum(positive.values()) + sum(negative.values())
        assert merged["sum"] == sum(map(Fraction, expected)), "not a bit of the sum is lost"
        assert (merged["min"], merged["max"]) == (min(expected), max(expected))
        want = oracle.summary(expected)
        low, high = min(expected), max(expected)
        for field, permille in oracle.QUANTILES_PERMILLE.items():
            got = min(max(quantile(permille, negative, zeros, positive), low), high)
            assert abs(got - want[field]) <= 0.01 * abs(want[field]) * (1 + 1e-9), (name, field, got, want[field])


def merge(partials):
    """As the schema's description says it."""
    whole = {"count": 0, "sum": Fraction(0), "zeros": 0, "negative": defaultdict(int), "positive": defaultdict(int),
             "min": min(p["min"] for p in partials), "max": max(p["max"] for p in partials)}
    for partial in partials:
        state = partial["state"]
        mantissa, exponent = state["sum"]
        whole["count"] += partial["count"]
        whole["sum"] += Fraction(int(mantissa)) * Fraction(2) ** exponent
        whole["zeros"] += state["zeros"]
        for sign in ("negative", "positive"):
            for at, n in state[sign]:
                whole[sign][at] += n
    return whole


def test_a_window_too_large_for_its_topic_comes_in_parts_that_merge_to_the_whole(make_server, kafka, topics, tmp_path):
    kafka.alter_topic(topics[1], max_message_bytes=3000)
    files = {"name": "out", "type": "file", "path": str(tmp_path / "out"), "send": "aggregates", "rotate_every": "300 ms"}
    server = make_server(sink=[sink(kafka, topics, codec="none"), files], windows={"lateness": "0 s", "windows": ["10 s"]}).start()
    rng = random.Random(11)
    start_ms = int(time.time() * 1000) // 10_000 * 10_000 - 20_000
    # Values of all magnitudes: a bin each. And one window of few bins, which its topic takes.
    values = {"wide": [rng.choice([-1, 1]) * 10 ** rng.uniform(-200, 200) for _ in range(900)] + [0.0] * 7,
              "narrow": [1.0, 2.0, 3.0]}
    for name, of in values.items():
        points = [{"name": name, "value": value, "timestamp": start_ms + n} for n, value in enumerate(of)]
        assert server.post("/metrics", json.dumps({"metrics": points})).json()["accepted"] == len(of)

    def written():
        return {row["name"]: row for row in output.rows(tmp_path / "out", "aggregates") if row["start_ms"] == start_ms}

    def complete():
        """By name and division, the parts of the record that the file says it is; of whole divisions only."""
        ids = {row["id"]: name for name, row in written().items()}
        found = defaultdict(dict)
        for record in kafka.read(topics[1]):
            id, _, part = record.id.partition("/")
            if id in ids:
                value = record.value
                assert part == (f"{value['part']}of{value['parts']}" if part else ""), record.id
                known = found[ids[id], value.get("parts", 1)].setdefault(value.get("part", 1), value)
                assert known == value, "equal ids, equal records"
        return {of: list(parts.values()) for of, parts in found.items() if len(parts) == of[1]}
    eventually(lambda: {name for name, _ in complete()} == {"wide", "narrow"}, 90,
               lambda: f"both windows: {list(complete())}\n{server.log_tail(20)}", every_s=1)
    whole, found = written(), complete()
    assert ("narrow", 1) in found and ("wide", 1) not in found, list(found)
    parts = next(of for name, of in found if name == "wide")
    assert parts >= 4 and dead_letters(server) == []
    for (name, _), partials in found.items():
        merged, expected = merge(partials), merge([whole[name]])
        assert merged == expected
        assert merged["sum"] == sum(map(Fraction, values[name])) and merged["count"] == len(values[name])
    validator = schema(AGGREGATED)
    for record in kafka.read(topics[1]):
        validator.validate(record.value)
    books_of = books(server)
    assert books_of["dead_lettered"] == 0 and books_of["read"] == books_of["delivered"], books_of
    # Sent again, it is divided alike.
    ids = {record.id for record in kafka.read(topics[1])}
    replay = server.cli("--config", str(server.config_path), "log", "replay", "--sink", "kafka", "--from", str(start_ms - 10_000),
                        "--to", str(start_ms + 10_000), "--name", "wide", "--json")
    summary = json.loads(replay.stdout)
    assert summary["dead_lettered"] == 0 and summary["sent"] == len(values["wide"]) + 1, summary
    again = kafka.read(topics[1])
    assert {record.id for record in again} == ids and sum(f"/1of{parts}" in record.id for record in again) >= 2


def quantile(permille, negative, zeros, positive):
    """By the rank rule of the schema's description."""
    ordered = [(-bin_value(at), n) for at, n in sorted(negative.items(), reverse=True)]
    ordered += [(0.0, zeros)] + [(bin_value(at), n) for at, n in sorted(positive.items())]
    rank = permille * (sum(n for _, n in ordered) - 1) // 1000
    for value, n in ordered:
        if rank < n:
            return value
        rank -= n


def bin_value(at):
    if at < 8192:
        return at * 2.0 ** -1074
    return 2.0 ** ((at - 8192) / 35 - 1061) * 1.009901778953003


def run_kills(server, kafka, topics, kills, kill, pause_s=0.2):
    senders = [Sender(server, n, 10**9, 100, pause_s=0.03) for n in range(4)]
    [sender.start() for sender in senders]
    for _ in range(kills):
        time.sleep(pause_s + random.random())
        before = acknowledged(senders)
        kill()
        eventually(lambda before=before: acknowledged(senders) > before, 30, "points go on being acknowledged")
    for sender in senders:
        sender.stop = True
    [sender.join() for sender in senders]
    for sender in senders:
        # The last batch may have been acknowledged without the client knowing.
        assert sender.sent > 0
    records = wait_delivered(server, kafka, topics[0], senders, 180)
    return senders, records


def check_with_unknown(records, senders):
    """As `check_points`, but the batch under way at the end may be there or not."""
    by_client = {f"client-{s.number}": s for s in senders}
    known = [r for r in records
             if r.value["timestamp"] - by_client[r.value["client_id"]].base_ms < by_client[r.value["client_id"]].sent]
    check_points(known, senders)


def test_kafka_is_killed_under_load(make_server, kafka, topics, long):
    server = start(make_server, kafka, topics).start()

    def kill():
        kafka.kill()
        time.sleep(random.random() * 2)
        kafka.start()
    senders, records = run_kills(server, kafka, topics, 20 if long else 2, kill)
    check_with_unknown(records, senders)


def test_the_appliance_is_killed_under_load(make_server, kafka, topics, long):
    server = start(make_server, kafka, topics).start()
    senders, records = run_kills(server, kafka, topics, 50 if long else 4, lambda: server.restart(kill=True))
    check_with_unknown(records, senders)
    ids = [r.id for r in records]
    print(f"{len(ids) - len(set(ids))} of {len(ids)} records were sent again under their ids")


def dead_letters(server):
    directory = Path(server.data_dir) / "dead-letters" / "kafka"
    return [json.loads(line) for path in sorted(directory.glob("*.ndjson")) for line in path.read_text().splitlines()]


def test_a_record_that_is_too_large_goes_to_the_dead_letters_alone(make_server, kafka, topics):
    kafka.alter_topic(topics[0], max_message_bytes=4000)
    server = start(make_server, kafka, topics, codec="none").start()
    lines = []
    base = time.time_ns() // 10**9 * 10**9 - 10 * 10**9
    for n in range(2000):
        text = f'load,host=h n={n}i {base + n * 1000}'
        if n in (700, 1500):
            text = f'load,host=h n="{"x" * 8000}" {base + n * 1000}'
        lines.append(text)
    server.write_lines("\n".join(lines))
    records = eventually(lambda: (found := kafka.read(topics[0])) and len({r.id for r in found}) >= 1998 and found, 90,
                         lambda: f"1998 records; {server.log_tail(20)}", every_s=1)
    kept = first_of_each_id(records)
    numbers = [(r.value.get("timestamp_ns") or r.value["timestamp"] * 10**6) for r in kept]
    expected = [base + n * 1000 for n in range(2000) if n not in (700, 1500)]
    assert numbers == expected, "all others, in order"
    letters = eventually(lambda: len(dead_letters(server)) >= 2 and dead_letters(server), 20, "two dead letters")
    assert len({letter["id"] for letter in letters}) == 2
    assert all("too large" in letter["reason"].lower() and letter["target"] == topics[0] for letter in letters), letters[0]["reason"]
    assert all(len(json.loads(letter["body"])["value"]) == 8000 for letter in letters)
    assert all(letter["headers"]["point"] for letter in letters)
    # Sent again beside the running server, once the topic takes them: the same records, and the letters go.
    retry = ["--config", str(server.config_path), "dead-letter", "retry", "--sink", "kafka"]
    assert "0 of 2 sent, 2 refused again" in server.cli(*retry).stdout and len(dead_letters(server)) == 2
    kafka.alter_topic(topics[0], max_message_bytes=100_000)

    def taken():
        # The topic's new bound takes its time to be in force.
        server.cli(*retry)
        return not dead_letters(server)
    eventually(taken, 60, "the letters are taken", every_s=1)
    retried = {record.id: record for record in kafka.read(topics[0])}
    for letter in letters:
        record = retried[letter["id"]]
        assert record.value == json.loads(letter["body"]) and record.headers["point"] == letter["headers"]["point"]
    # Good ones after it are not held up.
    server.write_lines("\n".join(f"more,host=h n={n}i" for n in range(500)))
    eventually(lambda: len({r.id for r in kafka.read(topics[0])}) == 2500, 60, lambda: server.log_tail(20), every_s=1)


def test_letters_stay_while_kafka_is_away_and_one_retry_is_at_work_at_a_time(make_server):
    [port] = free_ports(1)
    server = make_server(sink=[{"name": "kafka", "type": "kafka", "brokers": [f"127.0.0.1:{port}"]}])
    server.write_config()
    directory = Path(server.data_dir) / "dead-letters" / "kafka"
    directory.mkdir(parents=True)
    letter = {"id": "00000000000000ab-0-1-7", "time_ms": 1, "sink": "kafka", "target": "t", "reason": "too large",
              "key": "k", "headers": {"point": "p"}, "body": "{}"}
    (directory / "00000001.ndjson").write_text(json.dumps(letter) + "\n")
    config = ["--config", str(server.config_path), "dead-letter"]
    first = subprocess.Popen([server.program, *config, "retry"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: list(directory.glob("taken-*")), 30, "the first retry is at work", every_s=0.02)
        second = server.cli(*config, "retry", check=False)
        assert second.returncode == 1 and "another retry is at work" in second.stderr
    finally:
        first.kill()
        first.wait()
    assert [json.loads(line) for line in server.cli(*config, "list").stdout.splitlines()] == [letter]


def books(server):
    """What the sink's metrics say, over all logs."""
    metrics = server.metrics()
    of = {word: metrics.sum(f"metricstream_sink_points_{word}_total", sink="kafka")
          for word in ("read", "delivered", "refused", "dead_lettered", "filtered", "dropped", "lost_to_damage")}
    of["waiting"] = metrics.sum("metricstream_sink_points_waiting", sink="kafka")
    of["errors"] = metrics.sum("metricstream_sink_errors_total", sink="kafka")
    states = [state for state in ("running", "retrying", "held", "stopped")
              if metrics.sum("metricstream_sink_state", sink="kafka", state=state) == 1]
    assert len(states) == 1, states
    of["state"] = states[0]
    return of


def wait_state(server, state, timeout_s=90):
    eventually(lambda: books(server)["state"] == state, timeout_s,
               lambda: f"the sink is {state}, not {books(server)}\n{server.log_tail(20)}")


def check_all_delivered(server, sent, dead_lettered=0):
    """Every acknowledged point is in one book, and the books balance."""
    def done():
        found = books(server)
        return found["delivered"] + found["dead_lettered"] >= sent and found["waiting"] == 0
    eventually(done, 60, lambda: f"{sent} points are settled: {books(server)}")
    found = books(server)
    assert found["dead_lettered"] == dead_lettered and found["refused"] == found["dropped"] == 0, found
    assert found["read"] == found["delivered"] + found["dead_lettered"], found


def finish(sender):
    sender.stop = True
    sender.join()


def test_a_kafka_that_is_away_is_shown_as_retrying_and_costs_nothing(make_server, kafka, topics):
    server = start(make_server, kafka, topics, send="raw").start()
    sender = Sender(server, 0, 10**9, 20, pause_s=0.02)
    sender.start()
    eventually(lambda: books(server)["delivered"] > 200, 60, "points arrive")
    assert books(server)["state"] == "running"
    try:
        kafka.kill()
        wait_state(server, "retrying")
        away = books(server)
        acknowledged_before = sender.sent
        eventually(lambda: sender.sent > acknowledged_before + 200, 60, "points are taken in meanwhile")
        assert books(server)["delivered"] == away["delivered"], "the cursor waits"
    finally:
        kafka.start()
    wait_state(server, "running")
    finish(sender)
    check_points(wait_delivered(server, kafka, topics[0], [sender], 90), [sender])
    check_all_delivered(server, sender.sent)
    assert dead_letters(server) == []


def test_a_bound_made_small_while_running_makes_batches_smaller_and_loses_nothing(make_server, kafka, topics):
    """`max.message.bytes` of the topic: batches that passed before are refused, their records are good."""
    server = start(make_server, kafka, topics, send="raw", codec="none").start()
    sender = Sender(server, 0, 10**9, 100, pause_s=0.02)
    sender.start()
    eventually(lambda: books(server)["delivered"] > 1000, 60, "points arrive")
    assert books(server)["errors"] == 0
    kafka.alter_topic(topics[0], max_message_bytes=4000)
    eventually(lambda: books(server)["errors"] > 0, 60, lambda: f"a batch is refused\n{server.log_tail(20)}")
    assert "one by one" in server.log_tail(400)
    then = books(server)["delivered"]
    eventually(lambda: books(server)["delivered"] > then + 2000, 90,
               lambda: f"it goes on in smaller batches: {books(server)}\n{server.log_tail(20)}")
    # One record that is too large by itself goes aside, with Kafka's reason, and holds nobody up.
    server.write_lines(f'large,host=h text="{"x" * 8000}"')
    letters = eventually(lambda: dead_letters(server), 90, lambda: f"a dead letter\n{server.log_tail(20)}")
    assert len(letters) == 1 and "too large" in letters[0]["reason"].lower(), letters
    assert json.loads(letters[0]["body"])["name"].startswith("large")
    kafka.alter_topic(topics[0], max_message_bytes=1048588)
    then = books(server)["delivered"]
    eventually(lambda: books(server)["delivered"] > then + 500, 60, lambda: f"it goes on: {server.log_tail(20)}")
    wait_state(server, "running")
    finish(sender)
    records = wait_delivered(server, kafka, topics[0], [sender], 90)
    check_points(records, [sender])
    check_all_delivered(server, sender.sent + 1, dead_lettered=1)


def test_a_deleted_topic_holds_the_sink_and_loses_nothing(make_server, kafka, topics):
    server = start(make_server, kafka, topics, send="raw").start()
    sender = Sender(server, 0, 10**9, 20, pause_s=0.02)
    sender.start()
    eventually(lambda: books(server)["delivered"] > 200, 60, "points arrive")
    before = kafka.read(topics[0])
    kafka.delete_topic(topics[0])
    eventually(lambda: "has no topic" in server.log_tail(200), 60, lambda: f"it is said\n{server.log_tail()}")
    wait_state(server, "held")
    kafka.create_topic(topics[0])
    time.sleep(2)
    sender.stop = True
    sender.join()
    last = sender.base_ms + sender.sent - 1

    def whole():
        after = [r.value["timestamp"] for r in first_of_each_id(kafka.read(topics[0]))]
        return after if last in after else None
    after = eventually(whole, 60, lambda: f"the last point arrives\n{server.log_tail()}", every_s=1)
    # What the old topic had acknowledged is gone with it; of the rest nothing is missing, and it is in order.
    assert after == list(range(after[0], last + 1))
    assert len(before) >= 200 and after[0] - sender.base_ms >= len(before)
    wait_state(server, "running")
    check_all_delivered(server, sender.sent)
    assert dead_letters(server) == [], "its records are good"
    print(f"{len(before)} read before the deletion, {after[0] - sender.base_ms - len(before)} more deleted with the "
          f"topic, {len(after)} in the new one")


@pytest.fixture
def three_nodes(make_server, tmp_path, long):
    """Three brokers, a topic that wants two replicas in sync, and a server that sends to it."""
    if not long:
        pytest.skip("three nodes: --long")
    with Kafka(tmp_path / "three", nodes=3) as kafka:
        kafka.create_topic("raw", partitions=3, replicas=3, min_insync_replicas=2)
        kafka.create_topic("agg", partitions=3, replicas=3)
        server = start(make_server, kafka, ("raw", "agg"), send="raw").start()
        yield kafka, server


@pytest.mark.slow
def test_nothing_is_acknowledged_without_enough_replicas(three_nodes):
    kafka, server = three_nodes
    sender = Sender(server, 0, 100, 20)
    sender.start()
    sender.join()
    wait_delivered(server, kafka, "raw", [sender], 60)
    for node in kafka.nodes[1:]:
        node.kill()
    second = Sender(server, 1, 20, 20)
    second.start()
    second.join()
    time.sleep(10)
    assert server.alive()
    table = server.cli("log", "cursors", "--data-dir", str(server.data_dir)).stdout
    rows = [line.split() for line in table.splitlines() if line.startswith("kafka")]
    # From the end: damaged, dropped, filtered, dead, refused, delivered.
    assert sum(int(row[-6]) for row in rows) == sender.sent, f"only what was replicated counts:\n{table}"
    kafka.start()
    records = wait_delivered(server, kafka, "raw", [sender, second], 120)
    check_points(records, [sender, second])


@pytest.mark.slow
def test_more_replicas_asked_for_than_are_in_sync_hold_the_cursor(three_nodes):
    """Kafka 4 asks for no more replicas than a topic has, so that one broker cannot show this."""
    kafka, server = three_nodes
    sender = Sender(server, 0, 10**9, 20, pause_s=0.02)
    sender.start()
    eventually(lambda: books(server)["delivered"] > 200, 60, "points arrive")
    kafka.alter_topic("raw", min_insync_replicas=3)
    then = books(server)["delivered"]
    eventually(lambda: books(server)["delivered"] > then + 500, 120, lambda: f"three of three do: {books(server)}")
    kafka.nodes[2].kill()
    wait_state(server, "retrying", 120)
    held, acknowledged_before = books(server), sender.sent
    eventually(lambda: sender.sent > acknowledged_before + 200, 60, "points are taken in meanwhile")
    assert books(server)["delivered"] == held["delivered"], "only what Kafka has acknowledged counts"
    assert dead_letters(server) == [], "waiting helps: nothing is set aside"
    kafka.start()
    wait_state(server, "running", 120)
    finish(sender)
    check_points(wait_delivered(server, kafka, "raw", [sender], 120), [sender])
    check_all_delivered(server, sender.sent)


def test_a_stop_is_not_held_up_by_a_kafka_that_is_away(make_server, kafka, topics):
    server = start(make_server, kafka, topics, stop_within="2 s").start()
    first = Sender(server, 0, 20, 50)
    first.start()
    first.join()
    wait_delivered(server, kafka, topics[0], [first], 30)
    kafka.kill()
    second = Sender(server, 1, 50, 100)
    second.start()
    second.join()
    time.sleep(1)
    begun = time.monotonic()
    assert server.terminate() == 0, server.log_tail()
    took = time.monotonic() - begun
    assert took < 4, f"the stop took {took:.1f} s"
    kafka.start()
    server.start()
    records = wait_delivered(server, kafka, topics[0], [first, second], 60)
    check_points(records, [first, second])
