"""Offers requests at a rate over many connections, without waiting for answers to pace it: in a process of its own."""

import multiprocessing
import selectors
import socket
import time
from collections import Counter


def _statuses(buffer):
    """(statuses of the whole answers in `buffer`, what is left). Answers have Content-Length or are 204."""
    statuses = []
    while True:
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return statuses, buffer
        head = buffer[:end].lower()
        length = 0
        at = head.find(b"content-length:")
        if at >= 0:
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(buffer) < end + 4 + length:
            return statuses, buffer
        statuses.append(int(buffer[9:12]))
        buffer = buffer[end + 4 + length :]


def _run(port, raw, rate, connections, skew, seconds, result):
    selector = selectors.DefaultSelector()
    sockets = []
    for i in range(connections):
        s = socket.create_connection(("127.0.0.1", port))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.setblocking(False)
        state = {"socket": s, "buffer": b"", "sent": []}
        sockets.append(state)
        selector.register(s, selectors.EVENT_READ, state)
    hot = max(1, int(connections * skew))
    counts, latencies, closed = Counter(), [], 0
    per_second = Counter()
    start = time.monotonic()
    offered = 0
    while True:
        now = time.monotonic() - start
        if now >= seconds and (now >= seconds + 2 or not any(s["sent"] for s in sockets)):
            break
        while now < seconds and offered < now * rate:
            # Half of all requests go over the `skew` share of the connections.
            state = sockets[offered // 2 % hot] if offered % 2 else sockets[offered // 2 % connections]
            offered += 1
            if state["socket"] is None or len(state["sent"]) > 200:
                continue
            try:
                state["socket"].send(raw)
                state["sent"].append(time.monotonic())
            except OSError:
                pass
        for key, _ in selector.select(0.0005):
            state = key.data
            try:
                data = state["socket"].recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if not data:
                closed += 1
                selector.unregister(state["socket"])
                state["socket"], state["sent"] = None, []
                continue
            statuses, state["buffer"] = _statuses(state["buffer"] + data)
            at = time.monotonic()
            for status in statuses:
                counts[status] += 1
                per_second[status, int(at - start)] += 1
                latencies.append(at - state["sent"].pop(0))
    latencies.sort()
    result.send({"offered": offered, "counts": dict(counts), "closed": closed, "per_second": dict(per_second),
                 "p50_s": latencies[len(latencies) // 2] if latencies else None,
                 "p99_s": latencies[len(latencies) * 99 // 100] if latencies else None,
                 "max_s": latencies[-1] if latencies else None})


class Pacer:
    def __init__(self, port, raw, rate, seconds, connections=64, skew=0.125):
        self.result, theirs = multiprocessing.Pipe(duplex=False)
        self.process = multiprocessing.Process(
            target=_run, args=(port, raw, rate, connections, skew, seconds, theirs), daemon=True)
        self.process.start()

    def wait(self, timeout_s=60):
        assert self.result.poll(timeout_s), "the pacer does not end"
        answer = self.result.recv()
        self.process.join(5)
        return answer
