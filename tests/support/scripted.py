"""An HTTP server whose every answer a test decides, down to resets and half replies; it keeps what it was sent."""

import gzip
import socket
import struct
import threading
import urllib.parse


class Request:
    def __init__(self, method, target, headers, body):
        self.method, self.headers, self.body = method, headers, body
        parts = urllib.parse.urlsplit(target)
        self.path, self.query = parts.path, dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))

    def lines(self):
        body = gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body
        return body.decode().splitlines()


RESET, HANG, HALF = "reset", "hang", "half"


def reply(status, text="", **headers):
    """`Retry_After="3"` becomes the header Retry-After."""
    return status, text, {name.replace("_", "-"): value for name, value in headers.items()}


class ScriptedServer:
    """`answer(request)` gives a status, `reply(..)`, RESET, HANG or HALF. `tls`: an ssl.SSLContext for https."""

    def __init__(self, answer, tls=None):
        self.answer, self.tls = answer, tls
        self.requests = []
        self.connections = 0
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self.released.set()
        self.listener.close()

    def _accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with self.lock:
                self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        if self.tls:
            try:
                connection = self.tls.wrap_socket(connection, server_side=True)
            except OSError:  # of which ssl.SSLError is one: who calls is not let in
                connection.close()
                return
        reader = connection.makefile("rb")
        try:
            while True:
                first = reader.readline().decode()
                if not first:
                    return
                method, target, _ = first.split()
                headers = {}
                while (line := reader.readline().decode().strip()):
                    name, value = line.split(":", 1)
                    headers[name.lower()] = value.strip()
                body = reader.read(int(headers.get("content-length", 0)))
                request = Request(method, target, headers, body)
                with self.lock:
                    self.requests.append(request)
                    answer = self.answer(request)
                if answer == RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if answer == HANG:
                    self.released.wait(120)
                    return
                if answer == HALF:
                    connection.sendall(b"HTTP/1.1 204 No Cont")
                    return
                status, text, extra = (answer, "", {}) if isinstance(answer, int) else answer
                body, extra = text.encode(), dict(extra)  # the same reply may be given again
                if extra.pop("half", None):  # a head that promises more than comes
                    connection.sendall(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body) + 100}\r\n\r\n".encode() + body)
                    return
                head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in extra.items())
                if status != 204:
                    head += f"Content-Length: {len(body)}\r\n"
                connection.sendall(head.encode() + b"\r\n" + (body if status != 204 else b""))
        except (OSError, ValueError):
            pass
        finally:
            reader.close()
            connection.close()
