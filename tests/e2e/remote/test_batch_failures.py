"""How tasks die on AWS Batch, and what their users read."""

from __future__ import annotations

from pathlib import Path

import pytest
from batch_tools import BatchApi, is_alive
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
    said = f"the image `{image}` has no `python3`: a task needs an image with Python 3.11 or newer"
    assert said in result.stdout + result.stderr


def test_an_image_that_does_not_exist(folder: Path, batch: dict[str, str]) -> None:
    flow = ONE_STEP.format(seconds=0)
    environment = {**batch, "METAFLOW_BATCH_CONTAINER_IMAGE": "localhost/there-is-none:1"}
    result = run_flow(folder, flow, "run", env=environment).exited(1)
    said = "the image `localhost/there-is-none:1` cannot be pulled"
    assert said in result.stdout + result.stderr


def test_a_job_that_somebody_terminates(folder: Path, batch: dict[str, str]) -> None:
    flow = write_flow(folder, ONE_STEP.format(seconds=300))
    api = BatchApi(batch["AWS_ENDPOINT_URL_BATCH"])
    environment = {**batch, "METAFLOW_USER": folder.name}
    process = start(folder, flow, "run", env=environment)
    running: list[str] = []

    def runs() -> bool:
        jobs = api.jobs_of(batch["METAFLOW_BATCH_JOB_QUEUE"], "OneStep", user=folder.name)
        running[:] = [job["jobId"] for job in jobs if job["status"] == "RUNNING"]
        return bool(running)

    wait_until(runs, "a running job")
    api.call("TerminateJob", jobId=running[0], reason="wrong data")
    result = finish(process, folder).exited(1)
    said = result.stdout + result.stderr
    # The emulator forgets the reason once the container has ended.
    assert "somebody ended the job: wrong data" in said or "or somebody ended the job" in said
    assert not [job for job in api.jobs(running) if is_alive(job)]


def test_a_time_limit_below_a_minute_is_refused(folder: Path, batch: dict[str, str]) -> None:
    flow = ONE_STEP.format(seconds=0).replace("@batch", "@timeout(seconds=5)\n        @batch")
    result = run_flow(folder, flow, "run", env=batch).exited(1)
    said = "@timeout of step `start` is 5 seconds; on AWS Batch a step needs at least 60."
    assert said in result.stderr
