"""What a run prints and leaves behind, for each shape of graph."""

from pathlib import Path

from harness import client, run_flow

LINEAR = """
class LinearFlow(FlowSpec):
    @step
    def start(self):
        self.x = 41
        print("hello")
        self.next(self.end)

    @step
    def end(self):
        self.x += 1
        print("   indented *stars*")
"""

FOREACH = """
class ForeachFlow(FlowSpec):
    @step
    def start(self):
        self.items = ["a", "b", "c"]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.x = self.input.upper()
        self.same = 1
        self.next(self.join)

    @step
    def join(self, inputs):
        assert (self.index, self.input, self.foreach_stack()) == (None, None, [])
        self.xs = [i.x for i in inputs]
        self.second = inputs[1].x
        self.merge_artifacts(inputs, include=["same"])
        self.next(self.end)

    @step
    def end(self):
        print("xs", self.xs, self.second, self.same)
"""


def test_linear_run_prints_these_lines(folder: Path) -> None:
    result = run_flow(folder, LINEAR, "run").ok()
    assert result.out == (
        "TIME Workflow starting (run-id 1):\n"
        "TIME [1/start/1 (pid N)] Task is starting.\n"
        "TIME [1/start/1 (pid N)] hello\n"
        "TIME [1/start/1 (pid N)] Task finished successfully.\n"
        "TIME [1/end/2 (pid N)] Task is starting.\n"
        "TIME [1/end/2 (pid N)]    indented *stars*\n"
        "TIME [1/end/2 (pid N)] Task finished successfully.\n"
        "TIME Done!\n"
    )
    assert result.err == (
        "Metaflow VERSION executing LinearFlow for user:tester\n"
        "Validating your flow...\n"
        "    The graph looks good!\n"
        "Runs are kept in a new local datastore: DIR/.metaflow\n"
    )
    assert (folder / ".metaflow/LinearFlow/latest_run").read_text() == "1"


def test_run_ids_are_small_integers(folder: Path) -> None:
    for run_id in ("1", "2", "3"):
        assert run_flow(folder, LINEAR, "run").ok().run_id == run_id


def test_quiet_silences_chatter_but_not_the_run(folder: Path) -> None:
    result = run_flow(folder, LINEAR, "--quiet", "run").ok()
    assert result.stderr == ""
    assert "Task is starting." in result.stdout


def test_run_id_file_has_the_id_and_nothing_else(folder: Path) -> None:
    result = run_flow(folder, LINEAR, "run", "--run-id-file", "id.txt").ok()
    assert (folder / "id.txt").read_text() == result.run_id


def test_foreach_and_join(folder: Path) -> None:
    result = run_flow(folder, FOREACH, "run").ok()
    yields = [line for line in result.lines if "yields" in line]
    assert yields == ["[1/start/1 (pid N)] Foreach yields 3 child steps."]
    assert "xs ['A', 'B', 'C'] B 1" in result.stdout
    assert result.stdout.count("Task finished successfully.") == 6


def test_one_file_per_silent_task(folder: Path) -> None:
    run_flow(folder, FOREACH, "run").ok()
    files = [p for p in (folder / ".metaflow/ForeachFlow").rglob("work/**/*") if p.is_file()]
    assert len(files) == 3, files


def test_two_files_for_a_task_that_printed(folder: Path) -> None:
    run_flow(folder, LINEAR, "run").ok()
    files = [p for p in (folder / ".metaflow/LinearFlow").rglob("start/**/*") if p.is_file()]
    assert len(files) == 2, files


def test_branches_join_in_order_of_next(folder: Path) -> None:
    source = """
class BranchFlow(FlowSpec):
    @step
    def start(self):
        self.kept = [1]
        self.next(self.b, self.a)

    @step
    def a(self):
        self.x = "a"
        self.next(self.join)

    @step
    def b(self):
        self.x = "b"
        self.next(self.join)

    @step
    def join(self, inputs):
        self.order = [i.x for i in inputs]
        assert not hasattr(self, "kept")
        assert inputs.a.x == "a" and inputs.b.x == "b"
        self.x = "joined"
        self.merge_artifacts(inputs)
        self.next(self.end)

    @step
    def end(self):
        print(self.order, self.kept, self.x)
"""
    assert "['b', 'a'] [1] joined" in run_flow(folder, source, "run").ok().stdout


def merge_flow(merge: str) -> str:
    return f"""
class MergeFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.a, self.b)

    @step
    def a(self):
        self.x, self.y = 1, "same"
        self.next(self.join)

    @step
    def b(self):
        self.x, self.y = 2, "same"
        self.next(self.join)

    @step
    def join(self, inputs):
        {merge}
        self.next(self.end)

    @step
    def end(self):
        print(sorted(n for n in ("x", "y") if hasattr(self, n)))
"""


def test_merge_conflict_names_the_artifact(folder: Path) -> None:
    result = run_flow(folder, merge_flow("self.merge_artifacts(inputs)"), "run").exited(1)
    assert "Unhandled artifacts in merge" in result.stdout
    assert "`x`" in result.stdout
    assert "Step failure:" in result.err and "(task-id 4) failed." in result.err


def test_merge_exclude_and_include(folder: Path) -> None:
    excluded = run_flow(folder, merge_flow("self.merge_artifacts(inputs, exclude=['x'])"), "run")
    assert "['y']" in excluded.ok().stdout
    missing = run_flow(folder, merge_flow("self.merge_artifacts(inputs, include=['z'])"), "run")
    assert "Missing artifacts in merge" in missing.exited(1).stdout
    both = "self.merge_artifacts(inputs, include=['y'], exclude=['x'])"
    run_flow(folder, merge_flow(both), "run").exited(1)


def test_nested_foreach_stacks(folder: Path) -> None:
    source = """
class NestedFlow(FlowSpec):
    @step
    def start(self):
        self.outer = ["p", "q"]
        self.next(self.middle, foreach="outer")

    @step
    def middle(self):
        self.inner = [1, 2]
        self.next(self.leaf, foreach="inner")

    @step
    def leaf(self):
        self.stack = self.foreach_stack()
        self.next(self.close)

    @step
    def close(self, inputs):
        self.stacks = [i.stack for i in inputs]
        self.seen = (self.index, self.input)
        self.next(self.last)

    @step
    def last(self, inputs):
        self.stacks = [s for i in inputs for s in i.stacks]
        self.seen = [i.seen for i in inputs]
        self.next(self.end)

    @step
    def end(self):
        print(self.stacks)
        print(self.seen)
"""
    result = run_flow(folder, source, "run").ok()
    stacks = [[(0, 2, "p"), (0, 2, 1)], [(0, 2, "p"), (1, 2, 2)]]
    stacks += [[(1, 2, "q"), (0, 2, 1)], [(1, 2, "q"), (1, 2, 2)]]
    assert str(stacks) in result.stdout
    assert "[(0, None), (1, None)]" in result.stdout


def foreach_over(value: str) -> str:
    return FOREACH.replace('["a", "b", "c"]', value).replace("self.input.upper()", "self.input")


def test_foreach_over_iterables(folder: Path) -> None:
    for value, shown in (
        ("range(3)", "[0, 1, 2]"),
        ("(i * i for i in range(3))", "[0, 1, 4]"),
        ("('x', 'y', 'z')", "['x', 'y', 'z']"),
        ("{'k': 1, 'l': 2, 'm': 3}", "['k', 'l', 'm']"),
    ):
        assert f"xs {shown}" in run_flow(folder, foreach_over(value), "run").ok().stdout


def test_empty_foreach_fails(folder: Path) -> None:
    result = run_flow(folder, foreach_over("[]"), "run").exited(1)
    assert "Invalid self.next() transition detected" in result.stdout
    assert "Step failure:" in result.stderr


def test_too_many_splits(folder: Path) -> None:
    result = run_flow(folder, FOREACH, "run", "--max-num-splits", "2").exited(1)
    text = result.stdout + result.stderr
    assert "--max-num-splits" in text
    assert "3" in text and "2" in text
    assert "Step failure:" in result.stderr


def test_constants_parameters_and_private_names(folder: Path) -> None:
    source = """
class ConstantFlow(FlowSpec):
    limit = 5
    p = Parameter("p", default=1)

    @step
    def start(self):
        self._private = "kept"
        self.__mangled = "kept too"
        self.function = lambda: 1
        for name in ("limit", "p"):
            try:
                setattr(self, name, 9)
            except AttributeError as error:
                print("refused", name, error)
        self.next(self.end)

    @step
    def end(self):
        print(self.limit, self._private, self._ConstantFlow__mangled, hasattr(self, "function"))
"""
    result = run_flow(folder, source, "run").ok()
    assert result.stdout.count("refused") == 2
    assert "5 kept kept too False" in result.stdout
    names = client(folder, "print(sorted(a.id for a in Run('ConstantFlow/1')['end'].task))")
    assert "_private" not in names[0] and "limit" in names[0]


def test_missing_attribute_is_an_attribute_error(folder: Path) -> None:
    source = LINEAR.replace("self.x += 1", "self.nothing_here")
    result = run_flow(folder, source, "run").exited(1)
    assert "AttributeError" in result.stdout and "nothing_here" in result.stdout


def test_inherited_steps(folder: Path) -> None:
    source = """
class BaseFlow(FlowSpec):
    shared = Parameter("shared", default="s")

    @step
    def start(self):
        self.next(self.middle)

    @step
    def middle(self):
        self.who = "base"
        self.next(self.end)

    @step
    def end(self):
        print("base end")


class DerivedFlow(BaseFlow):
    @step
    def middle(self):
        self.who = "derived"
        self.next(self.end)

    @step
    def end(self):
        print(self.who, self.shared)
"""
    assert "derived s" in run_flow(folder, source, "run").ok().stdout


def test_flow_of_a_single_step(folder: Path) -> None:
    source = """
class SingleFlow(FlowSpec):
    @step
    def only(self):
        print("alone")
"""
    assert "alone" in run_flow(folder, source, "run").ok().stdout


def test_max_workers_holds(folder: Path) -> None:
    source = """
import os, time
from metaflow import FlowSpec, step

class WideFlow(FlowSpec):
    @step
    def start(self):
        self.items = list(range(8))
        self.next(self.work, foreach="items")

    @step
    def work(self):
        os.makedirs("running", exist_ok=True)
        name = f"running/{self.input}"
        open(name, "w").close()
        self.at_once = len(os.listdir("running"))
        time.sleep(0.05)
        os.remove(name)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.most = max(i.at_once for i in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("most at once:", self.most)
"""
    most = run_flow(folder, source, "run", "--max-workers", "2").ok().stdout
    assert "most at once: 2" in most or "most at once: 1" in most


def test_namespace_option_reaches_the_client_in_tasks(folder: Path) -> None:
    source = """
class SpaceFlow(FlowSpec):
    @step
    def start(self):
        print("namespace", get_namespace(), current.namespace)
        self.next(self.end)

    @step
    def end(self):
        pass
"""
    assert "namespace user:tester user:tester" in run_flow(folder, source, "run").ok().stdout
    globally = run_flow(folder, source, "run", "--namespace=").ok().stdout
    assert "namespace None user:tester" in globally


def test_a_second_flow_in_a_subfolder_uses_the_nearest_store(folder: Path) -> None:
    run_flow(folder, LINEAR, "run").ok()
    below = folder / "below"
    below.mkdir()
    assert run_flow(below, LINEAR, "run").ok().run_id == "2"
    assert not (below / ".metaflow").exists()
