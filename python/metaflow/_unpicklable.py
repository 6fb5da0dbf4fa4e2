"""Finds what inside a value cannot be pickled, and the path to it. Used only after pickling
failed, so it may be slow; how slow is bounded."""

from __future__ import annotations

import time
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_SECONDS = 5.0
_DEEPEST = 50


def find(value: Any, path: str, error: Exception) -> tuple[str, Any, Exception]:
    """The path, the object and the reason of the innermost part that fails by itself."""
    deadline = time.monotonic() + _SECONDS
    met = {id(value)}
    for _ in range(_DEEPEST):
        for step, part in _parts(value):
            if time.monotonic() > deadline:
                return path, value, error
            failure = None if id(part) in met else _failure(part)
            if failure is not None:
                value, path, error = part, path + step, failure
                met.add(id(part))
                break
        else:
            break
    return path, value, error


class _Nowhere:
    """Takes a pickle and forgets it."""

    def write(self, data: Any) -> int:
        return len(data)


def _failure(value: Any) -> Exception | None:
    import _pickle

    try:
        _pickle.Pickler(_Nowhere(), 5, buffer_callback=lambda buffer: False).dump(value)
    except Exception as error:  # noqa: BLE001 - whatever the user's code raises is the answer
        return error
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What pickling a value pickles in turn, with the way to write each part."""
    if isinstance(value, ModuleType):
        return
    if isinstance(value, dict):
        for key, item in list(dict.items(value)):
            yield f"[{_key(key)}]", item
            yield f" (key {_key(key)})", key
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(list(value)):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in list(value):
            yield f" (item {_key(item)})", item
    yield from _attributes(value)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    state = _own_state(value)
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        yield from ((f".{name}", item) for name, item in state[1].items())
        state = state[0]
    if isinstance(state, dict):
        yield from ((f".{name}", item) for name, item in state.items())
    elif state is not None and not isinstance(value, type):
        yield ".__getstate__()", state


def _own_state(value: Any) -> Any:
    """What the object says is its state; its `__dict__` if asking fails."""
    try:
        return value.__getstate__()
    except Exception:  # noqa: BLE001 - user code; then the plain attributes must do
        return getattr(value, "__dict__", None)


def _key(key: Any) -> str:
    return repr(key)[:40] if type(key) in (str, int, float, bool, bytes) else type(key).__name__
