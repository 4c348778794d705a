"""Telegraf, unmodified, with one output to test and a file beside it that says what it was given."""

import socket
import subprocess

from support import lineproto
from support.server import eventually, free_ports

OUTPUTS = {
    "influxdb": """
[[outputs.influxdb]]
  urls = ["{url}"]
  database = "telegraf"
  timeout = "10s"
""",
    "influxdb_v2": """
[[outputs.influxdb_v2]]
  urls = ["{url}"]
  token = ""
  organization = "org"
  bucket = "bucket"
  timeout = "10s"
""",
    "http_json": """
[[outputs.http]]
  url = "{url}/metrics"
  data_format = "json"
  timeout = "10s"
""",
    "http_line": """
[[outputs.http]]
  url = "{url}/write"
  data_format = "influx"
  content_encoding = "gzip"
  use_batch_format = true
  timeout = "10s"
""",
}

AGENT = """
[agent]
  interval = "{interval}"
  flush_interval = "1s"
  flush_jitter = "0s"
  collection_jitter = "0s"
  metric_batch_size = {batch}
  metric_buffer_limit = 200000
  omit_hostname = {omit_hostname}
[global_tags]
  out = "{output}"
[[outputs.file]]
  files = ["{beside}"]
  data_format = "influx"
"""


class Telegraf:
    def __init__(self, binary, directory, output, url, *, inputs=None, interval="1s", batch=200):
        """Without `inputs`, lines are fed with `feed`."""
        directory.mkdir(parents=True, exist_ok=True)
        self.output, self.beside, self.log = output, directory / f"{output}.lp", directory / f"{output}.log"
        (self.feed_port,) = free_ports(1)
        inputs = inputs or (f'[[inputs.socket_listener]]\n  service_address = "tcp://127.0.0.1:{self.feed_port}"\n'
                            '  data_format = "influx"\n')
        config = directory / f"{output}.conf"
        config.write_text(AGENT.format(interval=interval, batch=batch, output=output, beside=self.beside,
                                       omit_hostname="true" if "socket_listener" in inputs else "false")
                          + OUTPUTS[output].format(url=url) + inputs)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([str(binary), "--config", str(config)], stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL)
        self.feeder = None
        if "socket_listener" in inputs:
            self.feeder = eventually(self._connect, 15, lambda: f"Telegraf listens\n{self.log.read_text()}")

    def _connect(self):
        try:
            return socket.create_connection(("127.0.0.1", self.feed_port), timeout=5)
        except OSError:
            return None

    def feed(self, text):
        self.feeder.sendall(text.encode())

    def stop(self):
        """SIGTERM: Telegraf writes what it holds, once, before it exits."""
        if self.feeder:
            self.feeder.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def points(self):
        """What Telegraf was given, as it wrote it to its file."""
        return list(lineproto.parse(self.beside.read_text())) if self.beside.exists() else []

    def wait_given(self, n, timeout_s=20):
        eventually(lambda: len(self.points()) >= n, timeout_s,
                   lambda: f"{n} points in {self.beside}, {len(self.points())} are there\n{self.log.read_text()[-2000:]}")

    def drops(self):
        """Lines of its log that say that it gave points up by its own rules."""
        return [line for line in self.log.read_text().splitlines()
                if "dropp" in line.lower() or "overflow" in line.lower() or "discard" in line.lower()]
