"""Questions of a remote task's client when its engine does not answer. What they look like when it
does is tested on real clusters.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metaflow import _client_questions
from metaflow._client_questions import Questions
from metaflow.exception import DataException


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Questions:
    monkeypatch.setenv("FERROFLOW_LOG_PREFIX", "F/runs/1/start/1.0.log/")
    monkeypatch.setattr(_client_questions, "_PATIENCE_SECONDS", 0.2)
    return Questions({"kind": "local", "root": str(tmp_path)})


def test_an_engine_that_is_gone_is_told(questions: Questions, tmp_path: Path) -> None:
    with pytest.raises(DataException) as told:
        questions.run("F", "1")
    assert str(told.value) == (
        "the engine of this run has not answered a question about runs and tags for 0 s: it may be "
        "gone. Artifacts of earlier steps are in `self` without it"
    )
    (asked,) = (tmp_path / "F/runs/1/start/1.0.log").iterdir()
    assert json.loads(asked.read_text()) == {"ask": "run", "flow": "F", "run": "1"}


def test_a_store_out_of_reach_is_told(questions: Questions, tmp_path: Path) -> None:
    (tmp_path / "F").write_text("no folder")
    with pytest.raises(DataException, match="cannot ask the run's engine about runs and tags: "):
        questions.flows()
