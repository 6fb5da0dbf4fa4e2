"""Tests of flows on a real Kubernetes and a real AWS Batch emulator. They start real programs, so
they run only when asked for: `pytest tests/e2e/remote` or `pytest tests -m cluster`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes_tools import Namespace, own_namespace
from parts import KubernetesApi, batch_environment, kubernetes_environment, part

FOLDER = Path(__file__).resolve().parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked_by_mark = "cluster" in str(config.getoption("markexpr"))
    here, words = config.invocation_params.dir, config.invocation_params.args
    asked_by_path = any((here / word.split("::")[0]).is_relative_to(FOLDER) for word in words)
    ours = collection_path.is_relative_to(FOLDER) and collection_path != FOLDER
    return True if ours and not asked_by_mark and not asked_by_path else None


@pytest.fixture
def kubernetes(folder: Path) -> dict[str, str]:
    """The environment of a user of the cluster, with a datastore of the test's own."""
    return kubernetes_environment(folder)


@pytest.fixture
def batch(folder: Path) -> dict[str, str]:
    return batch_environment(folder)


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi(part("kubernetes")["KUBECONFIG"]) as connection:
        yield connection


@pytest.fixture
def namespace(api: KubernetesApi) -> Iterator[Namespace]:
    """A namespace that no other test uses; put its `environment` into the run's."""
    with own_namespace(api) as own:
        yield own
