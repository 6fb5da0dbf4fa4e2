"""Measures Ferroflow beside stock Metaflow in one run and writes docs/benchmarks.md.

    make bench                          everything (about twenty minutes, most of it the peer's)
    make bench BENCH_ARGS=--quick       smaller sizes, one repetition
    make bench BENCH_ARGS=--full        also what takes the peer a quarter of an hour
    make bench BENCH_ARGS='--only seven,import'

Each row is a function that returns lines of the table; times are medians.
"""

import argparse
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import r_rows
import remote
from sides import REPOSITORY, Measured, Side, flow, line_time, ours, peer, run, scratch, version_of
from table import Row, Skipped

PAGE = REPOSITORY / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by `make bench`: begin -->", "<!-- written by `make bench`: end -->"


class Bench:
    def __init__(self, quick: bool, full: bool) -> None:
        self.quick, self.full = quick, full
        self.mine, self.peer = ours(), peer()

    def times(self, count: int) -> int:
        return 1 if self.quick else count

    def median(self, side: Side, count: int, name: str, *arguments: str, **more: object) -> float:
        """Median seconds of a flow's command, each time in a fresh folder."""
        seconds = []
        for _ in range(self.times(count)):
            with scratch() as folder:
                seconds.append(flow(side, folder, name, *arguments, **more).ok().seconds)
        return statistics.median(seconds)

    # --- rows, in the order of the design's table ---

    def seven(self) -> list[Row]:
        theirs, mine = [], []
        for _ in range(self.times(7)):
            theirs.append(self.median(self.peer, 1, "seven.py", "run"))
            mine.append(self.median(self.mine, 1, "seven.py", "run"))
        work = "the seven-task foreach example, local"
        pair = statistics.median(theirs), statistics.median(mine)
        return [Row(work, *pair, "s", "6 times faster")]

    def wide(self) -> list[Row]:
        rows = []
        for width, target, peer_times in (
            (100, "30 times faster", 3),
            (1000, "50 times faster", 1),
        ):
            if width == 1000 and self.quick:
                continue
            mine = self.wide_runs(self.mine, width, self.times(5))
            theirs = self.wide_runs(self.peer, width, self.times(peer_times))
            pair = [statistics.median(m.seconds for m in side) for side in (theirs, mine)]
            rows.append(Row(f"foreach of {width:,} trivial tasks", *pair, "s", target))
            cpu = [statistics.median(m.cpu for m in s) / (width + 3) * 1000 for s in (theirs, mine)]
            work = f"CPU per trivial task, all processes (of {width:,})"
            rows.append(Row(work, *cpu, "ms", "≤ 6 ms"))
        return rows

    def wide_runs(self, side: Side, width: int, count: int) -> list[Measured]:
        done = []
        for _ in range(count):
            with scratch() as folder:
                options = ["run", "--max-num-splits", str(width), "--width", str(width)]
                measured = flow(side, folder, "wide.py", *options).ok()
                assert f"total {sum(range(width))}" in measured.output
                done.append(measured)
        return done

    def files(self) -> list[Row]:
        counts = []
        for side in (self.peer, self.mine):
            with scratch() as folder:
                flow(side, folder, "wide.py", "run", "--width", "20").ok()
                steps = [p for p in (folder / ".metaflow/WideFlow").glob("**/work") if p.is_dir()]
                inside = sum(1 for s in steps for p in s.rglob("*") if p.is_file())
                counts.append(inside / 20)
        return [Row("files per trivial silent task", *counts, "", "1")]

    def hundred_thousand(self) -> list[Row]:
        rows = []
        for width in (10_000,) if self.quick else (10_000, 100_000):
            with scratch() as folder:
                options = ["run", "--max-num-splits", str(width), "--width", str(width)]
                done = flow(self.mine, folder, "wide.py", *options, sample=True).ok()
                told = run(self.mine, folder, "-c", ITERATE, str(sum(range(width)))).ok().output
                iterated, total = told.split()
            assert total == "True", f"the join's sum of {width} is wrong: {told}"
            work = f"a real foreach of {width:,}"
            memory = done.peak_memory / (1 << 20)
            rows.append(Row(work, None, done.seconds, "s", "linear in tasks"))
            rows.append(Row(f"{work}: engine + fork server", None, memory, "MiB", "≤ 200 MiB"))
            rows.append(Row(f"{work}: the client iterates", None, float(iterated), "s"))
        return rows

    def importing(self) -> list[Row]:
        pair = []
        for side in (self.peer, self.mine):
            with scratch() as folder:
                # With the names that every flow asks for, since ours come in when asked for.
                empty, full = ["-c", "pass"], ["-c", "from metaflow import FlowSpec, step"]
                each = [
                    run(side, folder, *full).ok().seconds - run(side, folder, *empty).ok().seconds
                    for _ in range(self.times(11))
                ]
                pair.append(statistics.median(each))
        return [Row("`from metaflow import FlowSpec, step`", *pair, "s", "≤ 0.04 s")]

    def array(self) -> list[Row]:
        size = 64 if self.quick else 256
        saves: list[float] = []
        loads: list[float] = []
        for side in (self.peer, self.mine):
            pairs = [self.array_once(side, size) for _ in range(self.times(3))]
            saves.append(statistics.median(p[0] for p in pairs))
            loads.append(statistics.median(p[1] for p in pairs))
        copied = statistics.median(copy_and_sync(size) for _ in range(self.times(3)))
        work = f"numpy artifact of {size} MiB random doubles"
        return [
            Row(f"{work}: save, to durable", *saves, "s", "20 times faster"),
            Row(f"{work}: the same bytes by `cp` + fsync", None, copied, "s"),
            Row(f"{work}: load in a new process, hash checked", *loads, "s", "10 times faster"),
        ]

    def array_once(self, side: Side, size: int) -> tuple[float, float]:
        """Seconds from the end of the body to the task's end, and of a load that reads it all."""
        with scratch() as folder:
            out = flow(side, folder, "big_array.py", "run", "--mebibytes", str(size)).ok().output
            body = next(line for line in out.splitlines() if "body done" in line)
            save = line_time(out, "Task finished successfully.") - float(body.split()[-1])
            # What was verified before counts no more: the load has to check the hash.
            (folder / ".metaflow" / "verified").unlink(missing_ok=True)
            load = float(run(side, folder, "-c", LOAD).ok().output.split()[-1])
        return save, load

    def resume(self) -> list[Row]:
        pair = []
        for side in (self.peer, self.mine):
            seconds = []
            for _ in range(self.times(3)):
                with scratch() as folder:
                    options = ["run", "--max-num-splits", "198"]
                    if flow(side, folder, "resuming.py", *options).code != 1:
                        raise SystemExit("the run to be resumed did not fail")
                    (folder / "mended").touch()
                    options = ["resume", "--max-num-splits", "198"]
                    seconds.append(flow(side, folder, "resuming.py", *options).ok().seconds)
            pair.append(statistics.median(seconds))
        return [Row("resume cloning 200 tasks", *pair, "s", "10 times faster")]

    def learned(self) -> list[Row]:
        width = "100" if self.quick else "500"
        options = ("run", "--max-num-splits", width, "--width", width)
        off = {"FERROFLOW_LEARNED_IMPORTS": "0"}
        without = self.median(self.mine, 3, "wide.py", *options)
        learned = self.median(self.mine, 3, "importing.py", *options)
        unlearned = self.median(self.mine, 1, "importing.py", *options, extra=off)
        return [
            Row(f"{width} splits without an import", None, without, "s"),
            Row(
                f"{width} splits with `import numpy` in the body",
                None,
                learned,
                "s",
                f"≤ 1.5 × without: {learned / without:.2f} ×",
            ),
            Row(
                f"the same, learned imports off ({unlearned / learned:.1f} × slower)",
                None,
                unlearned,
                "s",
                "≥ 5 × slower",
            ),
        ]


ITERATE = """
import sys, time
from metaflow import Run
began = time.perf_counter()
run = Run('WideFlow/1')
tasks = sum(1 for task in run['work'] if task.successful)
seconds = time.perf_counter() - began
print(seconds, run.data.total == int(sys.argv[1]) and tasks > 0)
"""

LOAD = """
import time
import numpy
from metaflow import Flow
task = Flow('ArrayFlow').latest_run['start'].task
began = time.perf_counter()
array = task.data.array
touched = float(array[::512].sum())
print(touched, time.perf_counter() - began)
"""


def copy_and_sync(mebibytes: int) -> float:
    """Seconds of `cp` of a file of random bytes, and fsync of the copy."""
    with scratch() as folder:
        (folder / "from").write_bytes(os.urandom(mebibytes << 20))
        began = time.perf_counter()
        if os.spawnlp(os.P_WAIT, "cp", "cp", str(folder / "from"), str(folder / "to")) != 0:
            raise SystemExit("`cp` failed")
        descriptor = os.open(folder / "to", os.O_RDWR)
        os.fsync(descriptor)
        os.close(descriptor)
        return time.perf_counter() - began


ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    "seven": Bench.seven,
    "wide": Bench.wide,
    "files": Bench.files,
    "huge": Bench.hundred_thousand,
    "import": Bench.importing,
    "array": Bench.array,
    "resume": Bench.resume,
    "learned": Bench.learned,
    **r_rows.ROWS,
    **remote.ROWS,
}


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {memory:.0f} GiB, Linux {platform.release()}"


def page(rows: list[Row], skipped: list[str], bench: Bench, arguments: list[str]) -> str:
    """The part of docs/benchmarks.md that this script owns."""
    command = "make bench" + (f" BENCH_ARGS='{' '.join(arguments)}'" if arguments else "")
    lines = [
        BEGIN,
        "",
        f"Measured on {time.strftime('%Y-%m-%d')} by `{command}`: {machine()};",
        f"Python {platform.python_version()}; stock Metaflow "
        f"{version_of(bench.peer, 'metaflow')} from PyPI, in the same run. Times are medians.",
        "",
        "| work | stock Metaflow | Ferroflow | ratio | promised |",
        "|---|---|---|---|---|",
        *map(str, rows),
        "",
        *(line for sentence in skipped for line in (sentence, "")),
        END,
    ]
    return "\n".join(lines)


def write_page(text: str) -> None:
    old = PAGE.read_text() if PAGE.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    if BEGIN not in old or END not in old:
        old = f"{old.rstrip()}\n\n{BEGIN}\n{END}\n"
    before, rest = old.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(before + text + after)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, one repetition")
    parser.add_argument("--full", action="store_true", help="the peer's longest rows, too")
    parser.add_argument("--only", default="", help=f"rows to measure, of {','.join(ROWS)}")
    parser.add_argument("--print", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(ROWS)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        parser.error(f"no rows called {', '.join(unknown)}; there are {', '.join(ROWS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bench = Bench(options.quick, options.full)
    rows: list[Row] = []
    skipped = []
    for name in names:
        began = time.monotonic()
        try:
            measured = ROWS[name](bench)
        except Skipped as reason:
            skipped.append(f"`{name}` was not measured: {reason}.")
            print(skipped[-1], flush=True)
            continue
        for row in measured:
            print(row, flush=True)
        rows += measured
        took = time.monotonic() - began
        print(f"({name}: {took:.0f} s, load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)
    if not options.print:
        write_page(page(rows, skipped, bench, sys.argv[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
