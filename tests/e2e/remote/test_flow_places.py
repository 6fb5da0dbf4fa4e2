"""Flow files that are found in other ways than by their own path, in containers."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import finish, run_flow, start, write_flow

pytestmark = pytest.mark.cluster

PLACED = """
from metaflow import FlowSpec, step
{imports}

class PlacedFlow(FlowSpec):
    @step
    def start(self):
        print("has", NAME)
        self.next(self.end)

    @step
    def end(self):
        assert not self.fails()

    def fails(self):
        import os
        return os.path.exists("fail")

if __name__ == "__main__":
    PlacedFlow()
"""


def test_a_flow_run_as_a_module_of_a_package(folder: Path, kubernetes: dict[str, str]) -> None:
    package = folder / "app/inner"
    package.mkdir(parents=True)
    (folder / "app/__init__.py").write_text("")
    (package / "__init__.py").write_text("from app.names import NAME\n")
    (folder / "app/names.py").write_text("NAME = 'a package'\n")
    write_flow(package, PLACED.format(imports="from . import NAME\nfrom ..names import NAME"))
    arguments = ("app.inner.flow", "run", "--with", "kubernetes")
    result = finish(start(folder, Path("-m"), *arguments, env=kubernetes), folder).ok()
    assert "has a package" in result.stdout
    (folder / "fail").write_text("")
    arguments = ("app.inner.flow", "run")
    result = finish(start(folder, Path("-m"), *arguments, env=kubernetes), folder).exited(1)
    assert "python -m app.inner.flow resume --origin-run-id 2\n" in result.stderr


def test_a_flow_file_that_is_a_link(folder: Path, kubernetes: dict[str, str]) -> None:
    (folder / "real").mkdir()
    (folder / "real/names.py").write_text("NAME = 'its neighbour'\n")
    write_flow(folder / "real", PLACED.format(imports="from names import NAME"))
    (folder / "link.py").symlink_to("real/flow.py")
    result = run_flow(folder, folder / "link.py", "run", "--with", "kubernetes", env=kubernetes)
    assert "has its neighbour" in result.ok().stdout
