"""`num_parallel` on a real Kubernetes: ranks are pods that find rank 0 by its name."""

from __future__ import annotations

from pathlib import Path

import pytest
from gang_tools import GANG, RUN, joined
from harness import finish, run_flow, start
from kubernetes_tools import Namespace, is_running, rule

pytestmark = pytest.mark.cluster


def test_ranks_reach_the_first_by_name(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    environment = {**kubernetes, **namespace.environment}
    result = run_flow(folder, GANG, *RUN, "--max-workers", "1", env=environment).ok()
    assert joined(folder, result.run_id, environment) == [
        "[(0, 3, '2'), (1, 3, '2'), (2, 3, '2')]",
        "[[1, 2], 'welcome', 'welcome']",
        "['rank-0', 'rank-1', 'rank-2']",
        "2 [('2', 0), ('3', 0), ('4', 0)]",
    ]
    namespace.nothing_left()


def test_when_a_rank_is_lost_all_start_again(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    environment = {**kubernetes, **namespace.environment}
    # Rank 1 does not come before the test has done its deed, and rank 0 waits for it.
    flow = GANG.read_text().replace(
        "self.heard =",
        "time.sleep(50 * (first and place.node_index == 1))\n        self.heard =",
        1,
    )
    path = folder / "flow.py"
    path.write_text(flow)
    process = start(folder, path, *RUN, env=environment)
    namespace.wait_for(3, lambda pod: is_running(pod, "train"), 90)
    second = [p for p in namespace.of_step("train") if p["spec"]["hostname"] == "rank-1"]
    namespace.delete_pod(second[0])
    result = finish(process, folder).ok()
    assert joined(folder, result.run_id, environment)[1:] == [
        "[[1, 2], 'welcome', 'welcome']",
        "['rank-0', 'rank-1', 'rank-2']",
        "2 [('2', 1), ('3', 1), ('4', 1)]",
    ]
    assert "Task was lost (its pod `" in result.stdout
    namespace.nothing_left()


def test_when_a_rank_fails_all_start_again(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    environment = {**kubernetes, **namespace.environment}
    result = run_flow(folder, GANG, *RUN, "--fails", "1", env=environment).ok()
    assert joined(folder, result.run_id, environment)[1:] == [
        "[[1, 2], 'welcome', 'welcome']",
        "['rank-0', 'rank-1', 'rank-2']",
        "2 [('2', 1), ('3', 1), ('4', 1)]",
    ]
    namespace.nothing_left()


def test_without_the_right_to_make_services_a_gang_is_refused(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    limited = namespace.limited_user(
        rule("jobs", verbs="create delete deletecollection get list", group="batch"),
        rule("pods", verbs="list watch delete deletecollection"),
    )
    environment = {**kubernetes, **namespace.environment, "KUBECONFIG": limited}
    result = run_flow(folder, GANG, *RUN, env=environment).exited(1)
    said = "by which the ranks of a num_parallel find each other"
    assert "step `train`: Kubernetes does not let you create Services" in result.stderr
    assert said in result.stderr
    assert not namespace.jobs()
