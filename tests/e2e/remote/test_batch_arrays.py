"""A wide foreach as array jobs. The emulator has none: a door before it runs the children as jobs
of their own, each with its index; `moto`, which has them, is shown the same requests."""

from __future__ import annotations

import urllib.request
import uuid
from pathlib import Path

import pytest
from batch_tools import FOR_BATCH, Arrays, BatchApi, Body, call, door, own_user
from harness import client, run_flow
from parts import part

pytestmark = pytest.mark.cluster

FLOW = """
    class Arrays(FlowSpec):
        @step
        def start(self):
            self.items = list(range(9))
            self.next(self.work, foreach="items")

        @retry(times=1, minutes_between_retries=0)
        @batch
        @step
        def work(self):
            import os
            from metaflow import current
            if self.input == 4 and current.retry_count == 0:
                os._exit(3)
            self.result = (self.input, os.environ.get("AWS_BATCH_JOB_ARRAY_INDEX"))
            self.next(self.join)

        @step
        def join(self, inputs):
            self.results = [each.result for each in inputs]
            self.next(self.end)

        @step
        def end(self):
            pass
"""


def test_a_wide_foreach_is_one_submission_and_a_failed_child_comes_again(
    folder: Path, batch: dict[str, str]
) -> None:
    user = {"FERROFLOW_BATCH_ARRAY_JOBS": "1", "METAFLOW_USER": own_user(folder)}
    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        arrays = Arrays(service.upstream)
        service.behaviour = arrays
        user["AWS_ENDPOINT_URL_BATCH"] = service.endpoint
        result = run_flow(folder, FLOW, "run", env={**batch, **user}).ok()
    first, again = arrays.requests
    assert first["arrayProperties"] == {"size": 9}
    assert first["parameters"]["metaflow.step_name"] == "work"
    # The child that failed is tried again as a job of its own.
    assert "arrayProperties" not in again
    assert again["parameters"]["metaflow.retry_count"] == "1"
    source = f'print(Run("Arrays/{result.run_id}")["join"].task.data.results)'
    shown = client(folder, source, env={**batch, **user})
    assert shown == [str([(n, None if n == 4 else str(n)) for n in range(9)])]
    accepted_by_moto(first)


def accepted_by_moto(request: Body) -> None:
    """Its API takes the request and counts the children; nothing runs there."""
    moto = part("batch")["FERROFLOW_TEST_MOTO"]
    definition = call(
        moto,
        "RegisterJobDefinition",
        {
            "jobDefinitionName": f"arrays-{uuid.uuid4().hex[:8]}",
            "type": "container",
            "containerProperties": {"image": "i", "memory": 128, "vcpus": 1},
        },
    )
    assert definition[0] == 200, definition
    queue = moto_queue(moto)
    body = {**request, "jobQueue": queue, "jobDefinition": definition[1]["jobDefinitionArn"]}
    status, answer = call(moto, "SubmitJob", body)
    assert status == 200, answer
    job = BatchApi(moto).jobs([answer["jobId"]])[0]
    assert job["arrayProperties"]["size"] == 9
    child = BatchApi(moto).jobs([f"{answer['jobId']}:8"])
    assert [each["jobName"] for each in child] == [request["jobName"]]


def moto_queue(moto: str) -> str:
    config = urllib.request.Request(
        f"{moto}/moto-api/config", b'{"batch": {"use_docker": false}}', method="POST"
    )
    urllib.request.urlopen(config, timeout=10).close()
    name = f"arrays-{uuid.uuid4().hex[:8]}"
    status, environment = call(
        moto,
        "CreateComputeEnvironment",
        {
            "computeEnvironmentName": name,
            "type": "UNMANAGED",
            "state": "ENABLED",
            "serviceRole": moto_role(moto),
        },
    )
    assert status == 200, environment
    order = [{"order": 1, "computeEnvironment": environment["computeEnvironmentArn"]}]
    body = {
        "jobQueueName": name,
        "state": "ENABLED",
        "priority": 1,
        "computeEnvironmentOrder": order,
    }
    status, queue = call(moto, "CreateJobQueue", body)
    assert status == 200, queue
    return name


def moto_role(moto: str) -> str:
    name = f"role-{uuid.uuid4().hex[:8]}"
    form = f"Action=CreateRole&Version=2010-05-08&RoleName={name}&AssumeRolePolicyDocument=%7B%7D"
    request = urllib.request.Request(moto, form.encode(), method="POST")
    request.add_header("authorization", FOR_BATCH.replace("/batch/", "/iam/"))
    urllib.request.urlopen(request, timeout=10).close()
    return f"arn:aws:iam::123456789012:role/{name}"
