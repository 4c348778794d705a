"""The load generator and its `verify`, run as a user runs them, and the verdicts read back."""

import json
import signal
import subprocess

from support import loadresult


def loadgen(*arguments, timeout=120, **more):
    path = loadresult.loadgen_binary()
    assert path.exists(), f"{path} is missing: cargo build --release --workspace"
    return subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, **more)


def verify(ledger, *arguments, timeout=300, **more):
    """The verdicts by what was compared; fails unless all are equal."""
    done = loadgen("verify", "--json", "--ledger", ledger, *arguments, timeout=timeout, **more)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    return {verdict["comparison"]: {total["name"]: total["count"] for total in verdict["totals"]}
            for verdict in json.loads(done.stdout)}


class Load:
    """A run beside the test: `with Load(server, ledger, ...) as load`; ended by `stop`, with its result."""

    def __init__(self, server, directory, *flags):
        self.ledger, self.json = directory / "sent.ledger", directory / "run.json"
        self.out = open(directory / "loadgen.out", "w+")
        self.process = subprocess.Popen(
            [str(loadresult.loadgen_binary()), "run", "--quiet", "--target", f"http://127.0.0.1:{server.ingest_port}",
             "--ledger", str(self.ledger), "--json", str(self.json), *map(str, flags)],
            stdin=subprocess.DEVNULL, stdout=self.out, stderr=subprocess.STDOUT)

    def said(self):
        self.out.seek(0)
        return self.out.read()[-3000:]

    def running(self):
        assert self.process.poll() is None, f"the load ended early with {self.process.returncode}:\n{self.said()}"
        return True

    def stop(self, timeout_s=120):
        """An end before its time: what is under way is still waited for."""
        self.running()
        self.process.send_signal(signal.SIGINT)
        return self.wait(timeout_s)

    def wait(self, timeout_s):
        code = self.process.wait(timeout_s)
        assert code == 0, f"the load ended with {code}:\n{self.said()}"
        return json.loads(self.json.read_text())["totals"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.out.close()
