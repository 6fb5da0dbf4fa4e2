"""Flows on AWS Batch (its emulator runs each job as a container), as their users see them."""

from __future__ import annotations

from pathlib import Path

import pytest
from batch_tools import BatchApi
from harness import REPOSITORY, client, run_flow
from parts import PYTHON_IMAGE

pytestmark = pytest.mark.cluster

SCALE = REPOSITORY / "tests/e2e/flows/scaleflow.py"
OPTIONS = """
    class Options(FlowSpec):
        @environment(vars={"MODE": "fast"})
        @resources(cpu=2, memory=2000)
        @batch(cpu=1, memory=3000, use_tmpfs=True, tmpfs_size=64)
        @step
        def start(self):
            import os
            self.seen = {name: os.environ.get(name) for name in (
                "MODE", "METAFLOW_TEMPDIR", "METAFLOW_RUNTIME_ENVIRONMENT", "AWS_BATCH_JQ_NAME")}
            self.next(self.end)

        @step
        def end(self):
            print("here", self.seen["MODE"])
"""


def test_the_scalable_flow_runs_unchanged(folder: Path, batch: dict[str, str]) -> None:
    result = run_flow(folder, SCALE, "run", "--with", "batch", env=batch).ok()
    assert "produced best results" in result.stdout
    api = BatchApi(batch["AWS_ENDPOINT_URL_BATCH"])
    shown = client(
        folder,
        f"""
        run = Run("ScalableFlow/{result.run_id}")
        print(len(list(run["train"])), run.successful)
        print(run["train"].task.stdout.strip())
        for task in run["train"]:
            print(task.metadata_dict["aws-batch-job-id"])
        """,
        env=batch,
    )
    assert shown[:2] == ["4 True", "training model..."]
    jobs = api.jobs(shown[2:])
    assert len(jobs) == 4
    assert len({job["jobDefinition"] for job in jobs}) == 1, "one definition for a step"
    definition = api.definition(jobs[0]["jobDefinition"])
    requirements = definition["containerProperties"]["resourceRequirements"]
    asked = {r["type"]: r["value"] for r in requirements}
    assert asked == {"VCPU": "2", "MEMORY": "16000"}
    parameters = jobs[0]["parameters"]
    assert parameters["metaflow.flow_name"] == "ScalableFlow"
    assert (parameters["metaflow.step_name"], parameters["metaflow.user"]) == ("train", "tester")
    assert jobs[0]["timeout"] == {"attemptDurationSeconds": 432000}


def test_options_reach_the_job_and_equal_definitions_are_registered_once(
    folder: Path, batch: dict[str, str]
) -> None:
    api = BatchApi(batch["AWS_ENDPOINT_URL_BATCH"])
    queue = batch["METAFLOW_BATCH_JOB_QUEUE"]
    first = run_flow(folder, OPTIONS, "run", env=batch).ok()
    assert "here fast" in first.stdout
    source = """
        task = Run("Options/{}")["start"].task
        print(task.data.seen, task.metadata_dict["aws-batch-job-id"])
    """
    seen, job_id = client(folder, source.format(first.run_id), env=batch)[0].rsplit(" ", 1)
    assert seen == str(
        {
            "MODE": "fast",
            "METAFLOW_TEMPDIR": "/metaflow_temp",
            "METAFLOW_RUNTIME_ENVIRONMENT": "batch",
            "AWS_BATCH_JQ_NAME": queue,
        }
    )
    job = api.jobs([job_id])[0]
    definition = api.definition(job["jobDefinition"])
    properties = definition["containerProperties"]
    assert properties["image"] == PYTHON_IMAGE
    assert properties["linuxParameters"] == {
        "tmpfs": [{"containerPath": "/metaflow_temp", "size": 64}]
    }
    asked = {r["type"]: r["value"] for r in properties["resourceRequirements"]}
    assert asked == {"VCPU": "2", "MEMORY": "3000"}
    second = run_flow(folder, folder / "flow.py", "run", env=batch).ok()
    _, again = client(folder, source.format(second.run_id), env=batch)[0].rsplit(" ", 1)
    assert api.jobs([again])[0]["jobDefinition"] == job["jobDefinition"]


def test_a_local_datastore_is_refused(folder: Path, batch: dict[str, str]) -> None:
    environment = {k: v for k, v in batch.items() if not k.startswith("METAFLOW_D")}
    result = run_flow(folder, SCALE, "run", "--with", "batch", env=environment).exited(1)
    assert "requires --datastore=s3, not local" in result.stderr
    assert "run --with batch" in result.stderr
    assert not list(folder.glob(".metaflow/ScalableFlow/*")), "no run was registered"
