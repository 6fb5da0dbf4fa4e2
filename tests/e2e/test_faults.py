"""Faults from outside: a full disk, a flipped byte, many runs in one folder, too little memory."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from harness import client, finish, memory_group, run_flow, start, write_flow

ROOT = os.geteuid() == 0

SMALL = """
class SmallFlow(FlowSpec):
    @step
    def start(self):
        self.x = "small"
        self.next(self.end)

    @step
    def end(self):
        pass
"""

BIG = """
import os
from metaflow import FlowSpec, step

class BigFlow(FlowSpec):
    @step
    def start(self):
        self.big = os.urandom(1 << 20)
        self.small = 5
        self.next(self.end)

    @step
    def end(self):
        print("length", len(self.big))
"""


@pytest.mark.slow
def test_two_hundred_runs_at_once_in_one_folder(folder: Path) -> None:
    flow = write_flow(folder, SMALL)

    def one(_: int) -> int:
        return finish(start(folder, flow, "run"), folder, 600).code

    with ThreadPoolExecutor(200) as pool:
        assert list(pool.map(one, range(200))) == [0] * 200
    lines = client(
        folder,
        """
        runs = list(Flow('SmallFlow'))
        print(len(runs), len({r.id for r in runs}), all(r.successful for r in runs))
        print(all(r.data.x == 'small' for r in runs), sum(1 for r in runs for s in r for t in s))
        """,
    )
    assert lines == ["200 200 True", "True 400"]


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.chmod(0o644)
    path.write_bytes(data)


def test_a_flipped_byte_in_a_blob_is_an_error_that_names_the_artifact(folder: Path) -> None:
    run_flow(folder, BIG, "run").ok()
    blobs = [p for p in (folder / ".metaflow").rglob("data/*/*") if p.stat().st_size >= 1 << 20]
    assert len(blobs) == 1, blobs
    flip(blobs[0], 500_000)
    lines = client(
        folder,
        """
        task = Task('BigFlow/1/start/1')
        print(task.data.small)
        try:
            task.data.big
            print('no error')
        except Exception as error:
            print(type(error).__name__, error)
        """,
        env={"HOME": str(folder / "elsewhere")},
    )
    assert lines[0] == "5"
    assert lines[1] != "no error" and "big" in lines[1], lines
    resumed = run_flow(folder, folder / "flow.py", "resume", "end").exited(1)
    assert "big" in resumed.stdout


def test_a_flipped_byte_in_a_pack(folder: Path) -> None:
    run_flow(folder, BIG, "run").ok()
    packs = [p for p in (folder / ".metaflow/BigFlow").rglob("start/**/*") if p.is_file()]
    flip(packs[0], packs[0].stat().st_size - 3)
    lines = client(
        folder,
        """
        try:
            print(Task('BigFlow/1/start/1').data.small)
        except Exception as error:
            print(type(error).__name__, error)
        """,
    )
    assert lines[0] != "5"
    assert "start" in lines[0] or "small" in lines[0]


@pytest.fixture
def small_disk(folder: Path) -> "object":
    """A file system of 8 MiB."""
    place = folder / "disk"
    place.mkdir()
    if (
        not ROOT
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)], check=False
        ).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_disk_full(small_disk: Path, folder: Path) -> None:
    env = {"METAFLOW_DATASTORE_SYSROOT_LOCAL": str(small_disk)}
    flow = write_flow(folder, BIG)
    run_flow(folder, flow, "run", env=env).ok()
    huge = write_flow(folder, BIG.replace("1 << 20", "64 << 20"), "huge.py")
    result = run_flow(folder, huge, "run", env=env).exited(1)
    text = result.stdout + result.stderr
    assert "Data store error" in text
    assert f"cannot write artifact `big` to `{small_disk}" in text and "the disk is full" in text
    assert "panicked" not in text
    lines = client(
        folder,
        """
        print(len(Run('BigFlow/1').data.big), [(r.id, r.state) for r in Flow('BigFlow')])
        """,
        env=env,
    )
    assert lines == ["1048576 [('2', 'failed'), ('1', 'done')]"]
    run_flow(folder, flow, "run", env=env).ok()


def test_disk_full_from_the_start(small_disk: Path, folder: Path) -> None:
    with (small_disk / "filler").open("wb") as filler:
        try:
            while True:
                filler.write(b"\0" * 65536)
                filler.flush()
        except OSError:
            pass
    env = {"METAFLOW_DATASTORE_SYSROOT_LOCAL": str(small_disk)}
    result = run_flow(folder, SMALL, "run", env=env).exited(1)
    assert "Traceback" not in result.stderr and "panicked" not in result.stderr
    assert str(small_disk) in result.stderr or "full" in result.stderr
    (small_disk / "filler").unlink()
    run_flow(folder, folder / "flow.py", "run", env=env).ok()


def test_store_that_cannot_be_written(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    env = {"METAFLOW_DATASTORE_SYSROOT_LOCAL": str(folder / "file")}
    result = run_flow(folder, SMALL, "run", env=env).exited(1)
    assert str(folder / "file") in result.stderr
    assert "panicked" not in result.stderr


HUNGRY = """
from metaflow import *
from metaflow import FlowSpec, step

class HungryFlow(FlowSpec):
    @resources(memory=2000)
    @step
    def start(self):
        self.n = len(bytearray(b"x") * (600 << 20))
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_a_real_memory_limit(folder: Path) -> None:
    with memory_group(300 << 20) as group:
        result = run_flow(folder, HUNGRY, "run", group=group).exited(1)
    (told,) = [line for line in result.out.splitlines() if "out of memory" in line.lower()]
    for word in ("2000", "300 MiB", "it used up to"):
        assert word in told, "what was asked, the limit, the peak"
    lines = client(folder, "t = Task('HungryFlow/1/start/1'); print(t.state, t.cause)")
    assert lines[0].startswith("failed ") and "out of memory" in lines[0].lower()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("bytes(3 << 30)", "len(self.data)"),
        (
            "pandas.DataFrame({'t': [chr(65 + i % 26) * (1 << 20) for i in range(3072)]})",
            "sum(map(len, self.data['t']))",
        ),
    ],
    ids=["bytes", "frame-of-objects"],
)
def test_three_gigabytes(folder: Path, value: str, size: str) -> None:
    """Artifacts past the limits of 2 and 4 GB."""
    pytest.importorskip("pandas")
    if shutil.disk_usage(folder).free < 12 << 30 or memory_available() < 12 << 30:
        pytest.skip("needs 12 GiB of memory and disk")
    source = f"""
import pandas
from metaflow import FlowSpec, step

class HeavyFlow(FlowSpec):
    @step
    def start(self):
        self.data = {value}
        self.next(self.end)

    @step
    def end(self):
        print("size", {size})
"""
    try:
        result = run_flow(folder, source, "run", deadline=400).ok()
        assert f"size {3 << 30}" in result.stdout
    finally:
        shutil.rmtree(folder / ".metaflow", ignore_errors=True)


def memory_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
