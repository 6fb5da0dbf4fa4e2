"""A door before a real object store that counts requests and misbehaves on demand: answers 503,
answers late, cuts connections in the middle of a body, changes bytes, insists on a region. What it
passes on else it does not change. It can also speak TLS, and stand in the way as a plain proxy."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
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
        # Downloads of paths with this part come with one byte changed.
        self.wrong_bytes_of = ""
        # How often each path with `denied_path` is denied, as with a signature that has expired.
        self.deny_first = 0
        self.denied_path = ""
        # Answered with a 503 whatever happens: all paths with this part.
        self.refuse_always: str | None = None
        # Requests signed for another region are answered as AWS does.
        self.region: str | None = None
        self.headers: list[dict[str, str]] = []
        # Called with each request's method and headers before it is passed on.
        self.meanwhile: Callable[[str, dict[str, str]], None] | None = None
        self.tls = False
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def note(self, method: str, path: str, headers: dict[str, str]) -> None:
        with self._lock:
            self.requests.append((method, path))
            self.headers.append(headers)

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
        lower = {k.lower(): v for k, v in self.headers.items()}
        door.note(method, self.path, lower)
        if door.meanwhile:
            door.meanwhile(method, lower)
        time.sleep(door.delay)
        if door.refuse_always is not None and door.refuse_always in self.path:
            self.answer(503, b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>")
            return
        if door.region and f"/{door.region}/s3/" not in self.headers.get("Authorization", ""):
            text = b"<Error><Code>PermanentRedirect</Code><Message>Elsewhere</Message></Error>"
            self.answer(301, text, {"x-amz-bucket-region": door.region})
            return
        if door.once_more("refuse", method, self.path, door.refuse_first):
            self.answer(503, b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>")
            return
        path = self.path.split("?")[0]
        if door.denied_path in path and door.once_more("deny", "", path, door.deny_first):
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
            return
        connection = http.client.HTTPConnection(door.backend, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        connection.request(method, self.path, content, headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if door.wrong_bytes_of and method == "GET" and door.wrong_bytes_of in self.path:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
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

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""


class Forwarder(BaseHTTPRequestHandler):
    """A proxy as companies have them: requests name whole addresses, or ask for a tunnel."""

    protocol_version = "HTTP/1.1"
    asked: list[str]

    def do_CONNECT(self) -> None:
        self.asked.append(f"CONNECT {self.path}")
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as there:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_copy, args=(there, self.connection), daemon=True)
            back.start()
            _copy(self.connection, there)
            back.join(30)
        self.close_connection = True

    def handle_any(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        connection = http.client.HTTPConnection(address.netloc, timeout=60)
        target = self.path.split(address.netloc, 1)[1]
        headers = {k: v for k, v in self.headers.items() if not k.lower().startswith("proxy")}
        connection.request(self.command, target, content, headers)
        answer = connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length", "date"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(body)
        connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # either side may be gone


@contextmanager
def served(
    handler: type[BaseHTTPRequestHandler],
    tls: tuple[str, str] | None = None,
    host: str = "127.0.0.1",
) -> Iterator[int]:
    """The port at which requests are handled; `tls` is a certificate and its key."""
    server = ThreadingHTTPServer((host, 0), handler)
    server.daemon_threads = True
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def proxy(
    backend: str, tls: tuple[str, str] | None = None, host: str = "127.0.0.1"
) -> Iterator[Door]:
    """A door at a port of its own; for pods and containers, on all addresses (`0.0.0.0`)."""
    door = Door(backend)
    with served(type("OwnHandler", (Handler,), {"door": door}), tls, host) as port:
        door.port, door.tls = port, tls is not None
        yield door


@contextmanager
def company_proxy() -> Iterator[tuple[str, list[str]]]:
    """Address of a proxy, and what it was asked for."""
    asked: list[str] = []
    with served(type("OwnForwarder", (Forwarder,), {"asked": asked})) as port:
        yield f"http://127.0.0.1:{port}", asked
