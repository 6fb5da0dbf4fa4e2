"""The first and last moments of a task's process: between the fork and user code, and after it.

Everything here runs once per task, so nothing is imported that the zygote has not imported.
"""

from __future__ import annotations

import fcntl
import gc
import io
import json
import os
import sys

from metaflow import (
    _exit,
    _forksafety,
    _imports,
    _interpreter,
    _multicore_width,
    _origin,
    _process,
)
from metaflow._wire import Control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from metaflow._wire import Message

TASK_VARIABLE = "FERROFLOW_TASK_FD"
# Where the zygote left the spec; without it the spec is the first frame on the control channel.
SPEC_VARIABLE = "FERROFLOW_TASK_SPEC_FD"

# Out of the way of the numbers user code gets for the files it opens.
_LOWEST_CONTROL_DESCRIPTOR = 200


class Descriptors:
    __slots__ = ("control", "stderr", "stdout")

    def __init__(self, stdout: int, stderr: int, control: int) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.control = control


class OutputFile(io.FileIO):
    """Writes everything it is given: a signal can cut a plain write to a pipe short."""

    def write(self, data: Any, /) -> int:
        written = super().write(data)
        total = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        while written < total:
            written += super().write(memoryview(data).cast("B")[written:])
        return written


class Starter:
    """Turns a forked child into the task it is to be."""

    def __init__(self, flow_class: type, isolation: list[Any], learn_imports: bool) -> None:
        self._flow_class = flow_class
        self.isolation = isolation
        self._learn_imports = learn_imports

    def run_forked(self, descriptors: Descriptors, spec: dict[str, Any]) -> NoReturn:
        control = _connect(descriptors)
        reopen_streams()
        for action in self.isolation:
            action()
        if _origin.get().collects_garbage:
            gc.enable()
        if self._learn_imports:
            _imports.start(lambda names: control.send({"type": "imported", "packages": names}))
        _run_from_main(self._flow_class, spec, control)

    def spawn(
        self, descriptors: Descriptors, spec: dict[str, Any], extra_environment: dict[str, str]
    ) -> NoReturn:
        """Become a fresh interpreter that finds its spec in a memory file."""
        origin = _origin.get()
        spec_file = os.memfd_create("ferroflow-task-spec")
        with open(spec_file, "wb", closefd=False) as out:
            out.write(json.dumps(spec).encode())
        os.lseek(spec_file, 0, os.SEEK_SET)
        moved = _move(spec_file, _LOWEST_CONTROL_DESCRIPTOR + 1)
        control = _replace_streams(descriptors)
        _interpreter.become_fresh(
            {TASK_VARIABLE: control, SPEC_VARIABLE: moved},
            origin.directory,
            origin.environment,
            extra_environment,
        )


def run_spawned(flow_class: type, control_descriptor: int, spec_descriptor: int | None) -> NoReturn:
    """In the fresh interpreter, once the flow is imported."""
    os.set_inheritable(control_descriptor, False)
    control = TaskControl(control_descriptor)
    if spec_descriptor is None:
        spec = control.receive()
    else:
        with open(spec_descriptor, "rb") as source:
            spec = json.loads(source.read())
    reopen_streams()
    _run_from_main(flow_class, spec, control)


class TaskControl(Control):
    """Adds to the outcome what only this side knows."""

    def send(self, message: Message) -> None:
        if message.get("type") == "outcome" and isinstance(message.get("outcome"), dict):
            message["outcome"].setdefault("imports", _imports.report())
        super().send(message)


def _run_from_main(flow_class: type, spec: dict[str, Any], control: Control) -> NoReturn:
    raise _process.Detour(lambda: run_task(flow_class, spec, control))


def run_task(flow_class: type, spec: dict[str, Any], control: Control) -> NoReturn:
    from metaflow import _task

    _multicore_width.remember(flow_class, spec)
    # What the import has opened for writing, the step may have written to.
    opened_before = frozenset(
        each for each in _forksafety.open_descriptors() if not _forksafety.is_written_file(each)
    )
    code = _task.run(flow_class, spec, control)
    _imports.stop()
    _exit.finish(code, opened_before)


def _connect(descriptors: Descriptors) -> Control:
    return TaskControl(_replace_streams(descriptors))


def _replace_streams(descriptors: Descriptors) -> int:
    """Put the pipes where standard streams are; returns the control descriptor, moved up."""
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(descriptors.stdout, 1)
    os.dup2(descriptors.stderr, 2)
    os.close(descriptors.stdout)
    os.close(descriptors.stderr)
    return _move(descriptors.control, _LOWEST_CONTROL_DESCRIPTOR)


def _move(descriptor: int, lowest: int) -> int:
    try:
        moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
    except OSError:
        return descriptor  # a limit below 200 open files
    os.close(descriptor)
    return moved


def reopen_streams() -> None:
    """Standard streams that keep no complete line to themselves. The objects stay the same:
    a logging handler made by the flow's import holds on to them."""
    sys.__stdout__ = _reopened(sys.__stdout__, 1, "<stdout>")  # type: ignore[misc]
    sys.__stderr__ = _reopened(sys.__stderr__, 2, "<stderr>")  # type: ignore[misc]
    sys.stdout = sys.stdout or sys.__stdout__
    sys.stderr = sys.stderr or sys.__stderr__


def _reopened(stream: Any, descriptor: int, name: str) -> Any:
    raw = OutputFile(descriptor, "wb", closefd=False)
    raw.name = name
    if type(stream) is not io.TextIOWrapper:
        return io.TextIOWrapper(raw, newline="\n", line_buffering=True)
    stream.__init__(  # type: ignore[misc]
        raw,
        encoding=stream.encoding,
        errors=stream.errors,
        newline="\n",
        line_buffering=True,
    )
    return stream
