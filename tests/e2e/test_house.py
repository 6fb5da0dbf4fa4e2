"""Rules about the house itself: who may use whom, what the wheel holds, that README is true."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from harness import REPOSITORY, environment, run_flow, run_python

# The table of the design: our crates each crate may depend on.
MAY_USE = {
    "core": set(),
    "store": {"core"},
    "compute": {"core"},
    "task": {"core", "store"},
    "engine": {"core"},
    "cli": {"core", "store", "compute", "engine", "task"},
    "python": {"core", "store", "task"},
    "r": {"core", "store", "task"},
    "testkit": {"core"},
}
SLIM = ("task", "python", "r")
HEAVY = ("kube", "k8s-openapi", "aws-sdk", "aws-config", "axum")


def metadata() -> dict[str, object]:
    output = subprocess.run(
        ["cargo", "metadata", "--format-version", "1", "--locked"],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout
    found: dict[str, object] = json.loads(output)
    return found


@pytest.fixture(scope="module")
def packages() -> dict[str, dict[str, object]]:
    """Packages by id."""
    return {package["id"]: package for package in metadata()["packages"]}  # type: ignore[index]


def test_crates_use_only_whom_they_may(packages: dict[str, dict[str, object]]) -> None:
    seen = set()
    for package in packages.values():
        name = str(package["name"]).removeprefix("ferroflow-")
        if package["source"] is not None:
            continue
        seen.add(name)
        assert name in MAY_USE, f"the crate `{name}` is not in the table of the design"
        for dependency in package["dependencies"]:  # type: ignore[attr-defined]
            target = str(dependency["name"])
            if not target.startswith("ferroflow-") or dependency["kind"] == "dev":
                continue
            used = target.removeprefix("ferroflow-")
            assert used in MAY_USE[name], f"the crate `{name}` may not use `{used}`"
    assert seen == set(MAY_USE)


def test_core_uses_no_runtime_and_no_system(packages: dict[str, dict[str, object]]) -> None:
    (core,) = (p for p in packages.values() if p["name"] == "ferroflow-core")
    names = {d["name"] for d in core["dependencies"] if d["kind"] is None}  # type: ignore[attr-defined]
    assert names <= {"serde", "serde_json", "thiserror", "strsim"}


def test_the_task_side_is_slim() -> None:
    tree = metadata()
    nodes = {node["id"]: node for node in tree["resolve"]["nodes"]}  # type: ignore[index]
    names = {p["id"]: str(p["name"]) for p in tree["packages"]}  # type: ignore[attr-defined]
    for slim in SLIM:
        waiting = [i for i, name in names.items() if name == f"ferroflow-{slim}"]
        reached: set[str] = set()
        while waiting:
            each = waiting.pop()
            if each in reached:
                continue
            reached.add(each)
            for dependency in nodes[each]["deps"]:
                if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                    waiting.append(dependency["pkg"])
        for each in reached:
            assert not names[each].startswith(HEAVY), f"`{slim}` pulls in `{names[each]}`"


def test_every_file_says_what_it_is_for() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.rs", "*.py"], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE
    ).stdout.decode()
    for name in listed.split():
        path = REPOSITORY / name
        if not path.is_file() or not path.read_text().strip():
            continue
        if name == "tests/e2e/flows/scaleflow.py":  # a user's, byte for byte
            continue
        first = path.read_text().lstrip().removeprefix("#!/usr/bin/env python3\n")
        assert first.startswith(("//!", '"""', 'r"""', "#", "//")), f"{name} does not say"


def test_files_do_not_outgrow_their_room() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.rs", "*.py"], cwd=REPOSITORY, check=True, stdout=subprocess.PIPE
    ).stdout.decode()
    for name in listed.split():
        path = REPOSITORY / name
        if path.is_file():
            assert len(path.read_text().splitlines()) <= 1200, f"{name} is over 1,200 lines"


def test_public_names_are_sorted_and_exist() -> None:
    import metaflow

    names = list(metaflow.__all__)
    # Constants, then classes, then functions, as ruff keeps them.
    assert names == sorted(names, key=lambda name: (not name.isupper(), name[0].islower(), name))
    missing = [name for name in names if not hasattr(metaflow, name)]
    assert not missing


def test_import_is_quick_and_light(folder: Path) -> None:
    code = "import sys, metaflow; from metaflow import FlowSpec, step; print(*sorted(sys.modules))"
    modules = set(run_python(folder, code).ok().stdout.split())
    for heavy in ("asyncio", "inspect", "ast", "dataclasses", "subprocess", "typing_extensions"):
        assert heavy not in modules, f"`import metaflow` imports {heavy}"


def commands_of_readme() -> list[str]:
    text = (REPOSITORY / "README.md").read_text()
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_readme_names_commands_that_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for line in commands_of_readme():
        words = shlex.split(line, comments=True)
        if words and words[0] == "make":
            for target in words[1:]:
                assert re.search(rf"(?m)^{target}:", makefile), f"README: no `make {target}`"


def test_readme_python_blocks_run(folder: Path) -> None:
    """Flows in README run as they stand, and so does what reads their results."""
    text = (REPOSITORY / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= 2
    for number, block in enumerate(blocks):
        path = folder / f"readme_{number}.py"
        path.write_text(block)
        run_flow(folder, path, *(["run"] if "FlowSpec" in block else [])).ok()


@pytest.mark.slow
def test_make_demo_builds_installs_and_runs(folder: Path) -> None:
    """README's first command, into an environment of its own."""
    venv = folder / "venv"
    done = subprocess.run(
        ["make", "demo", f"VENV={venv}"],
        cwd=REPOSITORY,
        env={name: value for name, value in os.environ.items() if name != "MAKEFLAGS"},
        timeout=1500,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "scored best" in done.stdout and "Done!" in done.stdout
    (site,) = (venv / "lib").glob("python*/site-packages")
    assert (site / "metaflow/_native.abi3.so").is_file()
    assert not (site / "ferroflow_develop.pth").exists()
    assert os.access(venv / "bin/metaflow", os.X_OK)
    flow = [str(venv / "bin/python"), str(REPOSITORY / "examples/hello.py"), "run"]
    subprocess.run(flow, cwd=folder, env=environment(folder), check=True, timeout=60)
