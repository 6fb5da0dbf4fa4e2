"""What jobs on AWS Batch ask for, by the kind of their queue: shares, platforms, tags, names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from batch_tools import Answer, BatchApi, Body, Door, door
from harness import client, run_flow

pytestmark = pytest.mark.cluster

FLOW = """
    class Asks(FlowSpec):
        @batch{options}
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
"""


class Seen:
    """A door's behaviour: keeps what was asked."""

    def __init__(self) -> None:
        self.jobs: list[Body] = []

    def __call__(self, operation: str, body: Body, forward: Callable[[], Answer]) -> Answer:
        if operation == "submitjob":
            self.jobs.append(body)
        return forward()

    def definition(self, service: Door) -> Body:
        """Of the only job; it may have been registered before."""
        (job,) = self.jobs
        return BatchApi(service.upstream).definition(job["jobDefinition"])


@pytest.fixture
def service(batch: dict[str, str]) -> Iterator[Door]:
    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as opened:
        opened.behaviour = Seen()
        yield opened


@pytest.fixture
def seen(service: Door) -> Seen:
    assert isinstance(service.behaviour, Seen)
    return service.behaviour


@pytest.fixture
def user(batch: dict[str, str], service: Door) -> dict[str, str]:
    return {**batch, "AWS_ENDPOINT_URL_BATCH": service.endpoint, "METAFLOW_USER": "ann-lee@x"}


def queue_of(folder: Path, service: Door, *kinds: str, fair: bool = False) -> str:
    """A queue of the test's own with a compute environment of each kind, in this order."""
    api = BatchApi(service.upstream)
    queue = "-".join(folder.parts[-2:])[-60:]
    order = []
    for number, kind in enumerate(kinds):
        name = f"{queue}-{number}"
        resources = {"type": kind, "maxvCpus": 16, "instanceTypes": ["m5"]} if kind else {}
        api.call(
            "CreateComputeEnvironment", computeEnvironmentName=name, computeResources=resources
        )
        order.append({"order": number, "computeEnvironment": name})
    policy = api.call("CreateSchedulingPolicy", name=queue)["arn"] if fair else None
    api.call(
        "CreateJobQueue",
        jobQueueName=queue,
        computeEnvironmentOrder=order,
        schedulingPolicyArn=policy,
    )
    return queue


def test_a_job_says_whose_it_is(folder: Path, user: dict[str, str], seen: Seen) -> None:
    user["METAFLOW_BATCH_EMIT_TAGS"] = "1"
    options = '(aws_batch_tags={"team": "a"})'
    result = run_flow(folder, FLOW.format(options=options), "run", env=user).ok()
    (job,) = seen.jobs
    assert re.fullmatch(r"ann-lee-x-Asks-1-start-1-0-[0-9a-f]{10}", job["jobName"])
    assert job["tags"]["team"] == "a" and job["tags"]["metaflow.step_name"] == "start"
    assert {name.removeprefix("metaflow.") for name in job["parameters"]} >= {
        *("flow_name", "step_name", "run_id", "task_id", "retry_count", "user", "version")
    }
    assert "shareIdentifier" not in job
    (facts,) = client(
        folder, f'print(Run("Asks/{result.run_id}")["start"].task.metadata_dict)', env=user
    )
    for name in ("job-id", "job-attempt", "ce-name", "jq-name", "execution-env", "awslogs-stream"):
        assert f"'aws-batch-{name}'" in facts


def test_without_permission_for_tags_none_are_sent(
    folder: Path, user: dict[str, str], seen: Seen
) -> None:
    run_flow(folder, FLOW.format(options=""), "run", env=user).ok()
    assert "tags" not in seen.jobs[0] and "propagateTags" not in seen.jobs[0]


def test_in_a_queue_with_shares_a_job_has_its_users(
    folder: Path, user: dict[str, str], service: Door, seen: Seen
) -> None:
    user["METAFLOW_BATCH_JOB_QUEUE"] = queue_of(folder, service, "EC2", fair=True)
    run_flow(folder, FLOW.format(options=""), "run", env=user).ok()
    given = '(share_identifier="research", scheduling_priority=7)'
    run_flow(folder, FLOW.format(options=given), "run", env=user).ok()
    first, second = seen.jobs
    assert first["shareIdentifier"] == "annleex" and "schedulingPriorityOverride" not in first
    assert (second["shareIdentifier"], second["schedulingPriorityOverride"]) == ("research", 7)


@pytest.mark.parametrize("kinds", [("EC2", "SPOT"), ("SPOT",), ("",)])
def test_instances_of_every_kind_get_whole_processors(
    folder: Path, user: dict[str, str], service: Door, seen: Seen, kinds: tuple[str, ...]
) -> None:
    user["METAFLOW_BATCH_JOB_QUEUE"] = queue_of(folder, service, *kinds)
    run_flow(folder, FLOW.format(options="(cpu=1.5, memory=700)"), "run", env=user).ok()
    definition = seen.definition(service)
    assert definition["platformCapabilities"] == ["EC2"]
    asked = definition["containerProperties"]["resourceRequirements"]
    assert {"type": "VCPU", "value": "2"} in asked and {"type": "MEMORY", "value": "700"} in asked


@pytest.mark.parametrize("kinds", [("FARGATE",), ("FARGATE_SPOT", "FARGATE")])
def test_fargate_gets_a_size_it_has_and_both_roles(
    folder: Path, user: dict[str, str], service: Door, seen: Seen, kinds: tuple[str, ...]
) -> None:
    user["METAFLOW_BATCH_JOB_QUEUE"] = queue_of(folder, service, *kinds)
    without = run_flow(folder, FLOW.format(options=""), "run", env=user).exited(1)
    said = "Fargate needs a role to start containers by: set METAFLOW_ECS_FARGATE_EXECUTION_ROLE"
    assert said in without.stderr and not seen.jobs
    roles = {
        "METAFLOW_ECS_FARGATE_EXECUTION_ROLE": "arn:start",
        "METAFLOW_ECS_S3_ACCESS_IAM_ROLE": "arn:task",
    }
    run_flow(folder, FLOW.format(options="(memory=5000)"), "run", env={**user, **roles}).ok()
    definition = seen.definition(service)
    container = definition["containerProperties"]
    assert definition["platformCapabilities"] == ["FARGATE"]
    assert (container["executionRoleArn"], container["jobRoleArn"]) == ("arn:start", "arn:task")
    asked = {each["type"]: each["value"] for each in container["resourceRequirements"]}
    assert asked == {"VCPU": "1", "MEMORY": "5120"}
