"""What the windows must be, computed apart from the server from the list of points.

Sums are `math.fsum`, which rounds the exact sum once, like exact rationals would; quantiles are the element at index
floor(q * (n - 1)) of the sorted values, which the server may miss by 1 % (its sketch), never outside [min, max].
A point is counted once: of equal (series, timestamp) the greater value stays.
"""

import math
from collections import defaultdict

QUANTILES_PERMILLE = {"p50": 500, "p95": 950, "p99": 990}


def windows(points, window_s):
    """{(name, tags, start_ms): {count, sum, min, max, avg, p50, p95, p99}} of points (name, tags, value, timestamp_ns)."""
    window_ns = window_s * 1_000_000_000
    cells = defaultdict(dict)
    for point in points:
        name, tags, value, timestamp_ns = point if isinstance(point, tuple) else (
            point.name, point.tags, point.value, point.timestamp_ns)
        cell = cells[(name, tags, timestamp_ns // window_ns * (window_s * 1000))]
        value += 0.0  # -0.0 is +0.0
        if cell.get(timestamp_ns, -math.inf) < value:
            cell[timestamp_ns] = value
    return {key: summary(cell.values()) for key, cell in cells.items()}


def summary(values):
    values = sorted(values)
    n = len(values)
    total = math.fsum(values) + 0.0
    result = {"count": n, "sum": total, "min": values[0], "max": values[-1], "avg": total / n}
    for name, permille in QUANTILES_PERMILLE.items():
        result[name] = values[permille * (n - 1) // 1000]
    return result


def differences(expected, got, limit=10, quantiles=True):
    """Sentences for what differs between `windows()` and rows of the server keyed alike; empty when all agrees. Without
    `quantiles` these must be None."""
    found = []
    for key in expected.keys() - got.keys():
        found.append(f"missing window {key}: {expected[key]}")
    for key in got.keys() - expected.keys():
        found.append(f"window nobody sent {key}: {got[key]}")
    for key in expected.keys() & got.keys():
        want, have = expected[key], got[key]
        for field in ("count", "sum", "min", "max", "avg"):
            if float(have[field]) != want[field]:
                found.append(f"{key} {field}: {have[field]!r} instead of {want[field]!r}")
        for field in QUANTILES_PERMILLE:
            if not quantiles or have[field] is None:
                if quantiles or have[field] is not None:
                    found.append(f"{key} {field}: {have[field]!r}, quantiles being {'wanted' if quantiles else 'off'}")
                continue
            value = float(have[field])
            if abs(value - want[field]) > 0.01 * abs(want[field]) * (1 + 1e-9):
                found.append(f"{key} {field}: {value!r} is more than 1 % from {want[field]!r}")
            elif not want["min"] <= value <= want["max"]:
                found.append(f"{key} {field}: {value!r} lies outside [{want['min']!r}, {want['max']!r}]")
        if len(found) > 1000:
            break
    return [f"{len(found)} differences"] + found[:limit] if found else []


def key_of(row):
    return (row["name"], tuple(sorted(row["tags"].items())), row["start_ms"])


def by_key(rows):
    """Rows of /api/v1/windows keyed like `windows()`; two rows for one key is a fault of the server."""
    keyed = {}
    for row in rows:
        key = key_of(row)
        assert key not in keyed, f"two rows for one window: {row} and {keyed[key]}"
        keyed[key] = row
    return keyed
