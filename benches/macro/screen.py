"""A run as its user sees it: when each line reaches the screen, and what its engine needs."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from sides import FLOWS, Side, children, environment, resident, run

SAID = re.compile(r"\[\d+/work/(\d+)\] (line \d+ of \d+ said at (\d+\.\d+))$")
RUN_ID = re.compile(r"\(run-id (\w+)\)")
ESTABLISHED = "01"

# Prints what was recorded: outcome, result, then each task's lines.
RECORDED = """
import sys
from metaflow import Run
run = Run('{flow}/{run_id}')
print(run.successful, run.data.total, sum(1 for task in run['work'] if task.successful))
for task in run['work']:
    for line in task.stdout.splitlines():
        print(task.id, line)
"""


@dataclass
class Screen:
    flow: str
    code: int = 0
    seconds: float = 0.0
    output: str = ""
    late: list[float] = field(default_factory=list)
    printed: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    lines: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    peak_memory: int = 0
    connections: int = 0

    def percentile(self, percent: int) -> float:
        ordered = sorted(self.late)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]

    def take(self, line: str, now: float) -> None:
        if found := SAID.search(line):
            task, said, at = found.groups()
            self.lines[task].append(said)
            self.late.append(now - float(at))
            self.printed[task].append(float(at))

    def printing_together(self) -> int:
        """Most tasks that were between their first and their last line at one moment."""
        begun = [(times[0], 1) for times in self.printed.values()]
        over = [(times[-1], -1) for times in self.printed.values()]
        return max(accumulate(change for _, change in sorted(begun + over)), default=0)

    def check(
        self, side: Side, folder: Path, width: int, lines: int, variables: dict[str, str]
    ) -> None:
        """Everything was recorded, and the recorded logs are what the screen showed."""
        found = RUN_ID.search(self.output)
        if self.code != 0 or not found:
            raise SystemExit(f"the run ended with {self.code}:\n{self.output[-3000:]}")
        code = RECORDED.format(flow=self.flow, run_id=found[1])
        told = run(side, folder, "-c", code, extra=variables).ok().output.splitlines()
        expected = f"True {sum(range(width))} {width}"
        if told[0] != expected:
            raise SystemExit(f"recorded is `{told[0]}` and not `{expected}`")
        recorded = defaultdict(list)
        for line in told[1:]:
            task, _, text = line.partition(" ")
            recorded[task].append(text)
        if recorded != self.lines or len(self.late) != width * lines:
            raise SystemExit(f"{len(self.late)} lines were shown; the recorded logs are others")


def watch(side: Side, folder: Path, name: str, *arguments: str, extra: dict[str, str]) -> Screen:
    """Runs a command of a flow and watches it."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [side.python, str(FLOWS / name), *arguments],
        cwd=folder,
        env=environment(folder, extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    seen = Screen(re.findall(r"class (\w+)\(", (FLOWS / name).read_text())[0])
    over = threading.Event()
    watcher = threading.Thread(target=look_at, args=(process.pid, seen, over), daemon=True)
    watcher.start()
    try:
        seen.output = read_screen(process, seen)
        seen.code = process.wait()
    finally:
        over.set()
        if process.poll() is None:
            process.terminate()
            # Read on: an engine whose output nobody takes cannot end.
            process.communicate()
    seen.seconds = time.perf_counter() - began
    watcher.join()
    return seen


def read_screen(process: subprocess.Popen[bytes], seen: Screen) -> str:
    assert process.stdout is not None
    text = []
    for line in process.stdout:
        now = time.time()
        text.append(line.decode(errors="replace"))
        seen.take(text[-1].rstrip("\n"), now)
    return "".join(text)


def look_at(pid: int, seen: Screen, over: threading.Event) -> None:
    """The engine is the started process; the fork server is its child."""
    while not over.wait(0.2):
        memory = sum(map(resident, [pid, *children(pid)]))
        seen.peak_memory = max(seen.peak_memory, memory)
        seen.connections = max(seen.connections, connections(pid))


def connections(pid: int) -> int:
    """Established TCP connections of a process."""
    own = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                own.add(os.readlink(entry.path))
            except OSError:
                continue  # closed meanwhile
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return 0
    rows = (line.split() for table in tables for line in table.splitlines()[1:])
    return sum(row[3] == ESTABLISHED and f"socket:[{row[9]}]" in own for row in rows)
