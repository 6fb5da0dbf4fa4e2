"""The fork server and what comes before it: hello, requests, finding the engine, errors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_double import HERE, PACKAGE, is_alive, run_flow, start_flow

FLOW = "class Flow:\n    @staticmethod\n    def step(spec, control):\n        return 1\n"


def run_script(
    folder: Path, text: str, *, engine: str | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    (folder / "flow.py").write_text(text)
    variables = {**os.environ, "PYTHONPATH": f"{PACKAGE}:{HERE}"}
    variables.pop("FERROFLOW_ENGINE", None)
    if engine is not None:
        variables["FERROFLOW_ENGINE"] = engine
    command = [sys.executable, "-" if stdin else "flow.py", "run"]
    return subprocess.run(
        command, cwd=folder, env=variables, input=stdin, capture_output=True, text=True, check=False
    )


WITH_MAIN = f"import fake_runtime\nfake_runtime.install()\n{FLOW}\nfake_runtime.main(Flow)\n"


def test_hello(tmp_path: Path) -> None:
    scenario = "def scenario(engine):\n    import os\n    return [engine.hello, os.getpid()]"
    hello, engine_pid = run_flow(tmp_path, FLOW, scenario, "--quiet", "run", "--alpha", "-1")
    assert hello == {
        "protocol": 1,
        "language": "python",
        "language_version": ".".join(map(str, sys.version_info[:3])),
        "executable": sys.executable,
        "module_folder": hello["module_folder"],
        "script": "flow.py",
        "module": None,
        "arguments": ["--quiet", "run", "--alpha", "-1"],
        "pid": hello["pid"],
        "flow": {"name": "Flow", "file": "flow.py", "steps": []},
    }
    assert hello["pid"] != engine_pid
    assert (Path(hello["module_folder"]) / "_native.abi3.so").is_file()


def test_the_engine_is_the_process_the_user_started(tmp_path: Path) -> None:
    scenario = "def scenario(engine):\n    import sys, os\n    os._exit(42)"
    started = start_flow(tmp_path, FLOW, scenario)
    assert started.wait(timeout=30) == 42


def test_parameters_are_converted_and_written_by_one_process(tmp_path: Path) -> None:
    scenario = """
        def scenario(engine):
            store = {"kind": "local", "root": "."}
            return [
                engine.request("convert", given={"wrong": ["1"]}, user="ann"),
                engine.request("convert", given={"explode": ["1"]}, user="ann"),
                engine.request("convert", given={"alpha": ["1", "2"]}, user="ann"),
                engine.request("write_parameters", store=store, flow="Flow", run="7"),
                open("written.json").read(),
                engine.request("convert", given={"die": []}, user="ann"),
                engine.request("convert", given={}, user="bob"),
                engine.request("sing"),
            ]
    """
    wrong, exploded, right, wrote, written, died, again, sing = run_flow(tmp_path, FLOW, scenario)
    assert wrong["error"] == {"usage": True, "headline": "Bad value", "message": "wrong is wrong"}
    assert exploded["error"]["headline"] == "Internal error"
    assert "ValueError: exploded" in exploded["error"]["message"]
    assert right == {"id": 3, "ok": None}
    assert wrote == {"id": 4, "ok": None}
    assert '"run": "7"' in written
    assert '{"alpha": ["1", "2"]}' in written
    assert died["error"]["message"] == (
        "the process that evaluates the flow's parameters and values died; "
        "its last output may say why"
    )
    assert again == {"id": 6, "ok": None}
    assert sing["error"]["message"] == "unknown request `sing`"


def test_interrupts_are_the_engines_to_decide(tmp_path: Path) -> None:
    scenario = """
        import os, signal
        def scenario(engine):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            zygote = engine.open_zygote()
            for pid in (engine.hello["pid"], zygote.ready["pid"]):
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                    os.kill(pid, number)
            return zygote.run("step")["result"]
    """
    assert run_flow(tmp_path, FLOW, scenario) == 1


def test_the_server_ends_with_the_engine(tmp_path: Path) -> None:
    scenario = "def scenario(engine):\n    return engine.hello['pid']"
    server = run_flow(tmp_path, FLOW, scenario)
    end = time.monotonic() + 5
    while is_alive(server):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_hanging_exit_handler_cannot_keep_the_server(tmp_path: Path) -> None:
    flow = "import atexit, time\natexit.register(time.sleep, 600)\n" + FLOW
    server = run_flow(tmp_path, flow, "def scenario(engine):\n    return engine.hello['pid']")
    end = time.monotonic() + 10
    while is_alive(server):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_errors_of_the_flow_are_printed_with_their_place(tmp_path: Path) -> None:
    flow = (
        "import fake_runtime\nfake_runtime.install()\n"
        "from metaflow.exception import LintWarn\n"
        "class Flow:\n    describe_failure = LintWarn('one\\ntwo')\n"
        "fake_runtime.main(Flow)\n"
    )
    done = run_script(tmp_path, flow, engine="/bin/true")
    assert done.returncode == 1
    assert done.stderr == "    Validity checker found an issue:\n    one\n    two\n\n"


def test_no_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.path.insert(0, str(PACKAGE))
    from metaflow import _main

    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(_main, "_script_directories", list)
    monkeypatch.delenv("FERROFLOW_ENGINE", raising=False)
    with pytest.raises(SystemExit):
        _main._find_engine()
    assert capsys.readouterr().err == (
        f"the engine `metaflow` was not found beside {tmp_path}/python: reinstall it with "
        "`pip install --force-reinstall ferroflow`, or set FERROFLOW_ENGINE to its path.\n"
    )


def test_the_peers_command_is_not_taken_for_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.path.insert(0, str(PACKAGE))
    from metaflow import _main

    script = tmp_path / "metaflow"
    script.write_text("#!/usr/bin/python\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(_main, "_script_directories", list)
    monkeypatch.delenv("FERROFLOW_ENGINE", raising=False)
    with pytest.raises(SystemExit):
        _main._find_engine()
    assert capsys.readouterr().err == (
        f"`{script}` belongs to the Python package `metaflow`, which cannot be installed beside "
        "`ferroflow`: run `pip uninstall metaflow`, then "
        "`pip install --force-reinstall ferroflow`.\n"
    )
    script.write_bytes(b"\x7fELF rest")
    assert _main._find_engine() == str(script)


def test_a_wrong_engine_variable(tmp_path: Path) -> None:
    done = run_script(tmp_path, WITH_MAIN, engine="/no/such/file")
    assert (done.returncode, done.stderr) == (
        1,
        "FERROFLOW_ENGINE names `/no/such/file`, which is not an executable file.\n",
    )


def test_an_interactive_session(tmp_path: Path) -> None:
    done = run_script(tmp_path, WITH_MAIN, stdin=WITH_MAIN)
    assert done.returncode == 1
    assert done.stderr == (
        "`Flow()` runs a flow from a file; this is an interactive session or a notebook. Save the "
        "flow as flow.py and run `python flow.py run`.\n"
    )


def test_the_variables_of_a_spawned_task_do_not_reach_its_children(tmp_path: Path) -> None:
    flow = """
import os
class Flow:
    @staticmethod
    def step(spec, control):
        return [name for name in os.environ if name.startswith("FERROFLOW_T")
                and name != "FERROFLOW_TEST_SCENARIO"]
"""
    scenario = """
        def scenario(engine):
            return [engine.open_zygote(spawn=s).run("step")["result"] for s in (True, False)]
    """
    assert run_flow(tmp_path, flow, scenario) == [[], []]


def test_a_spawned_task_can_get_its_spec_on_its_control_channel(tmp_path: Path) -> None:
    """As the protocol says it for engines that start tasks themselves."""
    scenario = """
        import os, socket, subprocess, sys
        from metaflow._wire import Connection
        def scenario(engine):
            ours, theirs = socket.socketpair()
            connection = Connection(ours.detach())
            connection.send({"step": "step", "decorators": []})
            done = subprocess.run(
                [sys.executable, "flow.py"], pass_fds=[theirs.fileno()],
                env={**os.environ, "FERROFLOW_TASK_FD": str(theirs.fileno())}, check=True)
            return connection.receive().message["result"]
    """
    assert run_flow(tmp_path, FLOW, scenario) == 1


def test_stop_signal_before_the_engine_is_there(tmp_path: Path) -> None:
    """Ctrl-C while the flow is being imported ends it like any Python program."""
    flow = "print('importing', flush=True)\nimport time\ntime.sleep(60)\n" + FLOW
    started = start_flow(tmp_path, flow, "def scenario(engine):\n    return 1")
    assert started.stdout is not None
    assert started.stdout.readline() == "importing\n"
    started.send_signal(signal.SIGINT)
    assert started.wait(timeout=10) in (-signal.SIGINT, 130)
