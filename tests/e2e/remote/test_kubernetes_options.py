"""Every option of @kubernetes, on the Job and the pod that the cluster took, and in the task."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import run_flow
from kubernetes_tools import Json, Namespace, priority_class, started
from parts import SECRET, KubernetesApi

pytestmark = pytest.mark.cluster

ALL = """
from metaflow import FlowSpec, environment, kubernetes, resources, step, timeout

class AllFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.work)

    @environment(vars={"COLOUR": "blue"})
    @timeout(minutes=10)
    @kubernetes(
        cpu=0.2, memory=200, disk=300, image_pull_policy="IfNotPresent",
        image_pull_secrets=["pull"], service_account="worker", secrets=["SECRET", "words"],
        node_selector={"kubernetes.io/hostname": "node1"},
        tolerations=[{"key": "spare", "operator": "Exists", "effect": "NoSchedule"}],
        labels={"team": "blue"}, annotations={"note": "any text: é"},
        tmpfs_size=16, tmpfs_path="/quick", persistent_volume_claims={"data": "/data"},
        shared_memory=32, port=8080, executable="/usr/bin/python3", qos="Guaranteed",
        security_context={"runAsNonRoot": False, "runAsUser": 0},
        priority_class="PRIORITY",
        pod_spec={"hostname": "here", "containers": [{"name": "work", "stdin": True}]},
    )
    @step
    def work(self):
        import os
        mounts = {line.split()[1]: line.split()[2] for line in open("/proc/mounts")}
        print("mounts", mounts["/dev/shm"], mounts["/quick"], os.path.ismount("/data"))
        print("said", os.environ["WORD"], os.environ["COLOUR"], os.environ["METAFLOW_TEMPDIR"])
        print("name", os.uname().nodename, os.environ["METAFLOW_KUBERNETES_POD_NAMESPACE"])
        import time
        time.sleep(600)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def prepared(namespace: Namespace, api: KubernetesApi) -> Namespace:
    """A namespace that has what the options name."""
    namespace.post("serviceaccounts", {"metadata": {"name": "worker"}})
    namespace.post("secrets", {"metadata": {"name": "words"}, "stringData": {"WORD": "hidden"}})
    amount = {"storage": "1Mi"}
    modes = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    volume = f"data-{namespace.name}"
    claim = {**modes, "resources": {"requests": amount}, "volumeName": volume}
    namespace.post("persistentvolumeclaims", {"metadata": {"name": "data"}, "spec": claim})
    folder = {"path": f"/tmp/{volume}", "type": "DirectoryOrCreate"}
    spec = {**modes, "capacity": amount, "hostPath": folder}
    api.post("/api/v1/persistentvolumes", {"metadata": {"name": volume}, "spec": spec})
    return namespace


def test_all_options_reach_the_pod(
    folder: Path, kubernetes: dict[str, str], prepared: Namespace, api: KubernetesApi
) -> None:
    variables = {
        **kubernetes,
        **prepared.environment,
        "METAFLOW_KUBERNETES_LABELS": "team=red,origin=configured",
    }
    try:
        with priority_class(api, prepared) as priority:
            source = ALL.replace("PRIORITY", priority).replace("SECRET", SECRET)
            with started(folder, source, env=variables) as run:
                run.wait_shown("name here")
                (job,), (pod,) = prepared.jobs(), prepared.pods()
                shown = run.shown()
    finally:
        api.delete(f"/api/v1/persistentvolumes/data-{prepared.name}")
    assert "mounts tmpfs tmpfs True" in shown
    assert "said hidden blue /quick" in shown
    assert f"name here {prepared.name}" in shown
    assert "hidden" not in str(job) + str(pod)
    check_labels(job, pod)
    check_pod(pod["spec"], priority)
    check_deadlines(job, 600)


def check_labels(job: Json, pod: Json) -> None:
    for item in (job, pod):
        labels, notes = item["metadata"]["labels"], item["metadata"]["annotations"]
        assert (labels["team"], labels["origin"]) == ("blue", "configured")
        assert labels["app.kubernetes.io/part-of"] == "metaflow"
        assert labels["app.kubernetes.io/name"] == "metaflow-task"
        assert (notes["note"], notes["metaflow/step_name"]) == ("any text: é", "work")
        assert (notes["metaflow/flow_name"], notes["metaflow/attempt"]) == ("AllFlow", "0")


def check_pod(spec: Json, priority: str) -> None:
    (container,) = spec["containers"]
    amounts = {"cpu": "200m", "memory": "200M", "ephemeral-storage": "300M"}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert (container["imagePullPolicy"], container["stdin"]) == ("IfNotPresent", True)
    assert container["command"][0] == "/usr/bin/python3"
    assert container["ports"][0]["containerPort"] == 8080
    assert container["securityContext"] == {"runAsNonRoot": False, "runAsUser": 0}
    assert [item["secretRef"]["name"] for item in container["envFrom"]] == [SECRET, "words"]
    assert spec["serviceAccountName"] == "worker"
    assert spec["imagePullSecrets"] == [{"name": "pull"}]
    assert spec["nodeSelector"] == {"kubernetes.io/hostname": "node1"}
    assert (spec["priorityClassName"], spec["restartPolicy"]) == (priority, "Never")
    assert {"key": "spare", "operator": "Exists", "effect": "NoSchedule"} in spec["tolerations"]
    sizes = [v["emptyDir"]["sizeLimit"] for v in spec["volumes"] if "emptyDir" in v]
    assert sizes == ["32Mi", "16Mi"]


def check_deadlines(job: Json, limit: int) -> None:
    """Python raises first, then the pod ends; the Job's own deadline is days later."""
    on_pod = job["spec"]["template"]["spec"]["activeDeadlineSeconds"]
    on_job = job["spec"]["activeDeadlineSeconds"]
    assert limit < on_pod <= limit + 3600
    assert on_job >= on_pod + 24 * 3600
    assert job["spec"]["backoffLimit"] == 0


def test_a_queue_suspends_the_job_for_kueue(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace
) -> None:
    source = """
    class QueueFlow(FlowSpec):
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    variables = {**kubernetes, **namespace.environment, "METAFLOW_KUBERNETES_QUEUE": "team"}
    with started(folder, source, "--with", "kubernetes", env=variables):
        jobs = namespace.wait_for_jobs(1)
    assert jobs[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("gpu_vendor='acme'", "`gpu_vendor` must be nvidia or amd, not `acme`"),
        ("qos='BestEffort'", "`qos` must be Guaranteed or Burstable, not `BestEffort`"),
        ("labels={'a': '-'}", "the value `-` of the label `a` is not valid"),
        ("pod_spec={'hostNetwork': 'perhaps'}", "Kubernetes does not take the Job"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    folder: Path, kubernetes: dict[str, str], namespace: Namespace, options: str, says: str
) -> None:
    source = f"""
    class WrongFlow(FlowSpec):
        @kubernetes({options})
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    variables = {**kubernetes, **namespace.environment}
    result = run_flow(folder, source, "run", env=variables).exited(1)
    assert says in result.stderr and "`start`" in result.stderr
    assert not namespace.jobs()
