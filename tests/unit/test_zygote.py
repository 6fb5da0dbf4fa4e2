"""Tasks forked from a zygote, and spawned ones beside them: both must look the same."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_double import is_alive, run_flow, start_flow

BOTH = """
    def scenario(engine):
        forked = engine.open_zygote()
        spawned = engine.open_zygote(spawn=True)
        assert forked.ready["spawn_reason"] is None, forked.ready
        return [zygote.run("step") for zygote in (forked, spawned)]
"""
FORKED = """
    def scenario(engine):
        zygote = engine.open_zygote()
        assert zygote.ready["spawn_reason"] is None, zygote.ready
        return zygote.run("step")
"""


def flow_with(body: str, before: str = "import os, sys") -> str:
    lines = "\n".join(f"        {line}" for line in body.strip("\n").splitlines())
    return f"{before}\nclass Flow:\n    @staticmethod\n    def step(spec, control):\n{lines}\n"


def both(folder: Path, body: str, before: str = "import os, sys") -> list[dict[str, Any]]:
    outcomes: list[dict[str, Any]] = run_flow(folder, flow_with(body, before), BOTH)
    return outcomes


def test_output_outcome_and_exit_code(tmp_path: Path) -> None:
    for outcome in both(
        tmp_path, "print('out'); print('err', file=sys.stderr); sys.exit(spec.get('code', 5))"
    ):
        assert outcome["stdout"] == "out\n"
        assert outcome["stderr"] == "err\n"
        assert outcome["exited"]["exit"] == {"code": 5}
        assert outcome["exited"]["leftover"] == 0
        assert outcome["exited"]["usage"]["cpu_seconds"] > 0
        assert outcome["exited"]["usage"]["peak_memory"] > 1 << 20


SURROUNDINGS = """
import logging, threading, multiprocessing, signal, socket, tempfile, time
facts = {
    "argv": sys.argv,
    "path": sys.path,
    "cwd": os.getcwd(),
    "main": sys.modules["__main__"].__file__,
    "main names": sorted(name for name in vars(sys.modules["__main__"]) if name != "__cached__"),
    "environment": {k: v for k, v in os.environ.items() if k != "_"},
    "open files": sorted(
        int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")
    ),
    "stdin": sys.stdin.read(),
    "streams": [type(s.buffer).__name__ for s in (sys.stdout, sys.stderr)],
    "encodings": [(s.encoding, s.errors, s.line_buffering) for s in (sys.stdout, sys.stderr)],
    "names": [sys.stdout.name, sys.stderr.name],
    "tty": [sys.stdout.isatty(), sys.stdin.isatty()],
    "signals": {
        s.name: str(signal.getsignal(s)).split(" at ")[0]
        for s in signal.valid_signals() if hasattr(s, "name")
    },
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "process": multiprocessing.current_process().name,
    "thread": [threading.current_thread().name, threading.active_count(),
               threading.current_thread() is threading.main_thread(),
               threading.get_native_id() == os.getpid()],
    "own group": os.getpgrp() == os.getpid(),
    "umask": os.umask(0o22),
    "cpu so far": time.process_time() < 1.0,
    "flags": str(sys.flags).replace("unbuffered=1", "unbuffered=0"),
    "collects": __import__("gc").isenabled(),
    "limits": __import__("resource").getrlimit(7),
    "wakeup": signal.set_wakeup_fd(-1),
    "atexit": 0,
    "warnings": len(__import__("warnings").filters),
    "logging": [str(h) for h in logging.getLogger().handlers],
}
return facts
"""


def test_surroundings_are_the_same(tmp_path: Path) -> None:
    before = "import os, sys, logging\nlogging.basicConfig()\nVALUE = 3\n"
    forked, spawned = both(tmp_path, SURROUNDINGS, before)
    assert forked["result"] == spawned["result"]
    assert forked["result"]["own group"]
    assert forked["result"]["open files"][:3] == [0, 1, 2]
    assert [number for number in forked["result"]["open files"] if 2 < number < 200] == []


def test_own_handlers_and_directory_of_the_import_are_kept(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    before = (
        "import os, sys, signal, gc\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.signal(signal.SIGINT, lambda *a: None)\nos.chdir('elsewhere')\ngc.disable()\n"
        "os.environ['ADDED'] = 'yes'"
    )
    body = (
        "import signal\nreturn [str(signal.getsignal(15)), callable(signal.getsignal(2)),"
        " os.getcwd(), __import__('gc').isenabled(), os.environ['ADDED']]"
    )
    forked, spawned = both(tmp_path, body.replace("os.chdir", "os.chdir"), before)
    expected = ["1", True, str(tmp_path / "elsewhere"), False, "yes"]
    assert forked["result"] == spawned["result"]
    assert forked["result"][1:] == expected[1:]


@pytest.mark.parametrize(
    "crash, how",
    [
        ("os._exit(3)", {"code": 3}),
        ("os.kill(os.getpid(), 9)", {"signal": 9}),
        ("import ctypes; ctypes.string_at(0)", {"signal": int(signal.SIGSEGV)}),
        ("os.abort()", {"signal": int(signal.SIGABRT)}),
    ],
)
def test_complete_lines_survive_a_crash(tmp_path: Path, crash: str, how: dict[str, int]) -> None:
    body = f"print('one'); print('two', end='\\n'); sys.stdout.buffer.write(b'three\\n'); {crash}"
    for outcome in both(tmp_path, body):
        assert outcome["stdout"] == "one\ntwo\nthree\n"
        assert outcome["exited"]["exit"] == how
        assert outcome["result"] is None


def test_lines_appear_while_the_task_runs(tmp_path: Path) -> None:
    flow = flow_with("print('early')\nimport time\ntime.sleep(600)")
    scenario = """
        def scenario(engine):
            found = []
            for spawn in (False, True):
                task = engine.open_zygote(spawn=spawn).start("step")
                task.wait_for_output(b"early\\n")
                task.zygote.pump(0.1)
                task.zygote.signal(task, 15)
                found.append(task.wait()["exited"]["exit"])
            return found
    """
    assert run_flow(tmp_path, flow, scenario) == [{"signal": 15}, {"signal": 15}]


def test_streams_that_the_import_holds_are_the_tasks(tmp_path: Path) -> None:
    before = (
        "import os, sys, logging\nlogging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
        "held = sys.stdout"
    )
    body = "logging.warning('logged'); print('held', file=held); print('now'); os._exit(0)"
    for outcome in both(tmp_path, body, before):
        assert outcome["stdout"] == "logged\nheld\nnow\n"


def test_what_is_left_to_do_at_exit_is_done(tmp_path: Path) -> None:
    before = "import os, sys, atexit\natexit.register(print, 'registered by the import')"
    body = """
import atexit, threading, time
atexit.register(print, "registered by the task")
def fail():
    raise ValueError("at exit")
atexit.register(fail)
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
sys.exit(7)
"""
    for outcome in both(tmp_path, body, before):
        assert outcome["stdout"].splitlines() == [
            "thread",
            "registered by the task",
            "registered by the import",
        ]
        assert "ValueError: at exit" in outcome["stderr"]
        assert outcome["exited"]["exit"] == {"code": 7}


def test_files_left_open_are_written(tmp_path: Path) -> None:
    body = (
        "global kept\nkept = open(f'left-{os.getpid()}.txt', 'w')\nkept.write('kept')\n"
        "print('unfinished line', end='')\nsys.exit(4)"
    )
    for outcome in both(tmp_path, body):
        assert (tmp_path / f"left-{outcome['pid']}.txt").read_text() == "kept"
        assert outcome["stdout"] == "unfinished line"
        assert outcome["exited"]["exit"] == {"code": 4}


def test_processes_left_behind_are_counted_and_killed_at_the_end(tmp_path: Path) -> None:
    flow = flow_with(
        """
import subprocess
pids = [subprocess.Popen(["sleep", "600"], start_new_session=detached).pid
        for detached in (False, True)]
return pids
"""
    )
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote()
            first = zygote.run("step")
            second = zygote.run("step")
            return [first["exited"]["leftover"], second["exited"]["leftover"],
                    first["result"] + second["result"], engine.hello["pid"]]
    """
    first, second, pids, server = run_flow(tmp_path, flow, scenario)
    assert (first, second) == (2, 2)
    wait_until_gone([*pids, server])


def wait_until_gone(pids: list[int], patience: float = 5.0) -> None:
    end = time.monotonic() + patience
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end, [pid for pid in pids if is_alive(pid)]
        time.sleep(0.01)


# A population that stays small but changes its process ids all the time: parents whose children
# come and go, and processes that fork and leave. All of it ends by itself after a while.
RESTLESS = """
import os, sys, time
end = time.time() + 20
for _ in range(3):
    os.fork()
if os.fork() == 0:
    while time.time() < end:
        if os.fork():
            os._exit(0)
        os.setsid()
while time.time() < end:
    if os.fork() == 0:
        time.sleep(0.02)
        os._exit(0)
    os.wait()
"""


def test_nothing_outlives_a_killed_engine(tmp_path: Path) -> None:
    (tmp_path / "restless.py").write_text(RESTLESS)
    flow = flow_with(
        """
import subprocess, time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "restless.py"], start_new_session=True)
subprocess.Popen(["sleep", "60"], start_new_session=True)
time.sleep(0.5)
print("running", flush=True)
time.sleep(60)
"""
    )
    scenario = """
        import os, signal
        def scenario(engine):
            task = engine.open_zygote().start("step")
            task.wait_for_output(b"running\\n")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    started = start_flow(tmp_path, flow, scenario)
    started.wait(timeout=60)
    killed_at = time.monotonic()
    # Twice: one look at all processes can miss one that is being forked.
    while processes_in(tmp_path) or processes_in(tmp_path):
        assert time.monotonic() < killed_at + 5, processes_in(tmp_path)
        time.sleep(0.01)
    assert time.monotonic() - killed_at < 3


def processes_in(folder: Path) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{name}/cwd") == str(folder) and is_alive(int(name)):
                found.append(int(name))
        except OSError:
            continue
    return found


def test_a_zygotes_tasks_end_with_its_socket(tmp_path: Path) -> None:
    flow = flow_with("print('running', os.getpid())\nimport time\ntime.sleep(600)")
    scenario = """
        from engine_double import is_alive, wait_until
        import time
        def scenario(engine):
            zygote = engine.open_zygote()
            task = zygote.start("step")
            task.wait_for_output(b"\\n")
            pid = int(task.stdout.split()[1])
            zygote.connection.close()
            wait_until(lambda: not is_alive(pid), lambda: time.sleep(0.01))
            wait_until(lambda: not is_alive(zygote.ready["pid"]), lambda: time.sleep(0.01))
            return True
    """
    assert run_flow(tmp_path, flow, scenario) is True


def test_a_killed_zygote_takes_its_tasks_along(tmp_path: Path) -> None:
    flow = flow_with("print('running', os.getpid())\nimport time\ntime.sleep(600)")
    scenario = """
        from engine_double import is_alive, wait_until
        import os, time
        def scenario(engine):
            zygote = engine.open_zygote()
            task = zygote.start("step")
            task.wait_for_output(b"\\n")
            os.kill(zygote.ready["pid"], 9)
            pid = int(task.stdout.split()[1])
            wait_until(lambda: zygote.is_gone, lambda: zygote.pump(0.05))
            wait_until(lambda: not is_alive(pid), lambda: time.sleep(0.01))
            return engine.open_zygote().run("step2")["exited"]["exit"]
    """
    flow += "\n    @staticmethod\n    def step2(spec, control):\n        return 1\n"
    assert run_flow(tmp_path, flow, scenario) == {"code": 0}


def test_signals_reach_the_whole_group_and_only_the_task(tmp_path: Path) -> None:
    flow = flow_with(
        "import subprocess, time\nchild = subprocess.Popen(['sleep', '600'])\n"
        "print('child', child.pid)\ntime.sleep(600)"
    )
    scenario = """
        from engine_double import is_alive, wait_until
        import time
        def scenario(engine):
            zygote = engine.open_zygote()
            one, two = zygote.start("step"), zygote.start("step")
            for task in (one, two):
                task.wait_for_output(b"\\n")
            zygote.signal(one, 15)
            exit = one.wait()["exited"]["exit"]
            child = int(one.stdout.split()[1])
            wait_until(lambda: not is_alive(child), lambda: time.sleep(0.01))
            still = is_alive(two.pid)
            zygote.signal(two, 9)
            zygote.signal(one, 9)
            return [exit, still, two.wait()["exited"]["exit"]]
    """
    assert run_flow(tmp_path, flow, scenario) == [{"signal": 15}, True, {"signal": 9}]


def test_the_stack_is_as_deep(tmp_path: Path) -> None:
    """Else deep recursion would end at another depth."""
    body = "import inspect\nreturn [frame.function for frame in inspect.stack()]"
    forked, spawned = both(tmp_path, body)
    assert forked["result"] == spawned["result"]
    assert len(forked["result"]) < 10


def test_many_tasks_at_once(tmp_path: Path) -> None:
    flow = flow_with("print(spec['number']); return spec['number']")
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote()
            tasks = [zygote.start("step", number=n + 1) for n in range(200)]
            found = [task.wait() for task in tasks]
            return [[f["result"], f["stdout"]] for f in found]
    """
    scenario = scenario.replace("number=n + 1)", "number=n + 1)")
    flow = flow_with("print('x' * 10)\nreturn spec['step']")
    found = run_flow(tmp_path, flow, scenario)
    assert found == [["step", "xxxxxxxxxx\n"]] * 200


def test_a_task_does_not_hold_the_pipes_of_others(tmp_path: Path) -> None:
    """Else the engine would not see the end of their output."""
    flow = flow_with("import time\ntime.sleep(spec['seconds'])")
    scenario = """
        import os
        def scenario(engine):
            zygote = engine.open_zygote()
            long = [zygote.start("step", seconds=600) for _ in range(3)]
            short = zygote.start("step", seconds=0)
            more = [zygote.start("step", seconds=600) for _ in range(3)]
            short.wait()
            return os.read(short._out, 1) == b""
    """
    assert run_flow(tmp_path, flow, scenario) is True


def test_task_without_its_descriptors_is_said_to_have_failed(tmp_path: Path) -> None:
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote()
            from engine_double import Task, wait_until
            zygote.tasks[1] = task = Task(zygote, 1)
            attempt = {"task": 1, "attempt": 0}
            zygote.connection.send({"type": "task", "attempt": attempt, "spec": {}}, [])
            failed = task.wait()["failed"]
            return [failed, zygote.run("step", number=2)["result"]]
    """
    failed, after = run_flow(tmp_path, flow_with("return 5"), scenario)
    assert failed == (
        "the task's process could not be started: its output descriptors did not arrive; "
        "is the limit on open files (`ulimit -n`) too low?"
    )
    assert after == 5


def test_the_environment_of_a_step_is_there_when_its_modules_are_imported(tmp_path: Path) -> None:
    before = "import os, sys\nREAD_AT_IMPORT = os.environ.get('GREETING')"
    body = "return [READ_AT_IMPORT, os.environ.get('GREETING'), os.getppid()]"
    scenario = """
        def scenario(engine):
            found = []
            for settings in ({}, {"spawn": True}):
                zygote = engine.open_zygote(environment={"GREETING": "hi"}, **settings)
                found.append([zygote.ready["spawn_reason"], zygote.run("step")["result"][:2]])
            found.append(engine.open_zygote().run("step")["result"][:2])
            return found
    """
    assert run_flow(tmp_path, flow_with(body, before), scenario) == [
        [None, ["hi", "hi"]],
        ["spawning was asked for", ["hi", "hi"]],
        [None, None],
    ]


def test_an_environment_that_breaks_the_import_breaks_the_task_only(tmp_path: Path) -> None:
    before = "import os, sys\nif 'BREAK' in os.environ: raise KeyError('broken import')"
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote(environment={"BREAK": "1"})
            task = zygote.run("step")
            return [zygote.ready["spawn_reason"], task["exited"]["exit"], task["stderr"]]
    """
    reason, how, err = run_flow(tmp_path, flow_with("return 1", before), scenario)
    assert reason == "importing the flow with the step's @environment failed"
    assert how == {"code": 1}
    assert "KeyError: 'broken import'" in err


@pytest.mark.parametrize(
    "before, reason",
    [
        ("import socket\ns = socket.socket()", "a socket opened by importing the flow"),
        ("import select\ns = select.epoll()", "an eventpoll descriptor opened by importing"),
        ("import asyncio\ns = asyncio.new_event_loop()", "an eventpoll descriptor opened by"),
        ("s = open('kept.txt', 'w+')", "kept.txt opened by importing the flow"),
        (
            "import threading, time\n"
            "threading.Thread(target=time.sleep, args=(9,), daemon=True, name='beat').start()",
            "thread `beat` started by importing the flow",
        ),
        ("import subprocess\ns = subprocess.Popen(['sleep', '3'])", "1 child process started by"),
        (
            "import tempfile\ns = tempfile.TemporaryDirectory()",
            "a temporary directory made by importing the flow",
        ),
    ],
)
def test_what_forbids_forking_is_named(tmp_path: Path, before: str, reason: str) -> None:
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote()
            return [zygote.ready["spawn_reason"], zygote.run("step")["result"]]
    """
    found, result = run_flow(tmp_path, flow_with("return 3", f"import os, sys\n{before}"), scenario)
    assert reason in found
    assert result == 3


@pytest.mark.parametrize("package", ["numpy", "pandas", "pyarrow"])
def test_benign_packages_fork(tmp_path: Path, package: str) -> None:
    pytest.importorskip(package)
    use = {
        "numpy": "return float((numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum())",
        "pandas": "return float(pandas.DataFrame({'a': [1.0, 2.0]})['a'].sum())",
        "pyarrow": "import pyarrow.compute as c\nreturn c.sum(pyarrow.array([1, 2])).as_py() / 1.0",
    }[package]
    outcome = run_flow(tmp_path, flow_with(use, f"import os, sys, {package}"), FORKED)
    assert outcome["result"] in (300.0**3, 3.0)


def test_polars_spawns(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote()
            return [zygote.ready["spawn_reason"], zygote.run("step")["result"]]
    """
    flow = flow_with("return polars.DataFrame({'a': [1, 2]})['a'].sum()", "import polars")
    reason, result = run_flow(tmp_path, flow, scenario)
    assert reason.endswith("started by importing polars")
    assert "native thread" in reason
    assert result == 3
