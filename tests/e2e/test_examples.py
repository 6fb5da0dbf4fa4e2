"""Every example runs, and so do the flows of the documents, byte for byte."""

import os
import re
from pathlib import Path

import pytest
from harness import EXAMPLES, REPOSITORY, Result, client, memory_group, run_flow

SHARED = REPOSITORY.parent / "shared" / "examples"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the documents' flows are not beside this checkout"
)


def printed(stdout: str, step: str) -> list[str]:
    """What the tasks of a step printed."""
    found = re.findall(rf"(?m)^\S+ \S+ \[\d+/{step}/\d+ \(pid \d+\)\] (.*)$", stdout)
    return [line for line in found if not line.startswith("Task ")]


def test_every_example_has_a_test() -> None:
    source = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in source, f"{path.name} is run by no test"


def test_hello(folder: Path) -> None:
    result = run_flow(folder, EXAMPLES / "hello.py", "run").ok()
    assert printed(result.stdout, "end")[0] in [
        f"{c} scored best" for c in ["US", "CA", "BR", "CN"]
    ]
    assert result.stdout.count("Task finished successfully.") == 7


def test_big_sum(folder: Path) -> None:
    pytest.importorskip("numpy")
    result = run_flow(folder, EXAMPLES / "big_sum.py", "run", "--rows", "500").ok()
    total, took = printed(result.stdout, "end")
    number = float(total.removeprefix("The sum is "))
    assert 120_000 < number < 130_000 and took.endswith(" ms")


def test_branches(folder: Path) -> None:
    result = run_flow(folder, EXAMPLES / "branches.py", "run").ok()
    assert printed(result.stdout, "end") == ["10 points, best model: line, error 0.0"]


def test_nested(folder: Path) -> None:
    result = run_flow(folder, EXAMPLES / "nested.py", "run").ok()
    assert printed(result.stdout, "end") == ["small: 0.5", "large: 0.1"]


def test_failures(folder: Path) -> None:
    result = run_flow(folder, EXAMPLES / "failures.py", "run").ok()
    assert printed(result.stdout, "end") == [
        "fetched at attempt 1",
        "divide went wrong: division by zero",
        "dawdle was stopped: True",
    ]


def test_parameters(folder: Path) -> None:
    path = EXAMPLES / "parameters.py"
    assert printed(run_flow(folder, path, "run").ok().stdout, "end") == ["Hello world!"]
    arguments = ["--greeting", "Hi", "--names", "Ada,Grace", "--settings", '{"loud": true}']
    loud = run_flow(folder, path, "run", *arguments).ok()
    assert printed(loud.stdout, "end") == ["HI ADA!", "HI GRACE!"]


@needs_shared
def test_scaleflow_of_the_documents(folder: Path) -> None:
    result = run_flow(folder, SHARED / "scaleflow.py", "run").ok()
    assert printed(result.stdout, "end")[0].endswith("produced best results")
    # All four `train` tasks, asking for 64 GB in all, are started before the first has ended
    # where there are processors enough; on fewer, at least as many as there are.
    train = [line for line in result.lines if "/train/" in line]
    before_first_end = train[: next(i for i, line in enumerate(train) if "finished" in line)]
    starts = sum("Task is starting." in line for line in before_first_end)
    assert starts >= min(4, len(os.sched_getaffinity(0)))


@needs_shared
@pytest.mark.slow
def test_splits1000_of_the_documents(folder: Path) -> None:
    refused = run_flow(folder, SHARED / "splits1000.py", "run").exited(1)
    assert "--max-num-splits" in refused.stdout + refused.stderr
    result = run_flow(
        folder, SHARED / "splits1000.py", "run", "--max-num-splits", "1000", "--max-workers", "8"
    ).ok()
    assert printed(result.stdout, "end") == ["1000"]


@needs_shared
@pytest.mark.parametrize("name", ["bigsum.py", "bigsum_parallel.py"])
def test_bigsum_of_the_documents_gets_no_memory(folder: Path, name: str) -> None:
    """51 GB, where memory is refused: numpy's own MemoryError, told in these lines."""
    pytest.importorskip("numpy")
    result = run_flow(folder, SHARED / name, "run", address_space=8 << 30).exited(1)
    told_failure(folder, result)
    (told,) = [line for line in result.out.splitlines() if "MemoryError" in line]
    assert told.startswith("TIME [1/start/1 (pid N)] ") and "47.7 GiB" in told


@needs_shared
@pytest.mark.parametrize("name", ["bigsum.py", "bigsum_parallel.py"])
def test_bigsum_of_the_documents_is_killed(folder: Path, name: str) -> None:
    """51 GB, where memory is promised and then missing: the kernel kills the task."""
    pytest.importorskip("numpy")
    with memory_group(400 << 20) as group:
        result = run_flow(folder, SHARED / name, "run", group=group).exited(1)
    told_failure(folder, result)
    (told,) = [line for line in result.out.splitlines() if "out of memory" in line.lower()]
    assert told.startswith("TIME [1/start/1 (pid N)] ")
    assert "60000" in told and "400 MiB" in told


def told_failure(folder: Path, result: Result) -> None:
    assert "TIME [1/start/1 (pid N)] Task failed.\nTIME Workflow failed.\n" in result.out
    assert "    Step failure:\n    Step start (task-id 1) failed.\n" in result.err
    assert client(folder, "print(Run('BigSum/1').state)") == ["failed"]
