"""The two sides that are compared, and how a command of either is run and measured."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

FLOWS = Path(__file__).resolve().parent / "flows"
REPOSITORY = Path(__file__).resolve().parents[2]
PEER_HOME = Path.home() / ".cache" / "ferroflow" / "peer"


@dataclass
class Side:
    """An interpreter with one of the two `metaflow` modules, in a name for the table."""

    name: str
    python: str


@dataclass
class Measured:
    """A finished command. CPU seconds are those of all processes that were waited for."""

    code: int
    seconds: float
    cpu: float
    output: str
    peak_memory: int = 0

    def ok(self) -> "Measured":
        if self.code != 0:
            raise SystemExit(f"a measured command ended with {self.code}:\n{self.output[-3000:]}")
        return self


def ours() -> Side:
    return Side("Ferroflow", sys.executable)


def peer() -> Side:
    """Stock Metaflow, in an environment of its own; installed on first use."""
    python = PEER_HOME / "bin" / "python"
    if not python.exists():
        print(f"installing stock Metaflow into {PEER_HOME}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(PEER_HOME)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "metaflow", "numpy"]
        subprocess.run(command, check=True)
    return Side("stock Metaflow", str(python))


def version_of(side: Side, package: str) -> str:
    code = f"from importlib.metadata import version; print(version('{package}'))"
    done = subprocess.run(
        [side.python, "-c", code], check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    return done.stdout.decode().strip() or "this checkout"


@contextmanager
def scratch() -> Iterator[Path]:
    """A working folder on the disk that holds the cache, not on a tmpfs."""
    base = Path.home() / ".cache" / "ferroflow" / "bench"
    base.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment(folder: Path, extra: dict[str, str] | None = None) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {**kept, "HOME": str(folder), "USER": "bench", "TZ": "UTC", **(extra or {})}


def run(
    side: Side,
    folder: Path,
    *arguments: str,
    extra: dict[str, str] | None = None,
    sample: bool = False,
) -> Measured:
    """Runs `python ARGUMENTS` to its end; `sample` watches the memory of engine and server."""
    output = folder / "output.txt"
    with output.open("wb") as sink:
        began = time.perf_counter()
        process = subprocess.Popen(
            [side.python, *arguments],
            cwd=folder,
            env=environment(folder, extra),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
        watcher = MemoryWatcher(process.pid) if sample else None
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            # Told to stop: nothing of ours may go on.
            process.terminate()
            raise
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    return Measured(
        process.returncode,
        seconds,
        usage.ru_utime + usage.ru_stime,
        output.read_text(errors="replace") if output.stat().st_size < 64 << 20 else "",
        watcher.stop() if watcher else 0,
    )


def flow(side: Side, folder: Path, name: str, *arguments: str, **options: object) -> Measured:
    return run(side, folder, str(FLOWS / name), *arguments, **options)  # type: ignore[arg-type]


class MemoryWatcher:
    """Largest sum of resident memory of a process and its direct children.

    For Ferroflow these are the engine and the fork server; pages that the two share count twice.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            self._peak = max(self._peak, sum(map(resident, [self._pid, *children(self._pid)])))

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._peak


def children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


def resident(pid: int) -> int:
    """Bytes; 0 for a process that is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def line_time(output: str, fragment: str) -> float:
    """Epoch seconds of the first run log line with this fragment (the runs use UTC)."""
    for line in output.splitlines():
        if fragment in line:
            found = re.match(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3})", line)
            if found:
                return datetime.fromisoformat(found[1] + "+00:00").timestamp()
    raise SystemExit(f"no line with `{fragment}` in:\n{output[-2000:]}")
