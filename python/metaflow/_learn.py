"""Learned imports, zygote side: imports packages that tasks of the step were seen to import, if
a process that has imported them may still fork.

A forked probe imports them first. It finds out what must not happen in the zygote, in its own
time, and serves as twin for the random generators that the packages bring along.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys

from metaflow import _forksafety, _interpreter, _isolation, _process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

_PROBE_PATIENCE_SECONDS = 120.0


class Result:
    __slots__ = ("isolation", "learned", "refused")

    def __init__(self, learned: list[str], refused: list[str], isolation: list[Any]) -> None:
        self.learned = learned
        self.refused = refused
        self.isolation = isolation


class Learner:
    def __init__(self) -> None:
        # Becomes readable when the probe has something to say or is gone.
        self.result_descriptor: int | None = None
        self.pid = 0
        # Set if the zygote, against what the probe found, cannot fork any more.
        self.spawn_reason: str | None = None
        self._packages: list[str] = []
        self._waiting: list[str] = []

    def begin(self, packages: list[str], close_in_probe: Callable[[], None]) -> None:
        """Start a probe, or queue behind the running one."""
        if self.result_descriptor is not None:
            self._waiting += packages
            return
        self._packages = packages
        self.result_descriptor, write_end = os.pipe2(os.O_CLOEXEC)
        zygote = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            close_in_probe()
            _process.die_with_parent(zygote)
            _process.run_child(lambda: _probe(packages, write_end))
        os.close(write_end)

    def finish(self, close_in_probe: Callable[[], None]) -> Result:
        """Import what the probe found harmless."""
        verdicts, seeded = self._probe_result()
        accepted, refused = [], []
        for package in self._packages:
            verdict = verdicts.get(package, "importing it ended the process")
            if verdict is None:
                accepted.append(package)
            else:
                refused.append(f"{package}: {verdict}")
        learned, isolation = self._import(accepted, seeded)
        self._packages = []
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self.begin(waiting, close_in_probe)
        return Result(learned, refused, isolation)

    def close(self) -> None:
        if self.result_descriptor is not None:
            os.close(self.result_descriptor)

    def _probe_result(self) -> tuple[dict[str, str | None], set[str]]:
        """Verdict by package (`None`: harmless) and digests of the generators' states."""
        assert self.result_descriptor is not None
        verdicts: dict[str, str | None] = {}
        seeded: set[str] = set()
        with open(self.result_descriptor, "rb", buffering=0) as channel:
            for line in _lines_until(channel, _PROBE_PATIENCE_SECONDS):
                message = json.loads(line)
                verdicts.update(message.get("verdict", {}))
                seeded.update(message.get("digests", ()))
        self.result_descriptor = None
        # It may have been reaped along with the tasks.
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.pid = 0
        return verdicts, seeded

    def _import(self, packages: list[str], seeded: set[str]) -> tuple[list[str], list[Any]]:
        if not packages:
            return [], []
        generators, before = _isolation.Generators(), _forksafety.residue()
        restore_output = _silence_for_now()
        try:
            learned = [package for package in packages if _import_error(package) is None]
        finally:
            restore_output()
        self.spawn_reason = _forksafety.reason_against_forking(before, ", ".join(packages))
        return learned, generators.later_ones().actions(seeded)


def _lines_until(channel: Any, patience: float) -> list[bytes]:
    """Everything the probe wrote before it closed the pipe, or took too long."""
    text = b""
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while poll.poll(patience * 1000):
        part = channel.read(65536)
        if not part:
            break
        text += part
    return text.splitlines() if text.endswith(b"\n") else text.splitlines()[:-1]


def _probe(packages: list[str], write_end: int) -> NoReturn:
    _interpreter.silence()
    generators, before = _isolation.Generators(), _forksafety.residue()
    for package in packages:
        verdict = _import_error(package) or _forksafety.reason_against_forking(before, package)
        os.write(write_end, json.dumps({"verdict": {package: verdict}}).encode() + b"\n")
        if verdict is not None:
            before = _forksafety.residue()
    digests = sorted(generators.later_ones().digests())
    os.write(write_end, json.dumps({"digests": digests}).encode() + b"\n")
    os._exit(0)


def _import_error(package: str) -> str | None:
    try:
        importlib.import_module(package)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the task that imports it will show it
        return f"importing it raised {type(error).__name__}"
    return None


def _silence_for_now() -> Callable[[], None]:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    kept = [os.dup(descriptor) for descriptor in (0, 1, 2)]
    _interpreter.silence()

    def restore() -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        for descriptor, copy in enumerate(kept):
            os.dup2(copy, descriptor)
            os.close(copy)

    return restore
