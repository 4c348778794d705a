"""Runs the real binary: free loopback ports, a directory of its own, kills and restarts, and its interfaces as Python.

`settings` are TOML tables by section, merged over what every test needs: `Server(tmp, windows={"lateness": "2 s"})`.
The binary is $METRICSTREAM_BIN, or target/release/metricstream.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import requests

from support.exposition import Exposition

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = float(os.environ.get("METRICSTREAM_TEST_READY_S", "20"))


def binary():
    given = os.environ.get("METRICSTREAM_BIN")
    if given:
        return Path(given).resolve()
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "metricstream"


_next_port = itertools.cycle(itertools.chain(range(20000 + os.getpid() * 37 % 10000, 32000), range(20000, 32000)))


def free_ports(n):
    """Ports nobody listens on. Below the ephemeral range, so that no client is given one meanwhile, and never the
    same twice in a row, so that two servers made before either starts do not clash."""
    found, sockets = [], []
    for port in itertools.islice(_next_port, 12000):
        s = socket.socket()
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            s.close()
            continue
        sockets.append(s)
        found.append(port)
        if len(found) == n:
            break
    for s in sockets:
        s.close()
    assert len(found) == n, "no free ports"
    return found


# What eventually happens may take this much longer than on an idle machine. Tests that bound a time measure it themselves.
PATIENCE = float(os.environ.get("METRICSTREAM_TEST_PATIENCE", "3"))


def eventually(check, timeout_s, what, every_s=0.1):
    """Returns the first truthy answer of `check`; fails with `what` after `timeout_s`, and PATIENCE."""
    timeout_s *= PATIENCE
    deadline = time.monotonic() + timeout_s
    while True:
        # A check may take long: one that began before the deadline does not say how things are at the deadline.
        last = time.monotonic() > deadline
        answer = check()
        if answer:
            return answer
        if last:
            raise AssertionError(f"not within {timeout_s} s: {what() if callable(what) else what}")
        time.sleep(every_s)


def toml(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    return json.dumps(value)


def render(settings):
    """One TOML text: tables as [section], lists of tables as [[section]]."""
    lines = []
    for section, tables in settings.items():
        repeated = isinstance(tables, list)
        for table in tables if repeated else [tables]:
            lines.append(f"[[{section}]]" if repeated else f"[{section}]")
            lines += [f"{key} = {toml(value)}" for key, value in table.items()]
            lines.append("")
    return "\n".join(lines)


class Server:
    def __init__(self, directory, *, listen=None, prefix_command=(), data_dir=None, extra_listen=(), program=None,
                 environment=None, **settings):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.data_dir = Path(data_dir) if data_dir else self.directory / "data"
        self.ingest_port, self.admin_port = free_ports(2)
        self.prefix_command = list(prefix_command)
        self.program = str(program or binary())
        self.environment = {**os.environ, **(environment or {})}
        # Fast windows and no limits: a test that is about one of these says so itself.
        merged = {
            "node": {"data_dir": str(self.data_dir)},
            "listen": [{"addresses": [f"127.0.0.1:{self.ingest_port}"]} | (listen or {})] + list(extra_listen),
            "admin": {"listen": f"127.0.0.1:{self.admin_port}"},
            "limiter": {"requests_per_s": "unlimited"},
            "windows": {"lateness": "1 s"},
            "log": {},
        }
        for section, table in settings.items():
            merged[section] = merged.get(section, {}) | table if isinstance(table, dict) else table
        self.settings = {k: v for k, v in merged.items() if v}
        self.config_path = self.directory / "metricstream.toml"
        self.process = None
        self.starts = 0
        self.session = requests.Session()
        self.session.trust_env = False

    # Life and death

    def write_config(self):
        self.config_path.write_text(render(self.settings))

    def spawn(self):
        """Starts the process without waiting for it."""
        assert self.process is None or self.process.poll() is not None, "already running"
        self.write_config()
        self.starts += 1
        self.log_path = self.directory / f"stderr-{self.starts}.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [*self.prefix_command, self.program, "run", "--config", str(self.config_path)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self.environment)
        return self

    def start(self):
        self.spawn()
        self.wait_ready()
        return self

    def wait_ready(self, timeout_s=READY_WITHIN_S):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"the server exited with {self.process.returncode}:\n{self.log_tail()}")
            try:
                return self.session.get(self.admin_url("/readyz"), timeout=1).status_code == 200
            except requests.RequestException:
                return False
        eventually(ready, timeout_s, lambda: f"/readyz answers 200\n{self.log_tail()}", every_s=0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout_s=20):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"SIGTERM did not end the server within {timeout_s} s:\n{self.log_tail()}")

    def restart(self, kill=False):
        if kill:
            self.kill()
        else:
            code = self.terminate()
            assert code == 0, f"SIGTERM ended with exit code {code}:\n{self.log_tail()}"
        return self.start()

    def close(self):
        if self.process and self.process.poll() is None:
            self.kill()
        self.session.close()

    def __enter__(self):
        return self if self.process else self.start()

    def __exit__(self, *_):
        self.close()

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def log_tail(self, lines=40):
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def rss_bytes(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024

    # Ingest

    def url(self, path):
        return f"http://127.0.0.1:{self.ingest_port}{path}"

    def post(self, path, body, headers=None, timeout=20, **params):
        return self.session.post(self.url(path), data=body, params=params, headers=headers, timeout=timeout)

    def write_lines(self, text, **kwargs):
        answer = self.post("/write", text.encode() if isinstance(text, str) else text, **kwargs)
        assert answer.status_code == 204, f"{answer.status_code} {answer.text}"

    # Admin

    def admin_url(self, path):
        return f"http://127.0.0.1:{self.admin_port}{path}"

    def get(self, path, **params):
        answer = self.session.get(self.admin_url(path), params=params, timeout=30)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text[:500]}"
        return answer

    def metrics(self):
        return Exposition.parse(self.get("/metrics").text)

    def status(self):
        return self.get("/api/v1/status").json()

    def windows(self, exact_text=False, **params):
        """All pages, from `cursor` on where one is given. With `exact_text` numbers stay the text the server wrote, to compare byte for byte."""
        rows, cursor = [], params.pop("cursor", None)
        parse = {"parse_float": str} if exact_text else {}
        while True:
            page = json.loads(self.get("/api/v1/windows", **params, **({"cursor": cursor} if cursor else {})).text,
                              **parse)
            rows += page["windows"]
            if not page.get("next"):
                return rows
            assert page["next"] != cursor, "the cursor does not advance"
            cursor = page["next"]

    def wait_windows(self, done, timeout_s, every_s=0.5, **params):
        """Polls until `done(rows)` is true; returns the rows."""
        last = []

        def check():
            last[:] = [self.windows(**params)]
            return done(last[0]) and last[0]

        return eventually(check, timeout_s,
                          lambda: f"windows; last {len(last[0]) if last else 0} rows, "
                                  f"{sum(r['count'] for r in last[0]) if last else 0} points", every_s=every_s)

    # Command line

    def cli(self, *words, check=True):
        done = subprocess.run([self.program, *words], capture_output=True, text=True, timeout=300)
        if check:
            assert done.returncode == 0, f"{words}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def log_verify(self):
        return self.cli("log", "verify", "--data-dir", str(self.data_dir))

    def log_dump(self, exit_code=0):
        """Points of all shards' logs, one dict a point (lines about windows are left out). The server must be down. Exit
        code 3: parts of the logs are damaged."""
        process = subprocess.Popen([self.program, "log", "dump", "--data-dir", str(self.data_dir)],
                                   stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            row = json.loads(line)
            if "timestamp_ns" in row:
                yield row
        assert process.wait() == exit_code, f"log dump: exit {process.returncode}"


class StderrLines:
    """Follows a subprocess's output without ever blocking it."""

    def __init__(self, stream):
        self.lines = []
        self.thread = threading.Thread(target=lambda: [self.lines.append(line) for line in stream], daemon=True)
        self.thread.start()

    def text(self):
        return "".join(self.lines)
