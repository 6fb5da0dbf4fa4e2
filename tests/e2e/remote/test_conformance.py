"""The conformance suite of compute layers, on the remote layers and their real parts."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from batch_tools import AsAwsEnds, door
from harness import REPOSITORY
from kubernetes_tools import Namespace
from parts import PYTHON_IMAGE, part

pytestmark = pytest.mark.cluster
NAME = "remote_conformance"


@cache
def built() -> Path:
    """The program, as everything else of the workspace was built."""
    cargo = ["cargo", "build", "--release", "--workspace", "--exclude", "ferroflow-python"]
    command = [*cargo, "--exclude", "ferroflow-r", "--example", NAME, "--message-format", "json"]
    done = subprocess.run(
        command, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    found = [m["executable"] for m in messages if m.get("target", {}).get("name") == NAME]
    return Path(found[0])


def conforms(layer: str, place: str, host: str, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [str(built()), layer, place, PYTHON_IMAGE, host],
        check=False,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"the layer `{layer}` conforms\n"


def host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


def test_the_kubernetes_layer_conforms(namespace: Namespace) -> None:
    environment = {"KUBECONFIG": part("kubernetes")["KUBECONFIG"]}
    conforms(
        "kubernetes",
        namespace.name,
        host_of(part("s3")["FERROFLOW_TEST_S3_FROM_PODS"]),
        environment,
    )
    namespace.wait_empty()


def test_the_batch_layer_conforms(batch: dict[str, str]) -> None:
    host = host_of(part("s3")["FERROFLOW_TEST_S3_FROM_CONTAINERS"])
    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        ends = AsAwsEnds(service.upstream)
        service.behaviour = ends
        environment = {**batch, "AWS_ENDPOINT_URL_BATCH": service.endpoint}
        conforms("batch", batch["METAFLOW_BATCH_JOB_QUEUE"], host, environment)
        ends.wait_until_gone()
