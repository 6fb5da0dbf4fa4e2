"""JobSets on a cluster that has none: their definition (with an open schema) and a stand-in for
their controller, of which it has what a gang needs: Jobs, the headless Service, names, labels,
owners, and what happens when a Job has failed or all are complete. Jobs, pods and DNS are real.

The definition changes what every gang on the cluster does, so it is removed again in any case. As a
program it keeps JobSets working until it is stopped:
    KUBECONFIG=... python jobset_controller.py
"""

from __future__ import annotations

import copy
import hashlib
import json
import signal
import sys
import threading
import time
from pathlib import Path

from kubernetes_api import ApiError, Json, KubernetesApi

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
DEFINITION: Json = json.loads((Path(__file__).parent / "jobset_crd.json").read_text())
API = "jobset.x-k8s.io/v1alpha2"
LABEL = "jobset.sigs.k8s.io"
LOOK_SECONDS = 0.2
PATIENCE_SECONDS = 60.0
LONGEST_NAME = 63
# Indexed Jobs came with 1.21; the real controller leaves host names to them.
NOT_IN_1_20 = ("completionMode",)


class JobSetController:
    """JobSets work until it is closed; then their definition is gone, and they with it."""

    def __init__(self, api: KubernetesApi) -> None:
        self._api = api
        self._stop = threading.Event()
        # Cleared: nothing is done, as by a controller that is away.
        self.works = threading.Event()
        self.works.set()
        # What went wrong, for the test to look at.
        self.faults: list[str] = []
        # Of JobSets as they came.
        self.seen: dict[str, Json] = {}
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> JobSetController:
        try:
            self._api.apply_new(DEFINITIONS, DEFINITION)
            _wait(lambda: self._api.has(f"/apis/{API}/jobsets"), "JobSets are not served")
        except BaseException:
            self.close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        try:
            path = f"{DEFINITIONS}/{DEFINITION['metadata']['name']}"
            _unless(404, lambda: self._api.delete(path))
            _wait(lambda: not self._api.has(f"/apis/{API}"), "JobSets are still served")
        finally:
            self._stop.set()
            if self._thread.is_alive():
                self._thread.join()

    def _work(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            if not self.works.is_set():
                continue
            try:
                jobsets = self._api.get(f"/apis/{API}/jobsets")["items"]
            except ApiError:
                continue  # the definition goes, or the server is away
            for jobset in jobsets:
                try:
                    self._reconcile(jobset)
                except ApiError as error:
                    if error.status not in (0, 404, 409):  # gone or changed meanwhile: look again
                        self.faults.append(f"{jobset['metadata']['name']}: {error}")

    def _reconcile(self, jobset: Json) -> None:
        meta = jobset["metadata"]
        if "deletionTimestamp" in meta:
            return
        self.seen.setdefault(meta["name"], jobset)
        path = f"/apis/batch/v1/namespaces/{meta['namespace']}/jobs"
        selector = f"{LABEL}/jobset-name={meta['name']}"
        jobs = {
            job["metadata"]["name"]: job
            for job in self._api.get(path, labelSelector=selector)["items"]
        }
        if condition_of(jobset, "Failed") or condition_of(jobset, "Completed"):
            for name, job in jobs.items():
                if not condition_of(job, "Failed") and not condition_of(job, "Complete"):
                    self._api.delete(f"{path}/{name}", propagationPolicy="Background")
            return
        if any(condition_of(job, "Failed") for job in jobs.values()):
            self._end(jobset, "Failed", "FailedJobs")
            return
        wanted = jobs_of(jobset)
        if all(name in jobs and condition_of(jobs[name], "Complete") for name in wanted):
            self._end(jobset, "Completed", "AllJobsCompleted")
            return
        if jobset["spec"]["network"]["enableDNSHostnames"]:
            services = f"/api/v1/namespaces/{meta['namespace']}/services"
            self._api.apply_new(services, service_of(jobset))
        for name, job in wanted.items():
            if name not in jobs:
                self._api.apply_new(path, job)

    def _end(self, jobset: Json, state: str, reason: str) -> None:
        meta = jobset["metadata"]
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        condition = {
            "type": state,
            "status": "True",
            "reason": reason,
            "message": reason,
            "lastTransitionTime": now,
        }
        jobset["status"] = {"conditions": [condition], "terminalState": state, "restarts": 0}
        path = f"/apis/{API}/namespaces/{meta['namespace']}/jobsets/{meta['name']}/status"
        self._api.put(path, jobset)


def condition_of(thing: Json, kind: str) -> bool:
    conditions = thing.get("status", {}).get("conditions", [])
    return any(c["type"] == kind and c["status"] == "True" for c in conditions)


def owner(jobset: Json) -> Json:
    return {
        "apiVersion": API,
        "kind": "JobSet",
        "name": jobset["metadata"]["name"],
        "uid": jobset["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def service_of(jobset: Json) -> Json:
    name, network = jobset["metadata"]["name"], jobset["spec"]["network"]
    return {
        "metadata": {
            "name": network.get("subdomain", name),
            "ownerReferences": [owner(jobset)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": network.get("publishNotReadyAddresses", True),
            "selector": {f"{LABEL}/jobset-name": name},
        },
    }


def jobs_of(jobset: Json) -> dict[str, Json]:
    """The Jobs of a JobSet by name."""
    jobs = {}
    for replicated in jobset["spec"]["replicatedJobs"]:
        for index in range(replicated["replicas"]):
            job = job_of(jobset, replicated, index)
            jobs[job["metadata"]["name"]] = job
    return jobs


def job_of(jobset: Json, replicated: Json, index: int) -> Json:
    meta, spec = jobset["metadata"], copy.deepcopy(replicated["template"]["spec"])
    name = f"{meta['name']}-{replicated['name']}-{index}"
    if len(f"{name}-0-abcde") > LONGEST_NAME:  # as the real one's admission says
        raise ApiError(
            422, f"pod names generated for JobSet {meta['name']} will exceed 63 characters"
        )
    marks = {
        f"{LABEL}/jobset-name": meta["name"],
        f"{LABEL}/jobset-uid": meta["uid"],
        f"{LABEL}/replicatedjob-name": replicated["name"],
        f"{LABEL}/replicatedjob-replicas": str(replicated["replicas"]),
        f"{LABEL}/job-index": str(index),
        f"{LABEL}/job-key": hashlib.sha1(f"{meta['namespace']}/{name}".encode()).hexdigest(),
        f"{LABEL}/restart-attempt": "0",
    }
    for field in NOT_IN_1_20:
        spec.pop(field, None)
    spec["suspend"] = jobset["spec"].get("suspend", False)
    pod = spec["template"]
    pod["spec"]["hostname"] = f"{name}-0"
    pod["spec"]["subdomain"] = jobset["spec"]["network"].get("subdomain", meta["name"])
    _mark(pod.setdefault("metadata", {}), marks)
    job: Json = {
        "metadata": copy.deepcopy(replicated["template"].get("metadata", {})),
        "spec": spec,
    }
    _mark(job["metadata"], marks)
    job["metadata"] |= {"name": name, "ownerReferences": [owner(jobset)]}
    return job


def _mark(metadata: Json, marks: dict[str, str]) -> None:
    for kind in ("labels", "annotations"):
        metadata[kind] = {**metadata.get(kind, {}), **marks}


def _unless(status: int, call: object) -> None:
    try:
        assert callable(call)
        call()
    except ApiError as error:
        if error.status != status:
            raise


def _wait(condition: object, otherwise: str) -> None:
    assert callable(condition)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.1)


def main() -> None:
    over = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: over.set())
    with KubernetesApi() as api, JobSetController(api) as controller:
        print("JobSets work", flush=True)
        over.wait()
        for fault in controller.faults:
            print(fault, file=sys.stderr)


if __name__ == "__main__":
    main()
