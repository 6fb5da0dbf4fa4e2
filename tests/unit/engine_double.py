"""Plays the engine for tests of the Python process side.

As a program (`engine_double.py flow --socket-fd N`) it runs the function `scenario(engine)` of the
file that FERROFLOW_TEST_SCENARIO names and prints what it returns as JSON. As a module it has
`run_flow`, which starts a flow with such a scenario.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent.parent / "python"
sys.path[:0] = [str(HERE), str(PACKAGE)]

from metaflow._wire import Connection  # noqa: E402

PATIENCE_SECONDS = 60.0


class Task:
    """One started task, with everything it said so far."""

    def __init__(self, zygote: Zygote, number: int) -> None:
        self.zygote = zygote
        self.number = number
        self.pid = 0
        self.messages: list[dict[str, Any]] = []
        self.exited: dict[str, Any] | None = None
        self.failed: str | None = None
        self._out, out_write = os.pipe()
        self._err, err_write = os.pipe()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.theirs = [out_write, err_write, theirs.detach()]
        self.control = Connection(ours.detach())
        self.stdout, self.stderr = b"", b""
        self._open = {self._out, self._err, self.control.fileno()}

    def pump(self, wait: float) -> None:
        """Read what is there on the task's descriptors."""
        poll = select.poll()
        for descriptor in self._open:
            poll.register(descriptor, select.POLLIN)
        for descriptor, _ in poll.poll(wait * 1000):
            if descriptor == self.control.fileno():
                self._read_control()
                continue
            data = os.read(descriptor, 1 << 16)
            if not data:
                self._open.discard(descriptor)
            elif descriptor == self._out:
                self.stdout += data
            else:
                self.stderr += data

    def _read_control(self) -> None:
        try:
            while (frame := self.control.receive_available()) is not None:
                self.messages.append(frame.message)
        except EOFError:
            self._open.discard(self.control.fileno())

    def wait_for_output(self, text: bytes) -> None:
        wait_until(lambda: text in self.stdout, lambda: self.pump(0.05))

    def wait(self) -> dict[str, Any]:
        """Until it exited: its outcome, output and exit."""

        def step() -> None:
            self.zygote.pump(0.005)
            self.pump(0.0)

        wait_until(lambda: self.exited is not None or self.failed is not None, step)
        for _ in range(20):
            self.pump(0.0)
        return {
            "result": next((m["result"] for m in self.messages if m["type"] == "outcome"), None),
            "messages": self.messages,
            "stdout": self.stdout.decode("utf-8", "replace"),
            "stderr": self.stderr.decode("utf-8", "replace"),
            "exited": self.exited,
            "failed": self.failed,
            "pid": self.pid,
        }

    def close(self) -> None:
        os.close(self._out)
        os.close(self._err)
        self.control.close()


class Zygote:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.tasks: dict[int, Task] = {}
        self.learned: list[dict[str, Any]] = []
        self.ready: dict[str, Any] | None = None
        self.is_gone = False

    def wait_ready(self) -> dict[str, Any]:
        wait_until(lambda: self.ready is not None or self.is_gone, lambda: self.pump(0.05))
        assert self.ready is not None, "the zygote is gone"
        return self.ready

    def start(self, step: str, number: int = 0, **spec: Any) -> Task:
        number = number or len(self.tasks) + 1
        task = self.tasks[number] = Task(self, number)
        self.connection.send(
            {
                "type": "task",
                "attempt": {"task": number, "attempt": 0},
                "spec": {"step": step, "decorators": [], **spec},
            },
            task.theirs,
        )
        for descriptor in task.theirs:
            os.close(descriptor)
        return task

    def run(self, step: str, **spec: Any) -> dict[str, Any]:
        return self.start(step, **spec).wait()

    def signal(self, task: Task, number: int) -> None:
        attempt = {"task": task.number, "attempt": 0}
        self.connection.send({"type": "signal", "attempt": attempt, "signal": number})

    def learn(self, *packages: str) -> dict[str, Any]:
        before = len(self.learned)
        self.connection.send({"type": "learn", "packages": list(packages)})
        wait_until(lambda: len(self.learned) > before, lambda: self.pump(0.05))
        return self.learned[-1]

    def pump(self, wait: float) -> None:
        poll = select.poll()
        poll.register(self.connection.fileno(), select.POLLIN)
        if not poll.poll(wait * 1000):
            return
        try:
            while (frame := self.connection.receive_available()) is not None:
                self._on(frame.message)
        except EOFError:
            self.is_gone = True

    def _on(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "ready":
            self.ready = message
        elif kind == "learned":
            self.learned.append(message)
        else:
            task = self.tasks[message["attempt"]["task"]]
            if kind == "started":
                task.pid = message["pid"]
            elif kind == "exited":
                task.exited = message
            elif kind == "start_failed":
                task.failed = message["message"]


class Engine:
    def __init__(self, descriptor: int) -> None:
        self.connection = Connection(descriptor)
        self.hello = self.connection.receive().message
        self._requests = 0

    def request(self, kind: str, **members: Any) -> dict[str, Any]:
        self._requests += 1
        self.connection.send({"type": kind, "id": self._requests, **members})
        reply = self.connection.receive().message
        assert reply["id"] == self._requests
        return reply

    def open_zygote(self, step: str = "step", wait: bool = True, **settings: Any) -> Zygote:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        full = {"environment": {}, "learned": [], "learn_imports": True, "spawn": False}
        message = {"type": "open_zygote", "step": step, "settings": {**full, **settings}}
        self.connection.send(message, [theirs.fileno()])
        theirs.close()
        zygote = Zygote(Connection(ours.detach()))
        if wait:
            zygote.wait_ready()
        return zygote


def wait_until(condition: Any, step: Any) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "the engine double waited too long"
        step()


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def run_flow(
    folder: Path,
    flow: str,
    scenario: str,
    *arguments: str,
    environment: dict[str, str] | None = None,
    python: tuple[str, ...] = (sys.executable,),
) -> Any:
    """Run a flow file against a scenario; what the scenario returned."""
    done = start_flow(folder, flow, scenario, *arguments, environment=environment, python=python)
    out, err = done.communicate(timeout=PATIENCE_SECONDS * 2)
    assert done.returncode == 0, f"{out}\n{err}"
    return json.loads(out.rpartition("RESULT ")[2].splitlines()[0])


def start_flow(
    folder: Path,
    flow: str,
    scenario: str,
    *arguments: str,
    environment: dict[str, str] | None = None,
    python: tuple[str, ...] = (sys.executable,),
) -> subprocess.Popen[str]:
    prelude = "import fake_runtime\nfake_runtime.install()\n"
    ending = "\nif __name__ == '__main__':\n    fake_runtime.main(Flow)\n"
    (folder / "flow.py").write_text(prelude + textwrap.dedent(flow) + ending)
    (folder / "scenario.py").write_text(textwrap.dedent(scenario))
    inherited = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    variables = {
        **inherited,
        "PYTHONPATH": f"{PACKAGE}:{HERE}",
        "FERROFLOW_ENGINE": str(_engine_program(folder)),
        "FERROFLOW_TEST_SCENARIO": str(folder / "scenario.py"),
        **(environment or {}),
    }
    return subprocess.Popen(
        [*python, "flow.py", *(arguments or ("run",))],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def _engine_program(folder: Path) -> Path:
    program = folder / "engine"
    program.write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
    program.write_text(program.read_text().replace("Path(__file__)", f"Path({str(__file__)!r})"))
    program.chmod(0o755)
    return program


def _play() -> None:
    import runpy

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    engine = Engine(int(sys.argv[sys.argv.index("--socket-fd") + 1]))
    os.environ.pop("FERROFLOW_ENGINE", None)
    scenario = runpy.run_path(os.environ["FERROFLOW_TEST_SCENARIO"])["scenario"]
    print("RESULT " + json.dumps(scenario(engine)), flush=True)


if __name__ == "__main__":
    _play()
