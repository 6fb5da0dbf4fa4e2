"""How a forked task ends: what a fresh interpreter does at exit, as far as anyone can tell, at a
fraction of its cost.

A fresh interpreter joins threads, runs atexit handlers, flushes the standard streams, and then
tears down every module. The last part is skipped unless the task still holds a file that it or the
flow's import opened, whose buffered contents only the teardown would write.
"""

from __future__ import annotations

import atexit
import os
import sys

from metaflow._forksafety import open_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

# A process whose streams cannot be flushed at exit ends with this code, as CPython's does.
_FLUSH_FAILED = 120


def finish(code: int, opened_before: frozenset[int]) -> NoReturn:
    """End the process with `code` after everything user code left to be done at exit."""
    _join_threads()
    atexit._run_exitfuncs()
    flushed = flush_streams()
    if not opened_before.issuperset(open_descriptors()):
        _full_shutdown(code)
    os._exit(code if flushed or code != 0 else _FLUSH_FAILED)


def _join_threads() -> None:
    threading = sys.modules.get("threading")
    if threading is None:
        return
    try:
        threading._shutdown()
    except BaseException:  # noqa: BLE001 - like CPython, which reports it and goes on
        sys.excepthook(*sys.exc_info())


def flush_streams() -> bool:
    """Whether everything written to the standard streams has left the process."""
    flushed = True
    for stream in (sys.stdout, sys.stderr):
        if stream is None or getattr(stream, "closed", False):
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            flushed = False
    return flushed


def _full_shutdown(code: int) -> NoReturn:
    import ctypes

    ctypes.pythonapi.Py_Exit(code)
    raise AssertionError("Py_Exit does not return")
