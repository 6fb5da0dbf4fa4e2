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
