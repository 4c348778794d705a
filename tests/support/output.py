"""What a file sink has written: finished files only, in the order they were finished, with equal ids removed on request."""

import gzip
import json
from pathlib import Path

import zstandard


def files(directory, kind):
    """Finished files of `kind` ("raw", "aggregates"), oldest first."""
    found = [p for p in Path(directory).glob(f"{kind}-*") if not p.name.endswith(".part")]
    return sorted(found, key=lambda p: (p.stat().st_mtime_ns, p.name))


def text(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    elif path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().stream_reader(data).read()
    return data.decode()


def lines(directory, kind):
    for path in files(directory, kind):
        whole = text(path)
        assert whole.endswith("\n"), f"{path} ends in the middle of a line"
        yield from whole.splitlines()


def rows(directory, kind="raw"):
    """Every line as a dict, repetitions included."""
    return [json.loads(line) for line in lines(directory, kind)]


def once(rows):
    """The first row of each id; rows with equal ids must be equal."""
    seen = {}
    for row in rows:
        before = seen.setdefault(row["id"], row)
        assert before == row, f"one id, two points: {before} {row}"
    return list(seen.values())


def time_ns(row):
    return row.get("timestamp_ns", row["timestamp"] * 1_000_000)


def place(row):
    """(log, number) of a row's id."""
    _, log, _, number = row["id"].split("-")
    return log, int(number)
