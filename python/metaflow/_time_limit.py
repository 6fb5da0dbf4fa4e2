"""`@timeout` inside a task: an alarm that raises in user code. A task that does not react to it is
ended by the engine, a little later.
"""

from __future__ import annotations

import signal

from metaflow.exception import MetaflowException, TimeoutException

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class TimeLimit:
    """Context in which user code may run for as long as the attributes of `@timeout` say."""

    __slots__ = ("_attributes", "_before", "_running", "_step")

    def __init__(self, attributes: dict[str, Any] | None, step: str) -> None:
        self._attributes = attributes
        self._step = step
        self._running = False
        self._before: Any = None

    def __enter__(self) -> None:
        if self._attributes is None:
            return
        seconds = _seconds(self._attributes)
        if seconds <= 0:
            raise MetaflowException(
                f"@timeout of step `{self._step}` has no duration: "
                "specify a duration with seconds, minutes or hours"
            )
        self._running = True
        self._before = signal.signal(signal.SIGALRM, self._raise)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def __exit__(self, *_error: object) -> None:
        if not self._running:
            return
        # From here on an alarm that is under way already does nothing.
        self._running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        if signal.getsignal(signal.SIGALRM) == self._raise:
            signal.signal(signal.SIGALRM, self._before)

    def _raise(self, _signal: int, _frame: object) -> None:
        if self._running:
            self._running = False
            hours, rest = divmod(_seconds(self._attributes or {}), 3600)
            minutes, seconds = divmod(rest, 60)
            raise TimeoutException(
                f"Step {self._step} timed out after {hours:g} hours, {minutes:g} minutes, "
                f"{seconds:g} seconds"
            )


def _seconds(attributes: dict[str, Any]) -> float:
    units = (("seconds", 1), ("minutes", 60), ("hours", 3600))
    return sum(float(attributes.get(unit) or 0) * factor for unit, factor in units)
