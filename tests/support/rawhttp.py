"""Raw requests over a socket: exact bytes out, the answer taken apart, with the reset told apart from the close."""

import socket
from dataclasses import dataclass, field

from support.proxy import read_answer


@dataclass
class Answer:
    status: int = 0
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    closed: bool = False

    @classmethod
    def parse(cls, raw):
        head, _, body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        return cls(int(lines[0].split()[1]), headers, body)


def connect(port, timeout_s=10):
    sock = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def exchange(port, raw, answers=1, timeout_s=10, pieces=None, is_head=False):
    """Sends `raw` and reads `answers` answers, then looks whether the server closes within a moment.

    Returns a list of Answer; fewer when the server closed first. `pieces` sends it in chunks of that many bytes.
    """
    with connect(port, timeout_s) as sock:
        try:
            if pieces:
                for i in range(0, len(raw), pieces):
                    sock.sendall(raw[i : i + pieces])
            else:
                sock.sendall(raw)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused early; the answer must still be there to read
        reader = sock.makefile("rb")
        got = []
        for _ in range(answers):
            raw_answer = _read_head_only(reader) if is_head else read_answer(reader)
            if not raw_answer:
                break
            got.append(Answer.parse(raw_answer))
        if got:
            wants_close = got[-1].headers.get("connection", "").lower() == "close"
            sock.settimeout(5 if wants_close else 0.02)
            try:
                got[-1].closed = reader.read(1) == b""
            except (TimeoutError, OSError):
                got[-1].closed = False
        return got


def _read_head_only(reader):
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline()
        if not line:
            return b""
        head += line
    return head


def request(method, target, body=b"", headers=(), version="HTTP/1.1", host="test", length=True):
    lines = [f"{method} {target} {version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += headers
    if body and length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunked(body, size=7):
    out = b""
    for i in range(0, len(body), size):
        piece = body[i : i + size]
        out += b"%x\r\n%s\r\n" % (len(piece), piece)
    return out + b"0\r\n\r\n"
