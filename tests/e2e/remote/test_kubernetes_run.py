"""Flows on a real Kubernetes, as their users see them."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import REPOSITORY, client, run_flow
from kubernetes_tools import Namespace

pytestmark = pytest.mark.cluster

SCALE = REPOSITORY / "tests/e2e/flows/scaleflow.py"
HALFWAY = """
class HalfwayFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        import os
        if "METAFLOW_KUBERNETES_WORKLOAD" in os.environ:
            raise ValueError("not there")
        print("here")
"""


def test_a_resume_says_that_it_does_not_run_where_its_origin_ran(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    env = {**kubernetes, **namespace.environment}
    first = run_flow(folder, HALFWAY, "run", "--with", "kubernetes", env=env).exited(1)
    assert "resume --origin-run-id 1 --with kubernetes\n" in first.stderr
    result = run_flow(folder, folder / "flow.py", "resume", env=env).ok()
    assert (
        "Tasks of run 1 ran on kubernetes, but what is left of it runs on this machine, because no "
        "step asks for that layer. If that is not what you want, stop, and resume with --with "
        "kubernetes.\n"
    ) in result.stderr
    assert "here" in result.stdout


@pytest.mark.disruptive  # each of its tasks needs all processors of the node
def test_the_scalable_flow_runs_unchanged(folder: Path, kubernetes: dict[str, str]) -> None:
    options = ("run", "--with", "kubernetes")
    result = run_flow(folder, SCALE, *options, env=kubernetes, deadline=300).ok()
    assert "produced best results" in result.stdout
    shown = client(
        folder,
        f"""
        run = Run("ScalableFlow/{result.run_id}")
        print(len(list(run["train"])), run.successful)
        """,
        env=kubernetes,
    )
    assert shown == ["4 True"]
