"""What a run on a cluster is refused before anything starts, and what it waits for instead."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from harness import run_flow
from kubernetes_tools import Namespace, started

pytestmark = pytest.mark.cluster

FLOW = """
class WorkFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def user(kubernetes: dict[str, str], namespace: Namespace) -> dict[str, str]:
    return {**kubernetes, **namespace.environment}


def test_what_no_node_can_ever_hold_is_refused(
    folder: Path, user: dict[str, str], namespace: Namespace
) -> None:
    result = run_flow(folder, FLOW, "run", "--with", "kubernetes:memory=512000", env=user).exited(1)
    assert result.seconds < 5
    assert re.search(
        r"step `start` asks for cpu 0\.1, disk 1000 MB, memory 512000 MB, which no node of the "
        r"cluster can ever hold\. Nodes: .*`node1` has cpu 2, disk \d+ MB, memory \d+ MB.*\. The "
        r"nearest fit is `node1`: ask for at most memory \d+ MB, or add a larger node",
        result.stderr,
    ), result.stderr
    assert "(likewise `end`)" in result.stderr
    assert result.stdout == "" and not namespace.jobs()
    assert not list(folder.glob(".metaflow/*/latest_run"))


def test_where_nodes_come_when_needed_it_starts_and_says_what_it_waits_for(
    folder: Path, user: dict[str, str]
) -> None:
    variables = {**user, "METAFLOW_KUBERNETES_AUTOSCALED": "1"}
    options = ["--with", "kubernetes:memory=512000"]
    began = time.monotonic()
    with started(folder, FLOW, *options, env=variables) as run:
        run.wait_shown("Task is waiting: no node fits yet: 0/")
        assert time.monotonic() - began < 10
        assert "Insufficient memory" in run.shown()


def test_a_selector_that_no_node_has_is_refused(folder: Path, user: dict[str, str]) -> None:
    options = ["--with", "kubernetes:node_selector=pool=none"]
    result = run_flow(folder, FLOW, "run", *options, env=user).exited(1)
    assert "step `start` can run on no node of the cluster" in result.stderr
    assert "the labels of its node selector (pool=none)" in result.stderr


def test_a_cluster_that_does_not_answer_is_named(folder: Path, user: dict[str, str]) -> None:
    config = folder / "kubeconfig"
    config.write_text(
        """
        apiVersion: v1
        kind: Config
        clusters: [{name: gone, cluster: {server: "http://127.0.0.1:9"}}]
        users: [{name: me, user: {}}]
        contexts: [{name: gone, context: {cluster: gone, user: me}}]
        current-context: gone
        """
    )
    variables = {**user, "KUBECONFIG": str(config)}
    result = run_flow(folder, FLOW, "run", "--with", "kubernetes", env=variables).exited(1)
    assert "the Kubernetes API server at http://127.0.0.1:9/ cannot be reached" in result.stderr
    assert result.seconds < 7
