"""How tasks fail, what they say, and what `@catch` and `@timeout` make of it."""

from __future__ import annotations

import re

import pytest

FAILING = """
    import os, sys, time
    from metaflow import FlowSpec, step
    from metaflow.exception import MetaflowException

    class Silent(Exception):
        def __str__(self):
            raise ValueError("no text")

    class Unpicklable(Exception):
        def __reduce__(self):
            raise TypeError("not to be pickled")

    class Failing(FlowSpec):
        @step
        def start(self):
            self.before = 1
            {body}
            self.next(self.end)

        @step
        def end(self):
            {end_body}
"""


def failing(task_runner, body: str, end_body: str = "pass"):
    return task_runner(FAILING.replace("{body}", body).replace("{end_body}", end_body))


def decorator(name: str, **attributes):
    return [{"name": name, "attributes": attributes}]


def catch(var=None):
    return decorator("catch", var=var, print_exception=True)


def test_an_exception_is_told_and_kept(task_runner):
    result = failing(task_runner, "1 / 0").run("start")
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[:3] == [
        "    <flow Failing step start> failed:",
        "    Internal error",
        "Traceback (most recent call last):",
    ]
    assert re.fullmatch(r'  File ".*flow_under_test_\d+\.py", line 18, in start', lines[3])
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert "metaflow/_" not in result.stderr
    outcome = result.outcome
    assert (outcome["ok"], outcome["success"], outcome["may_retry"]) == (False, False, True)
    assert outcome["exception"]["type"] == "ZeroDivisionError"
    assert outcome["exception"]["message"] == "division by zero"
    assert outcome["exception"]["traceback"] == "\n".join(lines[2:])
    assert result.pack.outcome["exception"] == outcome["exception"]
    assert result.pack.get("before") == 1
    wrapper = result.pack.get("_exception")
    assert (wrapper.type, wrapper.exception) == ("builtins.ZeroDivisionError", "division by zero")
    assert str(wrapper) == wrapper.stacktrace == outcome["exception"]["traceback"]
    assert result.pack.get("_task_ok") is False


def test_a_memory_error_ends_the_block(task_runner):
    result = failing(task_runner, "x = bytearray(1 << 62)").run("start")
    assert result.stderr.splitlines()[-1] == "MemoryError"
    assert result.outcome["exception"]["type"] == "MemoryError"


def test_a_memory_error_is_told_when_memory_is_tight(task_runner):
    body = """
            import resource
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            limit = used + (24 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            hoard = []
            size = 1 << 20
            while True:
                try:
                    hoard.append(bytes(size))
                except MemoryError:
                    if size == 64:
                        raise
                    size //= 2
    """.strip()
    result = failing(task_runner, body).run("start")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("MemoryError")
    assert result.outcome["exception"]["type"] == "MemoryError"
    assert result.pack.get("before") == 1


@pytest.mark.parametrize(
    ("body", "type_name", "last_line"),
    [
        ("raise Silent()", "Silent", "Silent: <exception str() failed>"),
        ("raise Unpicklable('p')", "Unpicklable", "Unpicklable: p"),
        ("raise ValueError('\\udcff')", "ValueError", "ValueError: \\udcff"),
        ("(lambda f: f(f))(lambda f: f(f))", "RecursionError", "RecursionError: maximum"),
        (
            "raise ExceptionGroup('many', [ValueError('a'), KeyError('b')])",
            "ExceptionGroup",
            "    +------------------------------------",
        ),
        ("raise GeneratorExit('odd')", "GeneratorExit", "GeneratorExit: odd"),
        ("sys.stdout.close(); sys.stderr.close(); 1 / 0", "ZeroDivisionError", "ZeroDivision"),
        ("import decimal; decimal.Decimal(1) / 0", "DivisionByZero", "decimal.DivisionByZero: ["),
    ],
)
def test_any_exception_can_be_told(task_runner, body, type_name, last_line):
    result = failing(task_runner, body).run("start")
    assert result.exit_code == 1
    assert result.outcome["exception"]["type"] == type_name
    told = result.stderr.splitlines()[-1]
    assert last_line in told
    assert result.outcome["exception"]["traceback"].splitlines()[-1] == told
    assert result.pack.get("_exception").stacktrace


def test_metaflow_exceptions_show_headline_and_message(task_runner):
    result = failing(task_runner, "raise MetaflowException('one\\ntwo')").run("start")
    assert result.stderr.splitlines() == [
        "    <flow Failing step start> failed:",
        "    Flow failed:",
        "    one",
        "    two",
    ]


def test_a_metaflow_exception_without_its_constructor(task_runner):
    body = "raise type('Own', (MetaflowException,), {'__init__': lambda self, x: None})('said')"
    result = failing(task_runner, body).run("start")
    assert result.stderr.splitlines()[1:] == ["    Flow failed:", "    said"]


def test_an_artifact_that_cannot_be_stored_fails_the_task(task_runner):
    body = "import threading; self.model = {'lock': threading.Lock()}; self.after = 2"
    result = failing(task_runner, body).run("start")
    assert result.exit_code == 1
    assert "    Cannot pickle artifact:\n" in result.stderr
    assert "self.model['lock']" in result.stderr and "Traceback" not in result.stderr
    assert result.outcome["exception"]["type"] == "UnpicklableArtifactException"
    assert (result.pack.get("before"), result.pack.get("after")) == (1, 2)
    assert "model" not in result.pack
    assert result.outcome["transition"] is None


@pytest.mark.parametrize("code", ["", "0", "None", "256"])
def test_leaving_by_exit_is_a_failure(task_runner, code):
    result = failing(task_runner, f"sys.exit({code})").run("start")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[1:] == [
        "    Invalid self.next() transition detected:",
        "    step `start` ended by `sys.exit` instead of reaching its end and its self.next: "
        "let the step run to its last line",
    ]
    assert not result.outcome["ok"]


@pytest.mark.parametrize(
    ("code", "exit_code", "may_retry"),
    [("3", 3, True), ("202", 202, False), ("'text'", 1, True), ("-1", 255, True)],
)
def test_an_exit_code_is_the_tasks(task_runner, code, exit_code, may_retry):
    result = failing(task_runner, f"sys.exit({code})").run("start")
    assert result.exit_code == exit_code
    assert result.outcome["may_retry"] is may_retry
    assert result.outcome["exception"]["type"] == "SystemExit"


def test_a_step_that_returns_early_has_no_transition(task_runner):
    result = failing(task_runner, "if self.before: return").run("start")
    assert result.exit_code == 1
    assert "step `start` ended without calling self.next" in result.stderr
    assert result.outcome["may_retry"] is False


def test_a_misspelt_artifact_gets_a_near_match(task_runner):
    result = failing(task_runner, "self.befor").run("start")
    assert result.stderr.splitlines()[-1] == (
        "AttributeError: flow `Failing` has no attribute `befor`. Did you mean: 'before'?"
    )


def test_a_timeout_raises_in_the_step(task_runner):
    result = failing(task_runner, "time.sleep(30)").run(
        "start", decorators=decorator("timeout", seconds=0.1, minutes=0, hours=0)
    )
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    text = "Step start timed out after 0 hours, 0 minutes, 0.1 seconds"
    assert lines[1:4] == ["    @timeout:", f"    {text}", "Traceback (most recent call last):"]
    assert "time.sleep(30)" in result.stderr and "_time_limit" not in result.stderr
    assert result.outcome["exception"]["type"] == "TimeoutException"
    assert result.outcome["exception"]["message"] == text


def test_a_timeout_that_is_not_reached_leaves_no_alarm(task_runner):
    result = failing(task_runner, "pass").run(
        "start", decorators=decorator("timeout", seconds=5, minutes=0, hours=0)
    )
    assert result.outcome["ok"], result.stderr


def test_catch_goes_on_with_what_is_there(task_runner):
    result = failing(task_runner, "self.late = 1; 1 / 0").run("start", decorators=catch("problem"))
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert lines[:2] == [
        "@catch caught an exception from <flow Failing step start>",
        ">  Traceback (most recent call last):",
    ]
    assert lines[-1] == ">  ZeroDivisionError: division by zero"
    outcome = result.outcome
    assert (outcome["ok"], outcome["success"]) == (True, False)
    assert outcome["transition"]["targets"] == ["end"]
    assert result.pack.get("late") == 1
    assert result.pack.get("problem").exception == "division by zero"
    assert result.pack.get("_success") is False and result.pack.get("_task_ok") is True


def test_catch_waits_for_the_last_retry(task_runner):
    runner = failing(task_runner, "1 / 0")
    first = runner.run("start", decorators=catch("problem"), max_user_code_retries=1)
    assert first.exit_code == 1 and not first.outcome["ok"]
    last = runner.run("start", decorators=catch("problem"), max_user_code_retries=1, attempt=1)
    assert last.exit_code == 0 and last.outcome["ok"]


def test_catch_leaves_none_after_success(task_runner):
    result = failing(task_runner, "pass").run("start", decorators=catch("problem"))
    assert result.outcome["success"] and result.pack.get("problem") is None


def test_catch_takes_a_timeout(task_runner):
    both = catch("problem") + decorator("timeout", seconds=0.1, minutes=0, hours=0)
    result = failing(task_runner, "time.sleep(30)").run("start", decorators=both)
    assert result.outcome["ok"]
    assert result.pack.get("problem").type == "metaflow.exception.TimeoutException"


def test_catch_in_the_end_step(task_runner):
    runner = failing(task_runner, "pass", end_body="1 / 0")
    start = runner.run("start")
    end = runner.run("end", inputs=[runner.input_of(start)], decorators=catch())
    assert end.outcome["ok"] and end.outcome["transition"]["targets"] == []


def test_the_fallback_runs_no_user_code(task_runner):
    result = failing(task_runner, "print('user code')").run(
        "start",
        decorators=catch("problem"),
        fallback=True,
        attempt=2,
        max_user_code_retries=1,
        previous_failure="killed by signal 9",
    )
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.outcome["ok"] and not result.outcome["success"]
    assert result.outcome["transition"]["targets"] == ["end"]
    assert result.pack.get("problem").exception == (
        "step `start` kept failing over 2 attempts without raising an exception that @catch could "
        "handle; the last one: killed by signal 9"
    )


def test_a_pack_that_cannot_be_written_fails_the_task(task_runner, tmp_path):
    folder = str(tmp_path / ".metaflow" / "Failing")
    body = f"import shutil; shutil.rmtree({folder!r}); open({folder!r}, 'w').close()"
    result = failing(task_runner, body).run("start")
    assert result.exit_code == 1
    assert not result.outcome["ok"]
    assert "    Data store error:\n" in result.stderr


@pytest.mark.parametrize(
    ("leave", "status", "said"),
    [
        ("return", 0, ""),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('bye')", 1, "bye\n"),
    ],
)
def test_a_process_forked_by_the_step_does_not_speak_for_the_task(task_runner, leave, status, said):
    body = f"""
            child = os.fork()
            if child == 0:
                self.before = 2
                {leave}
            self.status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    """.strip()
    result = failing(task_runner, body).run("start")
    assert result.outcome["ok"], result.stderr
    assert result.pack.get("before") == 1
    assert result.pack.get("status") == status
    assert result.stderr.endswith(said) and bool(result.stderr) is bool(said)
