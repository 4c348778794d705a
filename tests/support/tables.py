"""Reads the tables that the Rust tests of the decoders and of HTTP use, so that the same cases run over real sockets.

Formats: the head of shards/src/decode/corpus.rs and of shards/testdata/http/requests.txt.
"""

import re
from dataclasses import dataclass, field

from support.server import ROOT

TESTDATA = ROOT / "shards" / "testdata"
_ESCAPES = {"n": b"\n", "r": b"\r", "t": b"\t", "\\": b"\\", "0": b"\0"}


def _unescape(text, repeat_in_braces):
    """`\\n \\r \\t \\0 \\\\ \\xHH`, and text N times: `\\{text*N}` (HTTP) or `\\*N{text}` (decoders)."""
    out, i = b"", 0
    while i < len(text):
        if text[i] != "\\":
            out += text[i].encode()
            i += 1
            continue
        kind = text[i + 1]
        if kind == "x":
            out += bytes([int(text[i + 2 : i + 4], 16)])
            i += 4
        elif kind == "{" and repeat_in_braces:
            end = text.index("}", i)
            repeated, _, count = text[i + 2 : end].rpartition("*")
            out += _unescape(repeated, repeat_in_braces) * int(count)
            i = end + 1
        elif kind == "*":
            open_at = text.index("{", i)
            end = text.index("}", open_at)
            out += _unescape(text[open_at + 1 : end], repeat_in_braces) * int(text[i + 2 : open_at])
            i = end + 1
        else:
            out += _ESCAPES[kind]
            i += 2
    return out


@dataclass
class BodyCase:
    name: str = ""
    body: bytes = b""
    options: dict = field(default_factory=dict)
    points: int = 0
    counts: dict = field(default_factory=dict)  # reason -> points
    refused: list = field(default_factory=list)  # (index, "reason: message"), the first few
    error: str = None  # the whole document is refused


def body_cases(folder):
    """`folder` is "line" or "json"."""
    cases = []
    for path in sorted((TESTDATA / folder).glob("*.txt")):
        for block in path.read_text().split("\n\n"):
            case = BodyCase()
            for line in block.splitlines():
                key, _, rest = line.partition(": ")
                if line.startswith("#"):
                    case.name = case.name or line[1:].strip()
                elif key == "body":
                    case.body += _unescape(rest, False)
                elif key == "point":
                    case.points += 1
                elif key == "count":
                    reason, n = rest.split()
                    case.counts[reason] = int(n)
                elif key == "refuse":
                    index, text = rest.split(" ", 1)
                    case.refused.append((int(index), text))
                elif key == "error":
                    case.error = rest
                elif line.rstrip(":") != "body" and line:
                    case.options[key] = rest
            if block.strip():
                cases.append(case)
    assert cases, f"no cases in {TESTDATA / folder}"
    return cases


@dataclass
class HttpCase:
    name: str
    sent: bytes
    status: int
    reason: str


def refused_http_cases():
    """Cases that expect one refusal and nothing before it. Those about the table's body bound of 1000 bytes are left
    out when the bytes between it and the least bound that can be configured (1 KiB) make the difference."""
    cases = []
    text = (TESTDATA / "http" / "requests.txt").read_text()
    for block in re.split(r"(?m)^(?=> )", text):
        if not block.startswith("> "):
            continue
        lines = block.splitlines()
        expected = [line[2:] for line in lines if line.startswith("= ")]
        refusal = re.fullmatch(r"refuse (\d+) (\w+)", expected[0]) if len(expected) == 1 else None
        sent = "".join(line[2:] for line in lines if line.startswith("| "))
        if refusal and not re.search(r"Length: 100[0-9]\b|\*1001\}|\*501\}", sent):
            cases.append(HttpCase(lines[0][2:], _unescape(sent, True), int(refusal.group(1)), refusal.group(2)))
    assert cases
    return cases
