"""Parts of the cluster that go away while a run is on it: nothing is lost, the user is told."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import REPOSITORY, client
from kubernetes_tools import Namespace, started
from made_up_nodes import MadeUpNodes, Shape, set_running
from parts import KubernetesApi

pytestmark = pytest.mark.cluster

FLOW = """
import time
from metaflow import FlowSpec, kubernetes, step

class LongFlow(FlowSpec):
    @step
    def start(self):
        self.numbers = list(range(4))
        self.next(self.work, foreach="numbers")

    @kubernetes
    @step
    def work(self):
        print("began", self.input, flush=True)
        time.sleep(SECONDS * (1 + self.input % 3))
        self.square = self.input ** 2
        print("ended", self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.squares = [each.square for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def kubernetes_part(verb: str, part: str) -> None:
    command = [str(REPOSITORY / "tests/clusters/kubernetes"), verb, part]
    subprocess.run(command, check=True, timeout=120, capture_output=True)


@contextmanager
def without(part: str) -> Iterator[None]:
    """A component of the cluster is stopped meanwhile."""
    kubernetes_part("stop", part)
    try:
        yield
    finally:
        kubernetes_part("start", part)


@pytest.mark.disruptive
def test_a_run_outlives_a_minute_without_the_api_server(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    # Two tasks end while the server is away, one after it; the fourth cannot begin before that.
    source = FLOW.replace("SECONDS", "20")
    options = ["--max-workers", "3"]
    with started(folder, source, *options, env={**kubernetes, **namespace.environment}) as run:
        for number in range(3):
            run.wait_shown(f"began {number}")
        with without("apiserver"):
            # Output goes on: it comes by the store.
            run.wait_shown("ended 1")
            time.sleep(25)  # the length of the outage is what is tested
        result = run.end(240).ok()
    assert "The Kubernetes API server does not answer" in result.stderr
    assert "The Kubernetes API server answers again." in result.stderr
    assert "Task was lost" not in result.stdout and "Task failed" not in result.stdout
    assert result.stdout.count("Task is starting.") == 7
    squares = client(folder, f'print(Run("LongFlow/{result.run_id}").data.squares)', env=kubernetes)
    assert squares == ["[0, 1, 4, 9]"]
    namespace.wait_empty()


def test_a_task_on_a_node_that_is_lost_starts_again(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, api: KubernetesApi
) -> None:
    only_here = f"""
    from metaflow import FlowSpec, current, kubernetes, step

    class LostFlow(FlowSpec):
        @kubernetes(
            node_selector={{"test": "{namespace.name}"}},
            tolerations=[{{"key": "ferroflow.test/made-up", "operator": "Exists"}}],
        )
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    variables = {**kubernetes, **namespace.environment}
    with MadeUpNodes(api) as nodes:
        nodes.add(f"{namespace.name}-1", Shape(labels={"test": namespace.name}))
        with started(folder, only_here, env=variables) as run:
            pod = namespace.wait_for_pod(lambda pod: pod["spec"].get("nodeName"), "a bound pod")
            set_running(api, pod)
            run.wait_shown("Task is starting.")
            # As the cluster does with a node that has not answered for long.
            gone = {"key": "ferroflow.test/gone", "effect": "NoExecute"}
            nodes.set_ready(f"{namespace.name}-1", False)
            api.patch(f"/api/v1/nodes/{namespace.name}-1", {"spec": {"taints": [gone]}})
            run.wait_shown("Task was lost (its node does not answer any more, or is being emptied")
            assert "which does not count as a retry" in run.shown()
