"""`metricstream dead-letter retry` that is killed midway goes on where it stood, and loses nothing that comes meanwhile."""

import collections
import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from support.scripted import HANG, ScriptedServer, reply
from support.server import eventually

pytestmark = pytest.mark.usefixtures("real_server_only")

LETTERS = 250
HANGS_AT = 130
# As many letters as a retry settles at once.
BATCH = 100


def letters(server):
    answer = server.cli("--config", str(server.config_path), "dead-letter", "list")
    return [json.loads(line) for line in answer.stdout.splitlines()]


class Sink:
    """Refuses lines of the names in `bad`. Once told to, never answers a certain call that brings an old line."""

    def __init__(self):
        self.bad = {"old", "new"}
        self.taken = collections.Counter()
        self.hangs_at = None
        self.hanging = threading.Event()
        self.scripted = ScriptedServer(self.answer)

    def answer(self, request):
        lines = request.lines()
        if any(f"metric_name={name}," in line for line in lines for name in self.bad):
            return reply(400, json.dumps({"error": "unable to parse: no such metric"}))
        if self.hangs_at is not None and self.taken.total() + 1 == self.hangs_at:
            self.hanging.set()
            return HANG
        self.taken.update(lines)
        return 204


def test_a_retry_that_is_killed_is_gone_on_with_and_what_is_refused_meanwhile_stays(make_server):
    sink = Sink()
    server = make_server(sink=[{"name": "influx", "type": "influx", "url": sink.scripted.url, "send": "raw",
                                "batch_within": "50 ms", "request_within": "100 s"}]).start()
    try:
        base = time.time_ns()
        server.write_lines("\n".join(f"old,n={n} value={n} {base + n}" for n in range(LETTERS)))
        eventually(lambda: len(letters(server)) == LETTERS, 90, lambda: f"{len(letters(server))} letters", every_s=0.5)
        old = {letter["body"]: letter["id"] for letter in letters(server)}
        assert len(old) == LETTERS

        sink.bad, sink.hangs_at = {"new"}, HANGS_AT
        command = ["--config", str(server.config_path), "dead-letter", "retry", "--sink", "influx"]
        retry = subprocess.Popen([server.program, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            assert sink.hanging.wait(120), "the retry comes to the call that hangs"
            # The server goes on, and finds more that is refused.
            server.write_lines("\n".join(f"new,n={n} value={n} {base + n}" for n in range(5)))
            eventually(lambda: sum("metric_name=new" in letter["body"] for letter in letters(server)) == 5, 90, "new letters",
                       every_s=0.2)
        finally:
            retry.kill()
            retry.communicate()
        sent_before = sink.taken.total()
        assert sent_before == HANGS_AT - 1 and set(sink.taken.values()) == {1}
        left = letters(server)
        ids = {letter["id"] for letter in left}
        assert len(ids) == len(left)
        left_old = [letter for letter in left if letter["body"] in old]
        settled = LETTERS - len(left_old)
        assert sent_before - BATCH <= settled <= sent_before and settled > 0, f"{settled} of {sent_before} are known to be sent"
        assert all(old[letter["body"]] == letter["id"] for letter in left_old)
        assert not {letter["body"] for letter in left_old} & set(list(old)[:settled]), "from the front"
        directory = Path(server.data_dir) / "dead-letters" / "influx"
        assert [path.name for path in directory.glob("*.place")] == ["taken-00000001.place"]

        sink.hangs_at = None
        again = server.cli(*command)
        assert f"{len(left_old)} of {len(left)} sent, 5 refused again" in again.stdout, again.stdout
        assert sink.taken.keys() == old.keys(), "every one of them, and no other"
        twice = sum(n - 1 for n in sink.taken.values())
        assert twice == sent_before - settled <= BATCH
        assert sorted(letter["body"].split("n=")[1] for letter in letters(server)) == [f"{n} value={n}.0 {base + n}" for n in range(5)]
        assert list(directory.glob("taken-*")) == []
        sink.bad = set()
        assert "5 of 5 sent, 0 refused again" in server.cli(*command).stdout and letters(server) == []
        assert sink.taken.total() == LETTERS + twice + 5
    finally:
        sink.scripted.close()
