"""Fixtures of the end-to-end tests: whatever a test starts is gone when it ends."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import kill_marked


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty working folder; its processes are killed when the test is over."""
    yield tmp_path
    kill_marked(tmp_path)
