"""A namespace of a test's own on the real cluster, and what a test asks and does there.

How the cluster is started is `tests/clusters`' business; users' environments are in `parts`.
"""

from __future__ import annotations

import dataclasses
import http.server
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import DEADLINE, Result, finish, kill_marked, start, wait_until, write_flow
from kubernetes_api import ApiError
from parts import KubernetesApi, make_secret, part

Json = dict[str, Any]


class Namespace:
    """Jobs and pods of one namespace. `environment` makes runs use it."""

    def __init__(self, api: KubernetesApi, name: str) -> None:
        self.api = api
        self.name = name
        self.path = f"/api/v1/namespaces/{name}"
        self.jobs_path = f"/apis/batch/v1/namespaces/{name}/jobs"
        self.environment = {"METAFLOW_KUBERNETES_NAMESPACE": name}

    def pods(self) -> list[Json]:
        return list(self.api.get(f"{self.path}/pods")["items"])

    def jobs(self) -> list[Json]:
        return list(self.api.get(self.jobs_path)["items"])

    def services(self) -> list[Json]:
        return list(self.api.get(f"{self.path}/services")["items"])

    def nothing_left(self) -> None:
        """No Job, no pod, and no Service by which ranks of a gang found each other."""
        left = [*self.jobs(), *self.pods(), *self.services()]
        names = [item["metadata"]["name"] for item in left]
        assert not names, f"left behind: {names}"

    def of_step(self, step: str) -> list[Json]:
        """Pods of one step."""
        return [
            p for p in self.pods() if p["metadata"]["annotations"]["metaflow/step_name"] == step
        ]

    def wait_empty(self) -> None:
        """Pods of tasks that have ended go a moment after the run."""
        wait_until(lambda: not self.jobs() and not self.pods(), "an empty namespace", 60, 0.2)

    def wait_for_jobs(self, count: int) -> list[Json]:
        wait_until(lambda: len(self.jobs()) >= count, f"{count} jobs", 60, 0.1)
        return self.jobs()

    def phases(self, phase: str) -> int:
        return sum(pod["status"].get("phase") == phase for pod in self.pods())

    def events(self, reason: str) -> list[Json]:
        query = {"fieldSelector": f"reason={reason}"}
        return list(self.api.get(f"{self.path}/events", **query)["items"])

    def wait_for_pod(
        self, condition: Callable[[Json], object], what: str, deadline: float = 60.0
    ) -> Json:
        """The first pod of which the condition holds."""
        found: list[Json] = []

        def look() -> bool:
            found[:] = [pod for pod in self.pods() if condition(pod)]
            return bool(found)

        wait_until(look, what, deadline, 0.1)
        return found[0]

    def wait_for(
        self, count: int, condition: Callable[[Json], object], deadline: float = 90.0
    ) -> None:
        """Waits until the condition holds of so many pods."""
        enough = lambda: sum(map(bool, map(condition, self.pods()))) >= count  # noqa: E731
        wait_until(enough, f"{count} such pods", deadline, 0.1)

    def wait_running(self, step: str = "", deadline: float = 60.0) -> Json:
        """A pod (of a step) whose container runs."""
        return self.wait_for_pod(lambda pod: is_running(pod, step), "a running pod", deadline)

    def delete_pod(self, pod: Json, **options: Any) -> None:
        self.api.delete(f"{self.path}/pods/{pod['metadata']['name']}", **options)

    def post(self, kind: str, body: Json) -> Json:
        """Creates an object of the core API (`configmaps`, `resourcequotas` …)."""
        return self.api.post(f"{self.path}/{kind}", body)

    def log(self, pod: Json) -> str:
        """What the kubelet has of a pod's first container."""
        kubectl = ["kubectl", "--kubeconfig", part("kubernetes")["KUBECONFIG"], "-n", self.name]
        command = [*kubectl, "logs", pod["metadata"]["name"]]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    def limited_user(self, *rules: Json) -> str:
        """Kubeconfig of a user who has these rights here and no others."""
        self.allow("limited", list(rules))
        return part("kubernetes")["FERROFLOW_TEST_KUBECONFIG_LIMITED"]

    def allow(self, user: str, rules: list[Json]) -> None:
        """Gives a user these rights here."""
        roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.name}"
        self.api.post(f"{roles}/roles", {"metadata": {"name": user}, "rules": rules})
        binding = {
            "metadata": {"name": user},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user},
            "subjects": [{"kind": "User", "name": user}],
        }
        self.api.post(f"{roles}/rolebindings", binding)


def step_of(pod: Json) -> str:
    return str(pod["metadata"]["annotations"]["metaflow/step_name"])


def is_running(pod: Json, step: str = "") -> bool:
    states = [status.get("state", {}) for status in pod["status"].get("containerStatuses", [])]
    return (not step or step_of(pod) == step) and any("running" in state for state in states)


def rule(*resources: str, verbs: str, group: str = "") -> Json:
    """A rule of a role: `rule("jobs", verbs="create delete", group="batch")`."""
    return {"apiGroups": [group], "resources": list(resources), "verbs": verbs.split()}


@contextmanager
def own_namespace(api: KubernetesApi) -> Iterator[Namespace]:
    """A new namespace with the store's keys; it goes, with all in it, when the test is over."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    try:
        make_secret(part("kubernetes")["KUBECONFIG"], name, part("s3"))
        # Without its service account no pod may be made.
        wait_until(lambda: api.has(f"/api/v1/namespaces/{name}/serviceaccounts/default"), name)
        yield Namespace(api, name)
    finally:
        for pod in Namespace(api, name).pods():
            _delete(api, f"/api/v1/namespaces/{name}/pods/{pod['metadata']['name']}")
        _delete(api, f"/api/v1/namespaces/{name}")


class Started:
    """A command of a flow that goes on beside the test."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path, output: Path) -> None:
        self.process = process
        self.folder = folder
        self._output = output

    def shown(self) -> str:
        """What it has printed on stdout so far."""
        return self._output.read_text(errors="replace")

    def wait_shown(self, text: str, deadline: float = 60.0) -> None:
        wait_until(lambda: text in self.shown(), f"the words `{text}`", deadline, 0.05)

    def end(self, deadline: float = DEADLINE) -> Result:
        result = finish(self.process, self.folder, deadline)
        return dataclasses.replace(result, stdout=self.shown())


@contextmanager
def started(
    folder: Path, source: str, *options: str, env: dict[str, str], name: str = "flow.py"
) -> Iterator[Started]:
    """`run` of a flow; it is killed if the test leaves it running."""
    flow = write_flow(folder, source, name)
    output = folder / f"{name}.out"
    with output.open("wb") as out:
        process = start(folder, flow, "run", *options, env=env, stdout=out.fileno())
    try:
        yield Started(process, folder, output)
    finally:
        if process.poll() is None:
            kill_marked(folder)
            process.communicate()


class _NoSuchImage(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/v2/" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextmanager
def empty_registry() -> Iterator[str]:
    """A registry without any image; `localhost` is where plain HTTP is allowed."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NoSuchImage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"localhost:{server.server_port}"
        server.shutdown()


@contextmanager
def priority_class(api: KubernetesApi, namespace: Namespace) -> Iterator[str]:
    """A class whose pods take the place of ordinary ones."""
    path = "/apis/scheduling.k8s.io/v1/priorityclasses"
    api.post(path, {"metadata": {"name": namespace.name}, "value": 1000})
    try:
        yield namespace.name
    finally:
        api.delete(f"{path}/{namespace.name}")


def _delete(api: KubernetesApi, path: str) -> None:
    try:
        api.delete(path, gracePeriodSeconds=0)
    except ApiError as error:
        if error.status not in (404, 409):
            raise
