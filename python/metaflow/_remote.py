"""Process 1 of a remote task's container: starts the task as a fresh interpreter on the flow,
passes on what it prints, and says how it ended in the container's termination message.

How the container got here is `crates/compute/src/remote/bootstrap.py`. What the task itself does is
`_child`'s and `_task`'s, as for a task on the user's machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time

from metaflow import _native, _process, _remote_ec2, _remote_ending, _remote_log, _remote_store
from metaflow._current import SPOT_NOTICE_FILE
from metaflow._wire import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any, NoReturn

# Variables that are not for the task and what it starts.
_OURS = ("FERROFLOW_CODE_", "FERROFLOW_TASK_SPEC")
_READ_SIZE = 1 << 16
# Out of the way of the numbers user code gets for the files it opens; see `_child`.
_LOWEST_CONTROL_DESCRIPTOR = 200
# Python raises `@timeout` itself; a task that has not reacted by then hangs in native code.
_TIME_LIMIT_GRACE_SECONDS = 60.0
# A told task may clean up for so long.
_STOP_PATIENCE_SECONDS = 5.0
# Streams of an ended task are read this long when a process it left behind holds them open.
_DRAIN_SECONDS = 0.2
# Metadata of a task on AWS Batch, and the variable that has it.
_PLACE = {
    "aws-batch-job-attempt": "AWS_BATCH_JOB_ATTEMPT",
    "aws-batch-ce-name": "AWS_BATCH_CE_NAME",
    "aws-batch-execution-env": "AWS_EXECUTION_ENV",
}
# Between two looks whether the other ranks of a gang have ended.
_LOOK_SECONDS = 1.0
_NEVER = float("inf")


def main(spec_text: str) -> NoReturn:
    """Called by the bootstrap; ends the process with the task's exit code."""
    settings = Settings(_decode(spec_text), os.environ)
    # Keys of the store, a proxy: what `@environment` gives a step is the container's.
    os.environ.update(settings.given)
    try:
        code = Supervisor(settings).run()
    except Exception as error:  # noqa: BLE001 - a mistake of ours must not look like the task's
        code = _give_up(settings, error)
    os._exit(code)


def _give_up(settings: Settings, error: Exception) -> int:
    import traceback

    traceback.print_exc()
    facts = _remote_ending.Facts(settings.spec, settings.layer)
    facts.supervisor_failed(error)
    with contextlib.suppress(OSError), open(settings.termination_log, "wb") as out:
        out.write(_remote_ending.fitted(facts.message()))
    return 1


def _decode(text: str) -> dict[str, Any]:
    """A spec as `compute::remote::spec` writes it."""
    if not text.startswith("{"):
        import base64
        import zlib

        text = zlib.decompress(base64.b64decode(text)).decode()
    spec: dict[str, Any] = json.loads(text)
    return spec


class Settings:
    """What the engine says, and what the container is."""

    __slots__ = (
        "environment",
        "flow_arguments",
        "given",
        "layer",
        "lease_key",
        "lease_seconds",
        "log_prefix",
        "spec",
        "termination_log",
        "time_limit",
    )

    def __init__(self, spec: dict[str, Any], variables: MutableMapping[str, str]) -> None:
        self.spec = spec
        module = variables.get("FERROFLOW_FLOW_MODULE")
        self.flow_arguments = ["-m", module] if module else [variables["FERROFLOW_FLOW_FILE"]]
        self.layer = variables["FERROFLOW_LAYER"]
        self.log_prefix = variables["FERROFLOW_LOG_PREFIX"]
        self.lease_key = variables["FERROFLOW_LEASE_KEY"]
        self.lease_seconds = float(variables["FERROFLOW_LEASE_SECONDS"])
        self.time_limit = float(variables.get("FERROFLOW_TIME_LIMIT", _NEVER))
        self.termination_log = variables.get("FERROFLOW_TERMINATION_LOG", "/dev/termination-log")
        self.given = _given(spec)
        self.environment = _environment_of_task(self.given, variables)

    def ends_of_other_ranks(self) -> list[str]:
        """Keys of what the other ranks say at their end; none unless they end with this one."""
        gang = self.spec.get("gang")
        if gang is None or gang["rank"] or self.layer != "batch":
            return []
        folder, _, name = self.log_prefix.rstrip("/").rpartition("/")
        first = gang["control_task"]
        behind_task = name.removeprefix(str(first))
        return [f"{folder}/{first + n}{behind_task}/end" for n in range(1, gang["nodes"])]


def _given(spec: dict[str, Any]) -> dict[str, str]:
    """Variables of the step's `@environment`."""
    given = {}
    for decorator in spec["decorators"]:
        if decorator["name"] == "environment":
            for name, value in (decorator["attributes"].get("vars") or {}).items():
                given[name] = str(value)
    return given


def _environment_of_task(
    given: dict[str, str], variables: MutableMapping[str, str]
) -> dict[str, str]:
    environment = {name: text for name, text in variables.items() if not name.startswith(_OURS)}
    folder = os.getcwd()
    module = os.path.join(folder, ".mf_code")
    more = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{module}{os.pathsep}{more}" if more else module
    environment["PWD"] = folder
    environment.update(given)
    return environment


class Supervisor:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._facts = _remote_ending.Facts(settings.spec, settings.layer)
        self._note_place()
        self._pid = 0
        self._control: Connection | None = None
        # Read end of each stream that is still open → its letter and our own stream.
        self._streams: dict[int, tuple[str, int]] = {}
        self._started = time.monotonic()
        self._kill_at = _NEVER
        self._over_at = _NEVER
        self._catch_signals(wake_write)
        self._wake_write = wake_write
        self._instance: _remote_ec2.Instance | None = None
        store = _remote_store.open_store(settings.spec["store"])
        lease = _remote_log.Lease(store, settings.lease_key, settings.lease_seconds)
        self._log = _remote_log.Shipper(store, settings.log_prefix, lease, wake_write)

    def _note_place(self) -> None:
        """What AWS Batch tells a container alone."""
        for name, variable in _PLACE.items() if self._settings.layer == "batch" else ():
            if value := os.environ.get(variable):
                self._note(name, value)

    def _note(self, name: str, value: str) -> None:
        self._facts.hear({"type": "metadata", "name": name, "value": value})

    def _ask_instance(self) -> None:
        variables = self._settings.environment
        if _remote_ec2.is_asked_for(variables):
            layer = self._settings.layer
            self._instance = _remote_ec2.Instance(
                layer, variables, self._note, self._wake, SPOT_NOTICE_FILE
            )

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full, so it wakes anyway
            os.write(self._wake_write, b"\0")

    def _catch_signals(self, wake_write: int) -> None:
        # Process 1 gets no signal that it does not handle.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, _do_nothing)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)

    def run(self) -> int:
        """The exit code of the task, as a shell would say it."""
        if os.getpid() != 1:
            _process.become_subreaper()
        self._start_task()
        # Threads must not be there before the task was forked.
        self._log.start()
        self._ask_instance()
        while time.monotonic() < self._over_at:
            self._wait()
        self._facts.note_leftovers()
        _process.kill_descendants()
        return self._finish()

    def _start_task(self) -> None:
        stdout, stdout_write = os.pipe2(os.O_CLOEXEC)
        stderr, stderr_write = os.pipe2(os.O_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        supervisor = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _process.run_child(
                lambda: self._become_task(supervisor, (stdout_write, stderr_write, theirs.detach()))
            )
        os.close(stdout_write)
        os.close(stderr_write)
        theirs.close()
        self._control = Connection(ours.detach())
        self._streams = {stdout: ("o", 1), stderr: ("e", 2)}

    def _become_task(self, supervisor: int, descriptors: tuple[int, int, int]) -> None:
        os.setpgid(0, 0)
        if supervisor != 1:
            _process.die_with_parent(supervisor)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stdout, stderr, control = descriptors
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, standard in ((null, 0), (stdout, 1), (stderr, 2)):
            os.dup2(descriptor, standard)
        settings = self._settings
        variables = {
            **settings.environment,
            "FERROFLOW_TASK_FD": str(_pass_on(control, _LOWEST_CONTROL_DESCRIPTOR)),
            "FERROFLOW_TASK_SPEC_FD": str(_spec_file(settings.spec)),
        }
        command = [sys.executable, "-u", *settings.flow_arguments]
        os.execve(sys.executable, command, variables)

    # --- while it runs -----------------------------------------------------------------------

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if not self._log.is_full:
            for descriptor in self._streams:
                poll.register(descriptor, select.POLLIN)
        if self._control is not None:
            poll.register(self._control.fileno(), select.POLLIN)
        for descriptor, _ in poll.poll(self._patience()):
            if descriptor == self._wake_read:
                self._woken()
            elif descriptor in self._streams:
                self._pump(descriptor)
            else:
                self._hear()
        self._keep_time()

    def _patience(self) -> float | None:
        """Milliseconds until something is due."""
        due = min(self._overrun_at(), self._kill_at, self._over_at)
        return None if due == _NEVER else max(0.0, due - time.monotonic()) * 1000

    def _overrun_at(self) -> float:
        return self._started + self._settings.time_limit + _TIME_LIMIT_GRACE_SECONDS

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._over_at != _NEVER:
            if not self._streams:
                self._over_at = now
        elif now >= self._kill_at:
            self._kill_at = _NEVER
            _process.signal_group(self._pid, signal.SIGKILL)
        elif now >= self._overrun_at():
            self._facts.overran(self._settings.time_limit, _TIME_LIMIT_GRACE_SECONDS)
            self._settings.time_limit = _NEVER
            _process.signal_group(self._pid, signal.SIGKILL)

    def _woken(self) -> None:
        """Signals and the log's thread write into the same pipe; a zero is the thread's."""
        said = os.read(self._wake_read, 4096)
        if signal.SIGTERM in said or signal.SIGINT in said:
            self._facts.told_to_stop()
            self._stop_task()
        if self._instance and self._instance.notice and not self._facts.spot_ending:
            # For what is left of two minutes the task may save what it has.
            self._facts.spot_ending = self._instance.notice
            _process.signal_group(self._pid, signal.SIGTERM)
        if self._log.lease.expired and not self._facts.engine_lost:
            self._facts.lease_expired(self._settings.lease_seconds)
            self._stop_task()
        self._reap()

    def _stop_task(self) -> None:
        if self._over_at == _NEVER and self._kill_at == _NEVER:
            _process.signal_group(self._pid, signal.SIGTERM)
            self._kill_at = time.monotonic() + _STOP_PATIENCE_SECONDS

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._pid:
                self._facts.ended(status, usage)
                self._over_at = time.monotonic() + _DRAIN_SECONDS

    def _pump(self, descriptor: int) -> None:
        data = os.read(descriptor, _READ_SIZE)
        letter, own = self._streams[descriptor]
        if not data:
            del self._streams[descriptor]
            os.close(descriptor)
            return
        self._log.add(letter, data)
        # For the node's own log, which `kubectl logs` shows.
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(own, data) :]

    def _hear(self) -> None:
        """What the task says on its control channel."""
        assert self._control is not None
        try:
            while (frame := self._control.receive_available()) is not None:
                self._facts.hear(frame.message)
        except EOFError:
            self._control.close()
            self._control = None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self._facts.control_fault(str(error))
            self._control.close()
            self._control = None

    # --- after it ----------------------------------------------------------------------------

    def _finish(self) -> int:
        for descriptor in list(self._streams):
            os.set_blocking(descriptor, False)
            self._drain(descriptor)
        if self._control is not None:
            self._hear()
        if self._instance is not None:
            self._instance.settle()
        message = self._facts.message()
        if problem := self._log.finish(message):
            os.write(2, f"{problem}\n".encode())
            message["log_is_short"] = True
        text = _remote_ending.fitted(message)
        try:
            with open(self._settings.termination_log, "wb") as out:
                out.write(text)
        except OSError:
            # Only Kubernetes has that file; the store tells the others.
            self._log.say_ending(message)
        else:
            if self._settings.layer != "kubernetes":
                self._log.say_ending(message)
        if self._facts.exit_code() == 0 and self._kill_at == _NEVER:
            self._wait_for_ranks()
        return self._facts.exit_code()

    def _wait_for_ranks(self) -> None:
        """AWS Batch stops the other nodes of a gang when the first one ends."""
        others = self._settings.ends_of_other_ranks()
        while others and not self._is_told_to_end():
            with contextlib.suppress(OSError):
                while others and self._log.has(others[-1]):
                    others.pop()
            if self._log.lease.due_in(time.monotonic()) == 0:
                self._log.lease.look()

    def _is_told_to_end(self) -> bool:
        """Waits a little; `True` once nothing is worth waiting for."""
        select.select([self._wake_read], [], [], _LOOK_SECONDS)
        try:
            said = os.read(self._wake_read, 4096)
        except BlockingIOError:
            said = b""
        return self._log.lease.expired or signal.SIGTERM in said or signal.SIGINT in said

    def _drain(self, descriptor: int) -> None:
        try:
            while descriptor in self._streams:
                self._pump(descriptor)
        except BlockingIOError:
            return


def _do_nothing(_number: int, _frame: Any) -> None:
    # The wake-up descriptor does the work; without a handler nothing would be written to it.
    return


def _pass_on(descriptor: int, lowest: int) -> int:
    """The descriptor under a high number, inherited by what is executed."""
    import fcntl

    try:
        moved: int = fcntl.fcntl(descriptor, fcntl.F_DUPFD, lowest)
    except OSError:
        moved = descriptor  # a limit below 200 open files
    os.set_inheritable(moved, True)
    return moved


def _spec_file(spec: dict[str, Any]) -> int:
    """The spec in a file without a name."""
    data = json.dumps(spec).encode()
    try:
        descriptor = os.memfd_create("ferroflow-task-spec")
    except OSError:
        import tempfile

        descriptor = os.dup(tempfile.TemporaryFile().fileno())  # noqa: SIM115 - it stays open
    with open(descriptor, "wb", closefd=False) as out:
        out.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return _pass_on(descriptor, _LOWEST_CONTROL_DESCRIPTOR + 1)


# Loaded here so that an image that cannot load it is told by the bootstrap.
_native.version()
