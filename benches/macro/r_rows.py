"""Rows of flows in R. There is no second side: what they are held against is R itself."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sides import FLOWS, REPOSITORY, Side, run, scratch
from table import Row, Skipped

if TYPE_CHECKING:
    from bench import Bench

TASKS = 100
R = Side("R", "Rscript")


def variables() -> dict[str, str]:
    library = os.environ.get("R_LIBS", str(REPOSITORY / ".venv" / "r-library"))
    if shutil.which("Rscript") is None or not (Path(library) / "metaflow").is_dir():
        raise Skipped("R or its package is missing (`make r` installs the package)")
    return {"R_LIBS": library}


def seconds(folder: Path, *arguments: str) -> float:
    return run(R, folder, *arguments, extra=variables()).ok().seconds


def r_flows(bench: Bench) -> list[Row]:
    apart, together, starts, shown = [], [], [], []
    for _ in range(bench.times(3)):
        with scratch() as folder:
            code = ["-e", "saveRDS(as.numeric(commandArgs(TRUE)) * 2, 'y.rds')"]
            each = [seconds(folder, *code, str(number)) for number in range(TASKS)]
            apart.append(sum(each))
            shutil.copy(FLOWS / "many.R", folder)
            together.append(seconds(folder, "many.R", "run"))
            starts.append(seconds(folder, "-e", "1"))
            shown.append(seconds(folder, "many.R", "show"))
    own = max(0.0, statistics.median(shown) - statistics.median(starts))
    pair = statistics.median(apart), statistics.median(together)
    return [
        Row(f"R: {TASKS} × `Rscript -e`, and a foreach of {TASKS}", *pair, "s", "20 times faster"),
        Row("R: `Rscript flow.R show`, beyond R's own start", None, own, "s", "≤ 0.5 s"),
    ]


ROWS: dict[str, Callable[[Bench], list[Row]]] = {"r": r_flows}
