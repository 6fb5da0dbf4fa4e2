"""The code package of a run with remote tasks, as the client shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import client, run_flow

pytestmark = pytest.mark.cluster

PACKED = """
from metaflow import FlowSpec, step
import beside

class PackedFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        from metaflow import current
        print("mine", current.run.code.info["username"])

if __name__ == "__main__":
    PackedFlow()
"""


def test_the_client_shows_the_code_that_remote_tasks_ran_with(
    folder: Path, kubernetes: dict[str, str]
) -> None:
    (folder / "beside.py").write_text("X = 1\n")
    local = run_flow(folder, PACKED.replace("        print", "        #"), "run", env=kubernetes)
    local.ok()
    result = run_flow(folder, PACKED, "run", "--with", "kubernetes", env=kubernetes).ok()
    assert "mine tester" in result.stdout
    (folder / "flow.py").unlink()
    shown = client(
        folder,
        """
        import os
        print(Run("PackedFlow/1").code)
        code = Run("PackedFlow/2").code
        print(code.script_name, code.info["script"], "import beside" in code.flowspec)
        print(code.path.startswith("s3://"), ".mf_meta/INFO" in code.tarball.getnames())
        with code.extract() as folder:
            print(sorted(os.listdir(folder)))
        print(Run("PackedFlow/2")["end"].task.code.path == code.path)
        """,
        env=kubernetes,
    )
    assert shown == [
        "None",
        "flow.py flow.py True",
        "True True",
        "['beside.py', 'flow.py']",
        "True",
    ]
