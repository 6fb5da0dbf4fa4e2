"""The first program in an R task's container, run here against a store that misbehaves and in an R
of another version or machine. What it does in real containers is in remote/test_r_remote.py."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from bootstrap_tools import Ended, Handler, Program, Store, StoreFaults, told
from harness import REPOSITORY
from store_proxy import served

BOOTSTRAP = REPOSITORY / "crates/compute/src/remote/bootstrap.R"
STARTED = """
run_remote <- function(fetch, end, children) {
  here <- c(basename(getwd()), sort(list.files(recursive = TRUE)))
  cat("started", Sys.getenv("FERROFLOW_TASK_SPEC"), here, children, "\\n")
}
"""
MACHINE = os.uname().machine
# More than the hundred bytes that a plain header has for a name.
LONG = f"long/{'n' * 120}/file.R"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package `metaflow` with the least that the program calls."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    (source / "R").mkdir(parents=True)
    (source / "DESCRIPTION").write_text("Package: metaflow\nVersion: 0.1\nTitle: T\n")
    (source / "NAMESPACE").write_text("")
    (source / "R/code.R").write_text(STARTED)
    library = folder / "library"
    library.mkdir()
    command = ["R", "CMD", "INSTALL", "--no-docs", f"--library={library}", str(source)]
    subprocess.run(command, check=True, capture_output=True)
    described = library / "metaflow/DESCRIPTION"
    # As of a package with a library in it.
    described.write_text(described.read_text().replace("; ;", f"; {this_r()[1]};"))
    return library / "metaflow"


@cache
def this_r() -> tuple[str, str]:
    """Version and platform of the R here."""
    facts = "cat(paste(R.version$major, R.version$minor, sep = '.'), R.version$platform)"
    command = ["Rscript", "-e", facts]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    version, platform = said.split()
    return version, platform


def package(installed: Path) -> bytes:
    """The code package before it is compressed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("flow.R"))
        archive.addfile(tarfile.TarInfo(LONG))
        archive.add(installed, ".mf_code/metaflow")
    return out.getvalue()


@pytest.fixture
def store(installed: Path) -> Iterator[Store]:
    store = Store(gzip.compress(package(installed)))
    with served(type("OwnHandler", (Handler,), {"store": store})) as port:
        store.port = port
        yield store


def run(folder: Path, store: Store, lacks: str = "", cwd: Path | None = None, **more: str) -> Ended:
    """Runs the program; `lacks` is run first in its R, as if the image were so."""
    log, work = folder / "termination-log", cwd or folder / "work"
    work.mkdir(exist_ok=True)
    began = time.monotonic()
    done = subprocess.run(
        ["Rscript", "--vanilla", "-e", f"{lacks}\n{BOOTSTRAP.read_text()}"],
        cwd=work,
        env={
            "PATH": os.environ["PATH"],
            "FERROFLOW_IMAGE": "acme/image:1",
            "FERROFLOW_TERMINATION_LOG": str(log),
            "FERROFLOW_CODE_URL": f"http://127.0.0.1:{store.port}/code?signature=secret",
            "FERROFLOW_CODE_SIZE": str(len(gzip.decompress(store.data))),
            "FERROFLOW_TASK_SPEC": "the spec",
            **more,
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    seconds = time.monotonic() - began
    message = json.loads(log.read_text()) if log.exists() else {}
    return Ended(done.returncode, done.stdout, done.stderr, message, seconds)


def test_code_is_fetched_and_started(folder: Path, store: Store) -> None:
    ended = run(folder, store)
    assert ended.out == f"started the spec metaflow flow.R {LONG} \n", ended.err
    assert store.asked == 1 and not ended.message


@pytest.fixture
def first_program() -> Program:
    return run


class TestAStoreThatMisbehaves(StoreFaults):
    """What every language's first program makes of it."""


IMAGES = {
    'R.version$major <- "4"; R.version$minor <- "0.5"': (
        "the image `acme/image:1` has R 4.0.5, and the run was started with R {made}: choose an "
        "image with R {made}, such as rocker/r-ver:{made}"
    ),
    'R.version$major <- "5"; R.version$minor <- "0.0"': (
        "the image `acme/image:1` has R 5.0.0, and the run was started with R {made}: choose an "
        "image with R {made}, such as rocker/r-ver:{made}"
    ),
    'R.version$platform <- "riscv64-unknown-linux-gnu"': (
        "the image `acme/image:1` runs on riscv64, and the package `metaflow` of this run was "
        f"built for {MACHINE}: choose nodes and an image for {MACHINE}"
    ),
    f'R.version$platform <- "{MACHINE}-pc-linux-musl"': (
        f"the image `acme/image:1` has another C library ({MACHINE}-pc-linux-musl) than the "
        "machine the run was started on ({platform}): choose an image for that, such as "
        "rocker/r-ver:{made}"
    ),
    'loadNamespace <- function(...) stop("libc.so.6: version `GLIBC_2.34\' not found")': (
        "the image `acme/image:1` (R {made}, where the run was started with R {made}) cannot load "
        "the package of the code: libc.so.6: version `GLIBC_2.34' not found"
    ),
}


@pytest.mark.parametrize("lacks", IMAGES)
def test_an_image_that_will_not_do_is_told_within_seconds(
    folder: Path, store: Store, lacks: str
) -> None:
    made, platform = this_r()
    ended = run(folder, store, lacks)
    assert told(ended) == IMAGES[lacks].format(made=made, platform=platform)
    assert ended.seconds < 10
    cause = ended.message["cause"]
    assert isinstance(cause, dict) and cause["kind"] == "image"


def test_a_child_of_an_array_finds_the_code_in_its_list(folder: Path, store: Store) -> None:
    code = f"http://127.0.0.1:{store.port}/code?a=1&b=2"
    children = json.dumps([{"FERROFLOW_CODE_URL": code}], separators=(",", ":")).encode()
    listed = Store(children)
    with served(type("ListHandler", (Handler,), {"store": listed})) as port:
        address = f"http://127.0.0.1:{port}/list"
        ended = run(folder, store, FERROFLOW_CODE_URL="", FERROFLOW_CHILDREN_URL=address)
    assert ended.out == f"started the spec metaflow flow.R {LONG} {children.decode()} \n", ended.err


def test_a_container_without_room_is_told(folder: Path, store: Store) -> None:
    small = folder / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(small)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        text = told(run(folder, store, cwd=small))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    assert text.startswith(f"the code could not be unpacked into `{small}/metaflow`: ")
