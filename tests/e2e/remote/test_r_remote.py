"""Flows in R on a real Kubernetes and a real AWS Batch emulator, in an image with Debian's R and no
Python."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from batch_tools import BatchApi, is_alive, own_user
from harness import REPOSITORY, Result, client, finish, nothing_left, run_flow, start, wait_until
from kubernetes_tools import Namespace, is_running
from parts import r_image

pytestmark = pytest.mark.cluster

WHOLE = REPOSITORY / "tests/e2e/flows/remoteflow.R"
FILES = {
    "helpers/names.R": "names_of <- function(n) letters[seq_len(n)]\n",
    "fast/sum.h": "void sum_up(double *values, int *count, double *total);\n",
    "fast/sum.c": '#include "sum.h"\nvoid sum_up(double *values, int *count, double *total) {\n'
    "  for (int i = 0; i < *count; i++) *total += values[i];\n}\n",
    "fast/twice.cpp": "#include <Rcpp.h>\n// [[Rcpp::export]]\n"
    "double twice(double x) { return 2 * x; }\n",
}
SMALL = """
library(metaflow)
metaflow("SmallR") %>%
  step(step = "start", r_function = function(self) { BODY }, next_step = "end") %>%
  step(step = "end") %>%
  run()
"""


@pytest.fixture(params=["kubernetes", "batch"])
def layer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def user(request: pytest.FixtureRequest, layer: str) -> dict[str, str]:
    """A user of the layer whose containers have R."""
    values: dict[str, str] = request.getfixturevalue(layer)
    return {
        **values,
        f"METAFLOW_{layer.upper()}_CONTAINER_IMAGE": r_image(),
        "METAFLOW_KUBERNETES_DISK": "1000",
    }


def run_r(folder: Path, source: str, *arguments: str, env: dict[str, str]) -> Result:
    flow = folder / "my flow é.R"
    flow.write_text(source)
    return run_flow(folder, flow, *arguments, env=env)


def lines_of(result: Result, step: str) -> list[str]:
    """What a step's task printed."""
    found = (line.partition("] ") for line in result.lines)
    return [text for head, _, text in found if f"/{step}/" in head]


def test_a_flow_with_all_that_flows_have(folder: Path, layer: str, user: dict[str, str]) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    result = run_r(folder, WHOLE.read_text(), "run", "--with", layer, "--alpha", "2", env=user).ok()
    assert "python: FALSE" in result.stdout
    assert result.stdout.count("to stderr: b") == 2 and "only once" in result.stdout
    assert 'Error in x + "text" : non-numeric argument to binary operator' in result.stdout
    shown = [line for line in lines_of(result, "end") if not line.startswith("Task ")]
    assert shown == [
        '[1] "Aa" "Bb" "Cc"',
        "[1] 55 42",
        f"set {layer} {layer} ",
        "non-numeric argument to binary operator ",
        "  n name",
        "1 1    a",
        "2 2    b",
        "3 3    c",
        "DONE! Bb ",
    ]
    found = client(
        folder,
        f"""
        run = Run("RemoteR/{result.run_id}")
        task = run["end"].task.data
        print(run.successful, task.alpha, list(task.all), dict(task.problem)["type"])
        print(run["start"].task.stdout.strip())
        """,
        env=user,
    )
    assert found == ["True 2.0 ['Aa', 'Bb', 'Cc'] simpleError", "python: FALSE"]


def test_an_image_without_r_is_told_within_seconds(
    folder: Path, layer: str, user: dict[str, str]
) -> None:
    image = "localhost/ferroflow-no-python:1"
    began = time.monotonic()
    result = run_r(folder, SMALL, "run", "--with", f"{layer}:image={image}", env=user).exited(1)
    assert time.monotonic() - began < 30
    assert (
        f"The image `{image}` has no `Rscript`: a task of a flow in R needs an image with R, such "
        "as `rocker/r-ver` or `r-base`." in result.stdout
    )


def test_an_error_is_r_s_own_and_another_attempt_runs(
    folder: Path, layer: str, user: dict[str, str]
) -> None:
    source = SMALL.replace("BODY", 'f <- function(y) stop("no such table: ", y); f("sales")')
    result = run_r(
        folder,
        source,
        "run",
        "--with",
        layer,
        "--with",
        "retry:times=1,minutes_between_retries=0",
        env=user,
    )
    result.exited(1)
    assert result.stdout.count('Error in f("sales") : no such table: sales') == 2
    assert "Calls, the outermost first:" in result.stdout
    for ours in ("call_step", "with_failure", "run_task", "native("):
        assert ours not in result.stdout + result.stderr


def test_out_of_memory_is_told_with_what_there_was(
    folder: Path, request: pytest.FixtureRequest
) -> None:
    variables = {
        **request.getfixturevalue("kubernetes"),
        "METAFLOW_KUBERNETES_CONTAINER_IMAGE": r_image(),
        "METAFLOW_KUBERNETES_DISK": "1000",
    }
    source = SMALL.replace("BODY", "x <- rnorm(1e8)")
    options = "kubernetes:memory=300,qos=guaranteed"
    result = run_r(folder, source, "run", "--with", options, env=variables).exited(1)
    # The sentence is for the task's lines; the kernel may also take process 1 along.
    assert re.search(r"[Oo]ut of memory.*(300 MB|300M)", result.stdout), result.stdout


def test_ctrl_c_leaves_no_pod(
    folder: Path, namespace: Namespace, request: pytest.FixtureRequest
) -> None:
    variables = {
        **request.getfixturevalue("kubernetes"),
        **namespace.environment,
        "METAFLOW_KUBERNETES_CONTAINER_IMAGE": r_image(),
        "METAFLOW_KUBERNETES_DISK": "1000",
    }
    flow = folder / "flow.R"
    flow.write_text(SMALL.replace("BODY", 'cat("asleep\\n"); Sys.sleep(600)'))
    process = start(folder, flow, "run", "--with", "kubernetes", env=variables)
    namespace.wait_for(1, is_running)
    os.kill(process.pid, signal.SIGINT)
    finish(process, folder).exited(130)
    names = [item["metadata"]["name"] for item in [*namespace.jobs(), *namespace.pods()]]
    assert not names, f"left behind: {names}"
    nothing_left(folder, 10)


def test_ctrl_c_leaves_no_job(folder: Path, request: pytest.FixtureRequest) -> None:
    batch = request.getfixturevalue("batch")
    variables = {
        **batch,
        "METAFLOW_BATCH_CONTAINER_IMAGE": r_image(),
        "METAFLOW_USER": folder.name,
    }
    flow = folder / "flow.R"
    flow.write_text(SMALL.replace("BODY", 'cat("asleep\\n"); Sys.sleep(600)'))
    api = BatchApi(batch["AWS_ENDPOINT_URL_BATCH"])

    def jobs() -> list[str]:
        found = api.jobs_of(batch["METAFLOW_BATCH_JOB_QUEUE"], "SmallR", folder.name)
        return [str(job["status"]) for job in found]

    process = start(folder, flow, "run", "--with", "batch", env=variables)
    wait_until(lambda: "RUNNING" in jobs(), "a running job", 90, 0.2)
    os.kill(process.pid, signal.SIGINT)
    finish(process, folder).exited(130)
    wait_until(
        lambda: not any(is_alive({"status": status}) for status in jobs()), "no job", 30, 0.2
    )
    nothing_left(folder, 10)


@pytest.mark.parametrize(("option", "megabytes"), [("batch", "4000"), ("batch:memory=700", "700")])
def test_memory_on_batch_is_r_s_own_default(
    folder: Path, batch: dict[str, str], option: str, megabytes: str
) -> None:
    own = own_user(folder)
    user = {**batch, "METAFLOW_BATCH_CONTAINER_IMAGE": r_image(), "METAFLOW_USER": own}
    run_r(folder, SMALL.replace("BODY", "1"), "run", "--with", option, env=user).ok()
    api = BatchApi(batch["AWS_ENDPOINT_URL_BATCH"])
    (job, _) = api.jobs_of(batch["METAFLOW_BATCH_JOB_QUEUE"], "SmallR", user=own)
    container = api.definition(job["jobDefinition"])["containerProperties"]
    asked = {each["type"]: each["value"] for each in container["resourceRequirements"]}
    assert asked["MEMORY"] == megabytes
