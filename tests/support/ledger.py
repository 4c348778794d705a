"""A load whose truth lives outside the server: an append-only file of what was sent, acknowledged, refused, unknown.

Each worker has one connection and sends batches of points that nobody else sends: point n of worker w has value n, tags
`w` and `k = n mod 512`, and a timestamp of its own. Lines of the file: `S w first count t`, `A w first`, `R w first status`,
`U w first`; S is written before the bytes leave. Even workers send an unanswered batch again (later, over a new
connection, together with new points, as Telegraf does); odd ones never do.
"""

import contextlib
import http.client
import json
import threading
import time

BATCH = 20
KEYS = 512


class Load:
    def __init__(self, port, ledger_path, workers=4, pause_s=0.005):
        self.port, self.workers, self.pause_s = port, workers, pause_s
        self.file = open(ledger_path, "a", buffering=1)
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.resting = threading.Event()
        self.at_rest = set()
        self.base_ns = time.time_ns()
        self.acked, self.unknown, self.refused = set(), set(), set()  # of (worker, number)
        self.time_of = {}
        self.faults = []
        self.threads = [threading.Thread(target=self._run, args=(w,), daemon=True) for w in range(workers)]
        for t in self.threads:
            t.start()

    def stop(self):
        """Ends the load; even workers first get everything acknowledged."""
        self.stopping.set()
        for t in self.threads:
            t.join(60)
        assert not any(t.is_alive() for t in self.threads), "a worker hangs"
        assert not self.faults, self.faults[:3]

    @contextlib.contextmanager
    def rest(self):
        """Inside, nothing is in flight."""
        self.resting.set()
        deadline = time.monotonic() + 60
        while len(self.at_rest) < self.workers:
            assert time.monotonic() < deadline and not self.faults, f"the load does not rest: {self.faults[:3]}"
            time.sleep(0.005)
        yield
        self.resting.clear()

    def _note(self, line):
        with self.lock:
            self.file.write(line + "\n")

    def _run(self, w):
        connection, number, again = None, 0, []
        try:
            while not self.stopping.is_set() or again:
                if self.resting.is_set():
                    self.at_rest.add(w)
                    while self.resting.is_set():
                        time.sleep(0.005)
                    self.at_rest.discard(w)
                count = 0 if self.stopping.is_set() else BATCH
                now = time.time_ns()
                fresh = [(w, n) for n in range(number, number + count)]
                for i, key in enumerate(fresh):
                    self.time_of[key] = now + i
                number += count
                batch = again + fresh
                self._note(f"S {w} {fresh[0][1] if fresh else -1} {len(batch)} {now}")
                outcome, connection = self._send(w, batch, connection)
                self._note(f"{'A' if outcome == 'acked' else 'U' if outcome == 'unknown' else 'R'} {w} "
                           f"{fresh[0][1] if fresh else -1} {outcome}")
                again = []
                if outcome == "acked":
                    self.acked.update(batch)
                    self.unknown.difference_update(batch)
                    self.refused.difference_update(batch)
                elif w % 2 == 0:
                    (self.unknown if outcome == "unknown" else self.refused).update(batch)
                    again = batch[-5000:]
                    time.sleep(0.02)
                else:
                    (self.unknown if outcome == "unknown" else self.refused).update(batch)
                    time.sleep(0.02)
                time.sleep(self.pause_s)
        except Exception as e:  # noqa: BLE001 - reported by stop()
            self.faults.append(repr(e))

    def _send(self, w, batch, connection):
        as_json = w % 4 >= 2
        if as_json:
            path, body = "/metrics", json.dumps({"metrics": [
                {"name": "kill", "value": n, "timestamp": self.time_of[w, n],
                 "tags": {"w": str(w), "k": str(n % KEYS)}} for w, n in batch]})
        else:
            path, body = "/api/v2/write", "\n".join(
                f"kill,w={w},k={n % KEYS} value={n} {self.time_of[w, n]}" for w, n in batch)
        try:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            connection.request("POST", path, body.encode())
            answer = connection.getresponse()
            text = answer.read()
        except ConnectionRefusedError:
            return "refused", None
        except (OSError, http.client.HTTPException):
            if connection is not None:
                connection.close()
            return "unknown", None
        if answer.will_close:
            connection.close()
            connection = None
        if answer.status in (200, 204):
            return "acked", connection
        if answer.status == 503:
            if not answer.headers.get("Retry-After"):
                self.faults.append("503 without Retry-After")
            return "503", connection
        raise AssertionError(f"{path}: {answer.status} {text[:300]}")

    # What the server's log must say

    def check_log(self, dumped):
        """`dumped`: log_dump(). Every acknowledged point is there, nothing that was never sent, refused ones are not."""
        found = set()
        for point in dumped:
            if point["name"] != "kill":
                continue
            key = (int(point["tags"]["w"]), int(float(point["value"])))
            assert point["timestamp_ns"] == self.time_of.get(key), f"a point nobody sent: {point}"
            found.add(key)
        missing = self.acked - found
        assert not missing, f"{len(missing)} acknowledged points are not in the log, such as {sorted(missing)[:5]}"
        false = (self.refused - self.acked) & found - self.unknown
        return found, false

    def points(self, keys):
        """Of (worker, number), as the oracle takes them."""
        return [("kill", (("k", str(n % KEYS)), ("w", str(w))), float(n), self.time_of[w, n]) for w, n in keys]
