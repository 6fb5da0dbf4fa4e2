"""A store that misbehaves when asked, and what a container's first program came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler


@dataclass
class Store:
    """Answers with the next of `faults`, then with the package."""

    data: bytes
    faults: list[str] = field(default_factory=list)
    asked: int = 0
    port: int = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def do_GET(self) -> None:
        store = self.store
        store.asked += 1
        fault = store.faults.pop(0) if store.faults else ""
        status = int(fault) if fault.isdigit() else 200
        data = b"<Error/>" if status != 200 else store.data
        if fault == "flip":
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""


@dataclass
class Ended:
    code: int
    out: str
    err: str
    message: dict[str, object]
    seconds: float


def told(ended: Ended, code: int = 121) -> str:
    """The one sentence, the same for people and for the engine."""
    assert ended.code == code, ended
    assert ended.message["exit"] == {"code": code} and ended.message["outcome"] is None
    cause = ended.message["cause"]
    assert isinstance(cause, dict) and ended.err == f"{cause['text']}.\n", ended.err
    assert "secret" not in ended.err, "a signature is a secret"
    return str(cause["text"])
