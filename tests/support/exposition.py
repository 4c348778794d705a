"""Prometheus text to a dict, and the books that must balance in it."""

import re

_SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)(?: \d+)?$')
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPE = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}


class Exposition(dict):
    """{(name, ((label, value), ...)): float}"""

    @classmethod
    def parse(cls, text):
        result = cls()
        for line in text.splitlines():
            if not line or line.startswith("#"):
                continue
            match = _SAMPLE.match(line)
            assert match, f"no Prometheus sample: {line!r}"
            labels = tuple(sorted((k, re.sub(r'\\[\\"n]', lambda m: _ESCAPE[m.group()], v))
                                  for k, v in _LABEL.findall(match.group(2) or "")))
            key = (match.group(1), labels)
            assert key not in result, f"sample given twice: {line!r}"
            result[key] = float(match.group(3))
        return result

    def sum(self, name, **labels):
        """Total of a family over all label sets that contain `labels`; None when the family is absent."""
        wanted = set(labels.items())
        found = [v for (n, have), v in self.items() if n == name and wanted <= set(have)]
        return sum(found) if found else None

    def by(self, name, label):
        totals = {}
        for (n, have), value in self.items():
            if n == name:
                key = dict(have).get(label)
                totals[key] = totals.get(key, 0) + value
        return totals


# The one place that knows how the books are called.
RECEIVED = "metricstream_points_received_total"
ACCEPTED = "metricstream_points_accepted_total"
REJECTED = "metricstream_points_rejected_total"  # label reason
DURABLE = "metricstream_points_durable_total"
PENDING = "metricstream_points_pending"
FOLDED = "metricstream_points_folded_total"
LATE_BEYOND = "metricstream_points_late_beyond_total"
TOO_FAR_AHEAD = "metricstream_points_too_far_ahead_total"
NOT_AGGREGATED = "metricstream_points_not_aggregated_total"
REPEATED_IN_SHARD = "metricstream_points_repeated_in_shard_total"
OPEN = "metricstream_window_open_points"  # folded by a shard, not handed to the reducer yet
COUNTED = "metricstream_reducer_points_counted_total"
REPEATED = "metricstream_reducer_points_repeated_total"
LATE_IN_REDUCER = "metricstream_reducer_points_late_beyond_total"
HELD = "metricstream_reducer_points_held"  # until the rebuild after a start ends
SHARD_BOOKS = ((RECEIVED, (ACCEPTED, REJECTED)), (DURABLE, (PENDING, FOLDED, LATE_BEYOND, TOO_FAR_AHEAD, NOT_AGGREGATED)))
PROCESS_BOOKS = ((FOLDED, (REPEATED_IN_SHARD, OPEN, COUNTED, REPEATED, LATE_IN_REDUCER, HELD)),)


def imbalance(metrics):
    """Sentences for books that do not balance, per shard and protocol. Only meaningful when nothing is in flight."""
    families = {name for name, _ in metrics}
    for name in {n for left, right in SHARD_BOOKS + PROCESS_BOOKS for n in (left, *right)}:
        assert name in families, f"/metrics has no {name}"
    places = {tuple((k, v) for k, v in labels if k in ("shard", "protocol"))
              for name, labels in metrics if name in (RECEIVED, DURABLE)}
    found = []
    for books, where in ((SHARD_BOOKS, places), (PROCESS_BOOKS, {()})):
        for place in where:
            for left, right in books:
                total = metrics.sum(left, **dict(place)) or 0
                parts = {name: metrics.sum(name, **dict(place)) or 0 for name in right}
                if total != sum(parts.values()):
                    found.append(f"{dict(place)} {left} = {total:.0f}, but "
                                 + " + ".join(f"{n} {v:.0f}" for n, v in parts.items()))
    return found
