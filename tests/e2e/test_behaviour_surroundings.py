"""Flows in odd surroundings: closed streams, odd places, the client inside a running task."""

import subprocess
import sys
from pathlib import Path

import pytest
from harness import environment, run_flow, write_flow

SMALL = """
    class SmallFlow(FlowSpec):
        @step
        def start(self):
            self.x = 1
            self.next(self.end)

        @step
        def end(self):
            print("x is", self.x)
"""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_run_does_not_mind_closed_streams(folder: Path, closed: str) -> None:
    flow = write_flow(folder, SMALL)
    finished = subprocess.run(
        ["sh", "-c", f'exec "$0" "$1" run --run-id-file id {closed}', sys.executable, str(flow)],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 0, finished
    assert b"Traceback" not in finished.stderr
    assert (b"Done!" in finished.stdout) == (">&-" not in closed.replace("2>&-", ""))
    logs = run_flow(folder, flow, "logs", "1/end").ok()
    assert logs.stdout == "x is 1\n"


def test_a_task_finds_the_steps_before_it_through_the_client(folder: Path) -> None:
    result = run_flow(
        folder,
        """
        class LookingFlow(FlowSpec):
            @retry(times=1)
            @step
            def start(self):
                task = current.task
                print("attempt", task.current_attempt, current.run.finished)
                assert current.retry_count
                self.next(self.end)

            @step
            def end(self):
                from metaflow import Run

                run = Run("LookingFlow/" + current.run_id)
                task = run["start"].task
                print(task.successful, task.finished, [step.id for step in run])
                print([task.id for task in current.task.parent_tasks])
        """,
        "run",
    ).ok()
    printed = [line.partition("] ")[2] for line in result.lines if line.startswith("[")]
    assert "attempt 0 False" in printed
    assert printed[-3:-1] == ["True True ['end', 'start']", "['1']"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_what_tasks_write_to_a_file_opened_by_the_import_arrives(folder: Path, method: str) -> None:
    run_flow(
        folder,
        """
        from metaflow import FlowSpec, step

        NOTES = open("notes.txt", "a")


        class NotingFlow(FlowSpec):
            @step
            def start(self):
                NOTES.write("from start\\n")
                self.next(self.end)

            @step
            def end(self):
                NOTES.write("from end\\n")
        """,
        "run",
        env={"FERROFLOW_START_METHOD": method},
    ).ok()
    assert (folder / "notes.txt").read_text() == "from start\nfrom end\n"
