"""Commands given what is not there."""

import json
from pathlib import Path

from harness import client, run_flow, write_flow

FLOW = """
class CommandFlow(FlowSpec):
    @retry(times=1)
    @step
    def start(self):
        print("attempt", current.retry_count)
        assert current.retry_count
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_what_cannot_be_shown_or_written_is_one_sentence(folder: Path) -> None:
    flow = write_flow(folder, FLOW)
    run_flow(folder, flow, "run", "--runner-attribute-file", "about").ok()
    unwritable = run_flow(folder, flow, "--quiet", "dump", "1/end", "--file", "none/x").exited(1)
    assert unwritable.err.splitlines()[-3:] == [
        "    Flow failed:",
        "    the artifacts cannot be written to `none/x`: No such file or directory",
        "",
    ]
    no_attempt = run_flow(folder, flow, "--quiet", "logs", "1/start", "--attempt", "2").exited(1)
    assert no_attempt.err.splitlines()[-3:] == [
        "    Data store error:",
        "    there is no attempt 2 of 1/start: its last attempt is 1",
        "",
    ]
    first = run_flow(folder, flow, "logs", "1/start", "--stdout", "--attempt", "0").ok()
    assert first.stdout == "attempt 0\n"
    about = json.loads((folder / "about").read_text())
    provider = client(folder, "from metaflow import get_metadata; print(get_metadata())")
    assert about == {"run_id": "1", "flow_name": "CommandFlow", "metadata": provider[0]}


def test_that_a_task_was_stopped_stands_in_its_logs(folder: Path) -> None:
    flow = write_flow(
        folder,
        """
        import time
        from pathlib import Path

        from metaflow import FlowSpec, step


        class StoppedFlow(FlowSpec):
            @step
            def start(self):
                self.next(self.fails, self.sleeps)

            @step
            def fails(self):
                while not Path("asleep").exists():
                    time.sleep(0.01)
                raise ValueError("this one fails")
                self.next(self.join)

            @step
            def sleeps(self):
                print("going to sleep", flush=True)
                Path("asleep").touch()
                time.sleep(60)
                self.next(self.join)

            @step
            def join(self, inputs):
                self.next(self.end)

            @step
            def end(self):
                pass
        """,
    )
    result = run_flow(folder, flow, "run").exited(1)
    assert sum("[KILLED BY ORCHESTRATOR]" in line for line in result.lines) == 1
    for stream, lines in (("--stdout", ["going to sleep"]), ("--stderr", [])):
        shown = run_flow(folder, flow, "logs", "1/sleeps", stream).ok().stdout.splitlines()
        assert shown == [*lines, "[KILLED BY ORCHESTRATOR]"]
