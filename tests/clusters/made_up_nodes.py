"""Nodes that exist only in the API server: the scheduler binds pods to them and nothing runs there.

For what one small machine cannot have: GPUs, big memory, a thousand tasks in flight, a node that
is lost. A test says what becomes of a pod (`set_running`, `set_finished`); what a stand-in task
writes to the store is the test's business. As a program it keeps the nodes until it is stopped:
    KUBECONFIG=... python made_up_nodes.py --count 3 --gpus 8 --label pool=big
"""

from __future__ import annotations

import argparse
import datetime
import signal
import sys
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import FrameType

from kubernetes_api import ApiError, Json, KubernetesApi

LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
RENEW_SECONDS = 10
GPU = "nvidia.com/gpu"
# Without a taint, ordinary pods would be bound here and never start. Those that ask for a GPU get
# the toleration for the second from the API server (ExtendedResourceToleration), as when hosted.
MADE_UP_TAINT = {"key": "ferroflow.test/made-up", "value": "true", "effect": "NoSchedule"}
GPU_TAINT = {"key": GPU, "value": "present", "effect": "NoSchedule"}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a made-up node has. `tainted=False` lets every pod come."""

    cpu: str = "64"
    memory: str = "512Gi"
    gpus: int = 0
    pods: int = 250
    labels: Mapping[str, str] = field(default_factory=dict)
    tainted: bool = True
    # Never says that a deleted pod is dead, as a machine that hangs.
    silent: bool = False

    def capacity(self) -> dict[str, str]:
        capacity = {
            "cpu": self.cpu,
            "memory": self.memory,
            "pods": str(self.pods),
            "ephemeral-storage": "1Ti",
        }
        return capacity | ({GPU: str(self.gpus)} if self.gpus else {})

    def taints(self) -> list[dict[str, str]]:
        if not self.tainted:
            return []
        return [GPU_TAINT if self.gpus else MADE_UP_TAINT]


class MadeUpNodes:
    """Adds nodes, keeps them Ready and lets their pods be deleted; `close` removes them all."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api
        self._renewed: set[str] = set()
        self._added: set[str] = set()
        self._silent: set[str] = set()
        self._stop = threading.Event()
        # As many kubelets would, and not one after the other.
        self._deleters = ThreadPoolExecutor(8)
        self._threads = [
            threading.Thread(target=self._keep_ready, daemon=True),
            threading.Thread(target=self._delete_pods, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> MadeUpNodes:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, name: str, shape: Shape) -> None:
        """Adds a Ready node; the scheduler uses it about a second later."""
        node: Json = {
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **shape.labels}}
        }
        node["spec"] = {"taints": shape.taints()}
        self._api.apply_new("/api/v1/nodes", node)
        self._added.add(name)
        if shape.silent:
            self._silent.add(name)
        self._api.apply_new(LEASES, {"metadata": {"name": name}, "spec": {"holderIdentity": name}})
        self._renew(name)
        self._renewed.add(name)
        capacity = shape.capacity()
        status = {"capacity": capacity, "allocatable": capacity, "nodeInfo": node_info(self._api)}
        self._api.patch(f"/api/v1/nodes/{name}/status", {"status": status})
        self.set_ready(name, True)

    def set_ready(self, name: str, ready: bool) -> None:
        """Says so at once, as a kubelet would of itself."""
        condition = {
            "type": "Ready",
            "status": "True" if ready else "False",
            "reason": "KubeletReady" if ready else "KubeletNotReady",
            "message": "made up",
            "lastHeartbeatTime": now(),
            "lastTransitionTime": now(),
        }
        self._api.patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": [condition]}})

    def lose(self, name: str) -> None:
        """As if the machine had died: nothing is heard of it; it is NotReady after 40 s."""
        self._renewed.discard(name)

    def remove(self, name: str) -> None:
        self._renewed.discard(name)
        self._added.discard(name)
        for path in (f"/api/v1/nodes/{name}", f"{LEASES}/{name}"):
            try:
                self._api.delete(path)
            except ApiError as error:
                if error.status != 404:
                    raise

    def close(self) -> None:
        self._stop.set()
        self._deleters.shutdown()
        for name in list(self._added):
            self.remove(name)

    def _keep_ready(self) -> None:
        while not self._stop.wait(RENEW_SECONDS):
            for name in list(self._renewed):
                try:
                    self._renew(name)
                except (
                    ApiError
                ) as error:  # the API server is away for a while: that is one of the tests
                    print(f"made_up_nodes: {name} not renewed: {error}", file=sys.stderr)

    def _renew(self, name: str) -> None:
        lease = {
            "spec": {
                "holderIdentity": name,
                "leaseDurationSeconds": 40,
                "renewTime": now_precisely(),
            }
        }
        self._api.patch(f"{LEASES}/{name}", lease)

    def _delete_pods(self) -> None:
        """A pod being deleted stays until its kubelet agrees; here there is none."""
        while not self._stop.is_set():
            try:
                self._finish_deletions(self._api.watch("/api/v1/pods", timeoutSeconds="300"))
            except (ApiError, OSError, ValueError) as error:
                if not self._stop.wait(1):
                    print(f"made_up_nodes: watching pods again after: {error}", file=sys.stderr)

    def _finish_deletions(self, events: Iterable[Json]) -> None:
        for event in events:
            if self._stop.is_set():
                return
            pod = event["object"]
            on_ours = pod.get("spec", {}).get("nodeName") in self._added - self._silent
            if on_ours and event["type"] != "DELETED" and pod["metadata"].get("deletionTimestamp"):
                self._deleters.submit(self._remove_pod, pod)

    def _remove_pod(self, pod: Json) -> None:
        try:
            remove_pod(self._api, pod)
        except ApiError as error:
            print(f"made_up_nodes: a pod stays: {error}", file=sys.stderr)


def remove_pod(api: KubernetesApi, pod: Json) -> None:
    metadata = pod["metadata"]
    try:
        api.delete(
            f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}",
            gracePeriodSeconds=0,
            preconditions={"uid": metadata["uid"]},
        )
    except ApiError as error:
        if error.status not in (404, 409):
            raise


def set_running(api: KubernetesApi, pod: Json) -> None:
    """Makes a bound pod Running, as its kubelet would."""
    state = {"running": {"startedAt": now()}}
    status = {
        "phase": "Running",
        "startTime": now(),
        "containerStatuses": container_statuses(pod, state, ready=True),
    }
    status["conditions"] = [{"type": "Ready", "status": "True"}]
    patch_pod_status(api, pod, status)


def set_finished(
    api: KubernetesApi,
    pod: Json,
    *,
    exit_code: int = 0,
    reason: str | None = None,
    message: str = "",
) -> None:
    """Ends a bound pod; `message` is the termination message. Its Job completes within 3 s."""
    terminated = {
        "exitCode": exit_code,
        "reason": reason or ("Completed" if exit_code == 0 else "Error"),
        "message": message,
        "finishedAt": now(),
    }
    status: Json = {"phase": "Succeeded" if exit_code == 0 else "Failed"}
    status["containerStatuses"] = container_statuses(pod, {"terminated": terminated}, ready=False)
    status["conditions"] = [{"type": "Ready", "status": "False", "reason": "PodCompleted"}]
    patch_pod_status(api, pod, status)


def container_statuses(pod: Json, state: Json, *, ready: bool) -> list[Json]:
    return [
        {
            "name": c["name"],
            "image": c["image"],
            "imageID": "",
            "ready": ready,
            "restartCount": 0,
            "state": state,
        }
        for c in pod["spec"]["containers"]
    ]


def patch_pod_status(api: KubernetesApi, pod: Json, status: Json) -> None:
    metadata = pod["metadata"]
    api.patch(
        f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status",
        {"status": status},
    )


def node_info(api: KubernetesApi) -> dict[str, str]:
    """The fields a node must have, with the version of the server's own nodes."""
    keys = [
        "architecture",
        "bootID",
        "containerRuntimeVersion",
        "kernelVersion",
        "kubeProxyVersion",
        "machineID",
        "operatingSystem",
        "osImage",
        "systemUUID",
    ]
    known = {"architecture": "amd64", "operatingSystem": "linux", "osImage": "made up"}
    version = api.get("/version")["gitVersion"]
    return {**dict.fromkeys(keys, ""), **known, "kubeletVersion": version}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_precisely() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--name", default="made-up", help="they are called NAME-1, NAME-2, …")
    parser.add_argument("--cpu", default="64")
    parser.add_argument("--memory", default="512Gi")
    parser.add_argument("--gpus", type=int, default=0, help="of nvidia.com/gpu on each")
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-taint", action="store_true", help="let ordinary pods come, too")
    parser.add_argument("--ready-file", help="written when all are there")
    return parser.parse_args()


def stop_at_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    options = parse_options()
    shape = Shape(
        cpu=options.cpu,
        memory=options.memory,
        gpus=options.gpus,
        pods=options.pods,
        labels=dict(label.split("=", 1) for label in options.label),
        tainted=not options.no_taint,
    )
    signal.signal(signal.SIGTERM, stop_at_signal)
    with KubernetesApi() as api, MadeUpNodes(api) as nodes:
        for number in range(1, options.count + 1):
            nodes.add(f"{options.name}-{number}", shape)
        print(f"{options.count} made-up nodes are there", flush=True)
        if options.ready_file:
            with open(options.ready_file, "w", encoding="utf-8") as file:
                file.write("ready\n")
        threading.Event().wait()


if __name__ == "__main__":
    main()
