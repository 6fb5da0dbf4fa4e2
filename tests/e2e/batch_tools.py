"""AWS Batch's API as tests use it, and a door before it that can be made to misbehave."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Body = dict[str, Any]
Answer = tuple[int, Body]
# Operation and body in, answer out; it may ask the real service by calling `forward`.
Behaviour = Callable[[str, Body, Callable[[], Answer]], Answer | None]


# By this moto knows which service is meant; nobody checks it.
FOR_BATCH = "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/batch/aws4_request"


def call(endpoint: str, operation: str, body: Body) -> Answer:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"{endpoint}/v1/{operation.lower()}", data, method="POST")
    request.add_header("content-type", "application/json")
    request.add_header("authorization", FOR_BATCH)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read() or b"{}")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"{}")


class BatchApi:
    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def call(self, operation: str, **body: Any) -> Body:
        status, answer = call(self.endpoint, operation, body)
        assert status == 200, f"{operation}: {status} {answer}"
        return answer

    def jobs(self, ids: list[str]) -> list[Body]:
        jobs: list[Body] = self.call("DescribeJobs", jobs=ids)["jobs"]
        return jobs

    def definition(self, arn: str) -> Body:
        found: Body = self.call("DescribeJobDefinitions", jobDefinitions=[arn])["jobDefinitions"][0]
        return found

    def jobs_of(self, queue: str, flow: str, user: str = "tester") -> list[Body]:
        """Jobs of a flow, whatever their status, oldest first."""
        listed = self.call("ListJobs", jobQueue=queue)["jobSummaryList"]
        ids = [job["jobId"] for job in listed if f"-{flow}-" in job["jobName"]]
        jobs = self.jobs(ids) if ids else []
        ours = [job for job in jobs if job["parameters"].get("metaflow.user") == user]
        return sorted(ours, key=lambda job: int(job["createdAt"]))

    def make_queue(self, name: str, state: str = "ENABLED", **resources: Any) -> None:
        """A queue with one compute environment of the same name."""
        resources = {"type": "EC2", "minvCpus": 0, "maxvCpus": 16, **resources}
        self.call(
            "CreateComputeEnvironment",
            computeEnvironmentName=name,
            type="MANAGED",
            computeResources=resources,
        )
        order = [{"order": 1, "computeEnvironment": name}]
        self.call("CreateJobQueue", jobQueueName=name, state=state, computeEnvironmentOrder=order)


def own_user(folder: Path) -> str:
    """A user of this test and this session alone: the emulator keeps old jobs."""
    return "-".join(folder.parts[-3:])


UNFINISHED = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")


def is_alive(job: Body) -> bool:
    return job["status"] in UNFINISHED


class Door:
    """An address before the service. `behaviour` answers each request; `None` cuts it off."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.behaviour: Behaviour = lambda _operation, _body, forward: forward()
        self.operations: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", "0"))
                body = json.loads(self.rfile.read(length) or b"{}")
                operation = self.path.rsplit("/", 1)[-1]
                door.operations.append(operation)
                answer = door.behaviour(
                    operation, body, lambda: call(door.upstream, operation, body)
                )
                if answer is None:
                    self.close_connection = True
                    self.connection.close()
                    return
                status, content = answer
                data = json.dumps(content).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("x-amzn-errortype", "TooManyRequestsException")
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_arguments: object) -> None:
                return

        return Handler


@contextmanager
def door(upstream: str) -> Iterator[Door]:
    opened = Door(upstream)
    try:
        yield opened
    finally:
        opened.close()


class Arrays:
    """A door's behaviour: children of array jobs as jobs of their own, which the emulator lacks."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.requests: list[Body] = []
        self.children: dict[str, str] = {}
        self.arrays: dict[str, Body] = {}
        self._lock = threading.Lock()

    def __call__(self, operation: str, body: Body, forward: Callable[[], Answer]) -> Answer:
        if operation == "submitjob":
            with self._lock:
                self.requests.append(body)
            return self.submit(body) if "arrayProperties" in body else forward()
        if operation == "describejobs":
            return self.describe(body["jobs"])
        if operation == "terminatejob" and body["jobId"] in self.children:
            return call(self.upstream, operation, {**body, "jobId": self.children[body["jobId"]]})
        if operation == "listjobs":
            return self.list(*forward())
        return forward()

    def describe(self, ids: list[str]) -> Answer:
        arrays = [self.arrays[name] for name in ids if name in self.arrays]
        named = {self.children.get(name, name): name for name in ids if name not in self.arrays}
        status, answer = call(self.upstream, "describejobs", {"jobs": list(named)})
        jobs = [{**job, "jobId": named[job["jobId"]]} for job in answer["jobs"]] if named else []
        return status, {"jobs": jobs + arrays}

    def list(self, status: int, answer: Body) -> Answer:
        """Arrays are listed, their children are not."""
        children = set(self.children.values())
        jobs = [job for job in answer["jobSummaryList"] if job["jobId"] not in children]
        keys = ("jobId", "jobName", "status", "arrayProperties")
        jobs += [{key: array[key] for key in keys} for array in self.arrays.values()]
        return status, {**answer, "jobSummaryList": jobs}

    def submit(self, body: Body) -> Answer:
        array = str(uuid.uuid4())
        for index in range(body["arrayProperties"]["size"]):
            own = [{"name": "AWS_BATCH_JOB_ARRAY_INDEX", "value": str(index)}]
            environment = body["containerOverrides"]["environment"] + own
            child = {**body, "containerOverrides": {"environment": environment}}
            _, answer = call(self.upstream, "submitjob", child)
            self.children[f"{array}:{index}"] = answer["jobId"]
        self.arrays[array] = {**body, "jobId": array, "status": "PENDING"}
        return 200, {"jobId": array, "jobName": body["jobName"]}
