"""A step's zygote: the process that the step's tasks are forked from. It has imported what the
step needs, starts tasks when the engine says so, waits for them and says how they ended.

It stays single-threaded and runs no user code. What a task does once it exists is `_child`'s.
"""

from __future__ import annotations

import gc
import os
import select

from metaflow import _child, _forksafety, _learn, _origin, _process
from metaflow._wire import Connection, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from metaflow._wire import Frame, Message


class Settings:
    __slots__ = ("learn_imports", "learned", "spawn_reason")

    def __init__(self, learned: list[str], learn_imports: bool, spawn_reason: str | None) -> None:
        self.learned = learned
        self.learn_imports = learn_imports
        self.spawn_reason = spawn_reason


class Running:
    __slots__ = ("attempt", "pid")

    def __init__(self, attempt: dict[str, int], pid: int) -> None:
        self.attempt = attempt
        self.pid = pid


def settings_from(message: Message) -> Settings:
    """From a `wire::ZygoteSettings`."""
    reason = _origin.get().spawn_reason
    if message.get("spawn"):
        reason = "spawning was asked for"
    return Settings(
        learned=list(message.get("learned", ())),
        learn_imports=bool(message.get("learn_imports", True)),
        spawn_reason=reason,
    )


def prepare(flow_class: type) -> None:
    """Import what every task needs, once for all zygotes."""
    from metaflow import _task

    _task.prepare(flow_class)


def serve(
    flow_class: type,
    descriptor: int,
    settings: Settings,
    isolation: list[Any],
    extra_environment: dict[str, str],
) -> NoReturn:
    """Be the zygote until the engine closes the socket."""
    _process.become_subreaper()
    Zygote(flow_class, descriptor, settings, isolation, extra_environment).run()


class Zygote:
    def __init__(
        self,
        flow_class: type,
        descriptor: int,
        settings: Settings,
        isolation: list[Any],
        extra_environment: dict[str, str],
    ) -> None:
        self._connection = Connection(descriptor)
        self._watch = _process.ChildWatch()
        self._settings = settings
        self._starter = _child.Starter(flow_class, isolation, settings.learn_imports)
        self._extra_environment = extra_environment
        self._learner = _learn.Learner()
        self._by_pid: dict[int, Running] = {}
        self._by_attempt: dict[tuple[int, int], Running] = {}
        self._left_behind: set[int] = set()
        self._outbox = bytearray()
        self._fork = os.fork
        self._pid = os.getpid()
        self._children_file = f"/proc/{self._pid}/task/{self._pid}/children"

    def run(self) -> NoReturn:
        if self._settings.learned and self._settings.spawn_reason is None:
            self._learner.begin(self._settings.learned, self._close_in_child)
            self._finish_learning()
        self._say({"type": "ready", "pid": os.getpid(), "spawn_reason": self._spawn_reason()})
        self._prepare_to_fork()
        try:
            while True:
                self._flush()
                self._wait()
                while (frame := self._connection.receive_available()) is not None:
                    self._handle(frame)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            _process.kill_descendants()
            os._exit(0)

    def _prepare_to_fork(self) -> None:
        # A collection in a child would touch, and so copy, every page of the parent's objects.
        gc.disable()
        gc.freeze()
        # Learned imports may leave benign threads, of which Python would warn at every fork.
        self._fork = os.fork if _forksafety.is_single_threaded() else _forksafety.fork_quietly

    def _spawn_reason(self) -> str | None:
        return self._settings.spawn_reason or self._learner.spawn_reason

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        poll.register(self._watch.read_end, select.POLLIN)
        if self._learner.result_descriptor is not None:
            poll.register(self._learner.result_descriptor, select.POLLIN)
        for descriptor, _ in poll.poll():
            if descriptor == self._watch.read_end:
                self._watch.clear()
                self._reap()
            elif descriptor == self._learner.result_descriptor:
                self._finish_learning()

    def _say(self, event: Message) -> None:
        self._outbox += encode(event)

    def _flush(self) -> None:
        if self._outbox:
            self._connection.send_encoded(bytes(self._outbox))
            self._outbox.clear()

    def _handle(self, frame: Frame) -> None:
        kind = frame.message["type"]
        if kind == "task":
            self._start_task(frame)
        elif kind == "signal":
            running = self._by_attempt.get(_key(frame.message["attempt"]))
            if running is not None:
                _process.signal_group(running.pid, int(frame.message["signal"]))
        elif kind == "learn":
            self._learn(frame.message["packages"])

    def _start_task(self, frame: Frame) -> None:
        attempt = frame.message["attempt"]
        try:
            if len(frame.descriptors) != 3:
                raise OSError(
                    "its output descriptors did not arrive; is the limit on open files"
                    " (`ulimit -n`) too low?"
                )
            pid = self._fork()
        except OSError as error:
            message = f"the task's process could not be started: {error}"
            self._say({"type": "start_failed", "attempt": attempt, "message": message})
            _close_all(frame.descriptors)
            return
        if pid == 0:
            _process.run_child(lambda: self._become_task(frame))
        _close_all(frame.descriptors)
        running = Running(attempt, pid)
        self._by_pid[pid] = self._by_attempt[_key(attempt)] = running
        self._say({"type": "started", "attempt": attempt, "pid": pid})

    def _become_task(self, frame: Frame) -> None:
        os.setpgid(0, 0)
        _process.die_with_parent(self._pid)
        self._close_in_child()
        descriptors = _child.Descriptors(*frame.descriptors)
        if self._spawn_reason() is not None:
            self._starter.spawn(descriptors, frame.message["spec"], self._extra_environment)
        self._starter.run_forked(descriptors, frame.message["spec"])

    def _close_in_child(self) -> None:
        _process.give_signals_back(_origin.get().signals)
        self._connection.close()
        self._watch.close()
        self._learner.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            running = self._by_pid.pop(pid, None)
            if running is None:
                self._left_behind.discard(pid)
                continue
            if self._by_attempt.get(_key(running.attempt)) is running:
                del self._by_attempt[_key(running.attempt)]
            self._say(self._exited(running, status, usage))

    def _exited(self, running: Running, status: int, usage: Any) -> Message:
        code = os.waitstatus_to_exitcode(status)
        return {
            "type": "exited",
            "attempt": running.attempt,
            "exit": {"signal": -code} if code < 0 else {"code": code},
            "usage": {
                "cpu_seconds": usage.ru_utime + usage.ru_stime,
                "peak_memory": usage.ru_maxrss * 1024,
            },
            "leftover": self._count_leftovers(running.pid),
        }

    def _count_leftovers(self, gone: int) -> int:
        """Orphans become our children; those that no running task's group claims are of the task
        that has just gone."""
        try:
            with open(self._children_file, "rb", buffering=0) as listing:
                children = {int(pid) for pid in listing.read(1 << 20).split()}
        except OSError:
            return 0
        unknown = children - self._by_pid.keys() - self._left_behind
        unknown.discard(self._learner.pid)
        count = 0
        for pid in unknown:
            stat = _process.process_stat(pid)
            if stat is None or stat[0] == b"Z" or int(stat[2]) in self._by_pid:
                continue
            self._left_behind.add(pid)
            count += 1 + len(_process.descendants_of(pid))
        return count

    def _learn(self, packages: list[str]) -> None:
        if self._spawn_reason() is not None or not self._settings.learn_imports:
            refused = [f"{package}: tasks of this step are not forked" for package in packages]
            self._say({"type": "learned", "packages": [], "refused": refused})
            return
        self._learner.begin(packages, self._close_in_child)

    def _finish_learning(self) -> None:
        gc.unfreeze()
        result = self._learner.finish(self._close_in_child)
        self._starter.isolation += result.isolation
        self._prepare_to_fork()
        self._say({"type": "learned", "packages": result.learned, "refused": result.refused})


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _key(attempt: dict[str, int]) -> tuple[int, int]:
    return attempt["task"], attempt["attempt"]
