"""Jobs that wait on AWS Batch say why, and requests that nothing can meet are refused at once."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_tools import Answer, BatchApi, Body, door
from harness import run_flow

pytestmark = pytest.mark.cluster

FLOW = """
    class Waits(FlowSpec):
        @batch
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            print("done after all")
"""
Forward = Callable[[], Answer]
# What AWS says of queues, environments and jobs, and what the user reads.
REASONS = {
    "disabled": (
        {"state": "DISABLED"},
        {},
        "",
        "the job queue `{queue}` is disabled: enable it, or name another one with @batch(queue=…)",
    ),
    "invalid environment": (
        {},
        {"status": "INVALID", "statusReason": "CLIENT_ERROR - Not authorized to assume the role"},
        "",
        "no compute environment of the job queue `{queue}` takes jobs: `localbatch-default` is not"
        " valid: CLIENT_ERROR - Not authorized to assume the role",
    ),
    "at its maximum": (
        {},
        {"computeResources": {"type": "EC2", "maxvCpus": 8, "desiredvCpus": 8}},
        "",
        "the compute environment `localbatch-default` is at its maximum: 8 of 8 vCPUs are in use",
    ),
    "no capacity": (
        {},
        {},
        "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY - No instances of type p3.2xlarge are available.",
        "AWS Batch says: No instances of type p3.2xlarge are available. AWS has no such instances"
        " at the moment: allow more instance types, or wait",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_job_that_stays_runnable_says_why(folder: Path, batch: dict[str, str], case: str) -> None:
    of_queue, of_environment, of_job, text = REASONS[case]
    submitted = threading.Event()
    explained = threading.Event()

    def hold(operation: str, _body: Body, forward: Forward) -> Answer:
        status, answer = forward()
        if operation == "submitjob":
            submitted.set()
        if operation == "describejobqueues" and submitted.is_set():
            answer["jobQueues"] = [{**queue, **of_queue} for queue in answer["jobQueues"]]
        if operation == "describecomputeenvironments" and submitted.is_set():
            found = answer["computeEnvironments"]
            answer["computeEnvironments"] = [{**e, **of_environment} for e in found]
            # The next look at the jobs comes after this was told.
            threading.Timer(1.0, explained.set).start()
        if operation == "describejobs" and not explained.is_set():
            waiting = {"status": "RUNNABLE", "statusReason": of_job, "stoppedAt": None}
            answer["jobs"] = [{**job, **waiting, "container": {}} for job in answer["jobs"]]
        return status, answer

    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        service.behaviour = hold
        environment = {**batch, "AWS_ENDPOINT_URL_BATCH": service.endpoint}
        result = run_flow(folder, FLOW, "run", env=environment).ok()
    queue = batch["METAFLOW_BATCH_JOB_QUEUE"]
    assert text.format(queue=queue) in result.stdout + result.stderr
    assert "done after all" in result.stdout


def test_what_no_compute_environment_can_hold_is_refused_at_once(
    folder: Path, batch: dict[str, str]
) -> None:
    api = BatchApi(batch["AWS_ENDPOINT_URL_BATCH"])
    queue = f"small-{uuid.uuid4().hex[:8]}"
    api.make_queue(queue, instanceTypes=["m5.xlarge"])
    options = f"batch:queue={queue},memory=512000"
    result = run_flow(folder, FLOW.replace("@batch", ""), "run", "--with", options, env=batch)
    result.exited(1)
    assert result.seconds < 5
    said = (
        f"step `start` asks for cpu 1, memory 512000 MB, which no compute environment of the job"
        f" queue `{queue}` can ever hold: `{queue}` (m5.xlarge) has instances with up to 4 vCPUs,"
        f" 16384 MB and at most 16 vCPUs in all. The nearest fit is cpu 1, memory 16384 MB: ask for"
        f" at most that, or add a larger compute environment"
    )
    assert said in result.stderr
    assert not api.call("ListJobs", jobQueue=queue)["jobSummaryList"]
    assert "run-id" not in result.stdout, "no run was registered"


def test_queues_that_are_not_there_or_take_nothing(folder: Path, batch: dict[str, str]) -> None:
    api = BatchApi(batch["AWS_ENDPOINT_URL_BATCH"])
    queue = f"off-{uuid.uuid4().hex[:8]}"
    api.make_queue(queue, state="DISABLED")
    off = run_flow(folder, FLOW, "run", env={**batch, "METAFLOW_BATCH_JOB_QUEUE": queue}).exited(1)
    assert f"step `start`: the job queue `{queue}` is disabled and takes no jobs" in off.stderr
    none = run_flow(folder, FLOW, "run", env={**batch, "METAFLOW_BATCH_JOB_QUEUE": "nope"})
    assert "step `start`: there is no job queue `nope`" in none.exited(1).stderr


def test_without_region_or_service_it_says_what_is_missing(
    folder: Path, batch: dict[str, str]
) -> None:
    without = {k: v for k, v in batch.items() if k not in ("AWS_DEFAULT_REGION", "AWS_REGION")}
    result = run_flow(folder, FLOW, "run", env=without).exited(1)
    assert "no AWS region is configured: set AWS_REGION" in result.stderr
    away = {**batch, "AWS_ENDPOINT_URL_BATCH": "http://127.0.0.1:9"}
    result = run_flow(folder, FLOW, "run", env=away).exited(1)
    assert "AWS Batch (us-east-1) cannot be reached: " in result.stderr
    assert result.seconds < 8
