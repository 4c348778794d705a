"""A slow, plain reader of line protocol: the tests' own, so that it can disagree with the server's.

Yields points as the appliance names them: each numeric field is a point called `measurement_field`, or `measurement`
when the field is called `value`. Strings and booleans are left out (the appliance keeps but does not aggregate them).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    name: str
    tags: tuple  # sorted (key, value) pairs
    value: float
    timestamp_ns: int


def _split_outside(text, separator, quotes=False):
    """Splits at unescaped separators; with `quotes`, separators inside "..." do not count."""
    parts, current, i, inside = [], [], 0, False
    while i < len(text):
        c = text[i]
        if c == "\\" and i + 1 < len(text):
            current.append(text[i : i + 2])
            i += 2
            continue
        if quotes and c == '"':
            inside = not inside
        if c == separator and not inside:
            parts.append("".join(current))
            current = []
        else:
            current.append(c)
        i += 1
    parts.append("".join(current))
    return parts


def _cut(text, separator):
    """Before and after the first unescaped separator."""
    head = _split_outside(text, separator)[0]
    return head, separator, text[len(head) + 1 :]


def split_lines(text):
    """Lines, where a newline inside a quoted field value does not end one."""
    line, in_fields, inside, escaped = [], False, False, False
    for c in text:
        if c == "\n" and not inside:
            yield "".join(line)
            line, in_fields, escaped = [], False, False
            continue
        line.append(c)
        if escaped:
            escaped = False
        elif c == "\\":
            escaped = True
        elif c == " ":
            in_fields = True
        elif c == '"' and in_fields and line[0] != "#":
            inside = not inside
    if line:
        yield "".join(line)


def _unescape(text):
    out, i = [], 0
    while i < len(text):
        if text[i] == "\\" and i + 1 < len(text) and text[i + 1] in ',= "\\':
            i += 1
        out.append(text[i])
        i += 1
    return "".join(out)


def _number(text):
    if text[0] == '"' or text in ("t", "T", "true", "True", "TRUE", "f", "F", "false", "False", "FALSE"):
        return None
    if text[-1] in "iu":
        return float(int(text[:-1]))
    return float(text)


def parse_line(line, default_timestamp_ns=None, unit_ns=1):
    key, _, rest = _cut(line, " ")  # quotes mean nothing in a measurement or a tag
    fields, *last = _split_outside(rest, " ", quotes=True)
    timestamp_ns = int(last[0]) * unit_ns if last and last[0] else default_timestamp_ns
    measurement, *tag_texts = _split_outside(key, ",")
    tags = {}
    for text in tag_texts:
        name, value = _split_outside(text, "=")
        if value:
            tags[_unescape(name)] = _unescape(value)
    tags = tuple(sorted(tags.items()))
    measurement = _unescape(measurement)
    for field in _split_outside(fields, ",", quotes=True):
        name, value = _split_outside(field, "=", quotes=True)
        number = _number(value)
        if number is None:
            continue
        name = _unescape(name)
        yield Point(measurement if name == "value" else f"{measurement}_{name}", tags, number, timestamp_ns)


def parse(text, default_timestamp_ns=None, unit_ns=1):
    for line in split_lines(text):
        if line and not line.startswith("#"):
            yield from parse_line(line, default_timestamp_ns, unit_ns)
