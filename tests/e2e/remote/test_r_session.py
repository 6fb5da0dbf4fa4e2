"""Every form of run() that RStudio's users type, in a terminal, on Kubernetes and AWS Batch. Those
that need no cluster are in r/tests/testthat/test-session.R."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from batch_tools import own_user
from harness import nothing_left, start
from parts import r_image
from r_terminal import Terminal, r_terminal

pytestmark = pytest.mark.cluster

TYPED = [
    "helper <- function(x) 2 * x",
    "work <- function(self) self$y <- helper(self$alpha) + self$input",
    "first <- function(self) self$items <- 1:2",
    "together <- function(self, inputs) self$all <- unlist(gather_inputs(inputs, 'y'))",
    "flow <- metaflow('TypedR') %>% parameter('alpha', default = 1) %>%"
    " step(step = 'start', r_function = first, next_step = 'work', foreach = 'items') %>%"
    " step(step = 'work', r_function = work, next_step = 'join') %>%"
    " step(step = 'join', r_function = together, join = TRUE, next_step = 'end') %>%"
    " step(step = 'end', r_function ="
    " function(self) if (self$alpha > 50) stop('too much') else print(self$all))",
    "nap <- function(self) { cat('slee', 'ping', '\\n', sep = ''); Sys.sleep(600) }",
    "naps <- metaflow('NapsR') %>%"
    " step(step = 'start', r_function = nap, next_step = 'end') %>% step(step = 'end')",
]
SLEEPS = """
library(metaflow)
metaflow("NapsR") %>%
  step(step = "start", r_function = function(self) { cat("asleep\\n"); Sys.sleep(600) },
    next_step = "end") %>%
  step(step = "end") %>%
  run()
"""


@pytest.fixture(params=["kubernetes", "batch"])
def layer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def user(request: pytest.FixtureRequest, folder: Path, layer: str) -> dict[str, str]:
    values: dict[str, str] = request.getfixturevalue(layer)
    image = {f"METAFLOW_{layer.upper()}_CONTAINER_IMAGE": r_image()}
    # Tests run side by side on a node with little disk.
    image["METAFLOW_KUBERNETES_DISK"] = "1000"
    return {**values, **image, "METAFLOW_USER": own_user(folder)}


def ready(terminal: Terminal) -> None:
    for line in TYPED:
        terminal.run(line)


def test_runs_of_a_session(folder: Path, layer: str, user: dict[str, str]) -> None:
    with r_terminal(folder, user) as terminal:
        ready(terminal)
        more = "max_workers = 2, max_num_splits = 5, tag = c('small', 'try')"
        code, shown = terminal.status(f"run(flow, {layer} = TRUE, alpha = 4, {more})")
        assert code == 0 and "[1]  9 10" in shown, shown
        assert "[1/work/2] Task is starting." in shown and "Done!" in shown
        code, shown = terminal.status(f"run(flow, with = '{layer}', max_num_splits = 1)")
        assert code == 1 and "more than the maximum of 1" in shown, shown
        code, shown = terminal.status(f"run(flow, with = '{layer}', alpha = 99)")
        assert code == 1 and "too much" in shown, shown
        code, shown = terminal.status(
            f"run(flow, {layer} = TRUE, resume = 'end', origin_run_id = '1')"
        )
        assert code == 0 and "[4/join/4] Cloning previously run task 1/join/4" in shown, shown
        code, shown = terminal.status("run(flow, logs = '1/end')")
        assert code == 0 and "[1]  9 10" in shown, shown
        shown = terminal.run("set_namespace(NULL); print(new_run('TypedR/1')$user_tags)")
        assert '"small" "try"' in shown, shown


def test_listing_and_killing_from_a_session(folder: Path, layer: str, user: dict[str, str]) -> None:
    script = folder / "naps.R"
    script.write_text(SLEEPS)
    process = start(folder, script, "run", "--with", layer, env=user)
    with r_terminal(folder, user) as terminal:
        ready(terminal)
        found = ""
        while "start" not in found:
            assert process.poll() is None, "the run has ended"
            code, found = terminal.status(f"run(naps, {layer} = 'list', my_runs = TRUE)")
            assert code == 0, found
        # The emulator of AWS Batch forgets who ended a job whose task has not begun.
        while "asleep" not in found:
            assert process.poll() is None, "the run has ended"
            code, found = terminal.status("run(naps, logs = '1/start')")
        for options in ("run_id = '1'", f"user = '{user['METAFLOW_USER']}'", "my_runs = TRUE"):
            code, shown = terminal.status(f"run(naps, {layer} = 'list', {options})")
            assert code == 0 and "start" in shown.partition("executing")[2], shown
        code, shown = terminal.status(f"run(naps, {layer} = 'list', run_id = '99')")
        assert code == 0 and re.search("No (active|running)", shown), shown
        code, shown = terminal.status(f"run(naps, {layer} = 'kill', run_id = '1')")
        assert code == 0, shown
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1, (out, err)
    nothing_left(folder, 30)


def test_interrupting_a_session_cancels_the_tasks(
    folder: Path, layer: str, user: dict[str, str]
) -> None:
    with r_terminal(folder, user) as terminal:
        ready(terminal)
        terminal.type(f"code <- run(naps, {layer} = TRUE)\n")
        terminal.wait_for("sleeping")
        terminal.interrupt()
        terminal.wait_for("The run was interrupted; its tasks were stopped.")
        assert "130" in terminal.run("cat('code', code, '\\n')")
        code, shown = terminal.status(f"run(naps, {layer} = 'list')")
        assert code == 0 and re.search("No (active|running)", shown), shown
