"""A TCP proxy between a client and the server that can be told to misbehave.

Modes, looked at anew for every request:
  pass      bytes go through
  503       requests are read whole and answered 503 with Retry-After; the server never sees them
  reset     requests reach the server and are answered there, but the client sees a reset before the answer
  refuse    connections are reset at once
"""

import socket
import struct
import threading

ANSWER_503 = (b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
              b"Content-Length: 30\r\nConnection: close\r\n\r\n" b'{"error":"out of order: test"}')


def read_request(reader):
    """One HTTP/1.1 request as raw bytes, or b'' at the end of the stream."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline()
        if not line:
            return b""
        head += line
    headers = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip().lower()
    body = b""
    if headers.get(b"transfer-encoding") == b"chunked":
        while True:
            size_line = reader.readline()
            size = int(size_line.split(b";")[0], 16)
            chunk = reader.read(size + 2)
            body += size_line + chunk
            if size == 0:
                break
    elif b"content-length" in headers:
        body = reader.read(int(headers[b"content-length"]))
    return head + body


def read_answer(reader):
    """One HTTP/1.1 answer to a request other than HEAD; b'' when the server closed instead."""
    status = reader.readline()
    if not status:
        return b""
    head, length, chunked = status, 0, False
    while True:
        line = reader.readline()
        if not line:
            return b""
        head += line
        if line == b"\r\n":
            break
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            length = int(value)
        if name.strip().lower() == b"transfer-encoding":
            chunked = True
    if status.split()[1] in (b"204", b"304") or status.split()[1].startswith(b"1"):
        length = 0
    if not chunked:
        return head + reader.read(length)
    body = b""
    while True:
        size_line = reader.readline()
        size = int(size_line, 16)
        body += size_line + reader.read(size + 2)
        if size == 0:
            return head + body


def reset(sock):
    """Closes with RST instead of FIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    sock.close()


class Proxy:
    def __init__(self, upstream_port):
        self.upstream_port = upstream_port
        self.mode = "pass"
        self.seen = {"pass": 0, "503": 0, "reset": 0, "refuse": 0}  # requests (connections for `refuse`) by mode
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def close(self):
        self.listener.close()

    def _count(self, mode):
        with self.lock:
            self.seen[mode] += 1

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.mode == "refuse":
                self._count("refuse")
                reset(client)
            else:
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        upstream = None
        reader = client.makefile("rb")
        try:
            while True:
                request = read_request(reader)
                if not request:
                    return
                mode = self.mode
                self._count(mode)
                if mode == "refuse":
                    return self._reset(client, reader)
                if mode == "503":
                    client.sendall(ANSWER_503)
                    return
                if b"expect: 100-continue" in request.split(b"\r\n\r\n", 1)[0].lower():
                    raise AssertionError("the proxy does not speak 100-continue")
                if upstream is None:
                    upstream = socket.create_connection(("127.0.0.1", self.upstream_port), timeout=30)
                    answers = upstream.makefile("rb")
                upstream.sendall(request)
                answer = read_answer(answers)
                if mode == "reset" or not answer:
                    return self._reset(client, reader)
                client.sendall(answer)
        except OSError:
            self._reset(client, reader)
        finally:
            reader.close()
            client.close()
            if upstream is not None:
                upstream.close()

    @staticmethod
    def _reset(client, reader):
        reader.close()  # the socket closes with its last reference
        reset(client)
