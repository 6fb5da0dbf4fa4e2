"""Defaults that are functions, and what they do wrong; options of click's that are passed along."""

from pathlib import Path

import pytest
from harness import client, run_flow

FLOW = """
import sys

from metaflow import FlowSpec, Parameter, step


class ParameterFlow(FlowSpec):
    alpha = Parameter("alpha", {options})

    @step
    def start(self):
        print("alpha is", self.alpha)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("default=lambda: 5", "is called with one argument, a context, which it does not take: "),
        ("default=lambda context: sys.exit(3)", "SystemExit: 3"),
        ("default=lambda context: 1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_default_that_fails_is_told_without_our_frames(
    folder: Path, options: str, told: str
) -> None:
    result = run_flow(folder, FLOW.replace("{options}", options), "run").exited(1)
    assert "Parameter field failed in file DIR/flow.py on line 8:" in result.err
    assert told in result.err
    assert "python/metaflow" not in result.err
    assert result.stdout == ""


def test_options_that_only_concern_help_are_accepted(folder: Path) -> None:
    options = "default=3, hidden=True, metavar='N', show_choices=False, show_envvar=True"
    result = run_flow(folder, FLOW.replace("{options}", options), "run", "--alpha", "4").ok()
    assert "[1/start/1 (pid N)] alpha is 4" in result.lines


def test_the_graph_is_kept_with_the_run(folder: Path) -> None:
    run_flow(folder, FLOW.replace("{options}", "default=3"), "run").ok()
    lines = client(
        folder,
        """
        graph = Run("ParameterFlow/1")["_parameters"].task["_graph_info"].data
        print(list(graph["steps"]), graph["parameters"], graph["graph_structure"])
        """,
    )
    assert lines == ["['start', 'end'] [{'name': 'alpha', 'type': 'int'}] ['start', 'end']"]
