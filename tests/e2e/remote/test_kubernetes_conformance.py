"""The conformance suite of compute layers, on the Kubernetes layer and the real cluster."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from harness import REPOSITORY
from kubernetes_tools import Namespace
from parts import PYTHON_IMAGE, part

pytestmark = pytest.mark.cluster
NAME = "kubernetes_conformance"


def built() -> Path:
    """The program, as everything else of the workspace was built."""
    cargo = ["cargo", "build", "--release", "--workspace", "--exclude", "ferroflow-python"]
    command = [*cargo, "--example", NAME, "--message-format", "json"]
    done = subprocess.run(
        command, check=False, cwd=REPOSITORY, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    found = [m["executable"] for m in messages if m.get("target", {}).get("name") == NAME]
    return Path(found[0])


def test_the_layer_conforms(namespace: Namespace) -> None:
    environment = {**os.environ, "KUBECONFIG": part("kubernetes")["KUBECONFIG"]}
    command = [str(built()), namespace.name, PYTHON_IMAGE]
    done = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "the Kubernetes layer conforms\n"
    namespace.wait_empty()
