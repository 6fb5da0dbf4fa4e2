"""Acts as the pods of a wide foreach on made-up nodes would, without a container for each.

Each pod turns Running and prints; when all of them run, each task is carried out by our own task
side in a fork of this process, so its pack is a real one, and its pod ends with the termination
message. How many lines a task prints is the flow's parameter. Started as a program of its own:
its memory is not the engine's.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sides import REPOSITORY, environment

sys.path.insert(0, str(REPOSITORY / "tests/clusters"))

from kubernetes_api import ApiError, KubernetesApi
from made_up_nodes import MadeUpNodes, Shape, set_finished, set_running

Json = dict[str, Any]
LINES = 3
# Each has room for a hundred pods that ask for the usual 10 GB of disk.
NODES = 12
# Processes that fork for one task after the other; they have no threads.
WORKERS = 2


class StandIns:
    """The running program, as the bench sees it."""

    def __init__(self, counts: Path) -> None:
        self._counts = counts

    def most_in_flight(self) -> int:
        return int(self._counts.read_text())


@contextlib.contextmanager
def standing_in(
    flow: Path, namespace: str, width: int, variables: dict[str, str], log: Path
) -> Iterator[StandIns]:
    """Nodes and stand-ins for the pods of a namespace, until the run is over."""
    counts = log.with_suffix(".count")
    command = [sys.executable, __file__, str(flow), namespace, str(width), str(counts)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment(log.parent, variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
        )
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit(f"the stand-ins did not start:\n{log.read_text()}")
        try:
            yield StandIns(counts)
        finally:
            process.terminate()
            process.wait(60)
            remove_pods(namespace, variables["KUBECONFIG"])


def remove_pods(namespace: str, kubeconfig: str) -> None:
    """Those that a run which did not end well has left."""
    kubectl = ["kubectl", "--kubeconfig", kubeconfig, "--namespace", namespace, "delete"]
    for what in (["jobs", "--all"], ["pods", "--all", "--force", "--grace-period=0"]):
        subprocess.run([*kubectl, *what, "--wait=false"], capture_output=True, check=False)


class Pod:
    def __init__(self, pod: Json) -> None:
        self.pod = pod
        container = pod["spec"]["containers"][0]
        self.variables = {each["name"]: each.get("value", "") for each in container["env"]}
        text = self.variables["FERROFLOW_TASK_SPEC"]
        if not text.startswith("{"):
            text = zlib.decompress(base64.b64decode(text)).decode()
        self.spec: Json = json.loads(text)
        self.text = b""

    def say(self, objects: Any, ending: bytes = b"") -> None:
        """Writes the log's segment anew, longer, as the supervisor in a container does."""
        number = self.text.count(b"\n") // 2
        if not ending:
            line = f"line {number} of {self.spec['task']} said at {time.time():.3f}\n".encode()
            self.text += chunk("o", line)
        else:
            self.text += chunk("x", ending)
        objects.put(f"{self.variables['FERROFLOW_LOG_PREFIX']}000000", self.text)


def chunk(letter: str, data: bytes) -> bytes:
    return f"{int(time.time() * 1000)} {letter} {len(data)} ".encode() + data + b"\n"


class Kubelet:
    """Takes pods as they are bound, and ends them when all are there."""

    def __init__(self, api: KubernetesApi, namespace: str, width: int, counts: Path) -> None:
        self._api, self._namespace, self._width, self._counts = api, namespace, width, counts
        self._running: list[Pod] = []
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._stores = threading.local()
        self._pool = ThreadPoolExecutor(8)
        self.ready: queue.Queue[Pod] = queue.Queue()

    def watch(self) -> None:
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        while True:
            try:
                for event in self._api.watch(path, timeoutSeconds="300"):
                    self._take(event["object"])
            except (ApiError, OSError, ValueError) as error:
                print(f"watching again after: {error}", file=sys.stderr, flush=True)
                time.sleep(0.5)

    def _take(self, pod: Json) -> None:
        bound = str(pod.get("spec", {}).get("nodeName", "")).startswith("ferroflow-bench-")
        uid = pod["metadata"]["uid"]
        if bound and uid not in self._seen and not pod["metadata"].get("deletionTimestamp"):
            self._seen.add(uid)
            self._pool.submit(self._guard, self._start, Pod(pod))

    def _guard(self, work: Any, pod: Pod, *more: Any) -> None:
        try:
            work(pod, *more)
        except Exception as error:  # noqa: BLE001 - the bench shows this log
            print(f"pod {pod.pod['metadata']['name']}: {error!r}", file=sys.stderr, flush=True)

    def _objects(self, pod: Pod) -> Any:
        from metaflow import _native

        if not hasattr(self._stores, "objects"):
            self._stores.objects = _native.Objects(json.dumps(pod.spec["store"]))
        return self._stores.objects

    def _start(self, pod: Pod) -> None:
        set_running(self._api, pod.pod)
        pod.say(self._objects(pod))
        with self._lock:
            self._running.append(pod)
            self._counts.write_text(str(len(self._running)))
            all_there = len(self._running) == self._width
        if all_there:
            for each in self._running:
                self._pool.submit(self._guard, self._go_on, each)

    def _go_on(self, pod: Pod) -> None:
        for _ in range(LINES - 1):
            pod.say(self._objects(pod))
        self.ready.put(pod)

    def end(self, pod: Pod, message: Json) -> None:
        self._pool.submit(self._guard, self._finish, pod, json.dumps(message))

    def _finish(self, pod: Pod, message: str) -> None:
        pod.say(self._objects(pod), message.encode())
        set_finished(self._api, pod.pod, message=message)


class Report:
    """The task's control channel: keeps the outcome."""

    def __init__(self) -> None:
        self.outcome: Json | None = None

    def send(self, message: Json, /) -> None:
        if message.get("type") == "outcome":
            self.outcome = message["outcome"]


def carry_out(flow_class: type, pod: Json, variables: dict[str, str]) -> Json:
    """Runs a task in this process, which is a fork for it alone; its termination message."""
    from metaflow import _task

    os.environ.update(variables)
    report = Report()
    code = _task.run(flow_class, pod, report)  # type: ignore[arg-type]
    usage = {"cpu_seconds": 0.01, "peak_memory": 1 << 20}
    return {"outcome": report.outcome, "exit": {"code": code}, "usage": usage, "cause": None}


def worker(flow_class: type, orders: Any, answers: Any) -> None:
    """Forks for each order, one after the other; a line of JSON each way."""
    for line in orders:
        order = json.loads(line)
        read, write = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                message = carry_out(flow_class, order["spec"], order["variables"])
                os.write(write, json.dumps(message).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as source:
            text = source.read()
        os.waitpid(pid, 0)
        answers.write(text + b"\n")
        answers.flush()


def start_worker(flow_class: type) -> tuple[Any, Any]:
    """Before any thread is there."""
    (orders, orders_in), (answers, answers_in) = os.pipe(), os.pipe()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(orders_in)
        os.close(answers)
        with os.fdopen(orders, "rb") as source, os.fdopen(answers_in, "wb") as sink:
            worker(flow_class, source, sink)
        os._exit(0)
    os.close(orders)
    os.close(answers_in)
    return os.fdopen(orders_in, "wb"), os.fdopen(answers, "rb")


def serve(kubelet: Kubelet, orders: Any, answers: Any) -> None:
    while True:
        pod = kubelet.ready.get()
        order = {"spec": pod.spec, "variables": pod.variables}
        orders.write(json.dumps(order).encode() + b"\n")
        orders.flush()
        kubelet.end(pod, json.loads(answers.readline()))


def load(path: str) -> type:
    spec = importlib.util.spec_from_file_location("bench_flow", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_flow"] = module
    spec.loader.exec_module(module)
    flow_class: type = module.InFlightFlow
    return flow_class


def stop(number: int, frame: Any) -> None:
    raise SystemExit(0)


def main() -> None:
    flow, namespace, width, counts = sys.argv[1:]
    Path(counts).write_text("0")
    flow_class = load(flow)
    pipes = [start_worker(flow_class) for _ in range(WORKERS)]
    signal.signal(signal.SIGTERM, stop)
    with KubernetesApi(os.environ["KUBECONFIG"]) as api, MadeUpNodes(api) as nodes:
        shape = Shape(pods=250, labels={"pool": "ferroflow-bench"})
        for number in range(NODES):
            nodes.add(f"ferroflow-bench-{number}", shape)
        kubelet = Kubelet(api, namespace, int(width), Path(counts))
        for orders, answers in pipes:
            threading.Thread(target=serve, args=(kubelet, orders, answers), daemon=True).start()
        print("ready", flush=True)
        kubelet.watch()


if __name__ == "__main__":
    main()
