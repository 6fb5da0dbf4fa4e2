"""`list` and `kill` on each layer: two users, two flows, two runs each, and for every way to say
which are meant the exact set that is listed, killed and left alive."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Result, client, finish, run_flow, start, wait_until, write_flow
from kubernetes_tools import Json, Namespace, rule
from parts import part

pytestmark = pytest.mark.cluster

SLEEPS = """
from metaflow import FlowSpec, step


class {name}(FlowSpec):
    @step
    def start(self):
        import time

        print("asleep", flush=True)
        time.sleep(600)
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    {name}()
"""

Task = tuple[str, str, str]
"""User, flow and run id of a task that is alive."""


@dataclass
class Layer:
    """A layer as these tests use it."""

    name: str
    environment: dict[str, str]
    alive: Callable[[], set[Task]]
    listed: re.Pattern[str]
    """A line of `list`; its groups are those of `key`."""
    killed: re.Pattern[str]
    nothing_listed: str
    nothing_killed: str
    tells_of_kills: bool = True
    """`localbatch` does not: to an engine a job that was ended looks like one that died."""


@pytest.fixture
def kubernetes_layer(kubernetes: dict[str, str], namespace: Namespace) -> Layer:
    def alive() -> set[Task]:
        found = set()
        for pod in namespace.pods():
            notes = pod["metadata"]["annotations"]
            over = "deletionTimestamp" in pod["metadata"] or pod["status"]["phase"] != "Running"
            if not over:
                found.add(
                    tuple(notes[f"metaflow/{key}"] for key in ("user", "flow_name", "run_id"))
                )
        return found

    environment = {
        **kubernetes,
        **namespace.environment,
        "METAFLOW_KUBERNETES_CPU": "0.01",
        "METAFLOW_KUBERNETES_MEMORY": "32",
    }
    return Layer(
        "kubernetes",
        environment,
        alive,
        re.compile(
            r"Run: (?P<run>\d+) Pod: (?P<task>\S+) Started At: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
            r"Status: Running"
        ),
        re.compile(r"Killing Kubernetes pod (?P<task>\S+)"),
        "No active Kubernetes pods found.",
        "No active Kubernetes pods found for run {run}",
    )


@pytest.fixture
def batch_layer(batch: dict[str, str]) -> Layer:
    queue = batch["METAFLOW_BATCH_JOB_QUEUE"]
    address = batch["AWS_ENDPOINT_URL_BATCH"]

    def ask(call: str, body: Json) -> Json:
        request = urllib.request.Request(f"{address}/v1/{call}", json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            found: Json = json.load(answer)
        return found

    def alive() -> set[Task]:
        listed = ask("listjobs", {"jobQueue": queue, "jobStatus": "RUNNING"})["jobSummaryList"]
        ids = [job["jobId"] for job in listed]
        jobs = ask("describejobs", {"jobs": ids})["jobs"] if ids else []
        keys = ("user", "flow_name", "run_id")
        named = [{key: job["parameters"].get(f"metaflow.{key}") for key in keys} for job in jobs]
        # Other tests' jobs are in the queue, too.
        return {
            (name["user"], name["flow_name"], name["run_id"])
            for name in named
            if MARKS & {str(name["user"])[4:]}
        }

    job = r"(?P<task>\S+-(?P<run>\d+)-start-\S+) \[\S+\] \(RUNNING\)"
    return Layer(
        "batch",
        batch,
        alive,
        re.compile(job),
        re.compile(f"Killing AWS Batch job: {job}"),
        "No running AWS Batch jobs found.",
        "No running AWS Batch jobs found.",
        tells_of_kills=False,
    )


MARKS: set[str] = set()
"""Of the users of this process' tests."""


class Runs:
    """Two users in a folder each, two flows, two runs of each, all asleep."""

    def __init__(self, layer: Layer, folder: Path) -> None:
        self.layer = layer
        mark = uuid.uuid4().hex[:8]
        MARKS.add(mark)
        self.users = [f"ann-{mark}", f"bob-{mark}"]
        self.flows = [f"First{mark}", f"Second{mark}"]
        self.folders = {user: folder / user for user in self.users}
        self.started: dict[Task, subprocess.Popen[bytes]] = {}
        for user, place in self.folders.items():
            place.mkdir()
            for flow in self.flows:
                write_flow(place, SLEEPS.format(name=flow), f"{flow}.py")
                for _ in range(2):
                    self._start(user, flow)

    def _start(self, user: str, flow: str) -> None:
        place = self.folders[user]
        file = place / f"run-{len(self.started)}"
        run = ("run", "--run-id-file", str(file), "--with", self.layer.name)
        process = start(place, place / f"{flow}.py", *run, env=self.environment(user))
        wait_until(lambda: file.exists() or process.poll() is not None, "a run id", 60)
        assert file.exists(), finish(process, place)
        self.started[user, flow, file.read_text()] = process

    def environment(self, user: str) -> dict[str, str]:
        return {**self.layer.environment, "METAFLOW_USER": user}

    def command(self, user: str, flow: str, *words: str) -> Result:
        place = self.folders[user]
        flow_file = place / f"{flow}.py"
        return run_flow(place, flow_file, self.layer.name, *words, env=self.environment(user))

    def of(self, user: str, flow: str) -> list[Task]:
        """In the order in which they were started."""
        return [task for task in self.started if task[:2] == (user, flow)]

    def end_of(self, task: Task) -> Result:
        """How the run of a task ended."""
        return finish(self.started[task], self.folders[task[0]], 60)

    def leave_tasks_alone(self) -> None:
        """Kills the engines, which would start again what they believe to have been lost."""
        for process in self.started.values():
            os.killpg(process.pid, signal.SIGKILL)

    def stop(self) -> None:
        if not self.layer.tells_of_kills:
            for user in self.users:
                for flow in self.flows:
                    self.command(user, flow, "kill", "--my-runs")
        for process in self.started.values():
            if process.poll() is None:
                process.terminate()
        for task in self.started:
            if not self.started[task].stdout.closed:  # type: ignore[union-attr]
                self.end_of(task)


@contextmanager
def eight_runs(layer: Layer, folder: Path) -> Iterator[Runs]:
    runs = Runs(layer, folder)
    try:
        wait_until(lambda: layer.alive() == set(runs.started), "eight tasks", 120, 0.2)
        if not layer.tells_of_kills:
            runs.leave_tasks_alone()
        yield runs
    finally:
        runs.stop()


def test_list_and_kill_on_kubernetes(kubernetes_layer: Layer, folder: Path) -> None:
    with eight_runs(kubernetes_layer, folder) as runs:
        check_lists(runs)
        check_kills(runs)


def test_list_and_kill_on_batch(batch_layer: Layer, folder: Path) -> None:
    with eight_runs(batch_layer, folder) as runs:
        check_lists(runs)
        check_kills(runs)


def check_lists(runs: Runs) -> None:
    (ann, bob), (first, second) = runs.users, runs.flows
    latest = runs.of(ann, first)[1]
    run = runs.of(ann, second)[0][2]
    ways: list[tuple[str, tuple[str, ...], list[Task]]] = [
        (first, (), [latest]),
        (second, ("--run-id", run), [(ann, second, run)]),
        (first, ("--my-runs",), runs.of(ann, first)),
        (first, ("--user", bob), runs.of(bob, first)),
        (second, ("--user", bob, "--run-id", run), [(bob, second, run)]),
        (first, ("--user", f"{bob}x"), []),
        (first, ("--run-id", "77"), []),
    ]
    for flow, options, wanted in ways:
        result = runs.command(ann, flow, "list", *options).ok()
        lines = result.stdout.splitlines()
        if not wanted:
            assert lines == [runs.layer.nothing_listed], options
            continue
        found = [runs.layer.listed.fullmatch(line) for line in lines]
        assert all(found), lines
        assert [match["run"] for match in found if match] == [task[2] for task in wanted], options
    assert runs.layer.alive() == set(runs.started)


def check_kills(runs: Runs) -> None:
    (ann, bob), (first, second) = runs.users, runs.flows
    run = runs.of(ann, second)[0][2]
    alive = set(runs.started)

    def kills(flow: str, options: tuple[str, ...], wanted: list[Task]) -> None:
        result = runs.command(ann, flow, "kill", *options).ok()
        lines = result.stdout.splitlines()
        assert len(lines) == len(wanted), (options, lines)
        assert all(runs.layer.killed.fullmatch(line) for line in lines), lines
        count = "1 task is gone." if len(wanted) == 1 else f"{len(wanted)} tasks are gone."
        assert result.stderr.splitlines()[-1] == count
        alive.difference_update(wanted)
        assert runs.layer.alive() == alive, options

    def refuses(options: tuple[str, ...], text: str) -> None:
        for verb in ("list", "kill"):
            result = runs.command(ann, first, verb, *options).exited(1)
            assert (result.stdout, text in result.stderr) == ("", True), result.stderr
        assert runs.layer.alive() == alive, options

    refuses(("--my-runs", "--user", bob), "--my-runs and --user are mutually exclusive")
    refuses(("--my-runs", "--run-id", run), "--my-runs and --run-id are mutually exclusive")
    kills(first, (), runs.of(ann, first)[1:])
    # What was started is gone, and its engine does not start it again.
    nothing = runs.command(ann, first, "kill").ok()
    latest = runs.of(ann, first)[1]
    assert nothing.stdout.splitlines() == [runs.layer.nothing_killed.format(run=latest[2])]
    kills(second, ("--run-id", run), [(ann, second, run)])
    kills(second, ("--user", bob, "--run-id", run), [(bob, second, run)])
    kills(first, ("--my-runs",), runs.of(ann, first)[:1])
    kills(first, ("--user", bob), runs.of(bob, first))
    for task in sorted(set(runs.started) - alive if runs.layer.tells_of_kills else ()):
        tell_of_the_kill(runs, task)


def tell_of_the_kill(runs: Runs, task: Task) -> None:
    """The run's own engine ends, and tells and records what happened."""
    user, flow, run = task
    result = runs.end_of(task).exited(1)
    words = [line.partition("] ")[2] for line in result.lines if f"[{run}/start/1]" in line]
    assert words[-2].startswith("Somebody killed it: "), result.stdout
    assert words[-1] == "Task failed."
    shown = client(
        runs.folders[user],
        f"""
        namespace(None)
        run = Run("{flow}/{run}")
        print(run.successful, [task.id for task in run["start"]])
        """,
        env=runs.environment(user),
    )
    assert shown == ["False ['1']"]


def allow_too(namespace: Namespace, more: Json) -> None:
    """Gives the limited user another right."""
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace.name}/roles/limited"
    role = namespace.api.get(roles)
    namespace.api.put(roles, {**role, "rules": [*role["rules"], more]})


def test_who_may_not_see_or_delete_is_told(
    kubernetes_layer: Layer, namespace: Namespace, folder: Path
) -> None:
    layer = kubernetes_layer
    flow = f"Flow{uuid.uuid4().hex[:8]}"
    path = write_flow(folder, SLEEPS.format(name=flow))
    process = start(folder, path, "run", "--with", "kubernetes", env=layer.environment)
    wait_until(lambda: len(layer.alive()) == 1, "a task", 60, 0.2)
    limited = namespace.limited_user(rule("pods", verbs="list"))
    weak = {**layer.environment, "KUBECONFIG": limited}
    shown = run_flow(folder, path, "kubernetes", "list", env=weak).ok()
    assert layer.listed.fullmatch(shown.stdout.strip()), shown.stdout
    refused = run_flow(folder, path, "kubernetes", "kill", env=weak).exited(1)
    assert "Kubernetes does not let you delete Jobs, so tasks still run: " in refused.stderr
    assert "Ask for a role with jobs (delete) and pods (delete)" in refused.stderr
    assert len(layer.alive()) == 1
    # Deleting one by one is enough, where deleting by label is not allowed.
    allow_too(namespace, rule("jobs", verbs="delete", group="batch"))
    run_flow(folder, path, "kubernetes", "kill", env=weak).ok()
    assert layer.alive() == set()
    assert "Somebody killed it" in finish(process, folder).exited(1).stdout


def test_namespaces_that_are_not_there_or_not_ours(kubernetes_layer: Layer, folder: Path) -> None:
    path = write_flow(folder, SLEEPS.format(name="Alone"))
    environment = kubernetes_layer.environment
    nowhere = {**environment, "METAFLOW_KUBERNETES_NAMESPACE": "no-such-place"}
    mine = ("list", "--my-runs")
    missing = run_flow(folder, path, "kubernetes", *mine, env=nowhere).exited(1)
    assert (
        "Kubernetes has no namespace `no-such-place`: set METAFLOW_KUBERNETES_NAM" in missing.stderr
    )
    given = ("--with", "kubernetes:namespace=no-such-place", "kubernetes", *mine)
    assert (
        "no namespace `no-such-place`"
        in run_flow(folder, path, *given, env=environment).exited(1).stderr
    )
    no_rights = {
        **environment,
        "KUBECONFIG": part("kubernetes")["FERROFLOW_TEST_KUBECONFIG_LIMITED"],
    }
    hidden = run_flow(folder, path, "kubernetes", *mine, env=no_rights).exited(1)
    assert "Kubernetes does not let you see pods in the namespace" in hidden.stderr
