"""One flow on Kubernetes, on AWS Batch and on this machine at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import client, run_flow

pytestmark = pytest.mark.cluster

FLOW = """
    class Mixed(FlowSpec):
        @step
        def start(self):
            self.where = {"start": self.layer()}
            self.data = bytes(range(256)) * 1024
            self.next(self.pod, self.job, self.here)

        @kubernetes
        @resources(memory=300)
        @step
        def pod(self):
            self.told("pod")
            self.next(self.join)

        @batch
        @resources(memory=300)
        @step
        def job(self):
            self.told("job")
            self.next(self.join)

        @step
        def here(self):
            self.told("here")
            self.next(self.join)

        @batch
        @step
        def join(self, inputs):
            self.where = {}
            for each in inputs:
                self.where.update(each.where)
            self.told("join")
            self.sizes = [len(each.data) for each in inputs]
            self.next(self.end)

        @step
        def end(self):
            print(sorted(self.where.items()), self.sizes)

        def told(self, step):
            self.where = {**self.where, step: self.layer()}
            print(step, "runs on", self.layer())

        def layer(self):
            import os
            return os.environ.get("METAFLOW_RUNTIME_ENVIRONMENT", "local")
"""
FALLBACK = """
    class Fallback(FlowSpec):
        @step
        def start(self):
            self.next(self.pod, self.job)

        @catch(var="why")
        @kubernetes
        @step
        def pod(self):
            import os
            os._exit(3)
            self.next(self.join)

        @catch(var="why")
        @batch
        @step
        def job(self):
            import os
            os._exit(4)
            self.next(self.join)

        @step
        def join(self, inputs):
            print([each.why is not None for each in inputs])
            self.next(self.end)

        @step
        def end(self):
            pass
"""


@pytest.fixture
def both(kubernetes: dict[str, str], batch: dict[str, str]) -> dict[str, str]:
    """A user of both; each layer's containers reach the store by an address of their own."""
    both = {**kubernetes, **batch}
    addresses = [both[f"METAFLOW_{layer}_S3_ENDPOINT_URL"] for layer in ("KUBERNETES", "BATCH")]
    assert len({*addresses, both["AWS_ENDPOINT_URL_S3"]}) == 3
    return both


def test_each_step_runs_where_it_says(folder: Path, both: dict[str, str]) -> None:
    result = run_flow(folder, FLOW, "run", env=both).ok()
    where = [
        ("here", "local"),
        ("job", "batch"),
        ("join", "batch"),
        ("pod", "kubernetes"),
        ("start", "local"),
    ]
    assert f"{where} {[256 * 1024] * 3}" in result.stdout
    shown = client(
        folder,
        f"""
        run = Run("Mixed/{result.run_id}")
        for step in ("pod", "job", "here", "join"):
            task = run[step].task
            words = {{name.split("-")[0] for name in task.metadata_dict}}
            layers = words & {{"aws", "kubernetes"}}
            print(task.stdout.strip(), sorted(layers))
        """,
        env=both,
    )
    assert shown == [
        "pod runs on kubernetes ['kubernetes']",
        "job runs on batch ['aws']",
        "here runs on local []",
        "join runs on batch ['aws']",
    ]


def test_fallbacks_of_both_layers_run_here(folder: Path, both: dict[str, str]) -> None:
    result = run_flow(folder, FALLBACK, "run", env=both).ok()
    assert "[True, True]" in result.stdout
    assert "exit code 3" in result.stdout + result.stderr
    assert "exit code 4" in result.stdout + result.stderr


INITIAL = """
    class Initial(FlowSpec):
        @step
        def start(self):
            import os
            print("greeting", os.environ["GREETING"], os.environ["METAFLOW_FLOW_FILENAME"])
            self.next(self.end)

        @step
        def end(self):
            pass
"""


@pytest.mark.parametrize("layer", ["kubernetes", "batch"])
def test_an_init_script_prepares_what_the_task_sees(
    folder: Path, layer: str, request: pytest.FixtureRequest
) -> None:
    env = dict(request.getfixturevalue(layer))
    env["METAFLOW_INIT_SCRIPT"] = 'WORDS="hello  there"; export GREETING="$WORDS"; cd /tmp; false'
    result = run_flow(folder, INITIAL, "run", "--with", layer, env=env).ok()
    assert "greeting hello  there flow.py" in result.stdout
