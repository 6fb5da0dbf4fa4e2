"""What the process was like when the flow had been imported and nothing else had happened. Tasks,
forked or spawned, start from there.
"""

from __future__ import annotations

import gc
import os
from typing import Any, NamedTuple

from metaflow import _forksafety, _interpreter, _isolation, _process


class Origin(NamedTuple):
    # Where the interpreter was started, for spawning; tasks forked stay where the import left.
    directory: str
    environment: dict[str, str]
    random_module_state: Any
    signals: _process.SignalHandlers
    collects_garbage: bool
    spawn_reason: str | None


_origin: Origin | None = None


def remember(ours: frozenset[int] = frozenset()) -> Origin:
    """To be called once, in the process that imported the flow, before it forks. `ours` are
    descriptors that the import did not open."""
    global _origin
    before = _forksafety.Residue(frozenset(), ours)
    _origin = Origin(
        directory=_interpreter.original_directory(),
        environment=dict(os.environ),
        random_module_state=_isolation.state_of_random_module(),
        spawn_reason=_forksafety.reason_against_forking(before),
        collects_garbage=gc.isenabled(),
        signals=_process.signal_handlers(),
    )
    return _origin


def get() -> Origin:
    if _origin is None:
        raise AssertionError("the origin is remembered before anything is forked")
    return _origin


def give_back_for_exec() -> None:
    """Signals as the interpreter found them, so that what exec inherits is what it inherited."""
    _process.give_signals_back(get().signals)
