"""Fixtures of the end-to-end tests: whatever a test starts is gone when it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import kill_marked
from parts import s3_environment


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty working folder; its processes are killed when the test is over."""
    yield tmp_path
    kill_marked(tmp_path)


@pytest.fixture(autouse=True)
def real_stores_only_if_asked_for(request: pytest.FixtureRequest) -> None:
    """Starting real programs takes a while: `pytest -m cluster`, or such a file by name."""
    if not request.node.path.name.startswith("test_object_store"):
        return
    words = request.config.invocation_params.args
    by_mark = "cluster" in str(request.config.getoption("markexpr"))
    if not by_mark and not any("test_object_store" in word for word in words):
        pytest.skip("needs real stores: run it with -m cluster")


@pytest.fixture
def s3(folder: Path) -> dict[str, str]:
    """A user whose datastore is on S3, below a prefix of the test's own."""
    return s3_environment(folder)
