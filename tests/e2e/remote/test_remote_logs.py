"""What remote tasks print reaches the screen and the store; how many requests that and their data
take. How soon lines are there is measured in `benches/macro/remote.py`."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from harness import finish, run_flow, start, wait_until, write_flow
from kubernetes_tools import Namespace
from parts import part
from store_proxy import Door, Handler, proxy, served

pytestmark = pytest.mark.cluster

SEVEN = """
class SevenFlow(FlowSpec):
    @step
    def start(self):
        self.items = [1, 2, 3, 4]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        print("working on", self.input)
        self.x = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(i.x for i in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total)
"""
TASKS = 7


def test_requests_are_few_and_code_is_uploaded_once(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    s3 = part("s3")
    inside = s3["FERROFLOW_TEST_S3_FROM_PODS"].split("//")[1].split(":")[0]
    pods = Door(s3["AWS_ENDPOINT_URL_S3"])
    handler = type("PodsHandler", (Handler,), {"door": pods})
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as engine, served(handler, host="0.0.0.0") as port:
        env = {
            **kubernetes,
            **namespace.environment,
            "AWS_ENDPOINT_URL_S3": engine.url,
            "METAFLOW_KUBERNETES_S3_ENDPOINT_URL": f"http://{inside}:{port}",
        }
        result = run_flow(folder, SEVEN, "run", "--with", "kubernetes", env=env).ok()
        assert "total 10" in result.stdout
        assert pods.count("GET", "/code/") == TASKS
        assert engine.count("PUT", "/code/") == 1
        # A join reads a pack of each of its inputs.
        data = [each for each in pods.requests if is_data(each[1])]
        assert len(data) <= 3 * TASKS + 4, data
        written = sum(1 for method, path in pods.requests if method == "PUT" and ".log/" in path)
        assert TASKS <= written <= 2 * TASKS, pods.requests
        read = [path for method, path in engine.requests if method == "GET" and ".log/" in path]
        assert len(read) <= 2 * TASKS, read
        listings = engine.count("GET", "list-type=2")
        assert listings <= result.seconds / 0.15 + 5, (listings, result.seconds)
        rest = len(engine.requests) - len(read) - listings
        # The code, the lease, the store's check, an uploaded log of each task that printed.
        assert rest <= TASKS + 12, engine.requests
        run_flow(folder, SEVEN, "run", "--with", "kubernetes", env=env).ok()
        assert engine.count("PUT", "/code/") == 1, "the same content is there already"


def is_data(path: str) -> bool:
    return ".pack" in path or "/data/" in path


PRINTING = """
import sys
from metaflow import FlowSpec, step

class PrintingFlow(FlowSpec):
    @step
    def start(self):
        for number in range(2000):
            print(f"line {number} of gr\\u00fcn", file=sys.stdout if number % 3 else sys.stderr)
        sys.stdout.write("the last words have no end")
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_logs_show_afterwards_what_the_screen_showed(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    env = {**kubernetes, **namespace.environment}
    result = run_flow(folder, PRINTING, "run", "--with", "kubernetes:cpu=0.1", env=env).ok()
    said = [n for n in range(2000) if n % 3]
    expected = [f"line {number} of grün" for number in said] + ["the last words have no end"]
    errors = [f"line {number} of grün" for number in range(0, 2000, 3)]
    times = re.findall(r"(?m)^(\S+ \S+) \[\d+/start/\d+\] ", result.stdout)
    assert min(times) == times[0], "nothing is older than the line that tells of the start"
    shown = lines_of(result.stdout, "start")
    assert [line for line in shown if line in set(expected)] == expected
    assert [line for line in shown if line in set(errors)] == errors
    flow = folder / "flow.py"
    for option, lines in (("--stdout", expected), ("--stderr", errors)):
        logged = run_flow(folder, flow, "logs", f"{result.run_id}/start", option, env=env).ok()
        assert logged.stdout.splitlines() == lines


def lines_of(screen: str, step: str) -> list[str]:
    """What the tasks of a step printed, without the time and the task."""
    found = re.findall(rf"(?m)^\S+ \S+ \[\d+/{step}/\d+\] (.*)$", screen)
    return [line for line in found if not line.startswith("Task ")]


TICKING = """
import time
from metaflow import FlowSpec, current, step

class TickingFlow(FlowSpec):
    @step
    def start(self):
        # A task that is lost starts again.
        for number in range(1, 10_000 if current.retry_count == 0 else 1):
            print(f"{time.time():.1f}", end=" " if number % 30 else "\\n", flush=True)
            time.sleep(0.1)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_a_pod_killed_mid_line_loses_at_most_two_seconds(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    env = {**kubernetes, **namespace.environment}
    process = start(folder, write_flow(folder, TICKING), "run", "--with", "kubernetes", env=env)
    pod = namespace.wait_running()
    # The kubelet shows whole lines only.
    wait_until(lambda: namespace.log(pod), "three seconds of ticks", pause=0.2)
    time.sleep(1.5)  # now it is in the middle of the second line
    killed_at = time.time()
    namespace.delete_pod(pod, gracePeriodSeconds=0)
    result = finish(process, folder).ok()
    shown = [line for line in lines_of(result.stdout, "start") if re.match(r"\d+\.\d ", line)]
    ticks = " ".join(shown).split()
    assert len(shown) == 2 and float(ticks[-1]) >= killed_at - 2.0, (ticks[-3:], killed_at)
    logs = ("logs", f"{result.run_id}/start", "--stdout", "--attempt", "0")
    logged = run_flow(folder, folder / "flow.py", *logs, env=env).ok()
    assert logged.stdout.splitlines() == shown
