"""The real parts that `tests/clusters/cluster` starts, and the environments of users of them.

What a part is and how it is started is `tests/clusters`' business; what a flow does with it is in
the tests.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from functools import cache
from pathlib import Path

from harness import REPOSITORY

CLUSTERS = REPOSITORY / "tests/clusters"
BUCKET = "ferroflow-e2e"
PYTHON_IMAGE = "localhost/ferroflow-python:3.11"
R_IMAGE = "localhost/ferroflow-r:4.2"
SECRET = "ferroflow-test-s3"

sys.path.insert(0, str(CLUSTERS))  # the programs of that folder are modules, too

from kubernetes_api import KubernetesApi  # noqa: E402


@cache
def part(name: str) -> dict[str, str]:
    """Starts a part unless it runs and gives its variables. It goes on running afterwards."""
    command = [str(CLUSTERS / "cluster"), "up", name]
    subprocess.run(command, check=True, timeout=2400)
    command = [str(CLUSTERS / "cluster"), "env", name]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    words = [shlex.split(line)[1] for line in text.splitlines()]
    return dict(word.split("=", 1) for word in words)


@cache
def r_image() -> str:
    """R's image, made on first use and loaded into whatever runs."""
    subprocess.run([str(CLUSTERS / "images"), "load", "r"], check=True, timeout=1200)
    return R_IMAGE


def put(
    url: str, headers: dict[str, str] | None = None, data: bytes = b"", method: str = "PUT"
) -> None:
    """Makes a bucket unless it is there."""
    request = urllib.request.Request(url, data, headers or {}, method=method)
    try:
        urllib.request.urlopen(request).close()
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise


def s3_environment(folder: Path) -> dict[str, str]:
    """A user whose datastore is on S3, below a prefix of the test's own."""
    variables = {k: v for k, v in part("s3").items() if k.startswith("AWS_")}
    put(f"{variables['AWS_ENDPOINT_URL_S3']}/{BUCKET}")
    return {
        **variables,
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{BUCKET}/{uuid.uuid4().hex}",
        "TMPDIR": temporary_of(folder),
    }


def azure_environment(folder: Path) -> dict[str, str]:
    """A user whose datastore is a container of azurite of its own."""
    variables = part("azure")
    container = f"e2e{uuid.uuid4().hex[:12]}"
    script = (
        "import os, sys\n"
        "from azure.storage.blob import BlobServiceClient\n"
        "url = os.environ['AZURE_STORAGE_ENDPOINT']\n"
        "key = os.environ['AZURE_STORAGE_ACCOUNT_KEY']\n"
        "BlobServiceClient(url, credential=key).create_container(sys.argv[1])\n"
    )
    command = [str(CLUSTERS / "cluster"), "python", "-c", script, container]
    subprocess.run(command, env={**os.environ, **variables}, check=True, capture_output=True)
    return {
        **variables,
        "METAFLOW_DEFAULT_DATASTORE": "azure",
        "METAFLOW_DATASTORE_SYSROOT_AZURE": f"{container}/root",
        "TMPDIR": temporary_of(folder),
    }


def google_environment(folder: Path) -> dict[str, str]:
    """A user whose datastore is a bucket of Google's emulator of its own."""
    variables = part("gcs")
    bucket = f"e2e{uuid.uuid4().hex[:12]}"
    url = f"{variables['STORAGE_EMULATOR_HOST']}/storage/v1/b?project=test"
    put(url, {"Content-Type": "application/json"}, f'{{"name": "{bucket}"}}'.encode(), "POST")
    return {
        **variables,
        "METAFLOW_DEFAULT_DATASTORE": "gs",
        "METAFLOW_DATASTORE_SYSROOT_GS": f"gs://{bucket}/root",
        "TMPDIR": temporary_of(folder),
    }


def temporary_of(folder: Path) -> str:
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return str(temporary)


def kubernetes_environment(folder: Path) -> dict[str, str]:
    """A user of the cluster: pods find the store's keys in a Secret, not in their specs."""
    kubernetes, s3 = part("kubernetes"), part("s3")
    make_secret(kubernetes["KUBECONFIG"], "default", s3)
    return {
        **s3_environment(folder),
        "KUBECONFIG": kubernetes["KUBECONFIG"],
        "METAFLOW_KUBERNETES_S3_ENDPOINT_URL": s3["FERROFLOW_TEST_S3_FROM_PODS"],
        "METAFLOW_KUBERNETES_CONTAINER_IMAGE": PYTHON_IMAGE,
        "METAFLOW_KUBERNETES_SECRETS": SECRET,
        "METAFLOW_KUBERNETES_CPU": "0.1",
        "METAFLOW_KUBERNETES_MEMORY": "256",
        # With the default of 10 GB, tests beside each other would wait for the node's disk.
        "METAFLOW_KUBERNETES_DISK": "1000",
    }


def make_secret(kubeconfig: str, namespace: str, s3: dict[str, str]) -> None:
    """The store's keys as pods of a namespace see them."""
    names = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"]
    values = {name: s3.get(name) or os.environ[name] for name in names}
    body = {"metadata": {"name": SECRET}, "stringData": values}
    with KubernetesApi(kubeconfig) as api:
        api.apply_new(f"/api/v1/namespaces/{namespace}/secrets", body)


def batch_environment(folder: Path) -> dict[str, str]:
    """A user of AWS Batch; containers get the store's keys from the emulator, as from a role."""
    batch, s3 = part("batch"), part("s3")
    return {
        **s3_environment(folder),
        **{k: v for k, v in batch.items() if k.startswith(("AWS_", "METAFLOW_"))},
        "METAFLOW_BATCH_S3_ENDPOINT_URL": s3["FERROFLOW_TEST_S3_FROM_CONTAINERS"],
        "METAFLOW_BATCH_CONTAINER_IMAGE": PYTHON_IMAGE,
    }
