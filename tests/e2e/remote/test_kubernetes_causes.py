"""Why tasks on a cluster wait and fail, as their user reads it, and what a run makes of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import Result, client, run_flow
from kubernetes_tools import Json, Namespace, empty_registry, priority_class, rule, started
from parts import PYTHON_IMAGE, KubernetesApi

pytestmark = pytest.mark.cluster


def one_step(body: str, kubernetes: str = "", more: str = "") -> str:
    """A flow whose step `work` runs on the cluster."""
    return f"""
    import os, sys, time
    from metaflow import FlowSpec, catch, current, kubernetes, resources, retry, step, timeout

    class CauseFlow(FlowSpec):
        @step
        def start(self):
            self.next(self.work)

        {more}
        @kubernetes({kubernetes})
        @step
        def work(self):
            {body}
            self.next(self.end)

        @step
        def end(self):
            pass
    """


@pytest.fixture
def user(kubernetes: dict[str, str], namespace: Namespace) -> dict[str, str]:
    return {**kubernetes, **namespace.environment}


def lines_of_work(result: Result) -> list[str]:
    """What is shown of the step `work`, without its prefix."""
    prefix = re.compile(r"\[\d+/work/\d+\] ")
    return [prefix.split(line, 1)[1] for line in result.lines if prefix.search(line)]


def nothing_was_started(folder: Path, result: Result, namespace: Namespace | None) -> None:
    """Refused before anything began: no run, no Job."""
    assert result.stdout == ""
    assert not list(folder.glob(".metaflow/*/latest_run"))
    assert namespace is None or not namespace.jobs()


def failed_with(result: Result, cause: str) -> None:
    """The run failed and the cause, whole, is a line of its task."""
    result.exited(1)
    shown = lines_of_work(result)
    assert cause in shown, shown
    assert "Task failed." in shown


SCHEDULER_SAYS = r"no node fits yet: 0/\d+ nodes are available: .*Insufficient memory"
DISK_SAYS = r"Evicted from node `node1`: .*local storage usage exceeds .*50M\. Raise `disk`\."

# --- before it runs -------------------------------------------------------------------------------


def test_what_does_not_fit_now_shows_the_schedulers_sentence(
    folder: Path, user: dict[str, str], namespace: Namespace
) -> None:
    flow = """
    from metaflow import FlowSpec, kubernetes, resources, step

    class BigFlow(FlowSpec):
        @step
        def start(self):
            self.next(self.big, foreach="numbers")
        numbers = [1, 2, 3]

        @resources(memory=14000)
        @kubernetes
        @step
        def big(self):
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    result = run_flow(folder, flow, "run", env=user).ok()
    waited = re.findall(r"Task is waiting: (.*)", result.stdout)
    assert waited
    for reason in waited:
        assert re.match(
            r"no node fits yet: 0/\d+ nodes are available: .*Insufficient memory", reason
        )


def test_an_image_that_does_not_exist_is_named(folder: Path, user: dict[str, str]) -> None:
    with empty_registry() as registry:
        image = f"{registry}/team/missing:1"
        result = run_flow(folder, one_step("pass", f"image='{image}'"), "run", env=user).exited(1)
    shown = "\n".join(lines_of_work(result))
    assert re.search(rf"The image `{image}` cannot be pulled: .*not found", shown), shown
    assert "Check its name, and `image_pull_secrets`." in shown
    assert "This failed task will not be retried." not in shown


def test_an_image_without_python_is_named(folder: Path, user: dict[str, str]) -> None:
    image = "localhost/ferroflow-no-python:1"
    result = run_flow(folder, one_step("pass", f"image='{image}'"), "run", env=user)
    failed_with(
        result,
        f"The image `{image}` has no `python3`: a task needs an image with Python 3.11 or newer, "
        "such as `python:3.11`.",
    )


def test_a_namespace_that_does_not_exist_is_refused_at_once(
    folder: Path, kubernetes: dict[str, str]
) -> None:
    variables = {**kubernetes, "METAFLOW_KUBERNETES_NAMESPACE": "nowhere"}
    result = run_flow(folder, one_step("pass"), "run", env=variables).exited(1)
    assert (
        'step `work`: Kubernetes has no namespace `nowhere`: namespaces "nowhere" not found. '
        "Create it, or name another one with @kubernetes(namespace=…)"
    ) in result.stderr
    nothing_was_started(folder, result, None)


def test_a_user_who_may_not_create_jobs_is_told(
    folder: Path, user: dict[str, str], namespace: Namespace
) -> None:
    variables = {**user, "KUBECONFIG": namespace.limited_user(rule("pods", verbs="list"))}
    result = run_flow(folder, one_step("pass"), "run", env=variables).exited(1)
    said = result.stderr
    assert f"Kubernetes does not let you create Jobs in the namespace `{namespace.name}`" in said
    assert 'User "limited" cannot create resource "jobs"' in said
    assert "Ask for a role with jobs (create, delete) and pods (list, watch) there" in said
    nothing_was_started(folder, result, namespace)


def test_without_permission_to_list_nodes_the_run_starts_with_a_warning(
    folder: Path, user: dict[str, str], namespace: Namespace
) -> None:
    limited = namespace.limited_user(
        rule("jobs", verbs="create delete", group="batch"), rule("pods", verbs="list watch")
    )
    result = run_flow(folder, one_step("pass"), "run", env={**user, "KUBECONFIG": limited}).ok()
    assert "Whether the cluster's nodes can hold the steps is not known" in result.stderr
    assert "A step that none can hold will wait." in result.stderr


def test_a_full_quota_is_a_reason_to_wait(
    folder: Path, user: dict[str, str], namespace: Namespace
) -> None:
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"count/pods": "0"}}}
    namespace.post("resourcequotas", quota)
    with started(folder, one_step("pass"), env=user) as run:
        run.wait_shown("Task is waiting: the namespace's quota")
        namespace.api.delete(f"{namespace.path}/resourcequotas/few")
        result = run.end().ok()
    assert re.search(
        r"Task is waiting: the namespace's quota has no room for it yet: pods .* is forbidden: "
        r"exceeded quota: few, requested: count/pods=1, used: count/pods=0, limited: count/pods=0",
        result.stdout,
    )


def test_a_secret_that_is_missing_is_named(folder: Path, user: dict[str, str]) -> None:
    result = run_flow(folder, one_step("pass", "secrets=['nothing-there']"), "run", env=user)
    result.exited(1)
    assert 'secret "nothing-there" not found' in result.stdout
    assert "Secrets and config maps that a step names must exist" in result.stdout


# --- while it runs --------------------------------------------------------------------------------


def test_a_pod_without_credentials_says_so_though_it_cannot_write_to_the_store(
    folder: Path, user: dict[str, str]
) -> None:
    env = {**user, "METAFLOW_KUBERNETES_SECRETS": ""}
    failed = run_flow(folder, one_step("print('never')"), "run", env=env)
    assert failed.code == 1
    assert "no AWS credentials were found" in failed.stdout
    assert "(METAFLOW_KUBERNETES_SECRETS)" in failed.stdout
    logged = run_flow(folder, folder / "flow.py", "logs", f"{failed.run_id}/work", env=user).ok()
    assert "no AWS credentials were found" in logged.stdout


def test_too_much_memory_says_what_was_asked(folder: Path, user: dict[str, str]) -> None:
    source = one_step("b'x' * 900_000_000", "memory=150, qos='guaranteed'")
    failed_with(
        run_flow(folder, source, "run", env=user),
        "Out of memory: it asked for 150M and its limit is 150M. Raise `memory` of @resources or "
        "@kubernetes.",
    )


def test_a_full_disk_says_which_limit_was_passed(folder: Path, user: dict[str, str]) -> None:
    body = "open('big', 'wb').write(bytes(150_000_000)); time.sleep(600)"
    result = run_flow(folder, one_step(body, "disk=50, qos='guaranteed'"), "run", env=user)
    result.exited(1)
    shown = "\n".join(lines_of_work(result))
    assert re.search(DISK_SAYS, shown), shown


def test_the_pods_deadline_is_a_timeout(folder: Path, user: dict[str, str]) -> None:
    source = one_step("time.sleep(600)", "pod_spec={'activeDeadlineSeconds': 5}")
    failed_with(
        run_flow(folder, source, "run", env=user),
        "Timed out: it ran past its time limit, and Kubernetes stopped it. Raise it with @timeout.",
    )


def test_an_exception_comes_with_the_users_own_traceback(
    folder: Path, user: dict[str, str]
) -> None:
    result = run_flow(folder, one_step("{}['missing']"), "run", env=user).exited(1)
    shown = "\n".join(lines_of_work(result))
    assert "KeyError: 'missing'" in shown and "in work" in shown
    assert "_remote.py" not in shown and "_task.py" not in shown
    assert result.stderr.count("Step failure") == 1


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("os._exit(7)", "The process ended with exit code 7."),
        ("os.kill(os.getpid(), 11)", "Task failed with a segmentation fault."),
        ("os.kill(os.getpid(), 6)", "Killed by signal 6 (abort)."),
        ("sys.exit(0)", "    Invalid self.next() transition detected:"),
    ],
)
def test_ways_to_die(folder: Path, user: dict[str, str], body: str, cause: str) -> None:
    result = run_flow(folder, one_step(body), "run", env=user).exited(1)
    assert any(line.startswith(cause) for line in lines_of_work(result)), lines_of_work(result)


def test_a_retry_waits_and_then_succeeds(folder: Path, user: dict[str, str]) -> None:
    source = one_step(
        "assert current.retry_count == 1, 'not yet'",
        more="@retry(times=1, minutes_between_retries=0.05)",
    )
    result = run_flow(folder, source, "run", env=user).ok()
    shown = lines_of_work(result)
    assert "Sleeping 0.05 minutes before the next retry" in shown
    assert "Task is starting (retry)." in shown


def test_the_fallback_of_catch_runs_on_this_machine(
    folder: Path, user: dict[str, str], namespace: Namespace
) -> None:
    source = one_step("os._exit(9)", more="@catch(var='failure')")
    result = run_flow(folder, source, "run", env=user).ok()
    attempts = client(
        folder,
        f"""
        task = Run("CauseFlow/{result.run_id}")["work"].task
        print(task.metadata_dict.get("attempt"), type(task["failure"].data).__name__)
        """,
        env=user,
    )
    assert attempts == ["1 MetaflowExceptionWrapper"]
    assert re.search(r"\[\d+/work/\d+ \(pid \d+\)\] ", result.stdout), "no task of this machine"


# --- what the cluster takes away ------------------------------------------------------------------

SLEEPS_AT_FIRST = "time.sleep(600) if current.retry_count == 0 else None"


def test_a_pod_that_somebody_deletes_starts_again(
    folder: Path, user: dict[str, str], namespace: Namespace
) -> None:
    with started(folder, one_step(SLEEPS_AT_FIRST), env=user) as run:
        pod = namespace.wait_running("work")
        namespace.delete_pod(pod, gracePeriodSeconds=1)
        result = run.end().ok()
    name = pod["metadata"]["name"]
    assert (
        f"Task was lost (its pod `{name}` was deleted by somebody else, or its node was drained); "
        "it starts again, which does not count as a retry."
    ) in lines_of_work(result)
    namespace.wait_empty()


def test_a_task_of_higher_priority_takes_the_place(
    folder: Path, user: dict[str, str], namespace: Namespace, api: KubernetesApi
) -> None:
    source = one_step(SLEEPS_AT_FIRST, "memory=14000")
    with priority_class(api, namespace) as urgent, started(folder, source, env=user) as run:
        namespace.wait_running("work")
        namespace.post("pods", urgent_pod(urgent))
        result = run.end().ok()
    assert (
        "Task was lost (preempted by a pod of higher priority: Preempted by "
        f"{namespace.name}/urgent on node node1); it starts again, which does not count as a retry."
    ) in lines_of_work(result)


def urgent_pod(priority: str) -> Json:
    """One that fits on the node only when a task of 14 GB goes."""
    container = {
        "name": "urgent",
        "image": PYTHON_IMAGE,
        "command": ["python3", "-c", "pass"],
        "resources": {"requests": {"memory": "14G"}},
    }
    spec = {
        "priorityClassName": priority,
        "restartPolicy": "Never",
        "containers": [container],
        "nodeSelector": {"kubernetes.io/hostname": "node1"},
    }
    return {"metadata": {"name": "urgent"}, "spec": spec}


def test_a_container_killed_in_the_middle_of_a_line_loses_nothing(
    folder: Path, user: dict[str, str]
) -> None:
    # The process that supervises the task dies, and with it whatever it has not sent yet.
    source = """
    import os, signal, time
    from metaflow import FlowSpec, kubernetes, step

    class CutFlow(FlowSpec):
        @kubernetes(pod_spec={"shareProcessNamespace": True})
        @step
        def start(self):
            for number in range(100):
                print("line", number, flush=True)
                time.sleep(0.02)
            print("cut off in the mid", end="", flush=True)
            time.sleep(0.2)
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    result = run_flow(folder, source, "run", env=user).exited(1)
    shown = [line.split("] ", 1)[1] for line in result.lines if line.startswith("[1/start/")]
    printed = [line for line in shown if line.startswith(("line", "cut"))]
    assert printed == [*(f"line {number}" for number in range(100)), "cut off in the mid"]
    logs = run_flow(folder, folder / "flow.py", "logs", f"{result.run_id}/start", env=user).ok()
    assert logs.stdout.splitlines() == printed
