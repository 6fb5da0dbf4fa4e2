"""The variables by which a task reaches its remote datastore, as they were when it began: user code
may turn its own clients to another account, and the task's artifacts must not follow.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_PREFIXES = ("AWS_", "AZURE_", "GOOGLE_", "SSL_CERT_")
_NAMES = frozenset({"HOME", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})

_at_start: dict[str, str] | None = None
_entered = False


def _matters(name: str) -> bool:
    return name.startswith(_PREFIXES) or name.upper() in _NAMES


def remember() -> None:
    """Before user code runs, in tasks whose datastore is not a folder."""
    global _at_start
    _at_start = _now()


def _now() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if _matters(name)}


class AsAtStart:
    """While it is entered, the store is reached as at the task's start."""

    __slots__ = ("_changed", "_outermost")

    def __enter__(self) -> None:
        global _entered
        self._changed: dict[str, str] | None = None
        self._outermost = _at_start is not None and not _entered
        if not self._outermost:
            return
        _entered = True
        assert _at_start is not None
        if (now := _now()) != _at_start:
            self._changed = now
            _put(_at_start, instead_of=now)

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        global _entered
        if self._outermost:
            _entered = False
        if self._changed is not None:
            assert _at_start is not None
            _put(self._changed, instead_of=_at_start)


def _put(variables: dict[str, str], *, instead_of: dict[str, str]) -> None:
    for name in instead_of.keys() - variables.keys():
        os.environ.pop(name, None)
    os.environ.update(variables)
