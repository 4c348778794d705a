"""Real servers that speak InfluxDB's write APIs, by hand on free loopback ports: InfluxDB 1.x and VictoriaMetrics."""

import json
import subprocess
import time
from pathlib import Path

import requests

from support.server import eventually, free_ports


class InfluxDB:
    """`influxd` of Debian. Its data outlives kills: `kill()` and `start()` as often as you like."""

    CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{dir}/meta"
[data]
  dir = "{dir}/data"
  wal-dir = "{dir}/wal"
  query-log-enabled = false
[http]
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
  auth-enabled = {auth}
  max-body-size = {body_max}
{https}
[monitor]
  store-enabled = false
[continuous_queries]
  log-enabled = false
  run-interval = "1s"
"""

    def __init__(self, directory, auth=False, body_max=25_000_000, tls=None, trusted=None):
        """`tls`: a certificate and key (certificates.Pair) for https, and `trusted` the file of their authority."""
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port, self.rpc_port = free_ports(2)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        https = (f'  https-enabled = true\n  https-certificate = "{tls.certificate}"\n  https-private-key = "{tls.key}"'
                 if tls else "")
        self.config = self.directory / "influxdb.conf"
        self.settings = {"auth": str(auth).lower(), "body_max": body_max, "https": https}
        self.process = None
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(trusted) if trusted else True

    def start(self):
        self.config.write_text(self.CONFIG.format(dir=self.directory, port=self.port, rpc=self.rpc_port,
                                                  **self.settings))
        with open(self.directory / "influxd.log", "ab") as log:
            self.process = subprocess.Popen(["influxd", "-config", str(self.config)], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=subprocess.STDOUT)
        eventually(self.answers, 60, lambda: f"influxd answers\n{self.log_tail()}")
        return self

    def answers(self):
        assert self.process.poll() is None, f"influxd exited with {self.process.returncode}\n{self.log_tail()}"
        try:
            return self.session.get(f"{self.url}/ping", timeout=2).status_code == 204
        except requests.RequestException:
            return False

    def log_tail(self):
        return "\n".join((self.directory / "influxd.log").read_text(errors="replace").splitlines()[-20:])

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    close = kill

    def query(self, statement, **params):
        """Series of the first statement: [{name, tags, columns, values}]."""
        answer = self.session.post(f"{self.url}/query", data={"q": statement, "epoch": "ns", **params}, timeout=60)
        body = answer.json()
        assert answer.status_code == 200, f"{statement}: {answer.status_code} {body}"
        result = body["results"][0]
        assert "error" not in result, f"{statement}: {result['error']}"
        return result.get("series", [])

    def rows(self, statement):
        """One dict a row, tags and columns together."""
        return [dict(series.get("tags", {}), **dict(zip(series["columns"], row)))
                for series in self.query(statement) for row in series.get("values", [])]

    def values(self, statement):
        return [row[0] for series in self.query(statement) for row in series.get("values", [])]


class VictoriaMetrics:
    """`victoria-metrics` of Debian: both of InfluxDB's write APIs, read back as exported series."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.session = requests.Session()
        self.session.trust_env = False

    def start(self):
        with open(self.directory / "victoria-metrics.log", "ab") as log:
            self.process = subprocess.Popen(
                ["victoria-metrics", f"-storageDataPath={self.directory}/data", f"-httpListenAddr=127.0.0.1:{self.port}",
                 "-retentionPeriod=12", "-memory.allowedBytes=128MB"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

        def answers():
            try:
                return self.session.get(f"{self.url}/health", timeout=2).status_code == 200
            except requests.RequestException:
                return False
        eventually(answers, 60, "victoria-metrics answers")
        return self

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait()

    def export(self, match):
        """[{metric, values, timestamps}]"""
        self.session.get(f"{self.url}/internal/force_flush", timeout=30)
        text = self.session.get(f"{self.url}/api/v1/export", params={"match[]": match, "start": 0, "end": int(time.time()) + 3600},
                                timeout=60).text

        return [json.loads(line) for line in text.splitlines() if line]
