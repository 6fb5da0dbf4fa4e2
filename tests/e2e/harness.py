"""Runs flows as a user does, through the command line, and makes what they print comparable.

Every process started here carries a mark in its environment, so that a test can ask what is still
alive, daemons included. Nothing here sleeps for luck: conditions are awaited with a deadline.
"""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"
DEADLINE = 120.0
MARK = "FERROFLOW_TEST_MARK"

PREAMBLE = """\
from metaflow import *
from metaflow import FlowSpec, step
"""


@dataclass
class Result:
    """What a finished command came to. `out` and `err` are normalised, `stdout` is not."""

    code: int
    stdout: str
    stderr: str
    folder: Path
    seconds: float

    @property
    def out(self) -> str:
        return normalise(self.stdout, self.folder)

    @property
    def err(self) -> str:
        return normalise(self.stderr, self.folder)

    @property
    def lines(self) -> list[str]:
        """Run log lines without their times."""
        return [line.removeprefix("TIME ") for line in self.out.splitlines()]

    @property
    def run_id(self) -> str:
        found = re.search(r"\(run-id ([^)]+)\)", self.stdout)
        assert found, f"no run id in:\n{self.stdout}\n{self.stderr}"
        return found[1]

    def ok(self) -> "Result":
        """The result itself, having checked that the command succeeded."""
        __tracebackhide__ = True
        return self.exited(0)

    def exited(self, code: int) -> "Result":
        __tracebackhide__ = True
        assert self.code == code, f"exit code {self.code}, not {code}\n{self.stdout}\n{self.stderr}"
        return self


def normalise(text: str, folder: Path) -> str:
    """Replaces times, process ids, durations and folders by fixed words."""
    text = re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} ", "TIME ", text)
    text = re.sub(r"\(pid \d+\)", "(pid N)", text)
    text = re.sub(r"Metaflow \d[\w.+-]* executing", "Metaflow VERSION executing", text)
    text = re.sub(r"\b\d+(\.\d+)? ?(ms|s|seconds)\b", "DURATION", text)
    return text.replace(str(folder), "DIR").replace(str(REPOSITORY), "REPO")


def environment(folder: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    """A small environment of its own: a user, a home, this interpreter first on the path."""
    values = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "HOME": str(folder),
        "USER": "tester",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        MARK: str(folder),
    }
    for name in ("CARGO_TARGET_DIR", "CARGO_HOME", "RUSTUP_HOME", "SSL_CERT_FILE"):
        if name in os.environ:
            values[name] = os.environ[name]
    return {**values, **(extra or {})}


def write_flow(folder: Path, source: str, name: str = "flow.py") -> Path:
    """Writes a flow; the imports and the last lines are added if they are not there."""
    text = textwrap.dedent(source)
    if "import" not in text.split("class ", 1)[0]:
        text = PREAMBLE + text
    if "__main__" not in text:
        flow = re.findall(r"(?m)^class (\w+)\(", text)[-1]
        text += f"\n\nif __name__ == '__main__':\n    {flow}()\n"
    path = folder / name
    path.write_text(text)
    return path


def interpreter_of(flow: Path) -> list[str]:
    return ["Rscript"] if flow.suffix == ".R" else [sys.executable]


def r_library() -> str:
    """Where `make r` has installed the R package."""
    return os.environ.get("R_LIBS", str(REPOSITORY / ".venv" / "r-library"))


def start(
    folder: Path,
    flow: Path,
    *arguments: str,
    env: dict[str, str] | None = None,
    stdout: int | None = None,
    address_space: int | None = None,
    group: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Starts a command of a flow in a session of its own; with a limit of bytes, in a cgroup."""
    command = [*interpreter_of(flow), str(flow), *arguments]
    limits = []
    if address_space:
        limits.append(f"ulimit -v {address_space >> 10}")
    if group:
        limits.append(f"echo $$ > {group}/cgroup.procs")
    if limits:
        command = ["sh", "-c", " && ".join([*limits, 'exec "$0" "$@"']), *command]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder, {"R_LIBS": r_library(), **(env or {})}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[bytes]", folder: Path, deadline: float = DEADLINE) -> Result:
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        kill_marked(folder)
        out, err = process.communicate()
        raise AssertionError(
            f"no end after {deadline} s:\n{(out or b'').decode(errors='replace')[-5000:]}\n"
            f"{(err or b'').decode(errors='replace')[-5000:]}"
        ) from None
    return Result(
        process.returncode,
        (out or b"").decode(errors="replace"),
        (err or b"").decode(errors="replace"),
        folder,
        time.monotonic() - began,
    )


def run_flow(
    folder: Path,
    flow: str | Path,
    *arguments: str,
    deadline: float = DEADLINE,
    **more: Any,
) -> Result:
    """Runs one command of a flow, given as source text or as a file, to its end."""
    path = write_flow(folder, flow) if isinstance(flow, str) else flow
    return finish(start(folder, path, *arguments, **more), folder, deadline)


def run_python(
    folder: Path, source: str, *arguments: str, env: dict[str, str] | None = None
) -> Result:
    """Runs a piece of Python, e.g. one that uses the client, in the flow's folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(source), *arguments],
        cwd=folder,
        env=environment(folder, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    return finish(process, folder)


def client(folder: Path, source: str, env: dict[str, str] | None = None) -> list[str]:
    """Lines printed by a piece of Python that has the client's names imported."""
    __tracebackhide__ = True
    names = "from metaflow import Flow, Run, Step, Task, DataArtifact, Metaflow, namespace\n"
    return run_python(folder, names + textwrap.dedent(source), env=env).ok().stdout.splitlines()


def wait_until(
    condition: Callable[[], object], what: str, deadline: float = 60.0, pause: float = 0.005
) -> None:
    """Waits for a condition, and says what did not happen when it does not."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline} s"
        time.sleep(pause)


def marked_processes(folder: Path) -> dict[int, str]:
    """Process id and command line of every live process that descends from a test's commands."""
    mark = f"{MARK}={folder}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, IndexError):
            continue
        if mark in variables and state not in "ZX":
            found[int(entry.name)] = command
    return found


def kill_marked(folder: Path) -> None:
    for pid in marked_processes(folder):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def nothing_left(folder: Path, within: float = 1.0) -> None:
    """Checks that no process of the test's commands is alive, at the latest after a second."""
    end = time.monotonic() + within
    while True:
        left = marked_processes(folder)
        if not left:
            return
        if time.monotonic() > end:
            kill_marked(folder)
            raise AssertionError(f"still alive after {within} s: {left}")
        time.sleep(0.01)


@contextmanager
def background(folder: Path, flow: Path, *arguments: str) -> "Iterator[subprocess.Popen[bytes]]":
    """A command that is killed, with all it started, if the test leaves it running."""
    process = start(folder, flow, *arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_marked(folder)
            process.communicate()


@contextmanager
def memory_group(limit: int) -> Iterator[Path]:
    """A real memory cgroup of this many bytes; skips the test where none may be made."""
    name = f"ferroflow-test-{uuid.uuid4().hex[:8]}"
    group = _limited_group(name, limit)
    if group is None:
        pytest.skip("making a memory cgroup needs root and a writable cgroup file system")
    try:
        yield group
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "empty cgroup", 10)
        group.rmdir()


def _limited_group(name: str, limit: int) -> Path | None:
    for base in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")):
        group = base / name
        try:
            group.mkdir()
        except OSError:
            continue
        for file in ("memory.max", "memory.limit_in_bytes"):
            if (group / file).exists():
                (group / file).write_text(str(limit))
                swap = group / "memory.swap.max"
                if swap.exists():
                    swap.write_text("0")
                return group
        group.rmdir()
    return None
