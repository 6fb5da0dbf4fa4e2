"""`parallel_map`, `parallel_imap_unordered`, `profile`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent.parent / "python"
sys.path.insert(0, str(PACKAGE))

from metaflow import _multicore, _multicore_width  # noqa: E402
from metaflow._multicore import parallel_imap_unordered, parallel_map  # noqa: E402
from metaflow._profile import profile  # noqa: E402
from metaflow.exception import MetaflowException, MulticoreException  # noqa: E402


class Adder:
    def __init__(self, amount: int) -> None:
        self.amount = amount

    def add(self, number: int) -> int:
        return number + self.amount


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_any_callable_in_order() -> None:
    factor = 3
    before = open_descriptors()
    assert parallel_map(lambda x: x * factor, range(20)) == [x * 3 for x in range(20)]
    assert parallel_map(Adder(2).add, iter([1, 2])) == [3, 4]
    assert parallel_map(len, ["a", "bb"], max_parallel=1) == [1, 2]
    assert parallel_map(lambda x: None, []) == []
    assert parallel_map(lambda x: x, [None, None]) == [None, None]
    assert open_descriptors() == before


def test_each_call_has_a_process_of_its_own() -> None:
    pids = parallel_map(lambda _: os.getpid(), range(4))
    assert len({*pids, os.getpid()}) == 5


def test_unordered_yields_as_they_come() -> None:
    waits = [0.5, 0.0, 0.25]
    found = list(parallel_imap_unordered(lambda s: (time.sleep(s), s)[1], waits, 3))
    assert found == [0.0, 0.25, 0.5]


def test_items_are_taken_when_there_is_room() -> None:
    taken = []

    def items():
        for number in range(10):
            taken.append(number)
            yield number

    results = parallel_imap_unordered(lambda x: x, items(), 2)
    next(results)
    assert len(taken) <= 3
    results.close()


def test_large_results_are_mapped_and_writable(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    for folder in (None, str(tmp_path)):
        arrays = parallel_map(lambda n: numpy.full(1_000_000, n, dtype=float), range(3), dir=folder)
        assert [array.sum() for array in arrays] == [0.0, 1e6, 2e6]
        arrays[1][0] = 7.0
        assert arrays[1].ctypes.data % 64 == 0
    (mixed,) = parallel_map(
        lambda _: {"a": numpy.arange(2_000_000)[::2], "b": b"x" * 3_000_000, "c": "text"}, [0]
    )
    assert mixed["a"][-1] == 1_999_998
    assert (len(mixed["b"]), mixed["c"]) == (3_000_000, "text")
    assert list(tmp_path.iterdir()) == []


def test_thousands_of_large_results_do_not_use_up_descriptors() -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        results = parallel_map(lambda n: bytearray([n % 256]) * 1_100_000, range(150))
        assert [result[0] for result in results] == [n % 256 for n in range(150)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_exception_in_a_call(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise KeyError("lost")
        time.sleep(60)

    started = time.monotonic()
    with pytest.raises(MulticoreException) as caught:
        parallel_map(fail, range(2), max_parallel=2)
    assert caught.value.headline == "Child failed"
    assert caught.value.message == (
        "Child failed: the call of `parallel_map` for item 1 raised an exception; "
        "its traceback is in the log above"
    )
    assert time.monotonic() - started < 30
    err = capfd.readouterr().err
    assert "KeyError: 'lost'" in err
    assert "metaflow/_multicore.py" not in err


@pytest.mark.parametrize(
    "end, message",
    [
        (lambda _: os._exit(3), "ended with exit code 3 before it had a result"),
        (lambda _: os.kill(os.getpid(), 9), "was killed by signal 9 (SIGKILL)"),
        (lambda _: sys.exit(4), "ended with exit code 4 before it had a result"),
        (lambda _: sys.exit(0), "raised an exception; its traceback is in the log above"),
        (lambda _: lambda: 1, "raised an exception; its traceback is in the log above"),
    ],
)
def test_calls_that_end_badly(end, message: str) -> None:
    with pytest.raises(MulticoreException) as caught:
        parallel_map(end, [0])
    assert caught.value.message == f"Child failed: the call of `parallel_map` for item 0 {message}"


def test_out_of_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([1, 2])
    monkeypatch.setattr(_multicore, "_out_of_memory_kills", lambda: next(kills))
    with pytest.raises(MulticoreException, match="the machine ran out of memory"):
        parallel_map(lambda _: os.kill(os.getpid(), 9), [0])


def test_a_width_below_one() -> None:
    with pytest.raises(MetaflowException, match="must be at least 1, it is 0"):
        parallel_map(len, ["a"], max_parallel=0)


def test_other_children_are_left_to_the_user() -> None:
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"])
    parallel_map(lambda _: time.sleep(0.3), [0])
    assert child.wait() == 5


def test_an_interrupt_stops_the_calls() -> None:
    code = (
        f"import os, sys, time; sys.path.insert(0, {str(PACKAGE)!r})\n"
        "from metaflow._multicore import parallel_map\n"
        "def call(n):\n    print(f'child {os.getpid()}\\n', end='', flush=True)\n"
        "    time.sleep(600)\n"
        "parallel_map(call, range(2), max_parallel=2)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    children = [int(process.stdout.readline().split()[1]) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)
    for pid in children:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_half_printed_line_is_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PACKAGE)!r})\n"
        "from metaflow._multicore import parallel_map\n"
        "print('half', end='')\nparallel_map(lambda n: None, range(3))\nprint(' done')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert capfd.readouterr().out == "half done\n"


@pytest.mark.parametrize(
    "decorators, width",
    [
        ([{"name": "resources", "attributes": {"cpu": 8, "memory": 60000}}], 8),
        ([{"name": "resources", "attributes": {"cpu": "4"}}], 4),
        ([{"name": "resources", "attributes": {"cpu": 1, "memory": 60000}}], None),
        ([{"name": "retry", "attributes": {"times": 3}}], None),
        (
            [
                {"name": "resources", "attributes": {"cpu": 2}},
                {"name": "kubernetes", "attributes": {"cpu": "3"}},
            ],
            3,
        ),
        ([], None),
    ],
)
def test_default_width(decorators: list, width: int | None) -> None:
    _multicore_width.remember(object, {"decorators": decorators})
    assert _multicore.default_width() == (width or _multicore.usable_cpus())
    _multicore_width.remember(object, {"decorators": []})


def test_quotas_of_both_cgroup_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "pod" / "container"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (tmp_path / "pod" / "cpu.max").write_text("150000 100000\n")
    folders = [str(inner), str(inner.parent), str(tmp_path)]
    monkeypatch.setattr(_multicore, "_cgroup_folders", lambda: iter(folders))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert _multicore.usable_cpus() == 2
    (inner / "cpu.max").unlink()
    (inner / "cpu.cfs_quota_us").write_text("50000\n")
    (inner / "cpu.cfs_period_us").write_text("100000\n")
    assert _multicore.usable_cpus() == 1
    (inner / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "pod" / "cpu.max").write_text("max 100000\n")
    assert _multicore.usable_cpus() == 8


def test_profile(capsys: pytest.CaptureFixture[str]) -> None:
    with profile("load"):
        time.sleep(0.01)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "PROFILE: load starting"
    assert second.startswith("PROFILE: load completed in ")
    assert second.endswith("ms")
    stats: dict[str, int] = {"load": 5}
    with profile("load", stats_dict=stats):
        time.sleep(0.01)
    assert stats["load"] >= 15
    with pytest.raises(KeyError), profile("fails", stats):
        raise KeyError("x")
    assert "fails" not in stats
    assert capsys.readouterr().out == ""
