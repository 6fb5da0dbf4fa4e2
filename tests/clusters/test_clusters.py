"""The real parts do what the project's tests will ask of them. Every test starts what it needs;
what the engine does with the parts is tested elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from kubernetes_api import ApiError, Json, KubernetesApi
from made_up_nodes import GPU, MadeUpNodes, Shape, set_finished, set_running

pytestmark = pytest.mark.cluster

FOLDER = Path(__file__).parent
CLUSTER = str(FOLDER / "cluster")
JOBS = "/apis/batch/v1/namespaces/default/jobs"
PODS = "/api/v1/namespaces/default/pods"
PYTHON = "localhost/ferroflow-python:3.11"
T = TypeVar("T")
Part = Callable[[str], dict[str, str]]
READ = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode(), end='')"


def until(what: str, seconds: float, look: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {what}")


def run_cluster(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [CLUSTER, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def put_object(part: Part, content: str) -> str:
    """Stores it by S3; the address's path."""
    path = f"/cluster-tests/{uuid.uuid4().hex}"
    endpoint = part("s3")["AWS_ENDPOINT_URL_S3"]
    for address, body in ((f"{endpoint}/cluster-tests", b""), (endpoint + path, content.encode())):
        request = urllib.request.Request(address, body, method="PUT")
        try:
            urllib.request.urlopen(request).close()
        except urllib.error.HTTPError as error:
            if error.code != 409:  # the bucket is there already
                raise
    return path


# --- Kubernetes


def new_job(name: str, container: Json, **pod: Any) -> Json:
    spec = {"restartPolicy": "Never", "containers": [{"name": "c", "image": PYTHON, **container}]}
    template = {"metadata": {"labels": {"test": name}}, "spec": {**spec, **pod}}
    return {"metadata": {"name": name}, "spec": {"backoffLimit": 0, "template": template}}


def start_job(api: KubernetesApi, container: Json, **pod: Any) -> str:
    name = f"t-{uuid.uuid4().hex[:8]}"
    api.post(JOBS, new_job(name, container, **pod))
    return name


def pod_of(api: KubernetesApi, name: str) -> Json | None:
    pods: list[Json] = api.get(PODS, labelSelector=f"test={name}")["items"]
    return pods[0] if pods else None


def finished_pod(api: KubernetesApi, name: str, seconds: float = 60) -> Json:
    def look() -> Json | None:
        pod = pod_of(api, name)
        return pod if pod and pod["status"]["phase"] in ("Succeeded", "Failed") else None

    return until(f"pod of {name} finishes", seconds, look)


def delete_job(api: KubernetesApi, name: str) -> None:
    api.delete(f"{JOBS}/{name}", propagationPolicy="Background")
    until(f"pod of {name} is gone", 60, lambda: pod_of(api, name) is None)


def terminated(pod: Json) -> Json:
    state: Json = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return state


def is_ready(api: KubernetesApi, node: str) -> bool:
    conditions = api.get(f"/api/v1/nodes/{node}")["status"]["conditions"]
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def test_version_is_told(api: KubernetesApi) -> None:
    version = api.get("/version")
    assert (version["major"], version["minor"], version["gitVersion"]) == ("1", "20", "v1.20.2")


def test_pod_reads_an_object_and_says_it(part: Part, api: KubernetesApi) -> None:
    address = part("s3")["FERROFLOW_TEST_S3_FROM_PODS"] + put_object(part, "from the store")
    code = f"{READ}; open('/dev/termination-log', 'w').write('the outcome')"
    name = start_job(api, {"command": ["python", "-c", code, address]})
    pod = finished_pod(api, name)
    assert (terminated(pod)["exitCode"], terminated(pod)["message"]) == (0, "the outcome")
    environment = {**os.environ, "KUBECONFIG": part("kubernetes")["KUBECONFIG"]}
    command = ["kubectl", "logs", pod["metadata"]["name"]]
    logs = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (logs.stdout, logs.stderr) == ("from the store", "")
    delete_job(api, name)


def test_emulators_are_reached_from_pods(part: Part, api: KubernetesApi) -> None:
    blobs = part("azure")["FERROFLOW_TEST_AZURE_FROM_PODS"] + "?comp=list"
    objects = part("gcs")["FERROFLOW_TEST_GCS_FROM_PODS"] + "/storage/v1/b?project=test"
    code = (
        "import sys, urllib.request as u, urllib.error as e\n"
        "for a in sys.argv[1:]:\n"
        "    try: print(u.urlopen(a, timeout=5).status)\n"
        "    except e.HTTPError as x: print(x.code)\n"
        "open('/dev/termination-log', 'w').write('reached')"
    )
    name = start_job(api, {"command": ["python", "-c", code, blobs, objects]})
    assert terminated(finished_pod(api, name))["message"] == "reached"
    delete_job(api, name)


def test_out_of_memory_is_told(api: KubernetesApi) -> None:
    limits = {"limits": {"memory": "64Mi"}, "requests": {"memory": "64Mi"}}
    code = "x = bytearray(200 << 20); print(len(x))"
    name = start_job(api, {"command": ["python", "-c", code], "resources": limits})
    assert terminated(finished_pod(api, name))["reason"] == "OOMKilled"
    delete_job(api, name)


def test_image_without_python(api: KubernetesApi) -> None:
    image = {"image": "localhost/ferroflow-no-python:1"}
    name = start_job(api, {**image, "command": ["bash", "-c", "python3 -V || exit 127"]})
    assert terminated(finished_pod(api, name))["exitCode"] == 127
    delete_job(api, name)
    name = start_job(api, {**image, "command": ["python3", "-V"]})
    assert terminated(finished_pod(api, name))["reason"] == "StartError"
    delete_job(api, name)


def test_image_with_r(part: Part, api: KubernetesApi) -> None:
    part("kubernetes")
    subprocess.run([FOLDER / "images", "load", "r"], check=True)
    code = 'cat("1 +", 1, file = "/dev/termination-log")'
    name = start_job(
        api, {"image": "localhost/ferroflow-r:4.2", "command": ["Rscript", "-e", code]}
    )
    assert terminated(finished_pod(api, name))["message"] == "1 + 1"
    delete_job(api, name)


def test_folder_added_to_an_image(part: Part, api: KubernetesApi, tmp_path: Path) -> None:
    part("kubernetes")
    (tmp_path / "added_module.py").write_text("word = 'added'\n")
    image = "localhost/ferroflow-added:test"
    subprocess.run([CLUSTER, "image", image, "python", tmp_path], check=True, capture_output=True)
    code = "import added_module as m; open('/dev/termination-log', 'w').write(m.word)"
    name = start_job(api, {"image": image, "command": ["python", "-c", code]})
    assert terminated(finished_pod(api, name))["message"] == "added"
    delete_job(api, name)


def test_pods_find_each_other_by_name(api: KubernetesApi) -> None:
    """As `num_parallel` needs it: a headless Service, and a pod with a hostname behind it."""
    service = f"s-{uuid.uuid4().hex[:8]}"
    selector = {"selector": {"test": service}, "clusterIP": "None"}
    body = {"metadata": {"name": service}, "spec": selector}
    api.post("/api/v1/namespaces/default/services", body)
    listen = "import socket; s = socket.create_server(('', 7000)); s.accept()[0].sendall(b'hello')"
    first = new_job(
        service, {"command": ["python", "-c", listen]}, hostname="rank0", subdomain=service
    )
    api.post(JOBS, first)
    call = (
        "import socket, sys, time\n"
        "for _ in range(300):\n"
        "    try: c = socket.create_connection((sys.argv[1], 7000), 2); break\n"
        "    except OSError: time.sleep(0.1)\n"
        "open('/dev/termination-log', 'wb').write(c.recv(99))"
    )
    name = start_job(api, {"command": ["python", "-c", call, f"rank0.{service}"]})
    assert terminated(finished_pod(api, name))["message"] == "hello"
    for job in (name, service):
        delete_job(api, job)
    api.delete(f"/api/v1/namespaces/default/services/{service}")


def test_somebody_without_rights_is_refused(part: Part, api: KubernetesApi) -> None:
    limited = part("kubernetes")["FERROFLOW_TEST_KUBECONFIG_LIMITED"]
    with KubernetesApi(limited) as other, pytest.raises(ApiError, match="forbidden") as refused:
        other.post(JOBS, new_job("refused", {"command": ["true"]}))
    assert refused.value.status == 403


def test_gpu_pod_is_bound_to_a_made_up_node(api: KubernetesApi) -> None:
    resources = {"limits": {GPU: "2"}, "requests": {"cpu": "16", "memory": "100Gi"}}
    with MadeUpNodes(api) as nodes:
        nodes.add("made-up-gpu", Shape(gpus=8, labels={"pool": "gpu"}))
        name = start_job(api, {"resources": resources})
        pod = until("bound", 20, lambda: bound_pod(api, name))
        assert pod["spec"]["nodeName"] == "made-up-gpu"
        set_running(api, pod)
        set_finished(api, pod, message='{"ok": true}')
        job = until("its Job completes", 10, lambda: succeeded_job(api, name))
        assert job["status"]["succeeded"] == 1
        # An ordinary pod stays off: it would never start there.
        ordinary = start_job(api, {"command": ["true"]})
        assert finished_pod(api, ordinary)["spec"]["nodeName"] == "node1"
        delete_job(api, ordinary)
        # Deleting a pod that is bound there ends, although no kubelet agrees.
        waiting = start_job(api, {"resources": resources})
        until("bound", 20, lambda: bound_pod(api, waiting))
        delete_job(api, waiting)
        delete_job(api, name)
    with pytest.raises(ApiError, match="not found"):
        api.get("/api/v1/nodes/made-up-gpu")


def bound_pod(api: KubernetesApi, name: str) -> Json | None:
    pod = pod_of(api, name)
    return pod if pod and pod["spec"].get("nodeName") else None


def succeeded_job(api: KubernetesApi, name: str) -> Json | None:
    job = api.get(f"{JOBS}/{name}")
    return job if job["status"].get("succeeded") else None


def test_gpu_pod_waits_where_no_node_has_one(api: KubernetesApi) -> None:
    name = start_job(api, {"resources": {"limits": {GPU: "1"}}})

    def sentence() -> str | None:
        pod = pod_of(api, name)
        conditions = pod["status"].get("conditions", []) if pod else []
        return next((c["message"] for c in conditions if c["type"] == "PodScheduled"), None)

    assert f"Insufficient {GPU}" in until("the scheduler says why", 20, sentence)
    delete_job(api, name)


def test_made_up_node_turns_not_ready(api: KubernetesApi) -> None:
    with MadeUpNodes(api) as nodes:
        for name in ("says-so", "is-lost"):
            nodes.add(name, Shape())
            assert is_ready(api, name)
        nodes.set_ready("says-so", False)
        assert not is_ready(api, "says-so")
        nodes.lose("is-lost")
        until("the lost node is NotReady", 75, lambda: not is_ready(api, "is-lost"))


def test_many_made_up_nodes_take_many_pods(api: KubernetesApi) -> None:
    with MadeUpNodes(api) as nodes:
        for number in range(5):
            nodes.add(f"many-{number}", Shape(labels={"pool": "many"}))
        toleration = {"key": "ferroflow.test/made-up", "operator": "Exists"}
        spec = new_job("many", {"command": ["true"]}, tolerations=[toleration])
        spec["spec"]["template"]["spec"]["nodeSelector"] = {"pool": "many"}
        spec["spec"] |= {"parallelism": 300, "completions": 300}
        api.post(JOBS, spec)

        def all_bound() -> list[Json] | None:
            pods: list[Json] = api.get(PODS, labelSelector="test=many")["items"]
            bound = [pod for pod in pods if pod["spec"].get("nodeName")]
            return bound if len(bound) == 300 else None

        for pod in until("300 pods are bound", 60, all_bound):
            set_finished(api, pod)
        until(
            "the Job is done", 30, lambda: api.get(f"{JOBS}/many")["status"].get("completionTime")
        )
        delete_job(api, "many")


def test_kubelet_that_stops_is_missed(part: Part, api: KubernetesApi) -> None:
    part("kubernetes")
    kubernetes = str(FOLDER / "kubernetes")
    subprocess.run([kubernetes, "stop", "kubelet"], check=True)
    try:
        until("node1 is NotReady", 75, lambda: not is_ready(api, "node1"))
    finally:
        subprocess.run([kubernetes, "start", "kubelet"], check=True)
    until("node1 is Ready again", 60, lambda: is_ready(api, "node1"))


def test_api_server_comes_back_with_all_it_knew(part: Part, api: KubernetesApi) -> None:
    part("kubernetes")
    name = start_job(api, {"command": ["sleep", "5"]})
    kubernetes = str(FOLDER / "kubernetes")
    subprocess.run([kubernetes, "stop", "apiserver"], check=True)
    try:
        with pytest.raises(ApiError):
            api.get(f"{JOBS}/{name}")
    finally:
        subprocess.run([kubernetes, "start", "apiserver"], check=True)

    def answer() -> Json | None:
        try:
            return api.get(f"{JOBS}/{name}")
        except ApiError:
            return None

    until("the API server answers", 60, answer)
    assert terminated(finished_pod(api, name))["exitCode"] == 0
    delete_job(api, name)


# --- AWS Batch


def call_batch(part: Part, action: str, body: Json) -> Json:
    address = f"{part('batch')['AWS_ENDPOINT_URL_BATCH']}/v1/{action}"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        answer: Json = json.load(response)
    return answer


def finished_batch_job(part: Part, image: str, command: list[str]) -> Json:
    properties = {"image": image, "command": command, "vcpus": 1, "memory": 100}
    definition = {"jobDefinitionName": "proof", "type": "container"}
    call_batch(part, "registerjobdefinition", {**definition, "containerProperties": properties})
    queue = part("batch")["METAFLOW_BATCH_JOB_QUEUE"]
    job = {"jobName": "proof", "jobQueue": queue, "jobDefinition": "proof"}
    identifier = call_batch(part, "submitjob", job)["jobId"]

    def look() -> Json | None:
        found: Json = call_batch(part, "describejobs", {"jobs": [identifier]})["jobs"][0]
        return found if found["status"] in ("SUCCEEDED", "FAILED") else None

    return until("the job finishes", 60, look)


def test_batch_job_reads_an_object(part: Part) -> None:
    address = part("s3")["FERROFLOW_TEST_S3_FROM_CONTAINERS"] + put_object(part, "for a container")
    code = (
        "import sys, urllib.request as u\n"
        "sys.exit(u.urlopen(sys.argv[1]).read().decode() != sys.argv[2])"
    )
    command = ["python", "-c", code, address]
    right = finished_batch_job(part, PYTHON, [*command, "for a container"])
    assert right["status"] == "SUCCEEDED"
    wrong = finished_batch_job(part, PYTHON, [*command, "something else"])
    assert (wrong["status"], wrong["container"]["exitCode"]) == ("FAILED", 1)


def test_batch_image_that_is_not_there(part: Part) -> None:
    failed = finished_batch_job(part, "localhost/no-such-image:1", ["true"])
    assert failed["status"] == "FAILED"
    assert "no-such-image" in failed["statusReason"]


ARRAY_JOB = """
import sys, urllib.request as u, boto3
endpoint = sys.argv[1]
header = {"Content-Type": "application/json"}
u.urlopen(u.Request(endpoint + "/moto-api/reset", b"", method="POST"))
u.urlopen(u.Request(endpoint + "/moto-api/config", b'{"batch": {"use_docker": false}}', header))
keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
where = {"endpoint_url": endpoint, "region_name": "us-east-1"}
iam, batch = (boto3.client(name, **where, **keys) for name in ("iam", "batch"))
role = iam.create_role(RoleName="role", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
batch.create_compute_environment(
    computeEnvironmentName="environment", type="UNMANAGED", serviceRole=role
)
order = [{"order": 1, "computeEnvironment": "environment"}]
batch.create_job_queue(
    jobQueueName="queue", state="ENABLED", priority=1, computeEnvironmentOrder=order
)
needs = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "100"}]
properties = {"image": "x", "command": ["true"], "resourceRequirements": needs}
batch.register_job_definition(
    jobDefinitionName="definition", type="container", containerProperties=properties
)
job = batch.submit_job(
    jobName="wide", jobQueue="queue", jobDefinition="definition", arrayProperties={"size": 3}
)
children = batch.list_jobs(arrayJobId=job["jobId"])["jobSummaryList"]
print([child["jobId"].removeprefix(job["jobId"]) for child in children])
"""


def test_moto_knows_array_jobs(part: Part) -> None:
    done = run_cluster("python", "-c", ARRAY_JOB, part("batch")["FERROFLOW_TEST_MOTO"])
    assert done.stdout == "[':0', ':1', ':2']\n", done.stderr


# --- object stores, through the crate that the engine uses


@pytest.mark.parametrize(
    ("store", "name"), [("s3", "s3"), ("s3-signed", "s3"), ("azure", "azure"), ("gcs", "gcs")]
)
def test_store_does_what_the_engine_needs(part: Part, store: str, name: str) -> None:
    done = run_cluster("python", str(FOLDER / "store_proof.py"), store, **part(name))
    assert done.stdout == "proved\n", done.stderr


def test_wrong_signature_is_refused(part: Part) -> None:
    done = run_cluster("python", str(FOLDER / "store_proof.py"), "s3-wrong", **part("s3"))
    assert "SignatureDoesNotMatch" in done.stderr


# --- the front command


@pytest.mark.parametrize(
    ("name", "variable", "value"),
    [
        ("kubernetes", "KUBECONFIG", "/home/me/.kube/config"),
        ("s3", "AWS_ENDPOINT_URL_S3", "https://s3.example.org"),
        ("batch", "AWS_ENDPOINT_URL_BATCH", "https://batch.example.org"),
        ("azure", "AZURE_STORAGE_ENDPOINT", "https://mine.blob.core.windows.net"),
        ("gcs", "STORAGE_EMULATOR_HOST", "http://elsewhere:9000"),
    ],
)
def test_what_the_user_gives_is_used(name: str, variable: str, value: str) -> None:
    mine = {variable: value}
    assert (
        run_cluster("up", name, **mine).stderr
        == f"clusters: {name}: using yours ({variable}={value})\n"
    )
    assert f"export {variable}={value}\n" in run_cluster("env", name, **mine).stdout
    assert run_cluster("status", name, **mine).stdout.split() == [
        name,
        "yours:",
        f"{variable}={value}",
    ]


def test_second_up_is_quick_and_silent(part: Part) -> None:
    part("s3")
    begin = time.monotonic()
    again = run_cluster("up", "s3")
    assert (again.stdout, again.stderr, again.returncode) == ("", "", 0)
    assert time.monotonic() - begin < 1


def test_misspelt_part() -> None:
    done = run_cluster("up", "kubernets")
    assert done.returncode != 0
    names = "nodes kubernetes s3 batch azure gcs, all"
    assert done.stderr == f"clusters: there is no part `kubernets`; there are: {names}\n"
