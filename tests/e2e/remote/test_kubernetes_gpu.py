"""GPUs on Kubernetes: what is refused, and what waits. The nodes with GPUs are made up."""

from __future__ import annotations

import signal
import uuid
from pathlib import Path

import pytest
from harness import REPOSITORY, finish, run_flow, start, wait_until
from kubernetes_tools import Json, Namespace
from made_up_nodes import GPU, MadeUpNodes, Shape
from parts import PYTHON_IMAGE, KubernetesApi

pytestmark = pytest.mark.cluster

FLOW = REPOSITORY / "tests/e2e/flows/scaleflow.py"


def test_gpus_that_no_node_has_are_refused(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    environment = {**kubernetes, **namespace.environment}
    # Of this vendor there is none, whatever other tests make up.
    spec = "kubernetes:gpu=1,gpu_vendor=amd"
    result = run_flow(folder, FLOW, "run", "--with", spec, env=environment).exited(1)
    assert "asks for amd.com/gpu 1, but none of the cluster's" in result.stderr
    assert "device plugin" in result.stderr
    assert "Workflow starting" not in result.stdout
    assert not namespace.jobs()


def occupant(namespace: Namespace, pool: str) -> Json:
    """A pod of somebody else that has the pool's only GPU."""
    container = {
        "name": "other",
        "image": PYTHON_IMAGE,
        "command": ["python", "-c", "0"],
        "resources": {"limits": {GPU: "1"}},
    }
    notes = {"metaflow/step_name": "none"}
    spec = {"nodeSelector": {"pool": pool}, "containers": [container]}
    body = {"metadata": {"name": "occupant", "annotations": notes}, "spec": spec}
    namespace.post("pods", body)
    return namespace.wait_for_pod(lambda pod: pod["spec"].get("nodeName"), "a bound pod", 30)


def test_a_step_waits_while_all_gpus_are_taken(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, api: KubernetesApi
) -> None:
    environment = {**kubernetes, **namespace.environment}
    pool = f"pool-{uuid.uuid4().hex[:8]}"
    with MadeUpNodes(api) as nodes:
        nodes.add(pool, Shape(gpus=1, labels={"pool": pool}))
        other = occupant(namespace, pool)
        shown = folder / "shown"
        spec = f"kubernetes:gpu=1,node_selector=pool={pool}"
        with shown.open("wb") as out:
            process = start(
                folder, FLOW, "run", "--with", spec, env=environment, stdout=out.fileno()
            )
        try:
            said = f"Insufficient {GPU}"
            wait_until(lambda: said in shown.read_text(), "a reason to wait", 30, 0.2)
            assert "Task is waiting" in shown.read_text() or "no node fits yet" in shown.read_text()
            (pod,) = namespace.of_step("start")
            resources = pod["spec"]["containers"][0]["resources"]
            assert (resources["limits"], resources["requests"][GPU]) == ({GPU: "1"}, "1")
            namespace.delete_pod(other, gracePeriodSeconds=0)
            bound = lambda pod: pod["spec"].get("nodeName") == pool  # noqa: E731
            own = lambda pod: pod["metadata"]["name"] != "occupant" and bound(pod)  # noqa: E731
            namespace.wait_for_pod(own, "the step gets the GPU", 60)
        finally:
            process.send_signal(signal.SIGINT)
            finish(process, folder, 60)
        wait_until(lambda: not namespace.jobs(), "no Job is left", 30, 0.2)
