"""A store that misbehaves when asked, and what a container's first program came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Protocol

import pytest


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


class Program(Protocol):
    """Runs a language's first program on a store."""

    def __call__(self, folder: Path, store: Store) -> Ended: ...


class StoreFaults:
    """What every language's first program has to make of a store's faults."""

    @pytest.mark.parametrize("faults", [["503", "429"], ["cut"], ["flip"], ["500", "cut", "flip"]])
    def test_what_passes_is_tried_again(
        self, first_program: Program, folder: Path, store: Store, faults: list[str]
    ) -> None:
        store.faults = list(faults)
        ended = first_program(folder, store)
        assert ended.out.startswith("started"), ended.err
        assert store.asked == len(faults) + 1

    def test_an_address_that_expired_is_signed_again(
        self, first_program: Program, folder: Path, store: Store
    ) -> None:
        store.faults = ["403"]
        ended = first_program(folder, store)
        assert told(ended, code=122) == (
            f"the code package may not be fetched from 127.0.0.1:{store.port} any more "
            "(HTTP 403 Forbidden)"
        )
        assert ended.message["sign_again"] is True and store.asked == 1

    def test_code_that_is_gone_is_told_at_once(
        self, first_program: Program, folder: Path, store: Store
    ) -> None:
        store.faults = ["404"]
        ended = first_program(folder, store)
        assert told(ended) == (
            f"the code package could not be fetched from 127.0.0.1:{store.port}: HTTP 404 Not Found"
        )
        assert store.asked == 1 and ended.seconds < 10
