"""Stands in for what gives credentials to AWS' tools (roles, web identities, single sign-on, the
agent beside a container, the machine): real ones are not to be had on this machine. Each way gives
keys of its own name, so that a test sees in a request's signature which one was used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

from store_proxy import served

SOON = "2026-01-01T00:00:00Z"  # over when the tests run
LATER = "2099-01-01T00:00:00Z"


class StandIn:
    """What was asked, and how long the keys that it gives are good for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.expires = LATER
        self.refuses = False
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stand_in: StandIn

    def handle_any(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.stand_in.asked.append((f"{self.command} {self.path} {content}", headers))
        if self.stand_in.refuses:
            self.answer("<Error><Code>AccessDenied</Code></Error>", 403)
            return
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        action = {**query, **parse_qs(content)}.get("Action", [""])[0]
        if action:
            self.answer(self.of_sts("role" if action == "AssumeRole" else "web"))
        elif path == "/federation/credentials":
            keys = {"accessKeyId": "SSO", "secretAccessKey": "s", "sessionToken": "SSO-token"}
            self.answer(json.dumps({"roleCredentials": {**keys, "expiration": 4070908800000}}))
        elif path == "/token":
            self.answer(json.dumps({"accessToken": "renewed", "expiresIn": 3600}))
        elif path == "/latest/api/token":
            self.answer("machine-token")
        elif path == "/latest/meta-data/iam/security-credentials/":
            self.answer("my-role\n")
        elif path.endswith("/my-role"):
            self.answer(self.of_agent("MACHINE"))
        else:
            self.answer(self.of_agent("CONTAINER"))

    do_GET = do_PUT = do_POST = handle_any

    def of_sts(self, name: str) -> str:
        values = {
            "AccessKeyId": name.upper(),
            "SecretAccessKey": "s",
            "SessionToken": f"{name}-token",
            "Expiration": self.stand_in.expires,
        }
        return "".join(f"<{tag}>{value}</{tag}>" for tag, value in values.items())

    def of_agent(self, name: str) -> str:
        keys = {"AccessKeyId": name, "SecretAccessKey": "s", "Token": f"{name}-token"}
        return json.dumps({**keys, "Expiration": self.stand_in.expires})

    def answer(self, text: str, status: int = 200) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Silent."""


@contextmanager
def aws_stand_in() -> Iterator[StandIn]:
    stand_in = StandIn()
    with served(type("OwnHandler", (Handler,), {"stand_in": stand_in})) as port:
        stand_in.port = port
        yield stand_in
