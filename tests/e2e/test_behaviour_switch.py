"""Switches and steps that lead to themselves: every form, inside a foreach, resumed."""

from pathlib import Path

import pytest
from harness import client, run_flow, write_flow

SWITCH = """
class SwitchFlow(FlowSpec):
    key = Parameter("key", type=JSONType, default='"a"')

    @step
    def start(self):
        self.next({"a": self.one, 1: self.other, "z": self.one}, condition="key")

    @step
    def one(self):
        self.who = "one"
        self.next(self.end)

    @step
    def other(self):
        self.who = "other"
        self.next(self.end)

    @step
    def end(self):
        print("came by", self.who)
"""

LOOP = """
import os

from metaflow import FlowSpec, step


class LoopFlow(FlowSpec):
    @step
    def start(self):
        self.n = 0
        self.next(self.loop)

    @step
    def loop(self):
        self.n += 1
        self.again = self.n < 3
        print("iteration", self._iteration_stack, self.n)
        if self.n == 3 and os.path.exists("broken"):
            raise ValueError("broken")
        self.next({True: self.loop, False: self.end}, condition="again")

    @step
    def end(self):
        print("looped", self.n, hasattr(self, "_iteration_stack"))
"""

NESTED = """
class NestedFlow(FlowSpec):
    @step
    def start(self):
        self.items = [1, 2, 3]
        self.next(self.count, foreach="items")

    @step
    def count(self):
        self.n = getattr(self, "n", 0) + 1
        self.more = self.n < self.input
        self.next({True: self.count, False: self.choose}, condition="more")

    @step
    def choose(self):
        self.parity = self.n % 2
        self.next({1: self.odd, 0: self.even}, condition="parity")

    @step
    def odd(self):
        self.kind = "odd"
        self.next(self.meet)

    @step
    def even(self):
        self.kind = "even"
        self.next(self.meet)

    @step
    def meet(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        print("found", [(i.n, i.kind) for i in inputs])
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(("key", "came_by"), [('"a"', "one"), ("1", "other"), ('"z"', "one")])
def test_a_switch_takes_one_way(folder: Path, key: str, came_by: str) -> None:
    result = run_flow(folder, SWITCH, "run", "--key", key).ok()
    assert f"[1/end/3 (pid N)] came by {came_by}" in result.lines
    assert sum("Task is starting." in line for line in result.lines) == 3


@pytest.mark.parametrize(("key", "shown"), [('"1"', "'1'"), ("null", "None"), ("[1]", "[1]")])
def test_a_value_without_a_case_is_told(folder: Path, key: str, shown: str) -> None:
    result = run_flow(folder, SWITCH, "run", "--key", key).exited(1)
    sentence = (
        f"RuntimeError: step `start` branches on self.key, whose value is {shown}, "
        "but self.next has no such case; its cases are 'a', 1, 'z'"
    )
    assert any(line.endswith(sentence) for line in result.lines), result.out


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_each_iteration_is_a_task_that_knows_its_number(folder: Path, method: str) -> None:
    result = run_flow(folder, LOOP, "run", env={"FERROFLOW_START_METHOD": method}).ok()
    printed = [line for line in result.lines if "iteration" in line or "looped" in line]
    assert printed == [
        "[1/loop/2 (pid N)] iteration [0] 1",
        "[1/loop/3 (pid N)] iteration [1] 2",
        "[1/loop/4 (pid N)] iteration [2] 3",
        "[1/end/5 (pid N)] looped 3 False",
    ]
    tasks = client(
        folder,
        """
        for task in Run("LoopFlow/1")["loop"]:
            print(task["_iteration_stack"].data, task["n"].data)
        """,
    )
    assert tasks == ["[2] 3", "[1] 2", "[0] 1"]


def test_a_loop_is_resumed_where_it_stopped(folder: Path) -> None:
    flow = write_flow(folder, LOOP)
    (folder / "broken").touch()
    run_flow(folder, flow, "run").exited(1)
    (folder / "broken").unlink()
    result = run_flow(folder, flow, "resume").ok()
    printed = [line for line in result.lines if "iteration" in line or "Cloning prev" in line]
    assert printed == [
        "[2/start/1] Cloning previously run task 1/start/1",
        "[2/loop/2] Cloning previously run task 1/loop/2",
        "[2/loop/3] Cloning previously run task 1/loop/3",
        "[2/loop/4 (pid N)] iteration [2] 3",
    ]


def test_splits_loop_and_branch_each_for_itself(folder: Path) -> None:
    result = run_flow(folder, NESTED, "run").ok()
    (found,) = [line for line in result.lines if "found" in line]
    assert found.endswith("found [(1, 'odd'), (2, 'even'), (3, 'odd')]")
