"""AWS Batch's API as tests use it, and a door before it that can be made to misbehave."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from parts import part

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


def docker(*arguments: str) -> str:
    command = ["docker", "--host", part("batch")["DOCKER_HOST"], *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def container_of(job: str) -> Body | None:
    """What Docker knows of the container of one of the emulator's jobs while it runs."""
    found: list[Body] = json.loads(docker("inspect", *docker("ps", "--quiet").split()) or "[]")
    ours = (c for c in found if f"AWS_BATCH_JOB_ID={job}" in c["Config"]["Env"])
    return next(ours, None)


class AsAwsEnds:
    """A door's behaviour: a job that runs gets SIGTERM and, 30 seconds later, SIGKILL, where the
    emulator kills at once; one that does not run yet never does, where it starts all the same."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.ended: dict[str, threading.Thread] = {}
        self.never_ran: set[str] = set()

    def __call__(self, operation: str, body: Body, forward: Callable[[], Answer]) -> Answer:
        if operation == "terminatejob":
            self.end(body["jobId"])
            return 200, {}
        status, answer = forward()
        if operation == "describejobs":
            for job in answer["jobs"]:
                if job["jobId"] in self.never_ran:
                    job.update(status="FAILED", statusReason="ended by the run", container={})
        return status, answer

    def end(self, job: str) -> None:
        if job in self.ended:
            return
        if BatchApi(self.upstream).jobs([job])[0]["status"] != "RUNNING":
            self.never_ran.add(job)
        self.ended[job] = threading.Thread(target=self.signal, args=(job,), daemon=True)
        self.ended[job].start()

    def signal(self, job: str) -> None:
        api = BatchApi(self.upstream)
        deadline = time.monotonic() + 60
        while not (container := container_of(job)) and time.monotonic() < deadline:
            if not is_alive(api.jobs([job])[0]):
                return
            time.sleep(0.1)
        if container:
            docker("stop", "--time", "0" if job in self.never_ran else "30", container["Id"])

    def wait_until_gone(self) -> None:
        for thread in self.ended.values():
            thread.join(60)
        assert not [job for job in self.ended if container_of(job)]


class Gangs:
    """A door's behaviour: multi-node jobs, which the emulator lacks. The first node starts first,
    the others when it has an address; they are stopped when it ends, and all when the job is."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.requests: list[Body] = []
        self.gangs: dict[str, Body] = {}
        self.nodes: dict[str, str] = {}
        self.stopped: set[str] = set()
        # Changes what is said of a node, by its id.
        self.said: Callable[[str, Body], None] = lambda _name, _job: None
        self._lock = threading.Lock()

    def __call__(self, operation: str, body: Body, forward: Callable[[], Answer]) -> Answer:
        if operation == "submitjob" and "nodeOverrides" in body:
            return self.submit(body)
        if operation == "describejobs":
            return 200, {"jobs": [job for name in body["jobs"] for job in self.describe(name)]}
        if operation == "terminatejob" and body["jobId"] in self.gangs:
            self.gangs[body["jobId"]].update(isTerminated=True, statusReason=body["reason"])
            self.stop(body["jobId"])
            return 200, {}
        if operation == "listjobs":
            status, answer = forward()
            nodes = set(self.nodes.values())
            jobs = [job for job in answer["jobSummaryList"] if job["jobId"] not in nodes]
            whole = [self.describe(name)[0] for name in self.gangs]
            return status, {**answer, "jobSummaryList": jobs + whole}
        return forward()

    def submit(self, body: Body) -> Answer:
        gang = str(uuid.uuid4())
        properties = {"numNodes": body["nodeOverrides"]["numNodes"]}
        with self._lock:
            self.requests.append(body)
            self.gangs[gang] = {**body, "jobId": gang, "nodeProperties": properties}
        threading.Thread(target=self.start, args=(gang, body), daemon=True).start()
        return 200, {"jobId": gang, "jobName": body["jobName"]}

    def start(self, gang: str, body: Body) -> None:
        api = BatchApi(self.upstream)
        properties = api.definition(body["jobDefinition"])["nodeProperties"]
        (of_all,) = properties["nodeRangeProperties"]
        definition = api.call(
            "RegisterJobDefinition",
            jobDefinitionName=f"node-{gang}",
            type="container",
            containerProperties=of_all["container"],
        )["jobDefinitionArn"]
        overrides = body["nodeOverrides"]
        (to_all,) = overrides["nodePropertyOverrides"]
        assert of_all["targetNodes"] == to_all["targetNodes"] == "0:"
        own = {"AWS_BATCH_JOB_NUM_NODES": str(overrides["numNodes"])}
        for index in range(overrides["numNodes"]):
            own["AWS_BATCH_JOB_NODE_INDEX"] = str(index)
            environment = to_all["containerOverrides"]["environment"] + [
                {"name": name, "value": value} for name, value in own.items()
            ]
            with self._lock:
                if gang in self.stopped:
                    return
                job = api.call(
                    "SubmitJob",
                    jobName=body["jobName"],
                    jobQueue=body["jobQueue"],
                    jobDefinition=definition,
                    containerOverrides={"environment": environment},
                )["jobId"]
                self.nodes[f"{gang}#{index}"] = job
            if index == 0:
                address = self.address(job)
                own["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"] = address

    def address(self, job: str) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            container = container_of(job)
            if container and container["NetworkSettings"]["IPAddress"]:
                return str(container["NetworkSettings"]["IPAddress"])
            if not is_alive(BatchApi(self.upstream).jobs([job])[0]):
                break
            time.sleep(0.1)
        return "127.0.0.1"

    def stop(self, gang: str) -> None:
        if gang not in self.stopped:
            self.stopped.add(gang)
            threading.Thread(target=self.stop_nodes, args=(gang,), daemon=True).start()

    def stop_nodes(self, gang: str) -> None:
        """The emulator starts what was ended before it ran, so that is waited for."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with self._lock:
                jobs = [job for name, job in self.nodes.items() if name.startswith(f"{gang}#")]
            alive = [job for job in BatchApi(self.upstream).jobs(jobs) if is_alive(job)]
            if not alive:
                return
            for job in alive:
                if job["status"] == "RUNNING":
                    body = {"jobId": job["jobId"], "reason": "its gang has ended"}
                    call(self.upstream, "terminatejob", body)
            time.sleep(0.1)

    def describe(self, name: str) -> list[Body]:
        """Of a node, of a gang (as its main node is), or of any other job."""
        if name not in self.gangs and "#" not in name:
            return BatchApi(self.upstream).jobs([name])
        gang = name.partition("#")[0]
        node = self.nodes.get(name if "#" in name else f"{gang}#0")
        whole = self.gangs[gang]
        if node is None:
            over = "FAILED" if whole.get("isTerminated") else "RUNNABLE"
            return [] if "#" in name else [{"status": over, **whole}]
        (job,) = BatchApi(self.upstream).jobs([node])
        self.said(name, job)
        if name == f"{gang}#0" and not is_alive(job):
            self.stop(gang)
        if gang in self.stopped and is_alive(job) and job["status"] != "RUNNING":
            job.update(status="FAILED", statusReason="its gang has ended")
        job = {**job, "jobId": name}
        return [job if "#" in name else {**job, **whole}]


def accepted_by_moto(request: Body, children: int = 0, nodes: int = 0) -> None:
    """Its API takes the request and counts the children of an array; nothing runs there."""
    moto = part("batch")["FERROFLOW_TEST_MOTO"]
    container = {"image": "i", "memory": 128, "vcpus": 1}
    ranges = [{"targetNodes": "0:", "container": container}]
    properties = {"numNodes": nodes, "mainNode": 0, "nodeRangeProperties": ranges}
    name = f"several-{uuid.uuid4().hex[:8]}"
    alone = {"type": "container", "containerProperties": container}
    of_nodes = {"type": "multinode", "nodeProperties": properties}
    kind = of_nodes if nodes else alone
    definition = call(moto, "RegisterJobDefinition", {"jobDefinitionName": name, **kind})
    assert definition[0] == 200, definition
    queue = moto_queue(moto)
    body = {**request, "jobQueue": queue, "jobDefinition": definition[1]["jobDefinitionArn"]}
    status, answer = call(moto, "SubmitJob", body)
    assert status == 200, answer
    job = BatchApi(moto).jobs([answer["jobId"]])[0]
    assert job["jobName"] == request["jobName"]
    if children:
        assert job["arrayProperties"]["size"] == children
        child = BatchApi(moto).jobs([f"{answer['jobId']}:{children - 1}"])
        assert [each["jobName"] for each in child] == [request["jobName"]]
    if nodes:
        assert job["nodeProperties"]["numNodes"] == nodes


def moto_queue(moto: str) -> str:
    config = urllib.request.Request(
        f"{moto}/moto-api/config", b'{"batch": {"use_docker": false}}', method="POST"
    )
    urllib.request.urlopen(config, timeout=10).close()
    name = f"several-{uuid.uuid4().hex[:8]}"
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
