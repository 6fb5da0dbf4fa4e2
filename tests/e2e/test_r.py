"""Runs of R flows read from Python, and of Python flows from R; everything else about R is tested
in R (r/tests)."""

import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import harness
import pytest

R_FLOW = """
library(metaflow)
start <- function(self) {
  self$number <- 5
  self$numbers <- c(1.5, NA, 3)
  self$nested <- list(a = 1L, b = list("x", TRUE, NULL))
  self$matrix <- matrix(1:6, 2)
  self$many <- as.numeric(1:20000)
  self$frame <- data.frame(
    i = c(1L, NA), c = c("x", NA), f = factor(c("u", "v")), d = as.Date("2020-01-01") + 0:1,
    l = c(TRUE, FALSE)
  )
  self$kept <- self$frame[self$frame$c %in% NA, ]
  self$factor <- factor(c("u", NA, "v"))
  self$days <- as.Date("2020-01-01") + c(0L, NA, 2L)
  self$at <- as.POSIXct("2020-06-01 12:00", tz = "Europe/Berlin")
  self$model <- lm(dist ~ speed, cars)
  self$raw <- as.raw(1:3)
}
metaflow("FromR") %>%
  step(step = "start", r_function = start, next_step = "end") %>%
  step(step = "end") %>%
  run()
"""

FRAME_FLOW = """
library(metaflow)
start <- function(self) {
  n <- 2^23
  self$frame <- data.frame(a = runif(n), b = runif(n), i = seq_len(n), l = rep_len(c(TRUE, NA), n))
}
end <- function(self) stopifnot(self$frame$i[2^23] == 2^23)
metaflow("LargeR") %>%
  step(step = "start", r_function = start, next_step = "end") %>%
  step(step = "end", r_function = end) %>%
  run()
"""
FRAME_MIB = 192
# What an R that has read a script holds.
R_MIB = 100

PYTHON_FLOW = """
class FromPython(FlowSpec):
    @step
    def start(self):
        self.numbers = [1, 2, 3]
        self.nested = {"x": [1.5, 2], "y": None, "z": {"k": "v"}}
        self.mixed = [1, "a"]
        self.wide = 2**40
        self.raw = b"ab"
        self.pair = (float("nan"), 2.5)
        self.huge = -(2**70)
        self.long = ["é" * 50000, "short"]
        self.many = list(range(50000))
        self.options = {"deep": [{"x": (1, True, None)}], "long": "é" * 70000}
        self.own = complex(1, 2)
        self.next(self.end)

    @step
    def end(self):
        raise ValueError("bad item")
"""


def rscript(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    values = harness.environment(folder, {"R_LIBS": harness.r_library()})
    return subprocess.run(
        ["Rscript", *arguments],
        cwd=folder,
        env=values,
        capture_output=True,
        text=True,
        timeout=harness.DEADLINE,
        check=False,
    )


def from_python(folder: Path, code: str) -> list[str]:
    return harness.client(folder, f"namespace(None)\n{code}")


@pytest.fixture(scope="module")
def r_run(tmp_path_factory: Any) -> Path:
    folder: Path = tmp_path_factory.mktemp("from_r")
    (folder / "flow.R").write_text(R_FLOW)
    done = rscript(folder, "flow.R", "run")
    assert done.returncode == 0, done.stderr
    return folder


def test_python_reads_what_r_stored(r_run: Path) -> None:
    shown = from_python(
        r_run,
        "d = Run('FromR/1')['start'].task.data\n"
        "print(repr(d.number), d.numbers, d.nested, d.raw, type(d.model).__name__)\n"
        "print(d.matrix.tolist(), d.many.sum(), d.many.dtype)\n"
        "print(d.frame['i'].isna().tolist(), d.frame['f'].tolist(), d.frame['l'].tolist())\n"
        "print(str(d.frame['d'][1].date()), d.frame['c'][0], list(d.frame.columns))\n"
        "print(list(d.kept.index), d.kept['f'].tolist(), d.factor.tolist(), d.at[0])\n"
        "print(d.days.isna().tolist(), d.days[2].date())\n"
        "print(Run('FromR/1').successful)",
    )
    assert shown == [
        "5.0 [1.5, None, 3.0] {'a': 1, 'b': ['x', True, None]} b'\\x01\\x02\\x03' bytes",
        "[[1, 3, 5], [2, 4, 6]] 200010000.0 float64",
        "[False, True] ['u', 'v'] [True, False]",
        "2020-01-02 x ['i', 'c', 'f', 'd', 'l']",
        "[2] ['v'] ['u', nan, 'v'] 2020-06-01 12:00:00+02:00",
        "[False, True, False] 2020-01-03",
        "True",
    ]


def test_r_values_need_neither_numpy_nor_pandas(r_run: Path) -> None:
    shown = from_python(
        r_run,
        "import sys\nsys.modules['numpy'] = sys.modules['pandas'] = None\n"
        "d = Run('FromR/1')['start'].task.data\n"
        "print(d.matrix, len(d.many), d.factor)\n"
        "print({k: v for k, v in d.frame.items() if k != 'd'})",
    )
    assert shown == [
        "[1, 2, 3, 4, 5, 6] 20000 ['u', None, 'v']",
        "{'i': [1, None], 'c': ['x', None], 'f': ['u', 'v'], 'l': [True, False]}",
    ]


def test_bigsum_of_the_documents_gets_no_memory(folder: Path) -> None:
    """51 GB, where memory is refused: R's own error, the run failed."""
    flow = harness.REPOSITORY / "tests/e2e/flows/bigsumflow.R"
    result = harness.run_flow(folder, flow, "run", address_space=8 << 30).exited(1)
    assert "Error: cannot allocate vector of size 47.7 Gb" in result.stdout
    assert "Step start (task-id 1) failed." in result.stderr
    assert from_python(folder, "print(Run('BigSumFlowR/1').state)") == ["failed"]


def test_r_reads_what_python_stored(tmp_path: Path) -> None:
    harness.run_flow(tmp_path, harness.write_flow(tmp_path, PYTHON_FLOW), "run").exited(1)
    code = """
library(metaflow)
set_namespace(NULL)
task <- new_task("FromPython/1/start/1")
for (name in c("numbers", "nested", "mixed", "wide", "raw")) str(task$artifact(name))
for (name in c("pair", "huge", "many")) str(task$artifact(name))
print(nchar(task$artifact("long")))
options <- task$artifact("options")
str(options$deep)
print(nchar(options$long))
cat(tryCatch(task$artifact("own"), error = conditionMessage), "\\n")
failed <- new_task("FromPython/1/end/2")$exception
cat(failed$type, failed$message, grepl("raise ValueError", failed$traceback), "\\n")
"""
    done = rscript(tmp_path, "-e", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        " int [1:3] 1 2 3",
        "List of 3",
        " $ x: num [1:2] 1.5 2",
        " $ y: NULL",
        " $ z:List of 1",
        '  ..$ k: chr "v"',
        "List of 2",
        " $ : int 1",
        ' $ : chr "a"',
        " num 1.1e+12",
        " raw [1:2] 61 62",
        " num [1:2] NaN 2.5",
        " num -1.18e+21",
        " int [1:50000] 0 1 2 3 4 5 6 7 8 9 ...",
        "[1] 50000     5",
        "List of 1",
        " $ :List of 1",
        "  ..$ x:List of 3",
        "  .. ..$ : int 1",
        "  .. ..$ : logi TRUE",
        "  .. ..$ : NULL",
        "[1] 70000",
        "artifact `own` is of type complex and was pickled by Python; of Python's values R "
        "reads text, numbers, booleans, bytes, and lists, tuples, sets and dictionaries (with text "
        "as keys) of these: store it as one of these ",
        "ValueError bad item TRUE ",
    ]


def test_a_large_data_frame_is_saved_without_a_copy_and_loaded_with_one(tmp_path: Path) -> None:
    """docs/guide/r.md has the figures for 3 GiB."""
    (tmp_path / "flow.R").write_text(FRAME_FLOW)
    done = rscript(tmp_path, "flow.R", "run")
    assert done.returncode == 0, done.stderr
    with sqlite3.connect(tmp_path / ".metaflow/ferroflow.db") as database:
        query = "SELECT peak_memory >> 20 FROM tasks WHERE task > 0 ORDER BY task"
        saving, loading = (peak for (peak,) in database.execute(query))
    assert FRAME_MIB < saving < 1.4 * FRAME_MIB + R_MIB
    # The stored file, which is mapped, counts too.
    assert FRAME_MIB < loading < 2.3 * FRAME_MIB + R_MIB
