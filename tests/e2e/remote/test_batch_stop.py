"""Ctrl-C on a run on AWS Batch: no job is left, or it is said what may be."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_tools import Answer, BatchApi, Body, Door, door, is_alive
from harness import finish, nothing_left, run_flow, start, wait_until, write_flow

pytestmark = pytest.mark.cluster

FLOW = """
    class Stops(FlowSpec):
        @step
        def start(self):
            self.items = list(range(6))
            self.next(self.work, foreach="items")

        @retry(times=2, minutes_between_retries=5)
        @batch
        @step
        def work(self):
            import time
            from metaflow import current
            if self.input == 0:
                raise ValueError("comes again in five minutes")
            print("asleep", flush=True)
            time.sleep(600)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
"""
Forward = Callable[[], Answer]


class Phases:
    """Holds one job back as RUNNABLE and one submission unanswered; the others run."""

    def __init__(self) -> None:
        self.submitted: list[str] = []
        self.held: list[str] = []

    def __call__(self, operation: str, body: Body, forward: Forward) -> Answer | None:
        if operation == "submitjob" and body["parameters"]["metaflow.task_id"] == "6":
            return 429, {"message": "Too Many Requests"}
        status, answer = forward()
        if operation == "submitjob":
            self.submitted.append(answer["jobId"])
            if body["parameters"]["metaflow.task_id"] == "5":
                self.held.append(answer["jobId"])
        if operation == "describejobs":
            answer["jobs"] = [self.shown(job) for job in answer["jobs"]]
        return status, answer

    def shown(self, job: Body) -> Body:
        held = job["jobId"] in self.held and is_alive(job)
        return {**job, "status": "RUNNABLE"} if held else job


def begin(
    folder: Path, batch: dict[str, str], service: Door
) -> tuple[subprocess.Popen[bytes], Phases]:
    phases = Phases()
    service.behaviour = phases
    user = {"AWS_ENDPOINT_URL_BATCH": service.endpoint, "METAFLOW_USER": folder.name}
    process = start(folder, write_flow(folder, FLOW), "run", env={**batch, **user})
    api = BatchApi(service.upstream)

    def ready() -> bool:
        states = [job["status"] for job in api.jobs(phases.submitted)] if phases.submitted else []
        return states.count("RUNNING") >= 4 and states.count("FAILED") == 1

    wait_until(ready, "a failed job and four running ones", 90)
    return process, phases


def test_tasks_in_every_phase_are_gone(folder: Path, batch: dict[str, str]) -> None:
    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        process, phases = begin(folder, batch, service)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        result = finish(process, folder).exited(130)
        assert time.monotonic() - began < 8
        left = [job for job in BatchApi(service.upstream).jobs(phases.submitted) if is_alive(job)]
        assert not left
    assert "may still be running" not in result.stdout + result.stderr
    nothing_left(folder, 2)


def test_what_cannot_be_ended_is_said(folder: Path, batch: dict[str, str]) -> None:
    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        process, phases = begin(folder, batch, service)

        def refuse(operation: str, body: Body, forward: Forward) -> Answer | None:
            if operation == "terminatejob":
                return 500, {"message": "internal failure"}
            return phases(operation, body, forward)

        service.behaviour = refuse
        process.send_signal(signal.SIGINT)
        result = finish(process, folder).exited(130)
        api = BatchApi(service.upstream)
        for job in phases.submitted:
            api.call("TerminateJob", jobId=job, reason="the test is over")
    said = result.stdout + result.stderr
    assert "tasks of this run may still be running on AWS Batch" in said
    assert "batch kill --run-id" in said
    nothing_left(folder, 2)


KILLED = """
    class Killed(FlowSpec):
        @retry(times=3, minutes_between_retries=0)
        @batch
        @step
        def start(self):
            import time
            print("asleep", flush=True)
            time.sleep(600)
            self.next(self.end)

        @step
        def end(self):
            pass
"""


def test_what_was_killed_by_hand_is_not_tried_again(folder: Path, batch: dict[str, str]) -> None:
    """Also where the service forgets who ended a job, as stand-ins for it do."""
    submitted = []

    def forget(operation: str, body: Body, forward: Forward) -> Answer:
        status, answer = forward()
        if operation == "submitjob":
            submitted.append(answer["jobId"])
        for job in answer["jobs"] if operation == "describejobs" else []:
            if "by hand" in job.get("statusReason", ""):
                job.update(status="RUNNING", statusReason="")
        return status, answer

    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        service.behaviour = forget
        user = {"AWS_ENDPOINT_URL_BATCH": service.endpoint, "METAFLOW_USER": folder.name}
        flow = write_flow(folder, KILLED)
        process = start(folder, flow, "run", env={**batch, **user})
        shown = ("logs", "1/start", "--stdout")
        wait_until(
            lambda: "asleep" in run_flow(folder, flow, *shown, env={**batch, **user}).stdout,
            "a task that sleeps",
            90,
        )
        run_flow(folder, flow, "batch", "kill", "--run-id", "1", env={**batch, **user}).ok()
        result = finish(process, folder).exited(1)
    said = result.stdout + result.stderr
    assert "Somebody ended the job: killed by hand" in said, said
    assert len(submitted) == 1, result.stdout
    nothing_left(folder, 2)
