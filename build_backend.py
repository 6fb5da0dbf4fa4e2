"""Builds the Python package: maturin's PEP 517 hooks, with the engine put into the wheel first.

maturin packs one crate, the extension; the engine is a program of another crate and goes into the
wheel as the script `metaflow`. `pip install .`, `make demo` and CI all come through here.
"""

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import maturin
from maturin import (  # hooks that need nothing of ours
    build_sdist,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

__all__ = [
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_wheel",
]

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE / "ferroflow.data" / "scripts"


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: dict[str, Any] | None = None
) -> str:
    """Writes the metadata; maturin insists that the data folder exists by then."""
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    folder: str = maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings)
    return folder


def build_wheel(
    wheel_directory: str,
    config_settings: dict[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Builds the engine, then the wheel around it."""
    SCRIPTS.mkdir(parents=True, exist_ok=True)
    with alone_in_target_folder():
        shutil.copy2(build_engine(), SCRIPTS / "metaflow")
        wheel: str = maturin.build_wheel(wheel_directory, config_settings, metadata_directory)
    return wheel


@contextmanager
def alone_in_target_folder() -> Iterator[None]:
    """Checkouts may share a target folder, and what is taken from it must be one's own build."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or HERE / "target")
    target.mkdir(parents=True, exist_ok=True)
    with (target / ".ferroflow.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_engine() -> Path:
    """Builds the program `metaflow` and says where cargo put it."""
    cargo = shutil.which("cargo")
    if cargo is None:
        raise SystemExit(
            "ferroflow is built with Rust and `cargo` was not found: install Rust 1.95 or newer, "
            "or install a prebuilt wheel"
        )
    command = [cargo, "build", "--release", "--locked", "--package", "ferroflow-cli"]
    command += ["--bin", "metaflow", "--message-format", "json-render-diagnostics"]
    output = subprocess.run(
        command, cwd=HERE, env=os.environ, check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    for line in output.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "metaflow":
            return Path(message["executable"])
    raise SystemExit("`cargo build` ended well but named no program `metaflow`")
