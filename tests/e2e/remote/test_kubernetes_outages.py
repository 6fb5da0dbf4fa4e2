"""Parts of the cluster that go away while a run is on it: nothing is lost, the user is told."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import REPOSITORY, client, wait_until
from kubernetes_tools import Json, Namespace, started
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


@contextmanager
def frozen_kubelet(api: KubernetesApi) -> Iterator[None]:
    """The real node does not answer meanwhile; its containers go on."""
    with MadeUpNodes(api) as nodes:
        # A cluster all of whose nodes are silent believes none of it, and gives nothing up.
        nodes.add(f"other-{uuid.uuid4().hex[:8]}", Shape())
        kubernetes_part("freeze", "kubelet")
        try:
            yield
        finally:
            kubernetes_part("thaw", "kubelet")
            wait_until(lambda: node_is_ready(api), "the node is ready again", 120, 0.5)


def node_is_ready(api: KubernetesApi) -> bool:
    node = api.get("/api/v1/nodes/node1")
    ready = [c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready"]
    # Taken away when the node is trusted with pods again.
    return ready == ["True"] and not node["spec"].get("taints")


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


# The cluster gives pods of a node that does not answer up at once, instead of after five minutes.
SILENT = """
import time
from metaflow import FlowSpec, current, kubernetes, step

def soon(key):
    key = f"node.kubernetes.io/{key}"
    return dict(key=key, operator="Exists", effect="NoExecute", tolerationSeconds=3)

class SilentFlow(FlowSpec):
    @step
    def start(self):
        self.numbers = [0, 1]
        self.next(self.work, foreach="numbers")

    @kubernetes(tolerations=[soon("unreachable"), soon("not-ready")])
    @step
    def work(self):
        print("began", self.input, flush=True)
        time.sleep(600 * (self.input == 1 and current.retry_count == 0) + 10)
        print("ended", self.input)
        self.square = self.input ** 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.squares = [each.square for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.disruptive
def test_a_node_whose_kubelet_hangs(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, api: KubernetesApi
) -> None:
    """What ends meanwhile counts, what the cluster gives up starts again, and nothing is left."""
    environment = {**kubernetes, **namespace.environment}
    with started(folder, SILENT, env=environment) as run:
        for number in range(2):
            run.wait_shown(f"began {number}")
        # The kubelet says that they run a little later than they do.
        wait_until(lambda: [are_ready(pod) for pod in namespace.pods()] == [True] * 2, "both run")
        with frozen_kubelet(api):
            # Its end comes by the store.
            run.wait_shown("Task finished successfully.\n", 60)
            run.wait_shown("ended 0", 60)
            run.wait_shown("Task was lost (its node does not answer any more", 150)
            assert len(processes(namespace)) >= 1, "the first attempt runs on, seen by nobody"
        result = run.end(240).ok()
    namespace.nothing_left()
    wait_until(lambda: not processes(namespace), "containers are dead", 60, 0.5)
    assert "Node `node1` does not answer." in result.stderr
    assert result.stdout.count("began 0") == 1 and result.stdout.count("began 1") == 2
    squares = client(folder, 'print(Run("SilentFlow/1").data.squares)', env=environment)
    assert squares == ["[0, 1]"]


def are_ready(pod: Json) -> bool:
    """Whether the kubelet has said that the pod's containers run."""
    conditions = pod["status"].get("conditions", [])
    return any(c["type"] == "ContainersReady" and c["status"] == "True" for c in conditions)


def processes(namespace: Namespace) -> list[int]:
    """Processes of the namespace's containers, which run on this machine."""
    mark = f"METAFLOW_KUBERNETES_POD_NAMESPACE={namespace.name}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # it has ended
    return found


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
