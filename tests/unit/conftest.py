"""Runs single tasks of small flows in forked children, as the engine would ask for them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Any

import pytest

_numbers = itertools.count(1)


class Result:
    """What one task came to."""

    def __init__(self, exit_code: int, messages: list[Any], texts: tuple[str, str], pack: Any):
        self.exit_code = exit_code
        self.messages = messages
        self.stdout, self.stderr = texts
        self.pack = pack

    @property
    def outcome(self) -> dict[str, Any]:
        assert len(self.messages) == 1, self.stderr
        assert self.messages[0]["type"] == "outcome"
        return self.messages[0]["outcome"]


class TaskRunner:
    """A flow and a store for its tasks' packs."""

    def __init__(self, flow_class: Any, folder: Path) -> None:
        self.flow_class = flow_class
        self.flow = flow_class.__name__
        self.root = str(folder / ".metaflow")
        self._tasks = itertools.count(1)
        self._folder = folder

    def write_parameters(self, given: dict[str, list[str]] | None = None) -> None:
        from metaflow import _parameters

        values, error = _parameters.convert(self.flow_class, given or {}, "tester")
        assert error is None, error
        store = {"kind": "local", "root": self.root}
        _parameters.write(self.flow_class, values, store, self.flow, "1")

    def reference(self, step: str, *tasks: int, attempt: int = 0) -> dict[str, Any]:
        return {"run": "1", "step": step, "tasks": [[task, task, attempt] for task in tasks]}

    def input_of(self, *results: Result) -> dict[str, Any]:
        return self.reference(results[0].pack.step, *(each.pack.task for each in results))

    def frame(self, parent: Result, index: int) -> dict[str, Any]:
        transition = parent.outcome["transition"]
        return {
            "step": parent.pack.step,
            "variable": transition["foreach"],
            "index": index,
            "num_splits": transition["num_splits"],
            "source": self.input_of(parent),
        }

    def spec(self, step: str, **changes: Any) -> dict[str, Any]:
        spec = {
            "flow": self.flow,
            "run": "1",
            "step": step,
            "task": next(self._tasks),
            "attempt": 0,
            "max_user_code_retries": 0,
            "fallback": False,
            "previous_failure": None,
            "join": False,
            "inputs": [],
            "parameters": self.reference("_parameters", 0),
            "foreach_stack": [],
            "origin_run": None,
            "store": {"kind": "local", "root": self.root},
            "decorators": [],
            "user": "tester",
            "identity": "user:tester",
            "namespace": "user:tester",
            "tags": [],
            "expected_inputs": None,
            "max_num_splits": 100,
            **changes,
        }
        return json.loads(json.dumps(spec))

    def run(self, step: str, **changes: Any) -> Result:
        """Runs one task in a forked child."""
        from metaflow._artifacts import InputPack

        spec = self.spec(step, **changes)
        name = f"{spec['task']}.{spec['attempt']}"
        paths = [self._folder / f"{name}.{kind}" for kind in ("stdout", "stderr", "control")]
        pid = os.fork()
        if pid == 0:
            self._child(spec, paths)
        _, status = os.waitpid(pid, 0)
        stdout, stderr, control = (path.read_text(errors="replace") for path in paths)
        messages = [json.loads(line) for line in control.splitlines()]
        pack = InputPack(self.root, self.flow, "1", step, spec["task"], spec["attempt"])
        return Result(os.waitstatus_to_exitcode(status), messages, (stdout, stderr), pack)

    def _child(self, spec: dict[str, Any], paths: list[Path]) -> None:
        code = 99
        try:
            for descriptor, path in zip((1, 2), paths[:2], strict=True):
                opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(opened, descriptor)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            with open(paths[2], "w") as control:
                code = self._run_here(spec, control)
        except BaseException:  # noqa: BLE001 - the parent sees it in stderr
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                if not stream.closed:
                    stream.flush()
            os._exit(code)

    def _run_here(self, spec: dict[str, Any], control: Any) -> int:
        from metaflow import _task

        class Control:
            def send(self, message: dict[str, Any]) -> None:
                control.write(json.dumps(message) + "\n")
                control.flush()

        return _task.run(self.flow_class, spec, Control())


@pytest.fixture
def load_flow(tmp_path: Path):
    """Imports the source of a flow from a file of its own; returns its last flow class."""

    def load(source: str) -> Any:
        from metaflow import FlowSpec

        name = f"flow_under_test_{next(_numbers)}"
        path = tmp_path / f"{name}.py"
        path.write_text(textwrap.dedent(source))
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
        flows = [
            each
            for each in vars(module).values()
            if isinstance(each, type) and issubclass(each, FlowSpec) and each is not FlowSpec
        ]
        return flows[-1]

    return load


@pytest.fixture
def task_runner(load_flow: Any, tmp_path: Path):
    """A `TaskRunner` for the source of a flow, its parameters stored."""

    def make(source: str, given: dict[str, list[str]] | None = None) -> TaskRunner:
        runner = TaskRunner(load_flow(source), tmp_path)
        runner.write_parameters(given)
        return runner

    return make
