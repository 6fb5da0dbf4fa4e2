"""A gang as one JobSet, on a server that has those: the same promises as for plain Jobs. The
JobSet's controller is a stand-in (tests/clusters/jobset_controller.py); Jobs, pods and names are
the cluster's. What the server has changes every gang on it, so nothing else runs meanwhile."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from gang_tools import GANG, RUN, WITH, gang, joined
from harness import client, run_flow, wait_until
from jobset_controller import API, JobSetController
from kubernetes_tools import Json, Namespace, rule, started
from parts import KubernetesApi, part

pytestmark = [pytest.mark.cluster, pytest.mark.disruptive]


@pytest.fixture(scope="module")
def jobsets() -> Iterator[JobSetController]:
    """JobSets work while these tests run."""
    with KubernetesApi(part("kubernetes")["KUBECONFIG"]) as api:
        with JobSetController(api) as controller:
            yield controller
        assert not controller.faults, controller.faults


def of(namespace: Namespace) -> list[Json]:
    path = f"/apis/{API}/namespaces/{namespace.name}/jobsets"
    return list(namespace.api.get(path)["items"])


def nothing_left(namespace: Namespace) -> None:
    """The command has seen to all but the Service, which goes with its JobSet."""
    assert not of(namespace)
    wait_until(lambda: not namespace.services(), "the Service's end", 90, 0.2)
    namespace.nothing_left()


def names(count: int, text: str) -> list[str]:
    """Names of the JobSets of a gang's attempts."""
    found = re.findall(r"js-gangflow-1-train-[0-9a-f]{10}", text)
    unique = list(dict.fromkeys(found))
    assert len(unique) == count, text
    return unique


# The first time rank 1 fails, when all have been heard.
FAILS = """
        print("rank", place.node_index, "is in the gang", flush=True)
        if current.retry_count == 0:
            time.sleep(3 if place.node_index == 1 else 600)
            raise ValueError("this rank fails")
        self.next(self.join)
"""


def test_ranks_reach_the_first_and_start_again_when_one_fails(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, jobsets: JobSetController
) -> None:
    environment = {**kubernetes, **namespace.environment}
    with gang(folder, environment, FAILS) as run:
        # The controller ends the other ranks by itself; the engine sees it all only afterwards.
        os.kill(run.process.pid, signal.SIGSTOP)
        others = lambda: [p for p in namespace.of_step("train") if p["status"]["phase"] != "Failed"]  # noqa: E731
        wait_until(lambda: not others(), "the end of the other ranks", 60, 0.1)
        os.kill(run.process.pid, signal.SIGCONT)
        result = run.end().ok()
    assert "ValueError: this rank fails" in result.stdout
    stopped = "Stopped because task 3 of its gang did not end well"
    assert result.stdout.count(stopped) == 2, result.stdout
    assert "lost" not in result.stdout
    places, heard, hosts, tasks = joined(folder, "1", environment)
    assert places == "[(0, 3, '2'), (1, 3, '2'), (2, 3, '2')]"
    assert heard == "[[1, 2], 'welcome', 'welcome']"
    assert tasks == "2 [('2', 1), ('3', 1), ('4', 1)]"
    first, second = names(2, " ".join(jobsets.seen))
    ranks = ["control-0", "worker-0", "worker-1"]
    assert hosts == str([f"{second}-{rank}-0" for rank in ranks])
    recorded = client(
        folder,
        """
        for task in sorted(Run("GangFlow/1")["train"], key=lambda task: int(task.id)):
            names = {m.value for m in task.metadata if m.name == "kubernetes-jobset-name"}
            print(task.id, sorted(names))
        """,
        env=environment,
    )
    assert recorded == [f"{task} {sorted([first, second])}" for task in (2, 3, 4)]
    manifest = jobsets.seen[first]
    assert [job["replicas"] for job in manifest["spec"]["replicatedJobs"]] == [1, 2]
    nothing_left(namespace)


def test_a_lost_rank_starts_the_gang_again_and_ctrl_c_ends_it(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, jobsets: JobSetController
) -> None:
    with gang(folder, {**kubernetes, **namespace.environment}) as run:
        assert len(of(namespace)) == 1
        lost = [p for p in namespace.of_step("train") if "-worker-1-" in p["metadata"]["name"]]
        namespace.delete_pod(lost[0])
        run.wait_shown("Task was lost (its pod `", 60)
        for rank in range(3):
            again = f"rank {rank} is in the gang"
            wait_until(lambda again=again: run.shown().count(again) == 2, again, 120, 0.1)
        assert len(of(namespace)) == 1
        os.kill(run.process.pid, signal.SIGINT)
        result = run.end(60).exited(130)
    assert result.stdout.count("Stopped because task 4 of its gang did not end well") == 2
    assert result.stdout.count("[KILLED BY ORCHESTRATOR]") == 3
    nothing_left(namespace)


def test_kill_ends_it_and_it_does_not_start_again(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, jobsets: JobSetController
) -> None:
    environment = {**kubernetes, **namespace.environment}
    with gang(folder, environment) as run:
        flow = folder / "flow.py"
        listed = run_flow(folder, flow, "kubernetes", "list", env=environment).ok()
        assert listed.stdout.count("Run: 1 Pod: js-gangflow-1-train-") == 3
        kill = ("kubernetes", "kill", "--run-id", "1")
        killed = run_flow(folder, flow, *kill, env=environment).ok()
        assert killed.stdout.count("Killing Kubernetes pod js-gangflow-1-train-") == 3
        result = run.end(60).exited(1)
    assert "Somebody killed it: its JobSet `js-gangflow-1-train-" in result.stdout
    assert "This failed task will not be retried." in result.stdout
    nothing_left(namespace)


def test_without_its_engine_it_is_stopped_and_run_again_by_resume(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, jobsets: JobSetController
) -> None:
    environment = {**kubernetes, **namespace.environment}
    with gang(folder, environment) as run:
        run.process.kill()
        run.process.communicate()
        assert len(of(namespace)) == 1
        result = run_flow(folder, folder / "flow.py", "resume", *WITH, env=environment).ok()
    assert "Stopping 3 tasks that run 1 left behind" in result.stdout
    nothing_left(namespace)


def test_a_jobset_without_a_controller_says_so_and_goes_too(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, jobsets: JobSetController
) -> None:
    environment = {**kubernetes, **namespace.environment}
    jobsets.works.clear()
    try:
        with started(folder, GANG.read_text(), *WITH, env=environment) as run:
            run.wait_shown(" has no pods yet: the cluster's JobSet controller may be busy", 60)
            flow = folder / "flow.py"
            listed = run_flow(folder, flow, "kubernetes", "list", env=environment).ok()
            assert re.search(
                r"Run: 1 Job: js-gangflow-1-train-\w+ .* Status: Waiting", listed.stdout
            )
            os.kill(run.process.pid, signal.SIGINT)
            run.end(60).exited(130)
        assert not of(namespace)
    finally:
        jobsets.works.set()
    nothing_left(namespace)


def test_who_may_not_make_jobsets_gets_plain_jobs(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, jobsets: JobSetController
) -> None:
    limited = namespace.limited_user(
        rule("jobs", verbs="create delete deletecollection get list", group="batch"),
        rule("pods", verbs="get list watch delete deletecollection"),
        rule("services", verbs="create list delete"),
    )
    environment = {**kubernetes, **namespace.environment, "KUBECONFIG": limited}
    result = run_flow(folder, GANG, *RUN, env=environment).ok()
    assert joined(folder, result.run_id, environment)[2] == "['rank-0', 'rank-1', 'rank-2']"
    said = f"does not let you create JobSets in the namespace `{namespace.name}`"
    assert (result.stdout + result.stderr).count(said) == 1
    nothing_left(namespace)


def test_who_may_make_only_jobsets_needs_no_more(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, jobsets: JobSetController
) -> None:
    limited = namespace.limited_user(
        rule("jobsets", verbs="create delete get list", group="jobset.x-k8s.io"),
        rule("pods", verbs="get list watch delete"),
    )
    # All but the gang's own step run on this machine.
    flow = GANG.read_text()
    flow = flow.replace(
        "    @parallel\n", "    @kubernetes(cpu=0.1, memory=128)\n    @parallel\n", 1
    )
    flow = flow.replace("import FlowSpec,", "import FlowSpec, kubernetes,", 1)
    path = folder / "flow.py"
    path.write_text(flow)
    environment = {**kubernetes, **namespace.environment, "KUBECONFIG": limited}
    result = run_flow(folder, path, "run", "--ranks", "2", env=environment).ok()
    assert joined(folder, result.run_id, environment)[1] == "[[1], 'welcome']"
    assert not of(namespace)
    wait_until(lambda: not namespace.services(), "the Service's end", 90, 0.2)
    namespace.wait_empty()
