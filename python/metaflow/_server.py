"""The fork server: the flow's own process, after the import, answering the engine.

It stays single-threaded and runs no user code itself. Zygotes are forked from it; parameters and
artifacts, whose values run user code, are the helper's (`_helper`), a fork of its own.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys

from metaflow import _forksafety, _helper, _interpreter, _isolation, _origin, _process, _zygote
from metaflow._wire import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from metaflow._wire import Frame, Message

ZYGOTE_VARIABLE = "FERROFLOW_ZYGOTE_FD"
ZYGOTE_SETTINGS_VARIABLE = "FERROFLOW_ZYGOTE_SETTINGS"
# The user's atexit handlers may take this long when the run is over.
_EXIT_PATIENCE_SECONDS = 3
_HELPER_REQUESTS = frozenset({"convert", "write_parameters", "dump"})


def serve(flow_class: type, descriptor: int, hello: Message) -> NoReturn:
    """Be the fork server until the engine closes the socket."""
    _process.become_subreaper()
    Server(flow_class, descriptor).run(hello)


class Server:
    def __init__(self, flow_class: type, descriptor: int) -> None:
        self._flow_class = flow_class
        self._connection = Connection(descriptor)
        self._watch = _process.ChildWatch()
        self._helper: Connection | None = None
        self._unanswered: list[int] = []
        self._twin: _isolation.Twin | None = None
        self._generators: _isolation.Generators | None = None
        self._isolation: list[Any] | None = None
        # Fresh zygotes that have not said they took over: process id → socket, message, pipe.
        self._starting: dict[int, tuple[int, Message, int]] = {}

    def run(self, hello: Message) -> NoReturn:
        try:
            self._connection.send({**hello, "pid": os.getpid()})
            while True:
                self._wait()
                while (frame := self._connection.receive_available()) is not None:
                    self._handle(frame)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._end()

    def _end(self) -> NoReturn:
        _process.kill_descendants()
        # What the flow's import registered for exit, as the process that imported it.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_EXIT_PATIENCE_SECONDS)
        atexit = sys.modules.get("atexit")
        if atexit is not None:
            atexit._run_exitfuncs()
        os._exit(0)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._connection.fileno(), select.POLLIN)
        poll.register(self._watch.read_end, select.POLLIN)
        if self._helper is not None:
            poll.register(self._helper.fileno(), select.POLLIN)
        for _, _, took_over in self._starting.values():
            poll.register(took_over, select.POLLIN)
        for descriptor, _ in poll.poll():
            if descriptor == self._watch.read_end:
                self._watch.clear()
                self._reap()
            elif self._helper is not None and descriptor == self._helper.fileno():
                self._pass_replies_on()
            else:
                self._let_go_of_started(descriptor)

    def _let_go_of_started(self, ready: int) -> None:
        """A fresh zygote that has taken over is like any other; one that died is reaped."""
        for pid, (descriptor, _, took_over) in list(self._starting.items()):
            if took_over == ready and os.read(took_over, 1):
                del self._starting[pid]
                os.close(took_over)
                os.close(descriptor)

    def _handle(self, frame: Frame) -> None:
        kind = frame.message["type"]
        if kind == "open_zygote":
            self._open_zygote(frame)
        elif kind in _HELPER_REQUESTS:
            self._ask_helper(frame.message)
            self._prepare_isolation_early()
        else:
            self._refuse(int(frame.message.get("id", 0)), f"unknown request `{kind}`")

    def _refuse(self, request: int, message: str) -> None:
        error = {"usage": False, "headline": "Internal error", "message": message}
        self._connection.send({"id": request, "error": error})

    def _ask_helper(self, message: Message) -> None:
        if self._helper is None:
            self._helper = self._start_helper()
        self._unanswered.append(int(message["id"]))
        try:
            self._helper.send(message)
        except (BrokenPipeError, ConnectionResetError):
            self._helper_is_gone()

    def _start_helper(self) -> Connection:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        server = os.getpid()
        pid = _forksafety.fork_quietly()
        if pid == 0:
            ours.close()
            _process.run_child(lambda: self._become_helper(server, theirs.detach()))
        theirs.close()
        return Connection(ours.detach())

    def _become_helper(self, server: int, descriptor: int) -> NoReturn:
        _process.die_with_parent(server)
        self._close_in_child()
        _helper.serve(self._flow_class, descriptor)

    def _pass_replies_on(self) -> None:
        assert self._helper is not None
        try:
            while (frame := self._helper.receive_available()) is not None:
                self._unanswered.remove(frame.message["id"])
                self._connection.send(frame.message)
        except EOFError:
            self._helper_is_gone()

    def _helper_is_gone(self) -> None:
        if self._helper is not None:
            self._helper.close()
            self._helper = None
        for request in self._unanswered:
            self._refuse(
                request,
                "the process that evaluates the flow's parameters and values "
                "died; its last output may say why",
            )
        self._unanswered.clear()

    def _prepare_isolation_early(self) -> None:
        """A run will follow: let the twin import the flow while the parameters are converted."""
        if self._generators is not None or _origin.get().spawn_reason is not None:
            return
        self._generators = _isolation.Generators(_origin.get().random_module_state)
        if _isolation.needs_twin(self._generators, self._flow_class):
            self._twin = _isolation.Twin()

    def _prepared_isolation(self) -> list[Any] | None:
        """What each forked task does first; `None` if that could not be found out."""
        if self._isolation is None and _origin.get().spawn_reason is None:
            self._prepare_isolation_early()
            assert self._generators is not None
            seeded = set() if self._twin is None else self._twin.seeded()
            if seeded is not None:
                self._isolation = self._generators.actions(seeded)
                self._twin = None
        return self._isolation

    def _open_zygote(self, frame: Frame) -> None:
        if len(frame.descriptors) != 1:
            return
        message, descriptor = frame.message, frame.descriptors[0]
        settings = message["settings"]
        variables = settings.get("environment", {})
        changed = any(os.environ.get(name) != value for name, value in variables.items())
        spawns = settings.get("spawn") or _origin.get().spawn_reason is not None
        if changed and not spawns:
            self._start_fresh_zygote(message, descriptor)
        else:
            self._fork_zygote(message, descriptor, None)

    def _fork_zygote(self, message: Message, descriptor: int, reason: str | None) -> None:
        settings = _zygote.settings_from(message["settings"])
        isolation: list[Any] = []
        if settings.spawn_reason is None:
            _zygote.prepare(self._flow_class)
            isolation = list(self._prepared_isolation() or ())
            if self._isolation is None:
                reason = _isolation.TWIN_FAILED
        if reason is not None and settings.spawn_reason is None:
            settings.spawn_reason = reason
        # No parent-death signal for zygotes: when everything is killed at once they see the end of
        # the engine's socket and take along what their tasks left behind.
        pid = _forksafety.fork_quietly()
        if pid == 0:
            self._close_in_child()
            variables = message["settings"].get("environment", {})
            _process.run_child(
                lambda: _zygote.serve(self._flow_class, descriptor, settings, isolation, variables)
            )
        os.close(descriptor)

    def _start_fresh_zygote(self, message: Message, descriptor: int) -> None:
        """With another environment the flow is imported anew: its modules, and the libraries
        below them, may read variables when they are imported."""
        took_over, took_over_write = os.pipe2(os.O_CLOEXEC)
        pid = _forksafety.fork_quietly()
        if pid == 0:
            _process.run_child(
                lambda: self._become_fresh_zygote(message, descriptor, took_over_write)
            )
        os.close(took_over_write)
        self._starting[pid] = (descriptor, message, took_over)

    def _become_fresh_zygote(self, message: Message, descriptor: int, took_over: int) -> NoReturn:
        origin = _origin.get()
        _origin.give_back_for_exec()
        _interpreter.silence()
        os.set_inheritable(took_over, True)
        settings = {**message["settings"], "took_over": took_over}
        _interpreter.become_fresh(
            {ZYGOTE_VARIABLE: descriptor},
            origin.directory,
            origin.environment,
            {**settings["environment"], ZYGOTE_SETTINGS_VARIABLE: json.dumps(settings)},
        )

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._starting:
                self._fresh_zygote_ended(*self._starting.pop(pid))

    def _fresh_zygote_ended(self, descriptor: int, message: Message, took_over: int) -> None:
        had_taken_over = bool(os.read(took_over, 1))
        os.close(took_over)
        if had_taken_over:
            os.close(descriptor)
            return
        reason = "importing the flow with the step's @environment failed"
        self._fork_zygote(message, descriptor, reason)

    def _close_in_child(self) -> None:
        """Close in a forked child what is the server's alone."""
        signal.set_wakeup_fd(-1)
        self._connection.close()
        self._watch.close()
        if self._helper is not None:
            self._helper.close()
        for descriptor, _, took_over in self._starting.values():
            os.close(descriptor)
            os.close(took_over)
