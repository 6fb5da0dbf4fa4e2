"""Which tasks belong together, for every shape of graph; and where the client looks for runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from metaflow import _client_settings as settings
from metaflow._client_graph import children, end_step, parents, steps_after, steps_before

GRAPH: dict[str, Any] = {
    "steps": [
        {"name": "start", "transition": {"kind": "split", "targets": ["a", "b"]}},
        {"name": "a", "transition": {"kind": "foreach", "target": "leaf", "variable": "xs"}},
        {"name": "leaf", "transition": {"kind": "linear", "target": "close"}},
        {"name": "close", "transition": {"kind": "linear", "target": "join"}},
        {
            "name": "b",
            "transition": {
                "kind": "switch",
                "condition": "c",
                "cases": [{"key": 1, "target": "b"}, {"key": 2, "target": "join"}],
            },
        },
        {"name": "join", "transition": {"kind": "linear", "target": "end"}},
        {"name": "end", "transition": None},
    ]
}


def row(step: str, path: list[int], targets: list[str], iteration: int = 0) -> dict[str, Any]:
    return {"step": step, "foreach_path": path, "targets": targets, "iteration": iteration}


def test_steps_before_and_after() -> None:
    assert steps_before(GRAPH, "join") == ["close", "b"]
    assert steps_after(GRAPH, "b") == ["b", "join"]
    assert steps_after(GRAPH, "end") == []
    assert end_step(GRAPH) == "end"
    assert end_step({"steps": [{"name": "only"}]}) == "only"
    marked = {"steps": [{"name": "end"}, {"name": "last", "is_end": True}]}
    assert end_step(marked) == "last"


def test_a_foreach_and_its_join() -> None:
    split = row("a", [4], ["leaf"])
    leaves = [row("leaf", [outer, inner], ["close"]) for outer in (3, 4) for inner in (0, 1)]
    assert list(children(split, leaves)) == leaves[2:]
    assert list(parents(leaves[0], [split])) == []
    closing = row("close", [4], ["join"])
    assert list(parents(closing, leaves)) == leaves[2:]
    assert list(children(leaves[1], [closing])) == []


def test_a_recursive_step() -> None:
    first, second = row("b", [], ["b"]), row("b", [], ["join"], iteration=1)
    start, join = row("start", [], ["a", "b"]), row("join", [], ["end"])
    assert list(children(start, [first, second])) == [first]
    assert list(children(first, [first, second])) == [second]
    assert list(children(first, [join])) == []
    assert list(parents(join, [first, second])) == [second]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with no configuration around it."""
    for name in ("METAFLOW_DATASTORE_SYSROOT_LOCAL", "METAFLOW_PROFILE", "METAFLOW_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METAFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "_root", None)
    monkeypatch.setattr(settings, "_task_root", None)
    return tmp_path


def test_root_is_the_nearest_folder_upward(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.local_root() == str(place / ".metaflow")
    (place / ".metaflow").mkdir()
    (place / "a/b").mkdir(parents=True)
    monkeypatch.chdir(place / "a/b")
    assert settings.local_root() == str(place / ".metaflow")
    monkeypatch.setenv("METAFLOW_DATASTORE_SYSROOT_LOCAL", str(place / "a"))
    assert settings.local_root() == str(place / "a/.metaflow")


def test_configuration_order(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "home").mkdir()
    (place / "home/config.json").write_text(json.dumps({"METAFLOW_USER": "home", "N": 5}))
    assert settings.configured("METAFLOW_USER") == "home"
    assert settings.configured("N") == "5"
    (place / ".metaflow").mkdir()
    (place / ".metaflow/config.json").write_text(json.dumps({"METAFLOW_USER": "project"}))
    assert settings.configured("METAFLOW_USER") == "project"
    monkeypatch.setenv("METAFLOW_USER", "environment")
    assert settings.configured("METAFLOW_USER") == "environment"
    assert settings.identity() == "user:environment"
    monkeypatch.setenv("METAFLOW_PRODUCTION_TOKEN", "t")
    assert settings.identity() == "production:t"


def test_missing_profile_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAFLOW_PROFILE", "nowhere")
    with pytest.raises(Exception, match=r"METAFLOW_PROFILE.*nowhere"):
        settings.configured("METAFLOW_X")
