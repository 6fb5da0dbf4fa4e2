"""Resume: what is cloned, what runs again, and what happens when it cannot start."""

from pathlib import Path

from harness import client, run_flow

FLOW = """
import os
from metaflow import *
from metaflow import FlowSpec, step

class ResumeFlow(FlowSpec):
    p = Parameter("p", default=1)

    @step
    def start(self):
        print("start works")
        self.items = [0, 1, 2]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        print("working on", self.input)
        open("worked", "a").write(f"{self.input} ")
        if self.input == 1 and not os.path.exists("mended"):
            raise RuntimeError("not mended")
        self.x = self.input * 10
        self.next(self.join)

    @step
    def join(self, inputs):
        self.xs = [i.x for i in inputs]
        self.next(self.middle)

    @step
    def middle(self):
        open("middled", "a").write("m")
        self.next(self.end)

    @step
    def end(self):
        print("result", self.xs, self.p, "origin", current.origin_run_id)
"""


def failed_run(folder: Path) -> None:
    run_flow(folder, FLOW, "run", "--p", "7", "--tag", "first", "--max-workers", "1").exited(1)
    (folder / "mended").touch()


def test_resume_clones_what_is_done(folder: Path) -> None:
    failed_run(folder)
    before = (folder / "worked").read_text().split()
    result = run_flow(folder, FLOW, "resume").ok()
    assert "Gathering required information to resume run" in result.stdout
    assert "Workflow starting (run-id 2):" in result.stdout
    assert "Cloning ResumeFlow/1" in result.stdout
    assert "ResumeFlow/1 cloned!" in result.stdout
    assert "Cloning previously run task 1/start/1" in result.stdout
    assert "result [0, 10, 20] 7 origin 1" in result.stdout
    again = (folder / "worked").read_text().split()[len(before) :]
    done_before = set(before) - {"1"}
    assert not done_before & set(again), "done work was done again"


def test_clones_show_the_origins_logs_and_their_origin(folder: Path) -> None:
    failed_run(folder)
    run_flow(folder, FLOW, "resume").ok()
    lines = client(
        folder,
        """
        run = Run('ResumeFlow/2'); start = run['start'].task
        print(start.stdout.strip(), start.origin_pathspec, run.origin_pathspec)
        print(start.metadata_dict['origin-run-id'], start.metadata_dict['origin-task-id'])
        print('first' in run.user_tags, Run('ResumeFlow/1').origin_pathspec, run.successful)
        """,
    )
    assert lines[0] == "start works ResumeFlow/1/start/1 ResumeFlow/1"
    assert lines[1] == "1 1"
    assert lines[2] == "False ResumeFlow/None True"


def test_resume_from_a_step_runs_it_and_what_follows(folder: Path) -> None:
    failed_run(folder)
    run_flow(folder, FLOW, "run").ok()
    worked = (folder / "worked").read_text()
    result = run_flow(folder, FLOW, "resume", "middle").ok()
    assert (folder / "middled").read_text() == "mm"
    assert (folder / "worked").read_text() == worked
    assert "result [0, 10, 20]" in result.stdout


def test_resume_uses_the_last_run_not_the_last_resume(folder: Path) -> None:
    failed_run(folder)
    run_flow(folder, FLOW, "resume").ok()
    result = run_flow(folder, FLOW, "resume").ok()
    assert "ResumeFlow/1 cloned!" in result.stdout
    assert result.run_id == "3"
    assert "--origin-run-id" not in result.stderr, (
        "run 2 is done, so there is nothing to go on with"
    )


def test_a_resume_says_that_another_got_further(folder: Path) -> None:
    run_flow(folder, FLOW, "run").exited(1)
    second = run_flow(folder, FLOW, "resume").exited(1)
    assert "resume --origin-run-id 2\n" in second.stderr, "the hint is about the run that failed"
    third = run_flow(folder, FLOW, "resume", "--origin-run-id", "2").exited(1)
    assert "got further" not in third.stderr
    (folder / "mended").touch()
    fourth = run_flow(folder, FLOW, "resume").ok()
    assert (
        "This resumes run 1, the last one that `run` started. Run 3 resumed it too and may have "
        "got further: to go on from there, add --origin-run-id 3.\n"
    ) in fourth.stderr


def test_origin_run_id_is_chosen(folder: Path) -> None:
    failed_run(folder)
    run_flow(folder, FLOW, "run").ok()
    result = run_flow(folder, FLOW, "resume", "--origin-run-id", "1").ok()
    assert "ResumeFlow/1 cloned!" in result.stdout and " 7 origin 1" in result.stdout


def test_a_resumed_run_can_be_resumed(folder: Path) -> None:
    failed_run(folder)
    run_flow(folder, FLOW, "resume").ok()
    result = run_flow(folder, FLOW, "resume", "end", "--origin-run-id", "2").ok()
    assert "result [0, 10, 20] 7 origin 2" in result.stdout
    stdout = client(folder, "print(Run('ResumeFlow/3')['start'].task.stdout.strip())")
    assert stdout == ["start works"]


def test_resume_that_cannot_start_leaves_no_run(folder: Path) -> None:
    nothing = run_flow(folder, FLOW, "resume").exited(1)
    assert "--origin-run-id" in nothing.stderr
    failed_run(folder)
    unknown = run_flow(folder, FLOW, "resume", "--origin-run-id", "99").exited(1)
    assert "99" in unknown.stderr
    step = run_flow(folder, FLOW, "resume", "midle").exited(1)
    assert "midle" in step.stderr and "middle" in step.stderr
    assert client(folder, "print([r.id for r in Flow('ResumeFlow')])") == ["['1']"]


def test_caught_failures_are_cloned(folder: Path) -> None:
    source = """
import os
from metaflow import *
from metaflow import FlowSpec, step

class CaughtFlow(FlowSpec):
    @catch(var="problem")
    @step
    def start(self):
        open("tried", "a").write("t")
        1 / 0
        self.next(self.end)

    @step
    def end(self):
        if not os.path.exists("mended"):
            raise RuntimeError("not yet")
        print("caught:", self.problem.exception)
"""
    run_flow(folder, source, "run").exited(1)
    (folder / "mended").touch()
    assert "caught: division by zero" in run_flow(folder, source, "resume").ok().stdout
    assert (folder / "tried").read_text() == "t"
