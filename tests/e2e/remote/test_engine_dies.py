"""The engine of a run dies, sleeps, or is one of two, while its tasks run on a cluster: nothing
runs twice, nothing is lost, and everyone is told the truth."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_tools import Arrays, door
from harness import Result, client, finish, run_flow, start, write_flow
from kubernetes_api import ApiError
from parts import BUCKET, KubernetesApi, put

pytestmark = pytest.mark.cluster

FLOW = """
import os, time, uuid
from metaflow import S3, FlowSpec, kubernetes, step

def signs():
    return S3(s3root=os.environ["METAFLOW_DATASTORE_SYSROOT_S3"] + "/signs")

def mark(what):
    with signs() as s3:
        s3.put(f"began-{what}-{uuid.uuid4().hex}", "x")

def is_there(name):
    with signs() as s3:
        return s3.info(name, return_missing=True).exists

def wait_for(name):
    end = time.time() + 240
    while not is_there(name):
        assert time.time() < end, f"nobody said {name}"
        time.sleep(0.3)

class DieFlow(FlowSpec):
    @step
    def start(self):
        open("started", "a").write("s")
        self.items = list(range(5))
        self.next(self.work, foreach="items")

    @kubernetes
    @step
    def work(self):
        mark(self.input)
        print("first line of", self.input, flush=True)
        wait_for(f"go-{self.input}")
        if self.input == 2 and not is_there("mended"):
            with signs() as s3:
                s3.put("mended", "x")
            raise ValueError("not mended")
        print("last line of", self.input)
        self.x = self.input * 10
        self.next(self.join)

    @step
    def join(self, inputs):
        self.xs = [i.x for i in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("result", self.xs)
"""


class Signs:
    """Objects by which the test and the flow's tasks talk."""

    def __init__(self, env: dict[str, str]) -> None:
        prefix = env["METAFLOW_DATASTORE_SYSROOT_S3"].removeprefix(f"s3://{BUCKET}/")
        self._bucket = f"{env['AWS_ENDPOINT_URL_S3']}/{BUCKET}"
        self._prefix = f"{prefix}/signs/"

    def say(self, name: str) -> None:
        put(f"{self._bucket}/{self._prefix}{name}", data=b"x")

    def _names(self) -> list[str]:
        url = f"{self._bucket}?list-type=2&prefix={self._prefix}"
        with urllib.request.urlopen(url) as answer:
            found = re.findall(r"<Key>([^<]+)</Key>", answer.read().decode())
        return [key.removeprefix(self._prefix) for key in found]

    def begun(self) -> Counter[str]:
        """How often the work of each item was begun."""
        return Counter(name.split("-")[1] for name in self._names() if name.startswith("began-"))


def until(condition: Callable[[], object], what: str, deadline: float = 90.0) -> None:
    """`wait_until` for conditions that are costly to ask for."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline} s"
        time.sleep(0.25)


class Scene:
    """A flow, its user and its pods."""

    def __init__(self, folder: Path, env: dict[str, str], api: KubernetesApi) -> None:
        self.folder, self.env, self.api = folder, env, api
        self.signs = Signs(env)
        self.flow = write_flow(folder, FLOW)
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        process = start(self.folder, self.flow, *arguments, env={**self.env, **more})
        self.started.append(process)
        return process

    def command(self, *arguments: str) -> Result:
        return run_flow(self.folder, self.flow, *arguments, env=self.env)

    def finish(self, process: subprocess.Popen[bytes]) -> Result:
        return finish(process, self.folder, 180)

    def ask(self, source: str) -> list[str]:
        return client(self.folder, source, env=self.env)

    def begun(self, *items: int) -> bool:
        return all(self.signs.begun()[str(item)] for item in items)

    def killed_while(self, *items: int, **more: str) -> None:
        """Run 1, whose engine was killed while these items were worked on."""
        engine = self.start("run", "--max-workers", str(len(items)), **more)
        until(lambda: self.begun(*items), "tasks at work")
        self.kill(engine)

    def kill(self, engine: subprocess.Popen[bytes]) -> None:
        engine.kill()
        engine.communicate()

    def pods(self) -> dict[str, dict[str, Any]]:
        """Pods of this test's runs, by run and task."""
        scope = (self.folder / ".metaflow" / "store_scope").read_text().strip()
        found = {}
        for pod in self.api.get("/api/v1/namespaces/default/pods")["items"]:
            variables = {
                e["name"]: e.get("value") or "" for e in pod["spec"]["containers"][0]["env"]
            }
            if scope in variables.get("FERROFLOW_LOG_PREFIX", ""):
                notes = pod["metadata"]["annotations"]
                found[f"{notes['metaflow/run_id']}/{notes['metaflow/task_id']}"] = pod
        return found

    def phase(self, task: str) -> str | None:
        pod = self.pods().get(task)
        return pod["status"]["phase"] if pod else None

    def no_pods(self) -> bool:
        return all(pod["metadata"].get("deletionTimestamp") for pod in self.pods().values())

    def remove_job(self, task: str) -> None:
        """As somebody does who tidies a namespace up."""
        job = self.pods()[task]["metadata"]["labels"]["job-name"]
        options = {"propagationPolicy": "Background"}
        self.api.delete(f"/apis/batch/v1/namespaces/default/jobs/{job}", **options)


@pytest.fixture
def scene(folder: Path, kubernetes: dict[str, str], api: KubernetesApi) -> Iterator[Scene]:
    scene = Scene(folder, kubernetes, api)
    yield scene
    for process in scene.started:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            process.kill()
            process.communicate()
    if (folder / ".metaflow" / "store_scope").exists():
        for task in scene.pods():
            with contextlib.suppress(ApiError):
                scene.remove_job(task)


def lines_of(item: int) -> str:
    return f"first line of {item}\nlast line of {item}\n"


def test_a_killed_engine_loses_nothing_and_nothing_runs_twice(scene: Scene) -> None:
    scene.killed_while(0, 1, 2, 3)
    assert scene.ask("print(Run('DieFlow/1').state)") == ["lost"]
    assert {scene.phase(f"1/{task}") for task in (2, 3, 4, 5)} == {"Running"}

    # Nobody is there: two finish, and of one of them nothing is left but what it stored.
    for item in (0, 1):
        scene.signs.say(f"go-{item}")
    until(lambda: {scene.phase("1/2"), scene.phase("1/3")} == {"Succeeded"}, "two pods done")
    scene.remove_job("1/3")
    until(lambda: scene.phase("1/3") is None, "the pod is gone")
    logs = scene.command("logs", "1/work/2", "--stdout").ok()
    assert logs.stdout == lines_of(0), "the log is read from the store"
    root = scene.env["METAFLOW_DATASTORE_SYSROOT_S3"]
    assert f"--datastore s3 --datastore-root {root} resume --origin-run-id 1" in logs.stderr
    assert "kubernetes list --run-id 1 shows them" in logs.stderr
    shown = scene.ask("print([t.stdout for t in Run('DieFlow/1')['work']][-1], end='')")
    assert "\n".join(shown) + "\n" == lines_of(0)

    resumed = scene.start("resume", "--max-workers", "4")
    until(lambda: scene.begun(4), "the item that was only queued")
    told = scene.command("kubernetes", "list", "--run-id", "1").ok()
    assert "1-work-4-0" in told.stdout, "adopted tasks are still the first run's"
    states = "print({t.index: (t.state, t.origin_pathspec) for t in Run('DieFlow/2')['work']}[3])"
    assert scene.ask(states) == ["('running', 'DieFlow/1/work/5')"]
    for item in (2, 3, 4):
        scene.signs.say(f"go-{item}")
    result = scene.finish(resumed).ok()

    assert "Cloning previously run task 1/start/1" in result.stdout
    for task in (2, 3, 4, 5):
        assert f"Adopting task 1/work/{task} from kubernetes" in result.stdout, result
    assert "Adopted task did not end well (ValueError: not mended)" in result.stdout
    assert "result [0, 10, 20, 30, 40]" in result.stdout
    assert dict(scene.signs.begun()) == {"0": 1, "1": 1, "2": 2, "3": 1, "4": 1}
    assert (scene.folder / "started").read_text() == "s"
    shown = scene.ask(
        """
        run = Run('DieFlow/2')
        tasks = sorted(run['work'], key=lambda task: task.index)
        print(run.state, Run('DieFlow/1').state, [task.data.x for task in tasks])
        print([task.stdout for task in tasks])
        print(tasks[3].metadata_dict['kubernetes-pod-name'] != '')
        """
    )
    assert shown[0] == "done lost [0, 10, 20, 30, 40]"
    assert shown[1] == str([lines_of(item) for item in range(5)])
    assert shown[2] == "True"
    until(scene.no_pods, "everything is tidied up")


def test_an_engine_that_lost_its_run_stops_and_touches_nothing(scene: Scene) -> None:
    slept = scene.start("run", "--max-workers", "3")
    until(lambda: scene.begun(0, 1, 2), "tasks at work")
    early = scene.command("resume").exited(1)
    assert re.search(
        r"run 1 is still carried out by its engine \(process \d+, heard of", early.stderr
    )
    assert "kill -INT" in early.stderr

    os.kill(slept.pid, signal.SIGSTOP)
    second = scene.start("resume", "--max-workers", "3")
    until(lambda: len(scene.ask("print(*Flow('DieFlow'), sep='\\n')")) == 2, "run 2")
    third = scene.command("resume", "--origin-run-id", "1").exited(1)
    assert "the tasks of run 1 were taken over by run 2, which is still carried out" in third.stderr
    scene.signs.say("go-0")
    until(lambda: scene.begun(3), "run 2 goes on")

    os.kill(slept.pid, signal.SIGCONT)
    lost = scene.finish(slept).exited(1)
    assert "run 1 was taken over by run 2 while this engine did not answer" in lost.stderr
    assert "This engine stops and leaves everything to it." in lost.stderr
    tasks = ("1/3", "1/4", "2/5")
    until(lambda: [scene.phase(task) for task in tasks] == ["Running"] * 3, "all go on")

    for sign in ("mended", "go-1", "go-2", "go-3", "go-4"):
        scene.signs.say(sign)
    result = scene.finish(second).ok()
    assert "result [0, 10, 20, 30, 40]" in result.stdout
    assert dict(scene.signs.begun()) == {str(item): 1 for item in range(5)}
    assert scene.ask("print([run.id for run in Flow('DieFlow')])") == ["['2', '1']"]


def test_abandoned_tasks_stop_themselves(scene: Scene) -> None:
    lease = {"FERROFLOW_LEASE_SECONDS": "4"}
    scene.killed_while(0, 1, **lease)
    until(lambda: {scene.phase("1/2"), scene.phase("1/3")} == {"Failed"}, "pods stop", 60)
    for sign in ("mended", *(f"go-{item}" for item in range(5))):
        scene.signs.say(sign)
    result = scene.command("resume").ok()
    assert (
        "Adopted task did not end well (stopped: no engine has renewed the lease of run 1"
        in result.stdout
    )
    assert dict(scene.signs.begun()) == {"0": 2, "1": 2, "2": 1, "3": 1, "4": 1}


def test_an_adopting_run_renews_the_lease(scene: Scene) -> None:
    """Its own configuration may ask for a longer lease than the tasks were started with."""
    scene.killed_while(0, 1, FERROFLOW_LEASE_SECONDS="6")
    resumed = scene.start("resume", "--max-workers", "2")
    until(lambda: len(scene.ask("print(*Flow('DieFlow'), sep='\\n')")) == 2, "run 2")
    adopted = time.monotonic()
    until(lambda: time.monotonic() > adopted + 15, "twice the lease and more")
    assert {scene.phase("1/2"), scene.phase("1/3")} == {"Running"}
    for sign in ("mended", *(f"go-{item}" for item in range(5))):
        scene.signs.say(sign)
    scene.finish(resumed).ok()
    assert dict(scene.signs.begun()) == {str(item): 1 for item in range(5)}


def test_a_stopped_adopting_run_stops_what_it_adopted(scene: Scene) -> None:
    scene.killed_while(0, 1)
    resumed = scene.start("resume", "--max-workers", "2")
    states = "print({t.state for t in Run('DieFlow/2')['work']})"
    until(lambda: len(scene.ask("print(*Flow('DieFlow'), sep='\\n')")) == 2, "run 2")
    until(lambda: scene.ask(states) == ["{'running'}"], "adopted tasks")
    resumed.send_signal(signal.SIGINT)
    result = scene.finish(resumed).exited(130)
    assert "Adopted tasks are terminated too (2)." in result.stdout
    assert scene.no_pods()
    assert scene.ask(states) == ["{'cancelled'}"]
    # What was stopped is run, not adopted, when it is resumed again.
    for sign in ("mended", *(f"go-{item}" for item in range(5))):
        scene.signs.say(sign)
    again = scene.command("resume", "--origin-run-id", "2").ok()
    assert "Adopting" not in again.stdout
    assert dict(scene.signs.begun()) == {"0": 2, "1": 2, "2": 1, "3": 1, "4": 1}


def on_batch(source: str) -> str:
    return source.replace("@kubernetes", "@batch(cpu=1, memory=256)").replace("kubernetes", "batch")


def test_jobs_on_aws_batch_are_adopted_too(folder: Path, batch: dict[str, str]) -> None:
    flow, signs = write_flow(folder, on_batch(FLOW)), Signs(batch)
    engine = start(folder, flow, "run", "--max-workers", "2", env=batch)
    until(lambda: all(signs.begun()[str(item)] for item in (0, 1)), "tasks at work")
    engine.kill()
    engine.communicate()
    signs.say("go-0")
    resumed = start(folder, flow, "resume", "--max-workers", "2", env=batch)
    until(lambda: signs.begun()["2"], "run 2 goes on")
    for sign in ("mended", *(f"go-{item}" for item in range(5))):
        signs.say(sign)
    result = finish(resumed, folder, 180).ok()
    assert "Adopting task 1/work/3 from batch" in result.stdout
    assert "result [0, 10, 20, 30, 40]" in result.stdout
    assert dict(signs.begun()) == {str(item): 1 for item in range(5)}
    shown = client(folder, "print([t.stdout for t in Run('DieFlow/2')['work']][-2:])", env=batch)
    assert shown == [str([lines_of(1), lines_of(0)])]


@pytest.fixture
def arrays(batch: dict[str, str]) -> Iterator[Arrays]:
    """The service with array jobs; `batch` leads to it."""
    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        arrays = Arrays(service.upstream)
        service.behaviour = arrays
        batch["AWS_ENDPOINT_URL_BATCH"] = service.endpoint
        yield arrays


def killed_with_an_array(folder: Path, batch: dict[str, str], arrays: Arrays) -> Path:
    """Run 1, whose engine was killed while nine children of an array job were at work."""
    flow, signs = write_flow(folder, on_batch(FLOW).replace("range(5)", "range(9)")), Signs(batch)
    user = {**batch, "FERROFLOW_BATCH_ARRAY_JOBS": "1"}
    engine = start(folder, flow, "run", "--max-workers", "9", env=user)
    until(lambda: len(signs.begun()) == 9, "tasks at work")
    engine.kill()
    engine.communicate()
    assert [request["arrayProperties"] for request in arrays.requests] == [{"size": 9}]
    return flow


def test_children_of_an_array_job_are_adopted(
    folder: Path, batch: dict[str, str], arrays: Arrays
) -> None:
    flow, signs = killed_with_an_array(folder, batch, arrays), Signs(batch)
    signs.say("go-0")
    resumed = start(folder, flow, "resume", env=batch)
    for sign in ("mended", *(f"go-{item}" for item in range(9))):
        signs.say(sign)
    result = finish(resumed, folder, 180).ok()
    assert result.stdout.count("from batch: it is waited for") == 9
    assert f"result {[10 * item for item in range(9)]}" in result.stdout
    assert dict(signs.begun()) == {str(item): 1 for item in range(9)}
    assert len(arrays.requests) == 1


def test_children_of_an_array_job_that_are_of_no_use_are_stopped(
    folder: Path, batch: dict[str, str], arrays: Arrays
) -> None:
    flow, signs = killed_with_an_array(folder, batch, arrays), Signs(batch)
    old = list(arrays.children)
    resumed = start(folder, flow, "resume", "work", "--max-workers", "2", env=batch)
    until(lambda: all(job["status"] == "FAILED" for job in arrays.describe(old)[1]["jobs"]), "stop")
    for sign in ("mended", *(f"go-{item}" for item in range(9))):
        signs.say(sign)
    result = finish(resumed, folder, 180).ok()
    assert "Adopting" not in result.stdout
    assert dict(signs.begun()) == {str(item): 2 for item in range(9)}
