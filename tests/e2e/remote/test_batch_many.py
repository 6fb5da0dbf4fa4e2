"""Ctrl-C while five hundred tasks are on AWS Batch: whatever they were doing, none is left after
five seconds, or it is said how many may be, and the command that ends them does.

No container runs here: the service keeps the jobs where the test wants them.
"""

from __future__ import annotations

import re
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_tools import Answer, Body, door, is_alive, own_user
from harness import finish, nothing_left, run_flow, start, wait_until, write_flow

pytestmark = pytest.mark.cluster

MANY = 500
# After the signal; with tasks that cannot be ended another five seconds are spent on trying.
FIVE, FIVE_AND_FIVE, BUSY_MACHINE = 5, 10, 5
FLOW = f"""
    class Many(FlowSpec):
        @step
        def start(self):
            self.items = list(range({MANY}))
            self.next(self.work, foreach="items")

        @retry(times=2, minutes_between_retries=5)
        @batch
        @step
        def work(self):
            self.next(self.join)

        @step
        def join(self, inputs):
            self.next(self.end)

        @step
        def end(self):
            pass
"""
PHASES = ("RUNNABLE", "STARTING", "RUNNING", "FAILED")
# The last ones are on their way when the signal comes.
LAST = 20
AT_ONCE = ("--max-workers", str(MANY), "--max-num-splits", str(MANY))
Forward = Callable[[], Answer]


class Kept:
    """A door's behaviour: jobs that stay as they are until somebody ends them."""

    def __init__(self) -> None:
        self.jobs: dict[str, Body] = {}
        self.refuses = False
        self.stopping = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, operation: str, body: Body, forward: Forward) -> Answer:
        if operation == "submitjob":
            return self.submit(body)
        if operation == "describejobs":
            return 200, {"jobs": [dict(self.jobs[name]) for name in body["jobs"]]}
        if operation == "terminatejob":
            if self.refuses:
                return 429, {"message": "Too Many Requests"}
            self.jobs[body["jobId"]].update(status="FAILED", statusReason=body["reason"])
            return 200, {}
        if operation == "listjobs":
            wanted = body.get("jobStatus")
            found = [dict(j) for j in list(self.jobs.values()) if wanted in (None, j["status"])]
            return 200, {"jobSummaryList": found}
        return forward()

    def submit(self, body: Body) -> Answer:
        with self._lock:
            number = len(self.jobs)
            status = PHASES[number % len(PHASES)] if number < MANY - LAST else "SUBMITTED"
            job = {**body, "jobId": str(uuid.uuid4()), "status": status}
            if status == "FAILED":
                job["container"] = {"exitCode": 1}
            self.jobs[job["jobId"]] = job
        if status == "SUBMITTED":
            self.stopping.wait(60)
        return 200, {"jobId": job["jobId"], "jobName": job["jobName"]}

    def statuses(self) -> Counter[str]:
        return Counter(job["status"] for job in list(self.jobs.values()))

    def alive(self) -> int:
        return sum(is_alive(job) for job in list(self.jobs.values()))


@pytest.mark.parametrize("refuses", [False, True])
def test_five_hundred_in_every_phase(folder: Path, batch: dict[str, str], refuses: bool) -> None:
    kept = Kept()
    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        service.behaviour = kept
        own = {"AWS_ENDPOINT_URL_BATCH": service.endpoint, "METAFLOW_USER": own_user(folder)}
        user = {**batch, **own}
        flow = write_flow(folder, FLOW)
        process = start(folder, flow, "run", *AT_ONCE, env=user)
        each = (MANY - LAST) // len(PHASES)
        in_phases = lambda now: min(now[p] for p in PHASES) >= each and now["SUBMITTED"]  # noqa: E731
        wait_until(lambda: in_phases(kept.statuses()), "jobs in every phase", 120, 0.2)
        kept.refuses = refuses
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        kept.stopping.set()
        result = finish(process, folder).exited(130)
        took = time.monotonic() - began
        text = result.stdout + result.stderr
        after = re.search(
            r"After 5 seconds AWS Batch has not confirmed the end of (\d+) tasks", text
        )
        left = re.search(r"(\d+) tasks? of this run may still be running on AWS Batch", text)
        assert took < (FIVE_AND_FIVE if refuses else FIVE) + BUSY_MACHINE
        if not refuses:
            assert not kept.alive() and not left
            return
        assert after and left and text.index(after[0]) < text.index(left[0])
        assert kept.alive() == int(left[1])
        assert text.count("batch kill --run-id 1") == 2
        kept.refuses = False
        killed = run_flow(folder, flow, "batch", "kill", "--run-id", "1", env=user).ok()
        assert killed.stdout.count("Killing AWS Batch job: ") == int(left[1])
        assert not kept.alive()
    nothing_left(folder, 2)
