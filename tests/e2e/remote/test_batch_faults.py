"""AWS Batch that throttles, loses answers, goes away or says no: nothing is lost or done twice."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from batch_tools import Answer, BatchApi, Body, Door, door, own_user
from harness import client, run_flow
from parts import part
from store_proxy import proxy

pytestmark = pytest.mark.cluster

WIDE = """
    class Wide(FlowSpec):
        @step
        def start(self):
            self.items = list(range(4))
            self.next(self.work, foreach="items")

        @batch
        @step
        def work(self):
            self.square = self.input ** 2
            print("worked on", self.input)
            self.next(self.join)

        @step
        def join(self, inputs):
            print("sum", sum(i.square for i in inputs))
            self.next(self.end)

        @step
        def end(self):
            pass
"""
Forward = Callable[[], Answer]
BUSY: Answer = (429, {"message": "Too Many Requests"})


@pytest.fixture
def service(batch: dict[str, str]) -> Iterator[Door]:
    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as opened:
        yield opened


def user_of(folder: Path, batch: dict[str, str], service: Door) -> dict[str, str]:
    variables = {"AWS_ENDPOINT_URL_BATCH": service.endpoint, "METAFLOW_USER": own_user(folder)}
    return {**batch, **variables}


def jobs_by_task(folder: Path, service: Door, batch: dict[str, str]) -> Counter[str]:
    jobs = BatchApi(service.upstream).jobs_of(
        batch["METAFLOW_BATCH_JOB_QUEUE"], "Wide", user=own_user(folder)
    )
    return Counter(
        f"{job['parameters']['metaflow.task_id']}/{job['parameters']['metaflow.retry_count']}"
        for job in jobs
    )


def test_throttling_is_never_a_tasks_failure(
    folder: Path, batch: dict[str, str], service: Door
) -> None:
    refused = Counter[str]()
    turns = itertools.count()

    def throttle(operation: str, _body: Body, forward: Forward) -> Answer:
        if next(turns) % 2 == 0:
            refused[operation] += 1
            return BUSY
        return forward()

    service.behaviour = throttle
    result = run_flow(folder, WIDE, "run", env=user_of(folder, batch, service)).ok()
    assert "sum 14" in result.stdout
    assert refused["submitjob"] >= 1 and refused["describejobs"] >= 1
    assert list(jobs_by_task(folder, service, batch).values()) == [1, 1, 1, 1]
    assert "failed" not in result.stdout.lower()


def test_a_submission_whose_answer_is_lost_is_not_made_twice(
    folder: Path, batch: dict[str, str], service: Door
) -> None:
    lost = itertools.count()

    def lose(operation: str, _body: Body, forward: Forward) -> Answer | None:
        answer = forward()
        return None if operation == "submitjob" and next(lost) < 3 else answer

    service.behaviour = lose
    result = run_flow(folder, WIDE, "run", env=user_of(folder, batch, service)).ok()
    assert "sum 14" in result.stdout
    assert list(jobs_by_task(folder, service, batch).values()) == [1, 1, 1, 1]


def test_a_service_that_goes_away_for_a_while(
    folder: Path, batch: dict[str, str], service: Door
) -> None:
    away_until = [0.0]
    begun = threading.Event()

    def cut_off(operation: str, _body: Body, forward: Forward) -> Answer | None:
        if operation == "describejobs" and not begun.is_set():
            begun.set()
            away_until[0] = time.monotonic() + 4
        return None if time.monotonic() < away_until[0] else forward()

    service.behaviour = cut_off
    result = run_flow(folder, WIDE, "run", env=user_of(folder, batch, service)).ok()
    assert "sum 14" in result.stdout
    said = result.stdout + result.stderr
    assert "AWS Batch does not answer (" in said
    assert "Tasks that run go on; so does the run, once it answers." in said
    assert "AWS Batch answers again." in said
    assert list(jobs_by_task(folder, service, batch).values()) == [1, 1, 1, 1]
    shown = client(
        folder,
        f"""
        run = Run("Wide/{result.run_id}")
        print(sorted(task.stdout.strip() for task in run["work"]))
        """,
        env=user_of(folder, batch, service),
    )
    assert shown == [str([f"worked on {n}" for n in range(4)])]


def test_no_permission_to_submit(folder: Path, batch: dict[str, str], service: Door) -> None:
    said = "User: tester is not authorized to perform: batch:SubmitJob on resource: queue"

    def deny(operation: str, _body: Body, forward: Forward) -> Answer:
        return (403, {"message": said}) if operation == "submitjob" else forward()

    service.behaviour = deny
    result = run_flow(folder, WIDE, "run", env=user_of(folder, batch, service)).exited(1)
    assert f"AWS does not let you submit the job: {said}" in result.stdout + result.stderr
    assert "Ask for a policy with `batch:SubmitJob`" in result.stdout + result.stderr
    assert not jobs_by_task(folder, service, batch)


def test_a_job_that_the_service_forgets_is_run_again(
    folder: Path, batch: dict[str, str], service: Door
) -> None:
    forgotten: list[str] = []

    def forget(operation: str, body: Body, forward: Forward) -> Answer:
        status, answer = forward()
        if operation == "submitjob" and not forgotten:
            forgotten.append(answer["jobId"])
        if operation == "describejobs":
            answer["jobs"] = [job for job in answer["jobs"] if job["jobId"] not in forgotten]
        return status, answer

    service.behaviour = forget
    result = run_flow(folder, WIDE, "run", env=user_of(folder, batch, service)).ok()
    assert "sum 14" in result.stdout
    assert "AWS Batch does not know its job any more" in result.stdout + result.stderr


def test_an_address_that_expired_in_the_queue_is_signed_again(
    folder: Path, batch: dict[str, str]
) -> None:
    """A new job takes the place of the one that came too late; no retry of the user's is spent."""
    with proxy(batch["AWS_ENDPOINT_URL_S3"], host="0.0.0.0") as store:
        store.deny_first, store.denied_path = 1, "/code/"
        host = part("s3")["FERROFLOW_TEST_S3_FROM_CONTAINERS"].rsplit(":", 1)[0]
        env = {**batch, "METAFLOW_BATCH_S3_ENDPOINT_URL": f"{host}:{store.port}"}
        result = run_flow(folder, WIDE, "run", env=env).ok()
    assert "sum 14" in result.stdout
    code = "print({task.current_attempt for task in Run('Wide/1')['work']})"
    assert client(folder, code, env=batch) == ["{0}"]
