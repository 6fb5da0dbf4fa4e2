"""Stopping a run, and killing what runs it: nothing stays alive, and everyone is told the truth."""

import array
import fcntl
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from harness import (
    background,
    client,
    environment,
    finish,
    nothing_left,
    run_flow,
    wait_until,
    write_flow,
)

from metaflow._native import Metadata

FLOW = """
import os, subprocess, sys, time
from metaflow import FlowSpec, step

class LongFlow(FlowSpec):
    @step
    def start(self):
        open("started", "a").write("s")
        self.items = [0, 1]
        self.next(self.sleep, foreach="items")

    @step
    def sleep(self):
        if not os.path.exists("wake"):
            print("about to sleep", flush=True)
            # A daemon of its own session, and a child: both must go when the run goes.
            subprocess.Popen(["sleep", "600"], start_new_session=True)
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    for descriptor in range(256):
                        try:
                            os.close(descriptor)
                        except OSError:
                            pass
                    time.sleep(600)
                os._exit(0)
            os.wait()
            open(f"sleeping-{self.input}", "w").close()
            time.sleep(600)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        print("finished after all")
"""


def asleep(folder: Path) -> bool:
    """Both tasks sleep, and the store knows it."""
    if not all((folder / f"sleeping-{index}").exists() for index in (0, 1)):
        return False
    rows = Metadata(str(folder / ".metaflow")).tasks("LongFlow", "1", "sleep")
    return [row["state"] for row in rows] == ["running", "running"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_every_task(folder: Path, number: signal.Signals, code: int) -> None:
    flow = write_flow(folder, FLOW)
    with background(folder, flow, "run") as process:
        wait_until(lambda: asleep(folder), "tasks asleep")
        process.send_signal(number)
        result = finish(process, folder, 30).exited(code)
    nothing_left(folder)
    assert "Workflow failed." in result.stdout or "stopp" in (result.stdout + result.stderr).lower()
    lines = client(
        folder,
        "run = Run('LongFlow/1'); print(run.state, {t.state for t in run['sleep']})",
    )
    assert lines == ["cancelled {'cancelled'}"]


def test_signal_to_the_whole_group_as_a_terminal_sends_it(folder: Path) -> None:
    flow = write_flow(folder, FLOW)
    with background(folder, flow, "run") as process:
        wait_until(lambda: asleep(folder), "tasks asleep")
        os.killpg(process.pid, signal.SIGINT)
        finish(process, folder, 30).exited(130)
    nothing_left(folder)


def fork_server_of(process: "subprocess.Popen[bytes]") -> int:
    """The engine's only child."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children, "the engine has no child"
    return int(children[0])


def lost(folder: Path) -> None:
    """What client, `logs` and `tag list` say of a run that died, and that resume finishes it."""
    lines = client(
        folder,
        """
        run = Run('LongFlow/1')
        print(run.state, run.successful, run.finished)
        print({t.state for t in run['sleep']}, run['start'].task.state)
        print(run.cause)
        print([t.stdout for t in run['sleep']])
        """,
    )
    assert lines[0] in ("lost False False", "failed False False"), lines
    assert "running" not in " ".join(lines), lines
    assert "lost" in lines[1] and lines[1].endswith("done"), lines
    assert len(lines[2]) > 10, lines
    flow = folder / "flow.py"
    logs = run_flow(folder, flow, "logs", "1/start").ok()
    assert "running" not in logs.stderr
    tags = run_flow(folder, flow, "tag", "list").ok()
    assert "running" not in tags.stdout
    (folder / "wake").touch()
    result = run_flow(folder, flow, "resume").ok()
    assert "finished after all" in result.stdout
    assert (folder / "started").read_text() == "s", "start was done again"


def test_kill_of_the_engine(folder: Path) -> None:
    flow = write_flow(folder, FLOW)
    with background(folder, flow, "run") as process:
        wait_until(lambda: asleep(folder), "tasks asleep")
        process.kill()
        process.wait(10)
        nothing_left(folder, within=1.0)
    lost(folder)


def test_kill_of_the_fork_server(folder: Path) -> None:
    flow = write_flow(folder, FLOW)
    with background(folder, flow, "run") as process:
        wait_until(lambda: asleep(folder), "tasks asleep")
        os.kill(fork_server_of(process), signal.SIGKILL)
        result = finish(process, folder, 30)
        nothing_left(folder, within=1.0)
    assert result.code == 1, result
    assert "Traceback" not in result.stderr
    lost(folder)


def test_kill_of_everything_at_once(folder: Path) -> None:
    flow = write_flow(folder, FLOW)
    with background(folder, flow, "run") as process:
        wait_until(lambda: asleep(folder), "tasks asleep")
        for pid in (fork_server_of(process), process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait(10)
        nothing_left(folder, within=5.0)
    lost(folder)


def test_a_reader_that_goes_away(folder: Path) -> None:
    """`python flow.py run | head -1` must not leave anything behind."""
    flow = write_flow(folder, FLOW)
    (folder / "wake").touch()
    with background(folder, flow, "run") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdout = None
        process.wait(60)
    nothing_left(folder)


FLOOD = """
from metaflow import FlowSpec, step

class FloodFlow(FlowSpec):
    @step
    def start(self):
        number = 0
        while True:
            number += 1
            print("line", number, "x" * 200, flush=True)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize("together", [False, True], ids=["stdout", "stdout and stderr"])
def test_a_reader_that_does_not_read(folder: Path, together: bool) -> None:
    """Output stops at a full pipe, the run does not end for it; told to stop, it does."""
    flow = write_flow(folder, FLOOD)
    command = [sys.executable, str(flow), "run"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT if together else None}
    env = environment(folder, {})
    process = subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **streams)
    try:
        assert process.stdout is not None
        unread = process.stdout.fileno()
        # As many bytes as the pipe takes, for a while.
        wait_until(lambda: waiting_bytes(unread) > 50_000, "a full pipe")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
    finally:
        process.kill()
    nothing_left(folder)
    run = "run = Run('FloodFlow/1'); print(run.state, 'line 150 ' in run['start'].task.stdout)"
    assert client(folder, run) == ["cancelled True"]


def waiting_bytes(pipe: int) -> int:
    """What could be read from a pipe now."""
    size = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, size)
    return size[0]
