"""Steps that fail, in every way a process can: what is told, what is retried, what is caught."""

from pathlib import Path

import pytest
from harness import client, nothing_left, run_flow


def failing(body: str, decorators: str = "", after: str = "") -> str:
    """A flow whose start step has this body."""
    indented = "\n        ".join(body.strip().splitlines())
    return f"""
import os, sys, signal, time
from metaflow import *
from metaflow import FlowSpec, step

class FailFlow(FlowSpec):
    {decorators}
    @step
    def start(self):
        {indented}
        self.next(self.end)

    @step
    def end(self):
        {after or "pass"}
"""


def test_exception_shows_the_users_frames_and_the_step(folder: Path) -> None:
    result = run_flow(folder, failing("raise ValueError('no *luck*')"), "run").exited(1)
    text = result.out
    assert "TIME [1/start/1 (pid N)]     <flow FailFlow step start> failed:\n" in text
    assert "ValueError: no *luck*" in text
    assert "flow.py" in text and "metaflow/_" not in text
    assert "TIME [1/start/1 (pid N)] Task failed." in text
    assert "TIME Workflow failed." in text
    assert "Step failure:" in result.err and "(task-id 1) failed." in result.err
    assert "Done!" not in text


def test_a_failed_task_keeps_its_artifacts_and_its_exception(folder: Path) -> None:
    run_flow(folder, failing("self.before = 1\nraise KeyError('gone')"), "run").exited(1)
    lines = client(
        folder,
        """
        run = Run('FailFlow/1'); task = run['start'].task
        print(run.state, run.successful, run.finished, task.state, task.successful)
        print(task.data.before, task.exception.type, task.exception.exception)
        print('KeyError' in task.exception.stacktrace, 'gone' in task.cause)
        """,
    )
    assert lines[0] == "failed False False failed False"
    assert lines[1] == "1 builtins.KeyError 'gone'"
    assert lines[2] == "True True"


def test_retry_once(folder: Path) -> None:
    body = "print('attempt', current.retry_count)\nassert current.retry_count"
    source = failing(body, "@retry(times=1)")
    result = run_flow(folder, source, "run").ok()
    assert "[1/start/1 (pid N)] Task is starting (retry)." in result.out
    assert result.seconds < 30
    lines = client(folder, "t = Task('FailFlow/1/start/1'); print(t.current_attempt, t.stdout)")
    assert lines[0] == "1 attempt 1"
    first = client(
        folder, "t = Task('FailFlow/1/start/1', attempt=0); print(t.successful, t.stdout)"
    )
    assert first[0] == "False attempt 0"


def test_retry_that_never_works(folder: Path) -> None:
    result = run_flow(folder, failing("1 / 0", "@retry(times=2)"), "run").exited(1)
    assert result.stdout.count("Task is starting (retry).") == 2
    assert "Step failure:" in result.stderr


def test_retry_that_asks_for_too_much(folder: Path) -> None:
    result = run_flow(folder, failing("pass", "@retry(times=5)"), "run").exited(1)
    assert "4" in result.stderr and "retry" in result.stderr


def test_with_retry_does_not_change_a_step_that_has_it(folder: Path) -> None:
    source = failing("1 / 0", "@retry(times=0)")
    result = run_flow(folder, source, "run", "--with", "retry:times=3").exited(1)
    assert "Task is starting (retry)." not in result.stdout


def test_with_retry_reaches_other_steps(folder: Path) -> None:
    source = failing("assert current.retry_count == 2")
    result = run_flow(folder, source, "run", "--with", "retry:times=2,minutes_between_retries=0")
    assert result.ok().stdout.count("Task is starting (retry).") == 2


def test_catch(folder: Path) -> None:
    body = "self.kept = 1\nraise ValueError('caught')\nself.lost = 2"
    after = "print(self.kept, self.problem.exception, hasattr(self, 'lost'))"
    result = run_flow(folder, failing(body, "@catch(var='problem')", after), "run").ok()
    assert "@catch caught an exception from <flow FailFlow step start>" in result.stdout
    assert ">  " in result.stdout
    assert "1 caught False" in result.stdout
    lines = client(
        folder,
        "t = Task('FailFlow/1/start/1'); print(t.successful, t.finished, t.exception, t.state)",
    )
    assert lines == ["False True None done"]


def test_catch_without_a_problem(folder: Path) -> None:
    result = run_flow(
        folder, failing("pass", "@catch(var='problem')", "print('none:', self.problem)"), "run"
    ).ok()
    assert "none: None" in result.stdout


def test_catch_of_a_process_that_died(folder: Path) -> None:
    source = failing("os._exit(3)", "@catch(var='problem')", "print('told:', self.problem)")
    result = run_flow(folder, source, "run").ok()
    assert "Task fallback is starting to handle the failure." in result.stdout
    assert "told:" in result.stdout


def test_catch_on_a_split_is_refused(folder: Path) -> None:
    source = """
class SplitFlow(FlowSpec):
    @catch
    @step
    def start(self):
        self.xs = [1]
        self.next(self.a, foreach="xs")

    @step
    def a(self):
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""
    result = run_flow(folder, source, "run").exited(1)
    assert "catch" in result.stderr and "start" in result.stderr


def test_timeout(folder: Path) -> None:
    source = failing("time.sleep(100)", "@timeout(seconds=1)")
    result = run_flow(folder, source, "run").exited(1)
    assert "timed out after 0 hours, 0 minutes, 1 seconds" in result.stdout
    assert result.seconds < 60


def test_timeout_caught_and_its_kind(folder: Path) -> None:
    source = failing(
        "time.sleep(100)",
        "@catch(var='problem')\n    @timeout(seconds=1)",
        "print('kind', self.problem.type)",
    )
    result = run_flow(folder, source, "run").ok()
    kind = next(line for line in result.stdout.splitlines() if " kind " in line)
    assert kind.endswith(" kind metaflow.exception.TimeoutException")


def test_timeout_without_a_duration(folder: Path) -> None:
    result = run_flow(folder, failing("pass", "@timeout()"), "run").exited(1)
    assert "uration" in result.stderr


def test_exit_code_202_is_not_retried(folder: Path) -> None:
    result = run_flow(folder, failing("os._exit(202)", "@retry(times=2)"), "run").exited(1)
    assert "(retry)" not in result.stdout
    assert "retried" in result.stdout


def test_exit_code_0_without_next(folder: Path) -> None:
    result = run_flow(folder, failing("sys.exit(0)"), "run").exited(1)
    assert "self.next" in result.stdout + result.stderr
    assert "Step failure:" in result.stderr


@pytest.mark.parametrize("call", ["os._exit(3)", "sys.exit(3)"])
def test_exit_code_3(folder: Path, call: str) -> None:
    result = run_flow(folder, failing(call), "run").exited(1)
    assert "3" in result.stdout and "Task failed." in result.stdout
    cause = client(folder, "print(Task('FailFlow/1/start/1').cause)")
    assert "3" in cause[0]


def test_segmentation_fault(folder: Path) -> None:
    body = "import ctypes\nctypes.string_at(0)"
    result = run_flow(folder, failing(body), "run").exited(1)
    assert "Task failed with a segmentation fault." in result.stdout


def test_killed_task_names_the_signal(folder: Path) -> None:
    source = failing("os.kill(os.getpid(), signal.SIGKILL)")
    result = run_flow(folder, source, "run").exited(1)
    cause = client(folder, "print(Task('FailFlow/1/start/1').cause)")
    assert "SIGKILL" in cause[0] or "signal 9" in cause[0]
    assert "Task failed" in result.stdout


def test_transition_that_differs_from_the_source(folder: Path) -> None:
    source = """
class JumpFlow(FlowSpec):
    @step
    def start(self):
        if True:
            self.next(self.b)
            return
        self.next(self.a)

    @step
    def a(self):
        self.next(self.b)

    @step
    def b(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""
    result = run_flow(folder, source, "run").exited(1)
    assert "start" in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("self.next(self.end, foreach=5)", ["foreach"]),
        ("self.next(self.end); self.next(self.end)", ["next"]),
        ("self.next(self.end, foreach='missing')", ["missing"]),
    ],
)
def test_wrong_next_at_run_time(folder: Path, call: str, words: list[str]) -> None:
    body = f"if os.getpid():\n    {call}"
    result = run_flow(folder, failing(body), "run").exited(1)
    for word in words:
        assert word in result.stdout
    assert "Invalid self.next() transition detected" in result.stdout


def test_unpicklable_artifact_is_named_with_its_path(folder: Path) -> None:
    body = "import threading\nself.box = {'inner': [1, threading.Lock()]}"
    result = run_flow(folder, failing(body), "run").exited(1)
    assert "Cannot pickle artifact" in result.stdout
    assert "box" in result.stdout and "inner" in result.stdout


def test_output_that_is_not_utf8(folder: Path) -> None:
    body = r"sys.stdout.buffer.write(b'\xff\xfeab\n')"
    result = run_flow(folder, failing(body), "run").ok()
    assert "\ufffd\ufffdab" in result.stdout
    raw = client(
        folder, "print([line for _, line in Task('FailFlow/1/start/1').loglines('stdout', False)])"
    )
    assert r"b'\xff\xfeab'" in raw[0]


def test_closed_stdout(folder: Path) -> None:
    body = "print('before', flush=True)\nos.close(1)\nself.x = 1"
    result = run_flow(folder, failing(body, after="print('x is', self.x)"), "run").ok()
    assert "before" in result.stdout and "x is 1" in result.stdout


@pytest.mark.slow
def test_a_flood_of_output(folder: Path) -> None:
    body = "line = 'x' * 999 + '\\n'\nfor _ in range(100_000): sys.stdout.write(line)"
    result = run_flow(folder, failing(body, after="print('end')"), "run").ok()
    assert result.stdout.count("x" * 999) == 100_000
    size = client(folder, "t = Task('FailFlow/1/start/1'); print(t.stdout_size)")
    assert int(size[0]) <= 11 * 1000 * 1000
    tail = client(folder, "print(Task('FailFlow/1/start/1').stdout[-200:])")
    assert any("TRUNCATED - MAXIMUM LOG FILE SIZE REACHED" in line for line in tail)


def test_leftover_processes_end_with_the_run(folder: Path) -> None:
    body = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2): os.close(fd)
        time.sleep(600)
    os._exit(0)
os.wait()
"""
    run_flow(folder, failing(body), "run").ok()
    nothing_left(folder)


def test_threads_are_joined(folder: Path) -> None:
    body = """
import threading
def late():
    time.sleep(0.3)
    print("the thread's last words")
threading.Thread(target=late).start()
"""
    assert "the thread's last words" in run_flow(folder, failing(body), "run").ok().stdout


def test_atexit_runs_and_streams_are_flushed(folder: Path) -> None:
    body = "import atexit\natexit.register(print, 'at exit')\nsys.stdout.write('no newline')"
    result = run_flow(folder, failing(body), "run").ok()
    assert "no newline" in result.stdout and "at exit" in result.stdout


def test_one_branch_fails_while_another_sleeps(folder: Path) -> None:
    source = """
import time
from metaflow import FlowSpec, step

class HalfFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.bad, self.slow)

    @step
    def bad(self):
        import os
        while not os.path.exists("slow-runs"):
            time.sleep(0.01)
        raise RuntimeError("bad branch")

    @step
    def slow(self):
        open("slow-runs", "w").close()
        time.sleep(600)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""
    source = source.replace(
        'raise RuntimeError("bad branch")',
        'raise RuntimeError("bad branch")\n        self.next(self.join)',
    )
    result = run_flow(folder, source, "run").exited(1)
    assert "Terminating 1 active tasks..." in result.stdout
    assert "Workflow failed." in result.stdout
    assert "Step failure:" in result.stderr
    assert result.seconds < 60
    nothing_left(folder)
    states = client(folder, "print({s.id: s.task.state for s in Run('HalfFlow/1')})")
    assert "'slow': 'cancelled'" in states[0] and "'bad': 'failed'" in states[0]


def test_misspelt_decorator_and_attribute(folder: Path) -> None:
    unknown = run_flow(folder, failing("pass"), "run", "--with", "retri").exited(1)
    assert "Unknown step decorator" in unknown.stderr and "retry" in unknown.stderr
    attribute = run_flow(folder, failing("pass", "@retry(time=1)"), "run").exited(1)
    assert "times" in attribute.stderr and "Unknown decorator attribute" in attribute.stderr


def test_decorator_twice(folder: Path) -> None:
    result = run_flow(folder, failing("pass", "@retry\n    @retry"), "run").exited(1)
    assert "retry" in result.stderr


def test_decorators_of_later_versions_refuse_clearly(folder: Path) -> None:
    result = run_flow(folder, failing("pass", "@conda"), "run").exited(1)
    assert "conda" in result.stderr and "not in this version" in result.stderr


def test_environment_decorator(folder: Path) -> None:
    source = failing(
        "print('in task', os.environ['COLOUR'])",
        "@environment(vars={'COLOUR': 'red', 'NUMBER': 1})",
        "print('in end', os.environ.get('COLOUR'))",
    )
    result = run_flow(folder, source, "run").ok()
    assert "in task red" in result.stdout and "in end None" in result.stdout
