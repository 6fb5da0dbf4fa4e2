"""The client inside remote tasks: runs, tags and other tasks' artifacts, which are recorded where
the engine runs and not in the container.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import client, run_flow

pytestmark = pytest.mark.cluster

CURIOUS = """
from metaflow import FlowSpec, Flow, Run, current, namespace, step

class CuriousFlow(FlowSpec):
    @step
    def start(self):
        self.x = [1, 2]
        current.run.add_tags(["kept", "gone"])
        current.run.remove_tag("gone")
        print("tags", sorted(current.run.user_tags))
        for mistake in (lambda: current.run.add_tag(""), lambda: Flow("Nope")):
            try:
                mistake()
            except Exception as error:
                print("told", type(error).__name__)
        self.next(self.fan, foreach="x")

    @step
    def fan(self):
        self.y = self.input * 10
        parent = next(iter(current.task.parent_tasks))
        print("parent", parent.pathspec, parent.data.x, parent.stdout.splitlines()[0])
        self.next(self.join)

    @step
    def join(self, inputs):
        tasks = current.run["fan"]
        print("fan", sorted(task.data.y for task in tasks), current.task.finished)
        earlier = Flow("CuriousFlow").latest_successful_run
        print("earlier", earlier and (earlier.id, earlier["fan"].task.data.y in (10, 20)))
        self.next(self.end)

    @step
    def end(self):
        namespace("user:somebody")
        try:
            Run(current.run.pathspec)
        except Exception as error:
            print("told", type(error).__name__)

if __name__ == "__main__":
    CuriousFlow()
"""


@pytest.mark.parametrize("layer", ["kubernetes", "batch"])
def test_remote_tasks_read_runs_and_change_tags(
    folder: Path, layer: str, request: pytest.FixtureRequest
) -> None:
    env = request.getfixturevalue(layer)
    run_flow(folder, CURIOUS, "run", env=env).ok()
    result = run_flow(folder, folder / "flow.py", "run", "--with", layer, env=env).ok()
    printed = {line.split("] ", 1)[-1] for line in result.lines}
    assert printed >= {
        "tags ['kept']",
        "told MetaflowTaggingError",
        "told MetaflowNotFound",
        "parent CuriousFlow/2/start/1 [1, 2] tags ['kept']",
        "fan [10, 20] False",
        "earlier ('1', True)",
        "told MetaflowNamespaceMismatch",
    }, result.stdout
    shown = client(folder, 'print(sorted(Run("CuriousFlow/2").user_tags))', env=env)
    assert shown == ["['kept']"]
