"""How a remote task ended: what is known of it, why it died, and the container's termination
message (`core::wire::TerminationMessage`). Texts are for users.
"""

from __future__ import annotations

import json
import os
import shutil
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What Kubernetes keeps of a termination message.
MOST_BYTES = 4096
_LEAST_FREE_BYTES = 1 << 20
_NO_LIMIT = 1 << 60

# Where a control group of version 2, and of version 1, keeps: kills, limit, peak.
_GROUPS = (
    ("/sys/fs/cgroup/memory.events", "memory.max", "memory.peak"),
    (
        "/sys/fs/cgroup/memory/memory.oom_control",
        "memory.limit_in_bytes",
        "memory.max_usage_in_bytes",
    ),
)


class Memory:
    """The memory of the container's control group."""

    def __init__(self, groups: tuple[tuple[str, str, str], ...] = _GROUPS) -> None:
        self._events = next((group for group in groups if os.path.exists(group[0])), None)
        self._kills_at_start = self._kills()

    def _kills(self) -> int:
        if self._events is None:
            return 0
        for line in _read(self._events[0]).splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdigit():
                return int(value)
        return 0

    def was_exhausted(self) -> bool:
        """The kernel killed something of this container since the start."""
        return self._kills() > self._kills_at_start

    def limit(self) -> int | None:
        return self._number(1)

    def peak(self) -> int | None:
        return self._number(2)

    def _number(self, field: int) -> int | None:
        if self._events is None:
            return None
        text = _read(os.path.join(os.path.dirname(self._events[0]), self._events[field])).strip()
        return int(text) if text.isdigit() and int(text) < _NO_LIMIT else None


class Facts:
    """Gathered while the task runs; turned into the message when it has ended."""

    def __init__(self, spec: dict[str, Any], layer: str, memory: Memory | None = None) -> None:
        self._spec = spec
        self._layer = layer
        self._memory = memory or Memory()
        self._outcome: dict[str, Any] | None = None
        self._metadata: list[tuple[str, str]] = []
        self._status = 0
        self._usage = {"cpu_seconds": 0.0, "peak_memory": 0}
        self._cause: dict[str, str] | None = None
        self._fault: str | None = None
        self._stopped = False
        self._exhausted = False
        self.engine_lost = False
        # When AWS takes the Spot instance back, once it has said so.
        self.spot_ending: str | None = None

    def hear(self, message: dict[str, Any]) -> None:
        """A `core::wire::TaskMessage`."""
        kind = message.get("type")
        if kind == "outcome":
            self._outcome = message["outcome"]
        elif kind == "metadata":
            self._metadata.append((message["name"], message["value"]))

    def control_fault(self, text: str) -> None:
        self._fault = text

    def supervisor_failed(self, error: Exception) -> None:
        self._status = 1
        self._cause = _cause(
            "layer_error",
            f"the process that supervises the task failed ({type(error).__name__}: {error}); the "
            "container's log has more",
        )

    def told_to_stop(self) -> None:
        self._stopped = True

    def lease_expired(self, seconds: float) -> None:
        self.engine_lost = True
        self._cause = _cause(
            "engine_lost",
            f"stopped: no engine has renewed the lease of run {self._spec['run']} for "
            f"{_duration(seconds)}, so the run was abandoned; resume it",
        )

    def overran(self, limit: float, grace: float) -> None:
        self._cause = _cause(
            "timed_out",
            f"the task was still running {grace:g} s after its time limit of {limit:g} s and was "
            "killed; code that runs outside Python for so long cannot be interrupted",
        )

    def ended(self, status: int, usage: Any) -> None:
        self._status = os.waitstatus_to_exitcode(status)
        self._usage = {
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_memory": usage.ru_maxrss * 1024,
        }

    def note_leftovers(self) -> None:
        """To be called before processes that the task left behind are killed."""
        self._exhausted = self._memory.was_exhausted()

    def exit_code(self) -> int:
        return self._status if self._status >= 0 else 128 - self._status

    def message(self) -> dict[str, Any]:
        status = self._status
        message: dict[str, Any] = {
            "outcome": self._outcome,
            "exit": {"code": status} if status >= 0 else {"signal": -status},
            "usage": self._usage,
            "cause": None if self._is_done() else self._cause_of_failure(),
        }
        if self._metadata:
            message["metadata"] = self._metadata
        return message

    def _is_done(self) -> bool:
        return self._status == 0 and self._outcome is not None and bool(self._outcome.get("ok"))

    def _cause_of_failure(self) -> dict[str, str] | None:
        if self._cause is not None:
            return self._cause
        if self.spot_ending is not None:
            return _cause(
                "spot_reclaimed",
                f"AWS takes its Spot instance back at {self.spot_ending}, and the task was told "
                "to stop (SIGTERM)",
            )
        if self._exhausted:
            return _cause("out_of_memory", self._out_of_memory())
        if self._disk_is_full():
            return _cause(
                "layer_error",
                f"the container's disk is full: ask for more with `@{self._layer}(disk=…)`, or "
                "write less to local files",
            )
        if self._fault is not None and self._outcome is None:
            return _cause(
                "layer_error",
                f"the task's report cannot be used: {self._fault}; its control channel was "
                "written to by something else",
            )
        if self._stopped and self._status == -signal.SIGTERM:
            return _cause("signal", "killed by SIGTERM: the container was told to stop")
        return None

    def _out_of_memory(self) -> str:
        text = "out of memory, the kernel killed the task"
        peak = self._memory.peak() or self._usage["peak_memory"]
        text += f": it used up to {_human(int(peak))}"
        if (limit := self._memory.limit()) is not None:
            text += f", and its container may use {_human(limit)}"
        asked = self._asked("memory")
        if asked is not None:
            text += f"; the step asks for {asked} MB"
        return f"{text}; ask for more with `@{self._layer}(memory=…)` or `@resources(memory=…)`"

    def _asked(self, name: str) -> str | None:
        for kind in (self._layer, "resources"):
            for decorator in self._spec["decorators"]:
                if decorator["name"] == kind and decorator["attributes"].get(name) is not None:
                    return str(decorator["attributes"][name])
        return None

    def _disk_is_full(self) -> bool:
        exception = (self._outcome or {}).get("exception") or {}
        text = f"{exception.get('message', '')}"
        said = "No space left on device" in text or "Errno 28" in text
        if self._outcome is not None and not said:
            return False
        try:
            return said or shutil.disk_usage(".").free < _LEAST_FREE_BYTES
        except OSError:
            return said


def fitted(message: dict[str, Any]) -> bytes:
    """The message as JSON of at most MOST_BYTES. What can be read elsewhere goes first: learned
    imports, then the inside of long texts (the log and the pack have them whole)."""
    data = _encode(message)
    if len(data) <= MOST_BYTES:
        return data
    outcome = message.get("outcome")
    if outcome is not None:
        message = {**message, "outcome": {**outcome, "imports": []}}
    for most in (2000, 1000, 500, 200, 60, 0):
        data = _encode(_with_short_texts(message, most))
        if len(data) <= MOST_BYTES:
            return data
    return _encode({**_with_short_texts(message, 0), "metadata": []})


def _encode(message: dict[str, Any]) -> bytes:
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def _with_short_texts(message: dict[str, Any], most: int) -> dict[str, Any]:
    result = dict(message)
    if message.get("cause"):
        cause = message["cause"]
        # The sentence for the user is worth more than a traceback that the log has.
        result["cause"] = {**cause, "text": _cut(cause["text"], max(most, 300))}
    outcome = message.get("outcome")
    exception = outcome.get("exception") if outcome else None
    if exception:
        assert outcome is not None
        short = {
            "type": _cut(exception["type"], 100),
            "message": _cut(exception["message"], max(most, 100)),
            "traceback": _cut(exception.get("traceback", ""), most),
        }
        result["outcome"] = {**outcome, "exception": short}
    if message.get("metadata"):
        result["metadata"] = [
            (_cut(name, 100), _cut(value, most)) for name, value in message["metadata"]
        ]
    return result


def _cut(text: str, most: int) -> str:
    """Beginning and end of a long text, by its bytes."""
    data = text.encode("utf-8", "replace")
    if len(data) <= most:
        return text
    half = most // 2
    end = data[len(data) - half :] if half else b""
    return f"{data[:half].decode('utf-8', 'ignore')} … {end.decode('utf-8', 'ignore')}"


def _cause(kind: str, text: str) -> dict[str, str]:
    return {"kind": kind, "text": text}


def _human(size: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} s"


def _read(path: str) -> str:
    try:
        with open(path) as source:
            return source.read()
    except OSError:
        return ""
