"""Exceptions of ours that a user's own program does not catch: it shows the sentence and the user's
line, without frames of this package. Tasks print theirs themselves (`_failure`).
"""

from __future__ import annotations

import os
import sys

from metaflow.exception import MetaflowException

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_OUR_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
# What objects of the client raise when something is not there. Anything else that comes out of this
# package is a mistake of ours, whose frames are wanted.
_MEANT = (MetaflowException, AttributeError, KeyError)


def hide_our_frames() -> None:
    """Called where users' programs meet this package; who has a hook of their own keeps it."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    error.__traceback__ = trace
    _shorten(error)
    sys.__excepthook__(kind, error, error.__traceback__)


def _shorten(error: BaseException) -> None:
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, _MEANT):
            each.__traceback__ = _without_ours(each.__traceback__)
        pending += (each.__cause__, each.__context__)


def _without_ours(trace: TracebackType | None) -> TracebackType | None:
    """The same traceback, unless there are no frames but ours."""
    theirs = [each for each in _links(trace) if not _is_ours(each)]
    if not theirs:
        return trace
    for link, following in zip(theirs, [*theirs[1:], None], strict=True):
        link.tb_next = following
    return theirs[0]


def _links(trace: TracebackType | None) -> list[TracebackType]:
    links = []
    while trace is not None:
        links.append(trace)
        trace = trace.tb_next
    return links


def _is_ours(link: TracebackType) -> bool:
    return link.tb_frame.f_code.co_filename.startswith(_OUR_FOLDER)
