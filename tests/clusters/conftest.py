"""The parts as fixtures. Tests marked `cluster` start real programs, so they run only when asked
for: `pytest tests/clusters` or `pytest tests -m cluster`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
CLUSTER = str(FOLDER / "cluster")
sys.path.insert(0, str(FOLDER))  # the tests import the programs beside them

from kubernetes_api import KubernetesApi  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cluster: needs a part that tests/clusters/cluster starts")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    asked_by_mark = "cluster" in str(config.getoption("markexpr"))
    here, words = config.invocation_params.dir, config.invocation_params.args
    asked_by_path = any((here / word.split("::")[0]).is_relative_to(FOLDER) for word in words)
    ours = collection_path.is_relative_to(FOLDER) and collection_path != FOLDER
    return True if ours and not asked_by_mark and not asked_by_path else None


def cluster(*arguments: str) -> str:
    """Runs the front command; its standard output. Half an hour: the first `up` builds."""
    command = [CLUSTER, *arguments]
    return subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=1800, check=True
    ).stdout


def read_exports(text: str) -> dict[str, str]:
    words = [shlex.split(line)[1] for line in text.splitlines()]
    return dict(word.split("=", 1) for word in words)


@pytest.fixture(scope="session")
def part() -> Callable[[str], dict[str, str]]:
    """Starts a part unless it runs and gives its variables. It goes on running afterwards."""
    started: dict[str, dict[str, str]] = {}

    def start(name: str) -> dict[str, str]:
        if name not in started:
            cluster("up", name)
            started[name] = read_exports(cluster("env", name))
        return started[name]

    return start


@pytest.fixture(scope="session")
def api(part: Callable[[str], dict[str, str]]) -> Iterator[KubernetesApi]:
    with KubernetesApi(part("kubernetes")["KUBECONFIG"]) as connection:
        yield connection
