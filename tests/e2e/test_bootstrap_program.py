"""The first program in a remote task's container, run here against a store that misbehaves and in
interpreters that lack something. What it does in real containers is in remote/test_bootstrap.py."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bootstrap_tools import Ended, Handler, Program, Store, StoreFaults, told
from harness import REPOSITORY
from store_proxy import served

BOOTSTRAP = REPOSITORY / "crates/compute/src/remote/bootstrap.py"
STARTED = """
import os, sys
def main(spec):
    left = [name for name in os.environ if name.endswith("_URL") or "_TASK_" in name]
    print("started", spec, os.path.basename(os.getcwd()), sorted(os.listdir("."))[:2], left)
"""
ELF = {"x86_64": 62, "aarch64": 183}[os.uname().machine]


def package() -> bytes:
    """A code package with the least that the program looks at."""
    head = b"\x7fELF" + bytes(14) + ELF.to_bytes(2, "little")
    members = {
        ".mf_code/metaflow/__init__.py": b"",
        ".mf_code/metaflow/_remote.py": STARTED.encode(),
        ".mf_code/metaflow/_native.abi3.so": head,
        "flow.py": b"",
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store(package())
    with served(type("OwnHandler", (Handler,), {"store": store})) as port:
        store.port = port
        yield store


def run(folder: Path, store: Store, lacks: str = "", cwd: Path | None = None) -> Ended:
    """Runs the program; `lacks` is run first in its interpreter, as if the image were so."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(lacks)
    log, work = folder / "termination-log", cwd or folder / "work"
    work.mkdir(exist_ok=True)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-u", "-c", BOOTSTRAP.read_text()],
        cwd=work,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(site),
            "FERROFLOW_IMAGE": "acme/image:1",
            "FERROFLOW_TERMINATION_LOG": str(log),
            "FERROFLOW_CODE_URL": f"http://127.0.0.1:{store.port}/code?signature=secret",
            "FERROFLOW_CODE_SHA256": hashlib.sha256(store.data).hexdigest(),
            "FERROFLOW_TASK_SPEC": "the spec",
            "TMPDIR": str(work),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    seconds = time.monotonic() - began
    message = json.loads(log.read_text()) if log.exists() else {}
    return Ended(done.returncode, done.stdout, done.stderr, message, seconds)


def test_code_is_fetched_and_started_and_addresses_are_forgotten(
    folder: Path, store: Store
) -> None:
    ended = run(folder, store)
    assert ended.out == "started the spec metaflow ['.mf_code', 'flow.py'] []\n", ended.err
    assert store.asked == 1 and not ended.message


@pytest.fixture
def first_program() -> Program:
    return run


class TestAStoreThatMisbehaves(StoreFaults):
    """What every language's first program makes of it."""


IMAGES = {
    "import sys; sys.version_info = (3, 9, 2, 'final', 0)": (
        "the image `acme/image:1` has Python 3.9.2; a task needs Python 3.11 or newer"
    ),
    "import platform; platform.machine = lambda: 'riscv64'": (
        f"the image `acme/image:1` runs on riscv64, and the code package has an extension for "
        f"{os.uname().machine}: start the run with an installation of ferroflow for riscv64, or "
        f"choose nodes and an image for {os.uname().machine}"
    ),
    "import os; os.confstr = lambda name: None": (
        "the image `acme/image:1` has another C library than glibc (Alpine has musl): choose one "
        "such as python:3.11-slim"
    ),
    "import sys; sys.modules['tarfile'] = None": (
        "the Python of the image `acme/image:1` is not complete: import of tarfile halted; None "
        "in sys.modules"
    ),
}


@pytest.mark.parametrize("lacks", IMAGES)
def test_an_image_that_will_not_do_is_told_within_seconds(
    folder: Path, store: Store, lacks: str
) -> None:
    ended = run(folder, store, lacks)
    assert told(ended) == IMAGES[lacks]
    assert ended.seconds < 5
    cause = ended.message["cause"]
    assert isinstance(cause, dict) and cause["kind"] == "image"


def test_a_c_library_that_is_too_old_is_told(folder: Path, store: Store) -> None:
    """As the dynamic loader words it when an extension asks for more than there is."""
    reason = "/lib/libc.so.6: version `GLIBC_2.34' not found (required by _native.abi3.so)"
    lacks = f"""
import sys
class Loader:
    def find_spec(self, name, path=None, target=None):
        if name == "metaflow._remote":
            raise ImportError({reason!r})
sys.meta_path.insert(0, Loader())
"""
    text = told(run(folder, store, lacks))
    assert text.startswith("the image `acme/image:1` (Python 3.") and "glibc" in text
    assert text.endswith(f"cannot load the extension of the code package: {reason}")


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
    assert "No space left on device" in text
