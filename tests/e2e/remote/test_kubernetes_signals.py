"""SIGINT and SIGTERM while tasks are on a cluster: whatever they were doing, they are gone within
five seconds, Jobs and pods, or it is said what is left and how to remove it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from harness import Result, wait_until
from kubernetes_tools import Json, Namespace, Started, is_running, rule, started
from made_up_nodes import MadeUpNodes, Shape, set_finished, set_running
from parts import KubernetesApi, part

pytestmark = pytest.mark.cluster

MANY = 500
# After the signal. Beyond them a sentence must say what is left.
SILENT_SECONDS = 5.5
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def wide_flow(width: int, options: str = "", body: str = "time.sleep(600)", retry: str = "") -> str:
    return f"""
    import time
    from metaflow import FlowSpec, kubernetes, retry, step

    class WideFlow(FlowSpec):
        @step
        def start(self):
            self.numbers = list(range({width}))
            self.next(self.work, foreach="numbers")

        @kubernetes({options})
        @retry({retry or "times=0"})
        @step
        def work(self):
            print("at work", flush=True)
            {body}
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
    """


def wide_run(
    folder: Path, source: str, variables: dict[str, str], width: int
) -> AbstractContextManager[Started]:
    most = ["--max-workers", str(width), "--max-num-splits", str(width)]
    return started(folder, source, *most, env=variables)


def stop(run: Started, namespace: Namespace, number: signal.Signals) -> Result:
    """Sends the signal; when the command has ended, nothing of the run is left on the cluster, or
    what it said is true and removes the rest."""
    began = time.monotonic()
    os.kill(run.process.pid, number)
    result = run.end(60).exited(EXIT_CODES[number])
    took = time.monotonic() - began
    left = names(namespace)
    said = " ".join(result.stderr.split())
    print(f"ended after {took:.1f} s, {len(left)} left: {said}")
    if took > SILENT_SECONDS:
        assert "After 5 seconds" in said, f"{took} s of silence\n{said}\n{result.stdout[-3000:]}"
    if left:
        follow_advice(said, namespace)
    else:
        assert ("After 5 seconds" in said) == ("Nothing of this run is left" in said), said
    return result


def names(namespace: Namespace) -> list[str]:
    return [item["metadata"]["name"] for item in [*namespace.jobs(), *namespace.pods()]]


def follow_advice(said: str, namespace: Namespace) -> None:
    """Runs the last command that was told; nothing is left then."""
    told = re.findall(r"kubectl (-n \S+ delete \S+ (?:--force )?-l \S+)", said)
    assert told, f"left behind: {names(namespace)}, and not a word about it\n{said}"
    kubectl = ["kubectl", "--kubeconfig", part("kubernetes")["KUBECONFIG"]]
    done = subprocess.run(
        [*kubectl, *told[-1].split()], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not names(namespace), f"`kubectl {told[-1]}` left them behind"


def test_tasks_that_run_are_gone(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    variables = {**kubernetes, **namespace.environment}
    with wide_run(folder, wide_flow(4), variables, 4) as run:
        namespace.wait_for(4, is_running)
        result = stop(run, namespace, signal.SIGINT)
    assert result.stdout.count("[KILLED BY ORCHESTRATOR]") == 4


def test_tasks_that_no_node_holds_are_gone(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    variables = {
        **kubernetes,
        **namespace.environment,
        "METAFLOW_KUBERNETES_AUTOSCALED": "1",
        "METAFLOW_KUBERNETES_NODE_SELECTOR": "no=such",
    }
    with wide_run(folder, wide_flow(4), variables, 4) as run:
        namespace.wait_for(4, is_unschedulable)
        stop(run, namespace, signal.SIGTERM)


def test_tasks_whose_image_is_being_pulled_are_gone(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    variables = {**kubernetes, **namespace.environment}
    with silent_registry() as registry:
        source = wide_flow(4, options=f"image='{registry}/slow/image:1'")
        with wide_run(folder, source, variables, 4) as run:
            wait_until(lambda: len(namespace.events("Pulling")) == 4, "four pulls", pause=0.1)
            stop(run, namespace, signal.SIGINT)


def test_tasks_that_wait_before_a_retry_are_gone(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    source = wide_flow(
        4, body="raise ValueError('again')", retry="times=3, minutes_between_retries=5"
    )
    variables = {**kubernetes, **namespace.environment}
    with wide_run(folder, source, variables, 4) as run:
        namespace.wait_for(4, lambda pod: pod["status"].get("phase") == "Failed")
        result = stop(run, namespace, signal.SIGTERM)
    assert result.stdout.count("Sleeping 5 minutes before the next retry") >= 1


def test_a_task_that_ignores_sigterm_is_killed(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    ignore = "import signal; signal.signal(15, signal.SIG_IGN)"
    body = f"{ignore}; print('deaf', flush=True); time.sleep(600)"
    variables = {**kubernetes, **namespace.environment}
    with wide_run(folder, wide_flow(1, body=body), variables, 1) as run:
        pod = namespace.wait_running()
        wait_until(lambda: "deaf" in namespace.log(pod), "the task is deaf", pause=0.1)
        stop(run, namespace, signal.SIGINT)


def test_single_deletes_take_over_where_collections_may_not_be_deleted(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    user = namespace.limited_user(
        rule("jobs", verbs="create get list delete", group="batch"),
        rule("pods", verbs="get list watch delete"),
    )
    variables = {**kubernetes, **namespace.environment, "KUBECONFIG": user}
    with wide_run(folder, wide_flow(4), variables, 4) as run:
        namespace.wait_for(4, is_running)
        stop(run, namespace, signal.SIGINT)


def test_what_may_not_be_deleted_is_told_with_the_command_that_does(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    user = namespace.limited_user(
        rule("jobs", verbs="create get list", group="batch"), rule("pods", verbs="get list watch")
    )
    variables = {**kubernetes, **namespace.environment, "KUBECONFIG": user}
    with wide_run(folder, wide_flow(1), variables, 1) as run:
        namespace.wait_running()
        os.kill(run.process.pid, signal.SIGINT)
        result = run.end(30).exited(130)
    said = " ".join((result.stdout + result.stderr).split())
    assert "jobs.batch" in said and 'cannot delete resource "jobs"' in said
    assert (
        f"flow.py kubernetes kill --run-id {result.run_id}, or: kubectl -n {namespace.name}" in said
    )
    assert namespace.jobs(), "the test's user may not delete them"


def test_what_a_silent_node_keeps_is_told_with_the_command_that_removes_it(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, api: KubernetesApi
) -> None:
    with MadeUpNodes(api) as nodes:
        nodes.add(namespace.name, Shape(labels={"test": namespace.name}, silent=True))
        variables = {**kubernetes, **on_nodes(namespace)}
        with wide_run(folder, wide_flow(4), variables, 4) as run:
            namespace.wait_for(4, lambda pod: pod["spec"].get("nodeName"))
            for pod in namespace.pods():
                set_running(api, pod)
            run.wait_shown("Task is starting", 30)
            result = stop(run, namespace, signal.SIGINT)
    said = " ".join(result.stderr.split())
    assert "After 5 seconds Kubernetes still has 4 pods (`wideflow-1-work-" in said
    assert (
        f"4 pods of this run have been deleted, but node `{namespace.name}` has not said that the "
        "container is dead: they go when it does." in said
    )
    assert "flow.py kubernetes kill --run-id 1, or: kubectl" in said


# --- five hundred, on made-up nodes -------------------------------------------------------------


@pytest.fixture
def many_nodes(api: KubernetesApi, namespace: Namespace) -> Iterator[dict[str, str]]:
    """Room for all on nodes that only this test's tasks go to; their variables."""
    with MadeUpNodes(api) as nodes:
        labels = {"test": namespace.name}
        for number in range(2):
            nodes.add(f"{namespace.name}-{number}", Shape(cpu="512", memory="2Ti", labels=labels))
        yield on_nodes(namespace)


def on_nodes(namespace: Namespace) -> dict[str, str]:
    """Variables of runs whose tasks go to made-up nodes with the test's label."""
    return {
        **namespace.environment,
        "METAFLOW_KUBERNETES_NODE_SELECTOR": f"test={namespace.name}",
        "METAFLOW_KUBERNETES_TOLERATIONS": '[{"operator": "Exists"}]',
        "METAFLOW_KUBERNETES_DISK": "100",
    }


def test_five_hundred_that_are_being_submitted_are_gone(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    variables = {
        **kubernetes,
        **namespace.environment,
        "METAFLOW_KUBERNETES_AUTOSCALED": "1",
        "METAFLOW_KUBERNETES_NODE_SELECTOR": "no=such",
    }
    with wide_run(folder, wide_flow(MANY), variables, MANY) as run:
        wait_until(lambda: len(namespace.jobs()) >= 100, "a hundred jobs", pause=0.1)
        stop(run, namespace, signal.SIGINT)


def test_five_hundred_in_every_phase_are_gone(
    folder: Path,
    kubernetes: dict[str, str],
    namespace: Namespace,
    api: KubernetesApi,
    many_nodes: dict[str, str],
) -> None:
    variables = {**kubernetes, **many_nodes}
    source = wide_flow(MANY, retry="times=3, minutes_between_retries=5")
    with wide_run(folder, source, variables, MANY) as run:
        namespace.wait_for(MANY, lambda pod: pod["spec"].get("nodeName"))
        pods = namespace.pods()
        with ThreadPoolExecutor(8) as several:
            # 100 wait for a retry, 250 run, the others are being prepared.
            list(several.map(lambda pod: set_running(api, pod), pods[:350]))
            list(several.map(lambda pod: set_finished(api, pod, exit_code=1), pods[:100]))
        stop(run, namespace, signal.SIGTERM)


def is_unschedulable(pod: Json) -> bool:
    return any(c.get("reason") == "Unschedulable" for c in pod["status"].get("conditions", []))


@contextmanager
def silent_registry() -> Iterator[str]:
    """A registry that takes connections and never says anything."""
    with socket.create_server(("0.0.0.0", 0), backlog=64) as server:
        yield f"10.88.0.1:{server.getsockname()[1]}"
