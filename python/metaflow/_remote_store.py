"""The artifact store as plain objects, for the supervisor of a remote task (its logs and the run's
lease) and for its questions to the engine. Artifacts do not come through here.
"""

from __future__ import annotations

import contextlib
import json
import os

from metaflow import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Store(Protocol):
        """Objects by key. All methods raise `OSError` when the store cannot be reached."""

        def put(self, key: str, data: bytes) -> None: ...

        def get(self, key: str) -> bytes | None: ...

        def delete(self, key: str) -> None:
            """Best effort: what may not be deleted stays."""


def open_store(location: dict[str, Any]) -> Store:
    """The store of a `core::task::StoreLocation`."""
    if location["kind"] == "local":
        return Folder(location["root"])
    return Bucket(location)


class Folder:
    """A folder that the container shares with the engine."""

    def __init__(self, root: str) -> None:
        self._root = root

    def put(self, key: str, data: bytes) -> None:
        path = os.path.join(self._root, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        temporary = f"{path}.{os.getpid()}.part"
        with open(temporary, "wb") as out:
            out.write(data)
        os.replace(temporary, path)

    def get(self, key: str) -> bytes | None:
        try:
            with open(os.path.join(self._root, key), "rb") as source:
                return source.read()
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        with contextlib.suppress(OSError):
            os.remove(os.path.join(self._root, key))


class Bucket:
    """A remote store, reached with the container's own identity."""

    def __init__(self, location: dict[str, Any]) -> None:
        self._location = json.dumps(location)
        self._objects: _native.Objects | None = None

    def put(self, key: str, data: bytes) -> None:
        self._connected().put(key, data)

    def get(self, key: str) -> bytes | None:
        return self._connected().get(key)

    def delete(self, key: str) -> None:
        with contextlib.suppress(OSError):
            self._connected().delete(key)

    def _connected(self) -> _native.Objects:
        # Not before the task was forked.
        if self._objects is None:
            self._objects = _native.Objects(self._location)
        return self._objects
