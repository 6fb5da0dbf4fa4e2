"""Parameters: types, environment, defaults, and the exit code of each mistake."""

from pathlib import Path

import pytest
from harness import run_flow

FLOW = """
from metaflow import FlowSpec, JSONType, Parameter, step

class ParamFlow(FlowSpec):
    {parameters}

    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        print("value:", repr(self.p))
"""


def show(folder: Path, parameter: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Runs a flow with one parameter and gives its value as the end step sees it."""
    source = FLOW.format(parameters=f"p = Parameter({parameter})")
    result = run_flow(folder, source, "run", *arguments, env=env).ok()
    shown = [line for line in result.stdout.splitlines() if "value: " in line]
    return shown[0].split("value: ")[1]


@pytest.mark.parametrize(
    ("parameter", "arguments", "value"),
    [
        ("'p'", (), "None"),
        ("'p', default='d'", (), "'d'"),
        ("'p', default='d'", ("--p", "x y"), "'x y'"),
        ("'p', default='d'", ("--p", "-x"), "'-x'"),
        ("'p', default='d'", ("--p=a=b",), "'a=b'"),
        ("'p', default=1", ("--p", "5"), "5"),
        ("'p', default=1", ("--p", " 5 "), "5"),
        ("'p', default=1", ("--p", "-1"), "-1"),
        ("'p', type=int", ("--p", "7"), "7"),
        ("'p', default=0.5", ("--p", "2"), "2.0"),
        ("'p', default=False", ("--p", "True"), "True"),
        ("'p', default=False", ("--p", "yes"), "True"),
        ("'p', default=True", ("--p", "0"), "False"),
        ("'p', type=bool, is_flag=True, default=False", ("--p",), "True"),
        ("'p', type=JSONType", ("--p", '{"a": [1, null]}'), "{'a': [1, None]}"),
        ("'p', type=JSONType, default='[1]'", (), "[1]"),
        ("'p', type=JSONType, default={'a': 1}", (), "{'a': 1}"),
        ("'p', default='a,b', separator=','", (), "['a', 'b']"),
        ("'p', default='a', separator=','", ("--p", "x,y,z"), "['x', 'y', 'z']"),
        ("'p', type=str, multiple=True", ("--p", "x", "--p", "y"), "('x', 'y')"),
        ("'p', default=1", ("--p", "1", "--p", "2"), "2"),
        ("'p', default=lambda ctx: ctx.flow_name + ctx.user_name", (), "'ParamFlowtester'"),
        ("'other-name', default=1", ("--other-name", "3"), "3"),
    ],
)
def test_value(folder: Path, parameter: str, arguments: tuple[str, ...], value: str) -> None:
    assert show(folder, parameter, *arguments) == value


def test_environment_gives_a_value_and_the_command_line_wins(folder: Path) -> None:
    env = {"METAFLOW_RUN_P_X": "8"}
    assert show(folder, "'p-x', default=1", env=env) == "8"
    assert show(folder, "'p-x', default=1", "--p-x", "9", env=env) == "9"
    assert show(folder, "'p-x', default=1", env={"METAFLOW_RUN_P_X": ""}) == "1"


@pytest.mark.parametrize(
    ("parameter", "arguments", "code", "words"),
    [
        ("'p', required=True", (), 2, ["--p"]),
        ("'p', type=int", ("--p", "seven"), 2, ["--p", "seven"]),
        ("'p', default=1.5", ("--p", "x"), 2, ["--p", "x"]),
        ("'p', default=True", ("--p", "maybe"), 2, ["--p", "maybe"]),
        ("'p', type=JSONType", ("--p", "{bad"), 2, ["--p", "JSON"]),
        ("'alpha'", ("--alhpa", "1"), 2, ["--alhpa", "--alpha"]),
        ("'p'", ("--p",), 2, ["--p"]),
        ("'tag'", (), 1, ["tag", "reserved"]),
        ("'max-workers'", (), 1, ["max-workers", "reserved"]),
        ("'p', default=lambda: 1", (), 1, ["Parameter field failed"]),
        ("'p', type=int, default=lambda c: 'x'", (), 1, ["mismatching type"]),
        ("'p', default=1, separator=','", (), 1, ["separator"]),
    ],
)
def test_mistake(
    folder: Path, parameter: str, arguments: tuple[str, ...], code: int, words: list[str]
) -> None:
    source = FLOW.format(parameters=f"p = Parameter({parameter})")
    result = run_flow(folder, source, "run", *arguments).exited(code)
    for word in words:
        assert word in result.stderr
    assert "Workflow starting" not in result.stdout
    assert not (folder / ".metaflow/ParamFlow/latest_run").exists()


def test_names_that_differ_only_in_case(folder: Path) -> None:
    parameters = "p = Parameter('alpha')\n    q = Parameter('Alpha')"
    result = run_flow(folder, FLOW.format(parameters=parameters), "run")
    assert result.code == 1
    assert "lpha" in result.stderr


def test_resume_takes_no_parameters_and_keeps_the_values(folder: Path) -> None:
    source = FLOW.format(parameters="p = Parameter('p', default=1)")
    run_flow(folder, source, "run", "--p", "6").ok()
    refused = run_flow(folder, source, "resume", "--p", "7").exited(2)
    assert "--p" in refused.stderr
    assert "value: 6" in run_flow(folder, source, "resume", "end").ok().stdout


def test_help_lists_parameters_with_help_and_default(folder: Path) -> None:
    source = FLOW.format(parameters="p = Parameter('p', default=3, help='How many')")
    text = run_flow(folder, source, "run", "--help").ok().stdout
    assert "--p" in text and "How many" in text and "3" in text
    assert "--max-workers" in text
