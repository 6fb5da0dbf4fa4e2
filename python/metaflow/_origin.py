"""What the process was like when the flow had been imported and nothing else had happened. Tasks,
forked or spawned, start from there.
"""

from __future__ import annotations

import gc
import os

from metaflow import _forksafety, _interpreter, _isolation, _process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Origin:
    __slots__ = (
        "collects_garbage",
        "directory",
        "environment",
        "random_module_state",
        "signals",
        "spawn_reason",
    )

    def __init__(self, ours: frozenset[int]) -> None:
        # Where the interpreter was started, for spawning; forked tasks stay where the import left.
        self.directory = _interpreter.original_directory()
        self.environment = dict(os.environ)
        self.random_module_state: Any = _isolation.state_of_random_module()
        before = _forksafety.Residue(frozenset(), ours, frozenset())
        self.spawn_reason = _forksafety.reason_against_forking(before)
        self.collects_garbage = gc.isenabled()
        self.signals = _process.signal_handlers()


_origin: Origin | None = None


def remember(ours: frozenset[int] = frozenset()) -> Origin:
    """To be called once, in the process that imported the flow, before it forks. `ours` are
    descriptors that the import did not open."""
    global _origin
    _origin = Origin(ours)
    return _origin


def get() -> Origin:
    if _origin is None:
        raise AssertionError("the origin is remembered before anything is forked")
    return _origin


def give_back_for_exec() -> None:
    """Signals as the interpreter found them, so that what exec inherits is what it inherited."""
    _process.give_signals_back(get().signals)
