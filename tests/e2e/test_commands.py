"""The commands that do not run anything: show, check, dump, logs, tag, version, help."""

import os
import pickle
from pathlib import Path

import pytest
from harness import client, run_flow, start, write_flow

FLOW = '''
import sys
from metaflow import *
from metaflow import FlowSpec, step

class CommandFlow(FlowSpec):
    """What this flow is for."""

    @retry(times=1)
    @step
    def start(self):
        """Begins."""
        self.number = 42
        self.text = "x" * 5000
        self._hidden = "h"
        print("out one")
        print("err one", file=sys.stderr)
        self.next(self.end)

    @step
    def end(self):
        print("out two")
'''


@pytest.fixture
def done(folder: Path) -> Path:
    run_flow(folder, FLOW, "run", "--tag", "mine").ok()
    return folder


def test_no_command_is_check(folder: Path) -> None:
    result = run_flow(folder, FLOW).ok()
    assert "The graph looks good!" in result.stderr


def test_check_hints_at_what_next(folder: Path) -> None:
    result = run_flow(folder, FLOW, "check").ok()
    for word in ("show", "run", "help"):
        assert word in result.stderr


def test_show(folder: Path) -> None:
    result = run_flow(folder, FLOW, "show").ok()
    assert "What this flow is for." in result.stderr
    assert result.stdout.index("@retry") < result.stdout.index("Step start")
    assert "Step start\n    Begins.\n    => end\n" in result.stdout
    assert "Step end\n\n" in result.stdout


def test_output_dot(folder: Path) -> None:
    result = run_flow(folder, FLOW, "output-dot").ok()
    assert result.stdout.startswith("digraph")
    assert "start -> end" in result.stdout.replace('"', "")


def test_version_and_help(folder: Path) -> None:
    version = run_flow(folder, FLOW, "version").ok()
    assert any(part[:1].isdigit() for part in (version.stderr + version.stdout).split())
    assert run_flow(folder, FLOW, "help").ok().stdout == (
        run_flow(folder, FLOW, "--help").ok().stdout
    )
    run_flow(folder, FLOW, "--version").exited(2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("runn",), ["runn", "run"]),
        (("run", "--max-worker", "1"), ["--max-worker", "--max-workers"]),
        (("run", "--max-workers", "many"), ["--max-workers", "many"]),
        (("run", "--max-workers", "0"), ["--max-workers"]),
        (("--datastor", "local", "run"), ["--datastor", "--datastore"]),
        (("dump",), ["RUN/STEP"]),
    ],
)
def test_usage_mistakes_end_with_2(
    folder: Path, arguments: tuple[str, ...], words: list[str]
) -> None:
    result = run_flow(folder, FLOW, *arguments).exited(2)
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


def test_missing_flow_file(folder: Path) -> None:
    result = run_flow(folder, folder / "missing.py", "run")
    assert result.code == 2 and "missing.py" in result.stderr


def test_dump(done: Path) -> None:
    result = run_flow(done, done / "flow.py", "dump", "1/start").ok()
    assert "Dumping output of run_id=1 step=start task_id=1" in result.stderr
    lines = result.stdout.splitlines()
    number = next(line for line in lines if line.startswith("number "))
    assert number.startswith("number [size: ") and number.endswith("type: <class 'int'>] = 42")
    assert any(
        line.startswith("text [") and line.endswith("< artifact too large >") for line in lines
    )
    assert not any(line.startswith("_") for line in lines)
    assert lines == sorted(lines)


def test_dump_options(done: Path) -> None:
    flow = done / "flow.py"
    assert "_hidden " in run_flow(done, flow, "dump", "1/start/1", "--private").ok().stdout
    nothing = run_flow(done, flow, "dump", "1/start", "--max-value-size", "0").ok().stdout
    assert all(line.endswith("< artifact too large >") for line in nothing.splitlines())
    only = run_flow(done, flow, "dump", "1/start", "--include", "number").ok().stdout
    assert only.startswith("number [") and only.count("\n") == 1
    run_flow(done, flow, "dump", "1/start", "--file", "dumped").ok()
    dumped = pickle.loads((done / "dumped").read_bytes())
    (values,) = dumped.values()
    assert values["number"] == 42 and len(values["text"]) == 5000
    wrong = run_flow(done, flow, "dump", "1").exited(1)
    assert "Invalid command" in wrong.stderr


def test_logs(done: Path) -> None:
    flow = done / "flow.py"
    both = run_flow(done, flow, "logs", "1/start").ok()
    assert both.stdout == "out one\nerr one\n"
    assert "Dumping logs of run_id=1 step=start task_id=1\nstdout\nstderr\n" in both.stderr
    assert run_flow(done, flow, "logs", "show", "1/start/1", "--stdout").ok().stdout == "out one\n"
    assert run_flow(done, flow, "logs", "1/start", "--stderr").ok().stdout == "err one\n"
    timed = run_flow(done, flow, "logs", "1/start", "--timestamps", "--stdout").ok()
    assert timed.out == "TIME out one\n"
    unknown = run_flow(done, flow, "logs", "1/sart").exited(1)
    assert "No Tasks found" in unknown.stderr
    task = run_flow(done, flow, "logs", "1/start/77").exited(1)
    assert "77" in task.stderr
    run_flow(done, flow, "logs", "1").exited(1)


def test_logs_of_an_earlier_attempt(folder: Path) -> None:
    source = FLOW.replace('print("out one")', 'print("try", current.retry_count); 1 / 0')
    run_flow(folder, source, "run").exited(1)
    flow = folder / "flow.py"
    first = run_flow(folder, flow, "logs", "1/start", "--attempt", "0", "--stdout").ok()
    last = run_flow(folder, flow, "logs", "1/start", "--stdout").ok()
    assert "try 0" in first.stdout and "try 1" in last.stdout and "try 0" not in last.stdout


def test_tags(done: Path) -> None:
    flow = done / "flow.py"
    run_flow(done, flow, "tag", "add", "--run-id", "1", "new", "newer").ok()
    run_flow(done, flow, "tag", "remove", "--run-id", "1", "new").ok()
    run_flow(
        done, flow, "tag", "replace", "--run-id", "1", "--add", "newest", "--remove", "newer"
    ).ok()
    assert client(done, "print(sorted(Run('CommandFlow/1').user_tags))") == ["['mine', 'newest']"]
    listed = run_flow(done, flow, "tag", "list").ok().stdout
    for tag in ("mine", "newest", "user:tester"):
        assert tag in listed
    hidden = run_flow(done, flow, "tag", "list", "--hide-system-tags").ok().stdout
    assert "user:tester" not in hidden and "mine" in hidden
    quiet = run_flow(done, flow, "--quiet", "tag", "list").ok().stdout
    run, system, user = quiet.strip().split(" ; ")
    assert run == "CommandFlow/1" and "user:tester" in system.split(",")
    assert user.split(",") == ["mine", "newest"]


def test_tag_mistakes(done: Path) -> None:
    flow = done / "flow.py"
    missing = run_flow(done, flow, "tag", "add", "x").exited(1)
    assert "--run-id" in missing.stderr and "1" in missing.stderr
    system = run_flow(done, flow, "tag", "remove", "--run-id", "1", "user:tester").exited(1)
    assert "user:tester" in system.stderr
    run_flow(done, flow, "tag", "add", "--run-id", "1", "user:tester").ok()
    run_flow(done, flow, "tag", "add", "--run-id", "1", "x" * 501).exited(1)
    run_flow(done, flow, "tag", "add", "--run-id", "CommandFlow/1", "x").exited(1)
    run_flow(done, flow, "tag", "add", "--run-id", "99", "x").exited(1)


@pytest.mark.parametrize("command", ["argo-workflows", "step-functions", "airflow", "spin"])
def test_commands_of_later_versions_say_so(folder: Path, command: str) -> None:
    result = run_flow(folder, FLOW, command)
    assert result.code in (1, 2)
    assert "not in this version" in result.stderr


def test_with_kubernetes_and_a_local_datastore_says_what_to_give(folder: Path) -> None:
    result = run_flow(folder, FLOW, "run", "--with", "kubernetes").exited(1)
    assert "requires --datastore=s3, azure or gs" in result.stderr
    assert "Workflow starting" not in result.stdout


def test_root_without_a_name_is_a_user(folder: Path) -> None:
    result = run_flow(folder, FLOW, "version", env={"USER": ""}).ok()
    assert "for user:" in result.stderr


@pytest.mark.parametrize(
    "words", ["help", "show", "output-raw", "tag list", "logs 1/start", "dump 1/start"]
)
def test_a_reader_that_has_enough(folder: Path, words: str) -> None:
    """`python flow.py tag list | head -0`"""
    run_flow(folder, FLOW, "run").ok()
    reading, writing = os.pipe()
    os.close(reading)
    process = start(folder, folder / "flow.py", *words.split(), stdout=writing)
    os.close(writing)
    _, told = process.communicate(timeout=60)
    assert b"panicked" not in told and b"Traceback" not in told, told.decode()
    assert process.returncode == 0, told.decode()


def test_a_full_disk_behind_stdout_is_told(folder: Path) -> None:
    flow = write_flow(folder, FLOW)
    with open("/dev/full", "wb", buffering=0) as full:
        process = start(folder, flow, "show", stdout=full.fileno())
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Error: cannot write to stdout: No space left on device" in told.decode()
