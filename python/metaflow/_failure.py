"""An exception of the user's as text: what is printed, sent to the engine and kept as an artifact.

Made to work whatever the exception is: one whose `str()` raises, a group, a memory error with no
memory left. What follows from a failure is decided in `_task`.
"""

from __future__ import annotations

import os
import sys
import traceback

from metaflow.exception import MetaflowException, MetaflowExceptionWrapper, TimeoutException

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

_OUR_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STANDARD_ERROR = 2
# What is sent to the engine; the whole text is printed.
_MOST_MESSAGE = 16_000
_MOST_TRACEBACK = 256_000


class Failure:
    """The texts of an exception, its traceback without frames of this package."""

    __slots__ = (
        "headline",
        "message",
        "place",
        "shows_traceback",
        "traceback",
        "type",
        "type_name",
    )

    def __init__(self, exception: BaseException) -> None:
        kind = type(exception)
        self.type = f"{kind.__module__}.{kind.__qualname__}"
        self.type_name = kind.__name__
        self.headline = "Internal error"
        self.place = ""
        self.shows_traceback = True
        if isinstance(exception, MemoryError):
            release_memory(exception)
        try:
            self.message = _message(exception)
            self.traceback = _traceback(exception)
        except (MemoryError, RecursionError):
            # Not even the text of the traceback can be had.
            self.message = "no memory was left even for the traceback"
            self.traceback = f"{self.type_name}: {self.message}"
        if isinstance(exception, MetaflowException):
            self._describe_ours(exception)

    def _describe_ours(self, exception: MetaflowException) -> None:
        self.headline = exception.headline
        self.shows_traceback = isinstance(exception, TimeoutException)
        self.message = str(exception.message) or self.message
        if exception.source_file:
            self.place += f" in file {exception.source_file}"
        if exception.line_no is not None:
            self.place += f" on line {exception.line_no}"

    def wrapper(self) -> MetaflowExceptionWrapper:
        """For an artifact."""
        return MetaflowExceptionWrapper(
            self.message, type_text=self.type, stacktrace=self.traceback
        )

    def as_json(self) -> dict[str, Any]:
        """The form of `core::task::ExceptionInfo`."""
        return {
            "type": self.type_name,
            "class": self.type,
            "message": _clean(_cut(self.message, _MOST_MESSAGE)),
            "traceback": _clean(_cut(self.traceback, _MOST_TRACEBACK)),
        }

    def block(self, where: str) -> str:
        """What a failed task prints: where, the headline, and the message or the traceback."""
        lines = [f"    {where} failed:"]
        if self.headline == "Internal error" and self.shows_traceback:
            lines.append("    Internal error")
            lines.append(self.traceback)
            return "\n".join(lines) + "\n"
        lines.append(f"    {self.headline}{self.place}:")
        lines.extend(f"    {line}" for line in self.message.splitlines())
        if self.shows_traceback:
            lines.append(self.traceback)
        return "\n".join(lines) + "\n"


def print_to_stderr(text: str) -> None:
    """Writes behind whatever the task has printed, even if it closed or replaced `sys.stderr`."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            # Closed, replaced by something that cannot flush, or its reader is gone.
            continue
    data = text.encode("utf-8", "backslashreplace")
    while data:
        try:
            data = data[os.write(_STANDARD_ERROR, data) :]
        except OSError:
            return


def release_memory(exception: BaseException) -> None:
    """Lets go of the local variables of an exception's frames: what filled the memory is usually
    among them, and only their lines are needed to tell what happened."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [exception]
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        pending += (each.__cause__, each.__context__)


def _message(exception: BaseException) -> str:
    try:
        return str(exception)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # noqa: BLE001 - `str()` of an exception is user code
        return f"<str() of this exception raises {type(error).__name__}>"


def _traceback(exception: BaseException) -> str:
    summary = traceback.TracebackException(
        type(exception), exception, _first_of_theirs(exception.__traceback__)
    )
    _drop_our_frames(summary)
    text = "".join(summary.format()).rstrip("\n")
    hint = _near_match(exception)
    return f"{text}. {hint}" if hint and "Did you mean" not in text else text


def _first_of_theirs(trace: TracebackType | None) -> TracebackType | None:
    """Skips our frames at the top before their source lines are looked up."""
    start = trace
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace or start


def _drop_our_frames(summary: traceback.TracebackException | None) -> None:
    pending = [summary]
    while pending:
        each = pending.pop()
        if each is None:
            continue
        theirs = [frame for frame in each.stack if not _is_ours(frame.filename)]
        if theirs or not each.stack:
            each.stack[:] = theirs
        pending += (each.__cause__, each.__context__)
        pending += getattr(each, "exceptions", None) or ()


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OUR_FOLDER)


def _near_match(exception: BaseException) -> str | None:
    """`Did you mean …` for a misspelt artifact."""
    if not isinstance(exception, AttributeError) or not exception.name:
        return None
    from metaflow._flow import FlowSpec

    if not isinstance(exception.obj, FlowSpec):
        return None
    import difflib

    names = {name for name in dir(exception.obj) if not name.startswith("_")}
    names.discard(exception.name)
    near = difflib.get_close_matches(exception.name, names, 1)
    return f"Did you mean: '{near[0]}'?" if near else None


def _cut(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n… {len(text) - most} characters left out …\n{text[-half:]}"


def _clean(text: str) -> str:
    """Without lone surrogates, which JSON readers refuse."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
