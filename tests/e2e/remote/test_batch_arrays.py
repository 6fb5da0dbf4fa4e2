"""A wide foreach as array jobs. The emulator has none: a door before it runs the children as jobs
of their own, each with its index; `moto`, which has them, is shown the same requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from batch_tools import Arrays, accepted_by_moto, door, own_user
from harness import client, run_flow

pytestmark = pytest.mark.cluster

FLOW = """
    class Arrays(FlowSpec):
        @step
        def start(self):
            self.items = list(range(9))
            self.next(self.work, foreach="items")

        @retry(times=1, minutes_between_retries=0)
        @batch
        @step
        def work(self):
            import os
            from metaflow import current
            if self.input == 4 and current.retry_count == 0:
                os._exit(3)
            self.result = (self.input, os.environ.get("AWS_BATCH_JOB_ARRAY_INDEX"))
            self.next(self.join)

        @step
        def join(self, inputs):
            self.results = [each.result for each in inputs]
            self.next(self.end)

        @step
        def end(self):
            pass
"""


def test_a_wide_foreach_is_one_submission_and_a_failed_child_comes_again(
    folder: Path, batch: dict[str, str]
) -> None:
    user = {"FERROFLOW_BATCH_ARRAY_JOBS": "1", "METAFLOW_USER": own_user(folder)}
    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as service:
        arrays = Arrays(service.upstream)
        service.behaviour = arrays
        user["AWS_ENDPOINT_URL_BATCH"] = service.endpoint
        result = run_flow(folder, FLOW, "run", env={**batch, **user}).ok()
    first, again = arrays.requests
    assert first["arrayProperties"] == {"size": 9}
    assert first["parameters"]["metaflow.step_name"] == "work"
    # The child that failed is tried again as a job of its own.
    assert "arrayProperties" not in again
    assert again["parameters"]["metaflow.retry_count"] == "1"
    source = f'print(Run("Arrays/{result.run_id}")["join"].task.data.results)'
    shown = client(folder, source, env={**batch, **user})
    assert shown == [str([(n, None if n == 4 else str(n)) for n in range(9)])]
    accepted_by_moto(first, children=9)
