"""The disk of a pod that is full in the middle of a step: the cause is told, and what was printed
and kept before is not lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import client, run_flow
from kubernetes_tools import Namespace

pytestmark = pytest.mark.cluster

# Its first attempt fills the disk and goes on printing until its node evicts it.
EVICTED = """
import os, time
from metaflow import FlowSpec, current, kubernetes, retry, step

class FullFlow(FlowSpec):
    @step
    def start(self):
        self.numbers = [1, 2, 3]
        self.next(self.work, foreach="numbers")

    @retry(times=1, minutes_between_retries=0)
    @kubernetes(disk=40, qos="guaranteed")
    @step
    def work(self):
        fills = self.input == 2 and current.retry_count == 0
        self.before = self.input * 10
        for number in range(100_000 if fills else 3):
            print("line", number, "of", self.input, flush=True)
            time.sleep(0.05)
            if fills and number == 20:
                with open("/tmp/big", "wb") as file:
                    file.write(bytes(120_000_000))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.sums = [each.before for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""

# A temporary folder of 8 MB that the step fills itself.
NO_SPACE = """
import os, tempfile
from metaflow import FlowSpec, current, kubernetes, step

class TightFlow(FlowSpec):
    @kubernetes(tmpfs_size=8)
    @step
    def start(self):
        self.small = "kept"
        print("before", flush=True)
        try:
            with open(os.path.join(current.tempdir, "big"), "wb") as file:
                while True:
                    file.write(bytes(1_000_000))
        except OSError as error:
            print("the disk says:", error.strerror, flush=True)
        for number in range(5_000):
            print("x" * 1_000, "line", number, "of 0")
        print("after", flush=True)
        self.large = os.urandom(20_000_000)
        self.next(self.end)

    @step
    def end(self):
        print("has", len(self.large), self.small)
"""


@pytest.fixture
def user(kubernetes: dict[str, str], namespace: Namespace) -> dict[str, str]:
    return {**kubernetes, **namespace.environment}


def numbers(text: str, item: int) -> list[int]:
    """What the task of an item printed, attempt after attempt."""
    return [int(number) for number in re.findall(rf"line (\d+) of {item}\n", text)]


def test_a_task_that_fills_its_disk_while_it_prints(
    folder: Path, user: dict[str, str], namespace: Namespace
) -> None:
    result = run_flow(folder, EVICTED, "run", env=user, deadline=240).ok()
    namespace.nothing_left()
    told = r"\[1/work/3\] Evicted from node `node1`: .*usage exceeds .*40M\. Raise `disk`\."
    assert re.search(told, result.stdout)
    shown = numbers(result.stdout, 2)
    # It went on printing until its node noticed: no line is missing, none comes twice.
    assert len(shown) > 23 and shown == [*range(len(shown) - 3), 0, 1, 2]
    assert numbers(result.stdout, 1) == numbers(result.stdout, 3) == [0, 1, 2]
    flow = folder / "flow.py"
    kept = run_flow(folder, flow, "logs", "1/work/3", "--attempt", "0", env=user).ok()
    assert numbers(kept.stdout, 2) == shown[:-3]
    sums = client(folder, 'print(Run("FullFlow/1")["join"].task.data.sums)', env=user)
    assert sums == ["[10, 20, 30]"]


def test_a_step_whose_temporary_folder_is_full(
    folder: Path, user: dict[str, str], namespace: Namespace
) -> None:
    """What the engine's side of the task writes goes elsewhere."""
    result = run_flow(folder, NO_SPACE, "run", env=user).ok()
    namespace.nothing_left()
    said = [line.split("] ", 1)[1] for line in result.lines if "[1/start/1]" in line]
    assert [line for line in said if not line.startswith("xxx")] == [
        "Task is starting.",
        "before",
        "the disk says: No space left on device",
        "after",
        "Task finished successfully.",
    ]
    assert numbers(result.stdout, 0) == list(range(5_000))
    assert "has 20000000 kept" in result.stdout
