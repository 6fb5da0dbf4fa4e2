"""How tasks die on AWS Batch, and what their users read."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_tools import Answer, BatchApi, Body, door, is_alive
from harness import client, finish, run_flow, start, wait_until, write_flow

pytestmark = pytest.mark.cluster

DIES = """
    class Dies(FlowSpec):
        @retry(times=1, minutes_between_retries=0)
        @batch
        @step
        def start(self):
            import os, sys
            from metaflow import current
            print("attempt", current.retry_count)
            sys.stdout.flush()
            if current.retry_count == 0:
                os._exit(3)
            self.next(self.end)

        @step
        def end(self):
            print("survived")
"""
CATCHES = """
    class Catches(FlowSpec):
        @catch(var="why")
        @batch
        @step
        def start(self):
            import os
            os._exit(7)
            self.next(self.end)

        @step
        def end(self):
            print("caught:", type(self.why).__name__, self.why is not None)
"""
ONE_STEP = """
    class OneStep(FlowSpec):
        @batch
        @step
        def start(self):
            print("begun", flush=True)
            import time
            time.sleep({seconds})
            self.next(self.end)

        @step
        def end(self):
            pass
"""


def test_an_exit_code_is_told_and_the_task_tried_again(folder: Path, batch: dict[str, str]) -> None:
    result = run_flow(folder, DIES, "run", env=batch).ok()
    assert "exit code 3" in result.stdout + result.stderr
    assert "survived" in result.stdout
    shown = client(
        folder,
        f"""
        task = Run("Dies/{result.run_id}")["start"].task
        print(task.current_attempt, task.stdout.strip())
        """,
        env=batch,
    )
    assert shown == ["1 attempt 1"]


def test_catch_takes_over_on_this_machine(folder: Path, batch: dict[str, str]) -> None:
    result = run_flow(folder, CATCHES, "run", env=batch).ok()
    assert "exit code 7" in result.stdout + result.stderr
    assert "caught:" in result.stdout
    jobs = BatchApi(batch["AWS_ENDPOINT_URL_BATCH"]).jobs_of(
        batch["METAFLOW_BATCH_JOB_QUEUE"], "Catches"
    )
    ours = [job for job in jobs if job["parameters"]["metaflow.run_id"] == result.run_id]
    assert {job["parameters"]["metaflow.retry_count"] for job in ours} == {"0"}


def test_an_image_without_python_fails_at_once(folder: Path, batch: dict[str, str]) -> None:
    image = "localhost/ferroflow-no-python:1"
    flow = ONE_STEP.format(seconds=0)
    environment = {**batch, "METAFLOW_BATCH_CONTAINER_IMAGE": image}
    result = run_flow(folder, flow, "run", env=environment).exited(1)
    said = f"image `{image}` has no `python3`: a task needs an image with Python 3.11 or newer"
    assert said in result.stdout + result.stderr


def test_an_image_that_does_not_exist(folder: Path, batch: dict[str, str]) -> None:
    flow = ONE_STEP.format(seconds=0)
    environment = {**batch, "METAFLOW_BATCH_CONTAINER_IMAGE": "localhost/there-is-none:1"}
    result = run_flow(folder, flow, "run", env=environment).exited(1)
    said = "image `localhost/there-is-none:1` cannot be pulled"
    assert said in result.stdout + result.stderr


def test_a_name_that_no_image_has(folder: Path, batch: dict[str, str]) -> None:
    flow = ONE_STEP.format(seconds=0)
    environment = {**batch, "METAFLOW_BATCH_CONTAINER_IMAGE": "No Image"}
    result = run_flow(folder, flow, "run", env=environment).exited(1)
    assert "`No Image` is not the name of an image: " in result.stdout + result.stderr
    assert "Task was lost" not in result.stdout


def test_a_task_that_is_lost_again_waits_before_it_starts_again(
    folder: Path, batch: dict[str, str]
) -> None:
    submitted: list[tuple[str, float]] = []
    said = "DockerTimeoutError: Could not transition to started; timed out after waiting 4m0s"

    def lose_twice(operation: str, body: Body, forward: Callable[[], Answer]) -> Answer:
        status, answer = forward()
        if operation == "submitjob":
            submitted.append((answer["jobId"], time.monotonic()))
        if operation == "describejobs":
            lost = [job for job, _ in submitted[:2]]
            for job in answer["jobs"]:
                if job["jobId"] in lost:
                    job.update(status="FAILED", statusReason=said, container={})
        return status, answer

    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        service.behaviour = lose_twice
        environment = {**batch, "AWS_ENDPOINT_URL_BATCH": service.endpoint}
        result = run_flow(folder, ONE_STEP.format(seconds=0), "run", env=environment).ok()
    told = f"Task was lost (AWS Batch could not run the job: {said}); it starts again"
    lines = [line for line in result.stdout.splitlines() if "Task was lost" in line]
    assert len(lines) == 2
    assert f"{told}, which does not count as a retry." in lines[0]
    assert f"{told} in 10 seconds, which does not count as a retry." in lines[1]
    assert len(submitted) == 3
    assert submitted[2][1] - submitted[1][1] >= 10


def test_a_datastore_that_containers_cannot_reach(folder: Path, batch: dict[str, str]) -> None:
    environment = {**batch, "METAFLOW_BATCH_S3_ENDPOINT_URL": "http://172.17.0.1:9"}
    flow = write_flow(folder, ONE_STEP.format(seconds=0))
    said = folder / "said"
    with said.open("wb") as out:
        process = start(folder, flow, "run", env=environment, stdout=out.fileno())
    lost = "Task was lost (its container could not fetch the flow's code: nobody answers at the"
    wait_until(lambda: lost in said.read_text(), "the cause", 60, 0.1)
    began = [line for line in said.read_text().splitlines() if "Task is starting" in line]
    assert began
    process.send_signal(signal.SIGINT)
    finish(process, folder).exited(130)


def test_a_job_that_somebody_terminates_is_not_started_again(
    folder: Path, batch: dict[str, str]
) -> None:
    submitted: list[str] = []
    terminated: list[str] = []

    def as_aws_does(operation: str, body: Body, forward: Callable[[], Answer]) -> Answer:
        status, answer = forward()
        if operation == "submitjob":
            submitted.append(answer["jobId"])
        if operation == "describejobs":
            # The emulator forgets the reason once the container has ended, and has no such flag.
            known = {"isTerminated": True, "statusReason": "wrong data"}
            gone = [job for job in answer["jobs"] if job["jobId"] in terminated]
            for job in gone:
                job.update(known)
        return status, answer

    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        service.behaviour = as_aws_does
        api = BatchApi(service.endpoint)
        environment = {**batch, "AWS_ENDPOINT_URL_BATCH": service.endpoint}
        source = ONE_STEP.format(seconds=300).replace("@batch", "@retry\n        @batch")
        flow = write_flow(folder, source)
        process = start(folder, flow, "run", env=environment)
        running = ["RUNNING"]
        wait_until(
            lambda: submitted and [job["status"] for job in api.jobs(submitted)] == running,
            "a running job",
        )
        terminated.extend(submitted)
        api.call("TerminateJob", jobId=submitted[0], reason="wrong data")
        result = finish(process, folder).exited(1)
    assert "omebody ended the job: wrong data" in result.stdout + result.stderr
    assert len(submitted) == 1
    assert not [job for job in BatchApi(service.upstream).jobs(submitted) if is_alive(job)]


def test_a_time_limit_below_a_minute_is_refused(folder: Path, batch: dict[str, str]) -> None:
    flow = ONE_STEP.format(seconds=0).replace("@batch", "@timeout(seconds=5)\n        @batch")
    result = run_flow(folder, flow, "run", env=batch).exited(1)
    said = "@timeout of step `start` is 5 seconds; on AWS Batch a step needs at least 60."
    assert said in result.stderr
