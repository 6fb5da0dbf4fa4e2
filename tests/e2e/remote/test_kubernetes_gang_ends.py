"""A gang on a real Kubernetes that is ended while all its ranks run: by Ctrl-C, by `kubernetes
kill`, by losing its engine. Nothing of it is left, the Service included."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from gang_tools import WITH, gang
from harness import client, run_flow
from kubernetes_tools import Namespace

pytestmark = pytest.mark.cluster


def test_ctrl_c_ends_a_gang(folder: Path, kubernetes: dict[str, str], namespace: Namespace) -> None:
    with gang(folder, {**kubernetes, **namespace.environment}) as run:
        assert len(namespace.services()) == 1
        os.kill(run.process.pid, signal.SIGINT)
        result = run.end(60).exited(130)
    namespace.nothing_left()
    assert result.stdout.count("[KILLED BY ORCHESTRATOR]") == 3
    assert result.stdout.count("Task is starting") == 4


def test_kill_ends_a_gang_and_it_does_not_start_again(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    environment = {**kubernetes, **namespace.environment}
    with gang(folder, environment) as run:
        killed = run_flow(
            folder, folder / "flow.py", "kubernetes", "kill", "--run-id", "1", env=environment
        ).ok()
        assert killed.stdout.count("Killing Kubernetes pod gangflow-1-train-") == 3
        result = run.end(60).exited(1)
    namespace.nothing_left()
    assert "Somebody killed it: its Job `gangflow-1-train-" in result.stdout
    # A gang has one retry, which is not for what somebody wanted dead.
    assert "This failed task will not be retried." in result.stdout
    states = client(
        folder,
        """
        tasks = Run("GangFlow/1")["train"]
        print(sorted((t.id, t.current_attempt, t.successful) for t in tasks))
        """,
        env=environment,
    )
    assert states == ["[('2', 0, False), ('3', 0, False), ('4', 0, False)]"]


def test_a_gang_without_its_engine_is_stopped_and_run_again_by_resume(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    environment = {**kubernetes, **namespace.environment}
    with gang(folder, environment) as run:
        run.process.kill()
        run.process.communicate()
        before = {pod["metadata"]["uid"] for pod in namespace.of_step("train")}
        assert len(before) == 3
        result = run_flow(folder, folder / "flow.py", "resume", *WITH, env=environment).ok()
    namespace.nothing_left()
    assert "Stopping 3 tasks that run 1 left behind" in result.stdout
    assert "[2/start/1] Cloning" in result.stdout
    lines = client(
        folder,
        """
        run = Run("GangFlow/2")
        print(run["join"].task.data.hosts, run["join"].task.data.heard)
        print(sorted((t.id, t.current_attempt) for t in run["train"]))
        """,
        env=environment,
    )
    assert lines == [
        "['rank-0', 'rank-1', 'rank-2'] [[1, 2], 'welcome', 'welcome']",
        "[('2', 0), ('3', 0), ('4', 0)]",
    ]
