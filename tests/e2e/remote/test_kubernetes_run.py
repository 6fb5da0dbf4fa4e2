"""Flows on a real Kubernetes, as their users see them."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import REPOSITORY, client, run_flow

pytestmark = pytest.mark.cluster

SCALE = REPOSITORY / "tests/e2e/flows/scaleflow.py"


@pytest.mark.disruptive  # each of its tasks needs all processors of the node
def test_the_scalable_flow_runs_unchanged(folder: Path, kubernetes: dict[str, str]) -> None:
    options = ("run", "--with", "kubernetes")
    result = run_flow(folder, SCALE, *options, env=kubernetes, deadline=300).ok()
    assert "produced best results" in result.stdout
    shown = client(
        folder,
        f"""
        run = Run("ScalableFlow/{result.run_id}")
        print(len(list(run["train"])), run.successful)
        """,
        env=kubernetes,
    )
    assert shown == ["4 True"]
