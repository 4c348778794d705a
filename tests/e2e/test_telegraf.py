"""Telegraf as it comes, every output that reaches us, through outages of every kind: each point counted once.

A point is told apart by a series of its own, so that the count of every window says whether it came zero, one or two
times, whatever unit its timestamp travelled in (Telegraf's JSON has whole seconds).
"""

import time
from collections import Counter

import pytest

from support import exposition, oracle
from support.proxy import Proxy
from support.server import eventually
from support.telegraf import OUTPUTS, Telegraf

RATE = 40  # points fed per tick and output
TICK_S = 0.1


class Fleet:
    """One Telegraf an output, each behind a proxy of its own."""

    def __init__(self, binary, directory, server):
        self.server = server
        self.proxies = {output: Proxy(server.ingest_port) for output in OUTPUTS}
        self.telegrafs = {output: Telegraf(binary, directory, output, proxy.url())
                          for output, proxy in self.proxies.items()}
        self.fed = 0

    def feed_for(self, seconds):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            now = time.time_ns()
            lines = "".join(f"fed,n={self.fed + i} value={self.fed + i} {now + i}\n" for i in range(RATE))
            self.fed += RATE
            for telegraf in self.telegrafs.values():
                telegraf.feed(lines)
            time.sleep(TICK_S)

    def mode(self, mode):
        for proxy in self.proxies.values():
            proxy.mode = mode

    def seen(self, mode):
        return {output: proxy.seen[mode] for output, proxy in self.proxies.items()}

    def finish_and_check(self):
        for telegraf in self.telegrafs.values():
            telegraf.wait_given(self.fed)
        time.sleep(3)  # three flush intervals
        for telegraf in self.telegrafs.values():
            telegraf.stop()
        rows = self.server.wait_windows(
            lambda rows: sum(r["count"] for r in rows) >= self.fed * len(OUTPUTS), 30, name="fed", window="10s")
        faults = []
        for output, telegraf in self.telegrafs.items():
            mine = [r for r in rows if r["tags"].get("out") == output]
            counts = Counter()
            for row in mine:
                counts[int(row["tags"]["n"])] += row["count"]
                if row["sum"] != float(row["tags"]["n"]) * row["count"]:
                    faults.append(f"{output}: a value came changed: {row}")
            given = Counter(int(dict(p.tags)["n"]) for p in telegraf.points())
            if given != Counter(range(self.fed)):
                faults.append(f"{output}: Telegraf itself was given {len(given)} of {self.fed} points")
            missing, twice = given.keys() - counts.keys(), [n for n, c in counts.items() if c > 1]
            if missing or twice:
                faults.append(f"{output}: {len(missing)} of {len(given)} points missing {sorted(missing)[:5]}, "
                              f"{len(twice)} counted twice {sorted(twice)[:5]}; Telegraf says: {telegraf.drops()[:3]}")
        assert not faults, "\n".join(faults)
        eventually(lambda: not exposition.imbalance(self.server.metrics()), 5,
                   lambda: exposition.imbalance(self.server.metrics()))

    def close(self):
        for telegraf in self.telegrafs.values():
            telegraf.stop()
        for proxy in self.proxies.values():
            proxy.close()


@pytest.fixture
def fleet(telegraf_binary, tmp_path, make_server):
    # Two shards: what is sent again over a new connection may come to the other one.
    server = make_server(node={"shards": 2}, series={"per_client_max": 1_000_000}).start()
    fleet = Fleet(telegraf_binary, tmp_path / "telegraf", server)
    yield fleet
    fleet.close()


def test_every_output_delivers_each_point_once(fleet):
    fleet.feed_for(4)
    fleet.finish_and_check()
    assert all(fleet.seen("pass").values()), fleet.seen("pass")


def test_every_output_keeps_its_points_through_an_outage_of_503(fleet, long):
    fleet.feed_for(2)
    fleet.mode("503")
    fleet.feed_for(30 if long else 6)
    assert all(fleet.seen("503").values()), f"an output never met the outage: {fleet.seen('503')}"
    fleet.mode("pass")
    fleet.feed_for(2)
    fleet.finish_and_check()


def test_every_output_repeats_what_was_answered_into_a_reset_and_it_is_counted_once(fleet):
    fleet.feed_for(2)
    for _ in range(3):
        fleet.mode("reset")
        fleet.feed_for(1.5)
        fleet.mode("pass")
        fleet.feed_for(1.5)
    assert all(fleet.seen("reset").values()), f"an output never met a reset: {fleet.seen('reset')}"
    fleet.mode("refuse")
    fleet.feed_for(1)
    fleet.mode("pass")
    fleet.finish_and_check()


def test_every_output_gets_through_our_restart(fleet):
    fleet.feed_for(2)
    fleet.server.restart()
    fleet.feed_for(2)
    fleet.server.kill()
    fleet.feed_for(2)
    fleet.server.start()
    fleet.feed_for(2)
    fleet.server.restart(kill=True)
    fleet.finish_and_check()


MACHINE = """
[[inputs.cpu]]
  percpu = true
  totalcpu = true
  collect_cpu_time = false
  report_active = true
[[inputs.mem]]
[[inputs.disk]]
  ignore_fs = ["tmpfs", "devtmpfs", "devfs", "iso9660", "overlay", "aufs", "squashfs"]
[[inputs.net]]
  ignore_protocol_stats = true
"""


@pytest.mark.slow
@pytest.mark.parametrize("output", list(OUTPUTS))
def test_the_main_job_this_machines_cpu_mem_disk_net_to_windows_that_agree_with_telegrafs_file(
        telegraf_binary, tmp_path, make_server, output):
    server = make_server().start()
    telegraf = Telegraf(telegraf_binary, tmp_path / "telegraf", output, server.url(""), inputs=MACHINE)
    try:
        time.sleep(14)
    finally:
        telegraf.stop()
    points = telegraf.points()
    assert {p.name.split("_")[0] for p in points} >= {"cpu", "mem", "net"}, "Telegraf measured too little"
    expected = oracle.windows([(p.name, p.tags, p.value, p.timestamp_ns) for p in points], 10)
    total = sum(w["count"] for w in expected.values())
    rows = server.wait_windows(lambda rows: sum(r["count"] for r in rows) >= total, 30, window="10s")
    different = oracle.differences(expected, oracle.by_key(rows))
    assert not different, "\n".join(different)
    print(f"{len(points)} points of this machine in {len(rows)} windows")
