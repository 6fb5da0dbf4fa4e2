"""Kubernetes' REST interface for the programs of this folder, with the standard library alone.

`kubectl proxy` does the signing in, so every KUBECONFIG works that kubectl understands. Not for
the product: the engine has its own client.
"""

from __future__ import annotations

import http.client
import json
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

Json = dict[str, Any]
STRATEGIC_MERGE = "application/strategic-merge-patch+json"


class ApiError(Exception):
    """Refused; `status` is HTTP's (404: not there, 409: there already, 0: no answer)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"the API server answered {status}: {message}")
        self.status = status


class KubernetesApi:
    """One cluster; close it (or use `with`) to end its proxy. Any thread may call it."""

    def __init__(self, kubeconfig: str | None = None) -> None:
        options = ["--kubeconfig", kubeconfig] if kubeconfig else []
        self._proxy = subprocess.Popen(
            ["kubectl", *options, "proxy", "--port=0"], stdout=subprocess.PIPE, text=True
        )
        assert self._proxy.stdout is not None
        line = self._proxy.stdout.readline()  # "Starting to serve on 127.0.0.1:PORT"
        if ":" not in line:
            self.close()
            raise ApiError(0, f"`kubectl proxy` did not start; it said `{line.strip()}`")
        self._port = int(line.rsplit(":", 1)[1])

    def __enter__(self) -> KubernetesApi:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._proxy.terminate()
        self._proxy.wait()
        if self._proxy.stdout is not None:
            self._proxy.stdout.close()

    def get(self, path: str, **query: str) -> Json:
        return self._call("GET", path, query=query)

    def has(self, path: str) -> bool:
        try:
            self.get(path)
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def post(self, path: str, body: Json) -> Json:
        return self._call("POST", path, body=body)

    def put(self, path: str, body: Json) -> Json:
        return self._call("PUT", path, body=body)

    def patch(self, path: str, body: Json) -> Json:
        """A strategic merge: lists with a key (conditions, containers) are merged by it."""
        return self._call("PATCH", path, body=body, kind=STRATEGIC_MERGE)

    def delete(self, path: str, **options: Any) -> Json:
        return self._call("DELETE", path, body=options)

    def apply_new(self, path: str, body: Json) -> None:
        """Creates what `body` names under `path` unless it is there."""
        try:
            self.post(path, body)
        except ApiError as error:
            if error.status != 409:
                raise

    def watch(self, path: str, **query: str) -> Iterator[Json]:
        """Events ({type, object}), what exists first, until the server ends the stream."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request("GET", f"{path}?{urlencode({**query, 'watch': '1'})}")
            response = connection.getresponse()
            if response.status >= 400:
                raise ApiError(response.status, response.read().decode(errors="replace"))
            while line := response.readline():
                event: Json = json.loads(line)
                yield event
        finally:
            connection.close()

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        kind: str = "application/json",
    ) -> Json:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            address = f"{path}?{urlencode(query)}" if query else path
            connection.request(
                method,
                address,
                body=json.dumps(body) if body is not None else None,
                headers={"Content-Type": kind},
            )
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(0, f"no answer to {method} {path}: {error}") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise ApiError(response.status, text.decode(errors="replace"))
        answer: Json = json.loads(text)
        return answer
