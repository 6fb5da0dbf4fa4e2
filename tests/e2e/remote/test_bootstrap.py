"""The code package and its first program in real containers: an image with nothing but Python, no
way out but to the store; an image without Python; what is packaged and what is not."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import client, run_flow
from parts import BUCKET, PYTHON_IMAGE, part
from store_proxy import Door, proxy

pytestmark = pytest.mark.cluster

FLOW = """
from metaflow import FlowSpec, step
import helpers.tool
import linked_module

class Packed(FlowSpec):
    @step
    def start(self):
        import importlib.util
        self.items = ["a", "b"]
        self.found = importlib.util.find_spec("pip") is not None
        self.next(self.work, foreach="items")

    @step
    def work(self):
        import os, socket
        from linked_folder import shared
        self.tool = helpers.tool.answer() + shared.answer() + linked_module.answer()
        here = os.path.dirname(os.path.abspath(__file__))
        self.names = sorted(
            os.path.relpath(os.path.join(folder, name), here)
            for folder, _, names in os.walk(here) for name in names
            if "/.mf_" not in folder + "/" and "__pycache__" not in folder
        )
        self.table = open(os.path.join(here, "data/table.csv")).read()
        self.large = os.path.getsize(os.path.join(here, "large.csv"))
        self.runs = os.access(os.path.join(here, "script.py"), os.X_OK)
        try:
            socket.create_connection(("1.1.1.1", 443), 1).close()
            self.way_out = True
        except OSError:
            self.way_out = False
        self.next(self.join)

    @step
    def join(self, inputs):
        self.merge_artifacts(inputs, exclude=["items"])
        self.next(self.end)

    @step
    def end(self):
        print("packed", self.tool, self.table, self.way_out, self.large, self.runs)
"""


def project(folder: Path, elsewhere: Path) -> None:
    files = {
        "helpers/__init__.py": "",
        "helpers/tool.py": "def answer(): return 'h'",
        "data/table.csv": "1,2",
        "data/secret.key": "not to leave",
        ".hidden/no.py": "",
        "script.py": "#!/usr/bin/env python3",
        ".gitignore": "data/\\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "script.py").chmod(0o755)
    (folder / "large.csv").write_bytes(os.urandom(20 << 20))
    elsewhere.mkdir(parents=True)
    (elsewhere / "shared.py").write_text("def answer(): return 's'")
    (folder / "linked_folder").symlink_to(elsewhere)
    (folder / "linked_module.py").symlink_to(elsewhere / "shared.py")
    (elsewhere / "back").symlink_to(folder)


def test_a_bare_image_with_no_way_out_but_the_store(
    tmp_path: Path, folder: Path, kubernetes: dict[str, str]
) -> None:
    home = folder / "project"
    home.mkdir()
    project(home, folder / "elsewhere")
    env = {**kubernetes, "METAFLOW_DEFAULT_PACKAGE_SUFFIXES": ".csv"}
    arguments = ("run", "--with", f"kubernetes:image={PYTHON_IMAGE}")
    result = run_flow(home, FLOW, *arguments, env=env).ok()
    assert f"packed hss 1,2 False {20 << 20} True" in result.stdout
    shown = client(
        home,
        f"""
        run = Run("Packed/{result.run_id}")
        print(run["start"].task.data.found, *run["join"].task.data.names)
        """,
        env=env,
    )
    assert shown == [
        "False data/table.csv flow.py helpers/__init__.py helpers/tool.py large.csv "
        "linked_folder/shared.py linked_module.py script.py"
    ]


def test_an_image_without_python_is_told_within_seconds(
    folder: Path, kubernetes: dict[str, str]
) -> None:
    source = """
    class Lacking(FlowSpec):
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    began = time.monotonic()
    image = "localhost/ferroflow-no-python:1"
    result = run_flow(folder, source, "run", "--with", f"kubernetes:image={image}", env=kubernetes)
    assert result.code == 1 and time.monotonic() - began < 30
    assert (
        f"The image `{image}` has no `python3`: a task needs an image with Python 3.11 or newer, "
        "such as `python:3.11`." in result.stdout
    )


def test_code_is_stored_once_whatever_the_number_of_runs(
    folder: Path, kubernetes: dict[str, str]
) -> None:
    source = """
    class Once(FlowSpec):
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    for _ in range(2):
        run_flow(folder, source, "run", "--with", "kubernetes", env=kubernetes).ok()
    root = kubernetes["METAFLOW_DATASTORE_SYSROOT_S3"]
    assert root.startswith(f"s3://{BUCKET}/")
    found = client(
        folder,
        f"from metaflow import S3; print(len(S3().list_recursive(['{root}/code'])))",
        env=kubernetes,
    )
    assert found == ["1"]


# --- a store that misbehaves --------------------------------------------------------------------

WIDE = """
import os
from metaflow import FlowSpec, step

class Wide(FlowSpec):
    @step
    def start(self):
        self.blob = os.urandom(400_000)
        self.items = [1, 2, 3]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.length = len(self.blob)
        print("working", self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.length for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total)
"""


@pytest.fixture
def door(kubernetes: dict[str, str]) -> Iterator[Door]:
    """Stands between the pods and the store; the engine goes its own way."""
    with proxy(kubernetes["AWS_ENDPOINT_URL_S3"], host="0.0.0.0") as door:
        host = part("s3")["FERROFLOW_TEST_S3_FROM_PODS"].rsplit(":", 1)[0]
        kubernetes["METAFLOW_KUBERNETES_S3_ENDPOINT_URL"] = f"{host}:{door.port}"
        yield door


def test_pods_outlast_a_store_that_refuses_and_cuts(
    folder: Path, kubernetes: dict[str, str], door: Door
) -> None:
    door.refuse_first = door.cut_first = 1
    result = run_flow(folder, WIDE, "run", "--with", "kubernetes", env=kubernetes).ok()
    assert "total 1200000" in result.stdout
    shown = client(
        folder,
        f"""
        run = Run("Wide/{result.run_id}")
        print(*sorted(task.stdout.strip() for task in run["work"]),
              {{task.current_attempt for step in run for task in step}}, sep=", ")
        """,
        env=kubernetes,
    )
    assert shown == ["working 1, working 2, working 3, {0}"]


def test_a_slow_store_that_refuses_and_cuts_the_engine_too(
    folder: Path, kubernetes: dict[str, str], door: Door
) -> None:
    """Each request of the pods takes half a second; each of the engine's fails once."""
    door.delay = 0.5
    with proxy(kubernetes["AWS_ENDPOINT_URL_S3"]) as engine:
        engine.refuse_first = engine.cut_first = 1
        env = {**kubernetes, "AWS_ENDPOINT_URL_S3": engine.url}
        result = run_flow(folder, WIDE, "run", "--with", "kubernetes", env=env).ok()
        assert engine.count("GET", "list-type=2") > 0, "the engine read the logs through the door"
    assert "total 1200000" in result.stdout
    shown = re.findall(r"(?m)/work/\d+\] (working \d)$", result.stdout)
    assert sorted(shown) == ["working 1", "working 2", "working 3"]
    logs = ("logs", f"{result.run_id}/work", "--stdout")
    logged = run_flow(folder, folder / "flow.py", *logs, env=kubernetes).ok()
    assert sorted(logged.stdout.split("\n")) == ["", "working 1", "working 2", "working 3"]


def test_an_address_that_expired_in_the_queue_is_signed_again(
    folder: Path, kubernetes: dict[str, str], door: Door
) -> None:
    """The container is started once more; no retry of the user's is spent."""
    door.deny_first, door.denied_path = 1, "/code/"
    result = run_flow(folder, WIDE, "run", "--with", "kubernetes", env=kubernetes).ok()
    assert "total 1200000" in result.stdout
    code = f"""
    run = Run("Wide/{result.run_id}")
    print({{task.current_attempt for step in run for task in step}})
    """
    assert client(folder, code, env=kubernetes) == ["{0}"]
