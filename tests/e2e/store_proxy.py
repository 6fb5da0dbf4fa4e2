"""A door before a real object store that counts requests and misbehaves on demand: answers 503,
answers late, cuts connections in the middle of a body. What it passes on it does not change."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class Door:
    """What passed, and what is to go wrong."""

    def __init__(self, backend: str) -> None:
        self.backend = urlsplit(backend).netloc
        self.requests: list[tuple[str, str]] = []
        # How often each (method, path) is refused with a 503 before it is passed on.
        self.refuse_first = 0
        # How often the body of each download is cut in the middle.
        self.cut_first = 0
        self.delay = 0.0
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def note(self, method: str, path: str) -> None:
        with self._lock:
            self.requests.append((method, path))

    def once_more(self, what: str, method: str, path: str, limit: int) -> bool:
        """Whether this is one of the first `limit` of its kind."""
        with self._lock:
            self._seen[(what, method, path)] += 1
            return self._seen[(what, method, path)] <= limit

    def count(self, method: str, part: str) -> int:
        return sum(1 for each, path in self.requests if each == method and part in path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    door: Door

    def handle_any(self) -> None:
        door, method = self.door, self.command
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        door.note(method, self.path)
        time.sleep(door.delay)
        if door.once_more("refuse", method, self.path, door.refuse_first):
            self.answer(503, b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>")
            return
        connection = http.client.HTTPConnection(door.backend, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        connection.request(method, self.path, content, headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        cut = method == "GET" and len(body) > 1000
        cut = cut and door.once_more("cut", method, self.path, door.cut_first)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if method == "HEAD" else str(len(body))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if cut:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
        elif method != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""


@contextmanager
def proxy(backend: str) -> Iterator[Door]:
    door = Door(backend)
    handler = type("OwnHandler", (Handler,), {"door": door})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    door.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield door
    finally:
        server.shutdown()
        server.server_close()
