"""Artifacts through `_artifacts`: what goes in comes out exactly, or an error says why."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from metaflow import _artifacts, _native
from metaflow._artifacts import InputPack, OutputPack
from metaflow.exception import (
    DataException,
    MetaflowDataMissing,
    UnpicklableArtifactException,
)

LIMIT = _artifacts.INLINE_LIMIT
PYTHON = Path(_artifacts.__file__).parents[1]


def output(root: Path, task: int = 1) -> OutputPack:
    return OutputPack(str(root), "F", "1", "s", task, 0)


def reopened(root: Path, task: int = 1) -> InputPack:
    return InputPack(str(root), "F", "1", "s", task, 0)


def round_trip(root: Path, value: Any) -> tuple[Any, dict[str, Any]]:
    pack = output(root)
    pack.set("x", value)
    pack.commit({"ok": True})
    read = reopened(root)
    return read.get("x"), read.info("x")


def identical(left: Any, right: Any) -> bool:
    """Equal in value, type and order, down to the sign of zero."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(identical, left, right))
    if isinstance(left, dict):
        return identical(list(left.items()), list(right.items()))
    return repr(left) == repr(right) and (left == right or left != left)


class Text(str):
    pass


class Flag(int):
    pass


PLAIN = [None, True, False, 0, -1, 2**63 - 1, -(2**63), 0.0, -0.0, 1e16, 5e-324, 1.7e308, 0.1]
PLAIN += ["", 'ä\0\n"\\\u2028😀', [], {}, [1, [2, {"a": None}]], {"b": 1, "a": 2}]
ODD = [2**63, -(2**63) - 1, 2**70, float("inf"), float("nan"), "\ud800", (1, 2), {1: 2}]
ODD += [Text("x"), [Text("x")], {Text("k"): 1}, Flag(1), {"a": (1,)}, OrderedDict(a=1), {1, 2}]
ODD += [{True: 1}, complex(1, -0.0), bytearray(b"x"), range(3), [float("nan")], {"\ud800": 1}]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_values_are_json(tmp_path: Path, value: Any) -> None:
    found, info = round_trip(tmp_path, value)
    assert identical(found, value)
    assert info["encoding"] == "json"


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_what_json_would_bend_is_pickled(tmp_path: Path, value: Any) -> None:
    found, info = round_trip(tmp_path, value)
    assert identical(found, value)
    assert info["encoding"] == "pickle-5"


def test_any_value_comes_back_exactly(tmp_path: Path) -> None:
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st

    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(codec=None))
        | st.binary()
        | st.complex_numbers()
    )
    values = st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.text() | st.integers() | st.booleans(), inner)
            | st.tuples(inner, inner)
        ),
        max_leaves=30,
    )

    @hypothesis.settings(max_examples=600, deadline=None)  # type: ignore[untyped-decorator]
    @hypothesis.given(values)  # type: ignore[untyped-decorator]
    def check(value: Any) -> None:
        found, info = round_trip(tmp_path, value)
        assert identical(found, value)
        assert info["type"] == repr(type(value))

    check()


def test_shared_and_circular_containers_keep_their_shape(tmp_path: Path) -> None:
    inner: list[int] = []
    found, info = round_trip(tmp_path, [inner, inner])
    assert found[0] is found[1]
    assert info["encoding"] == "pickle-5"
    circle: list[Any] = []
    circle.append(circle)
    found, _ = round_trip(tmp_path, circle)
    assert found[0] is found


def test_deep_and_large_plain_values_are_pickled(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    assert round_trip(tmp_path, deep)[1]["encoding"] == "pickle-5"
    found, info = round_trip(tmp_path, list(range(50_000)))
    assert found == list(range(50_000))
    assert (info["encoding"], info["inline"]) == ("pickle-5", False)
    edge = "x" * (LIMIT - 2)
    assert round_trip(tmp_path, edge)[1]["encoding"] == "json"
    found, info = round_trip(tmp_path, edge + "x")
    assert found == edge + "x"
    assert info["encoding"] == "pickle-5"


@pytest.mark.parametrize("size", [0, 1, LIMIT, LIMIT + 1, 9 << 20])
def test_bytes_are_raw(tmp_path: Path, size: int) -> None:
    value = os.urandom(size)
    found, info = round_trip(tmp_path, value)
    assert found == value
    assert (info["encoding"], info["size"]) == ("raw", size)


ARRAYS = {
    "empty": np.zeros((0, 3)),
    "scalar": np.array(3.5),
    "small": np.arange(5, dtype="i2"),
    "inline with a buffer": np.arange(1000.0),
    "large": np.arange(100_000.0).reshape(100, 1000),
    "fortran": np.asfortranarray(np.arange(10_000.0).reshape(100, 100)),
    "strided": np.arange(40_000)[::3],
    "big endian": np.arange(20_000, dtype=">i4"),
    "text": np.array(["a", "bcd"] * 9000),
    "objects": np.array([1, None, "x"] * 9000, dtype=object),
    "record": np.zeros(9000, dtype=[("a", "i4"), ("b", "f8")]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(tmp_path: Path, name: str) -> None:
    array = ARRAYS[name]
    found, _ = round_trip(tmp_path, array)
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.flags.f_contiguous == array.flags.f_contiguous or not array.flags.contiguous
    np.testing.assert_array_equal(found, array)
    assert found.flags.writeable


def test_read_only_arrays_stay_read_only(tmp_path: Path) -> None:
    array = np.arange(50_000.0)
    array.flags.writeable = False
    found, _ = round_trip(tmp_path, array)
    assert not found.flags.writeable


def test_frames(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": range(50_000), "b": [f"x{n}" for n in range(50_000)], "c": 1.5})
    found, info = round_trip(tmp_path, frame)
    pd.testing.assert_frame_equal(found, frame)
    found.loc[0, "c"] = 2.0
    assert info["preview"] == "shape (50000, 3)"


def test_a_loaded_array_is_ours_to_write_and_aligned(tmp_path: Path) -> None:
    first, _ = round_trip(tmp_path, np.zeros(100_000))
    second = reopened(tmp_path).get("x")
    first[:] = 7
    assert second.sum() == 0
    assert reopened(tmp_path).get("x").sum() == 0
    assert first.ctypes.data % 64 == 0


def test_two_views_of_one_memory_are_two_arrays(tmp_path: Path) -> None:
    base = np.arange(100_000.0)
    found, _ = round_trip(tmp_path, [base[:60_000], base[40_000:]])
    np.testing.assert_array_equal(found[0], base[:60_000])
    np.testing.assert_array_equal(found[1], base[40_000:])
    found[0][50_000] = -1
    assert found[1][10_000] == 50_000


def test_memory_outlives_its_pack(tmp_path: Path) -> None:
    pack = output(tmp_path)
    pack.set("x", np.arange(1_000_000))
    pack.commit({})
    source = reopened(tmp_path)
    array = source.get("x")[10:]
    del source
    gc.collect()
    assert array[0] == 10


def test_a_silent_task_is_one_file(tmp_path: Path) -> None:
    round_trip(tmp_path, [1, 2])
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "verified"]
    assert [str(path.relative_to(tmp_path)) for path in files] == ["F/runs/1/s/1.0.pack"]


def test_names_digests_and_outcome(tmp_path: Path) -> None:
    pack = output(tmp_path)
    for name, value in {"b": 1, "a": "1", "c": b"1"}.items():
        pack.set(name, value)
    pack.set("b", 2)
    pack.set("b", 1)
    digests = {pack.digest(name) for name in "abc"}
    assert len(digests) == 3
    assert "a" in pack
    assert "z" not in pack
    shared = ["x"]
    pack.commit({"ok": True, "exception": {"message": "\ud800", "again": shared, "more": shared}})
    read = reopened(tmp_path)
    assert read.names() == ["b", "a", "c"]
    assert read.digest("b") == pack.digest("b") == read.info("b")["hash"]
    message = {"message": "\\ud800", "again": ["x"], "more": ["x"]}
    assert read.outcome == {"ok": True, "exception": message}
    with pytest.raises(KeyError):
        read.get("z")


class Model:
    pass


def unpicklable() -> Model:
    model = Model()
    model.fine = list(range(10))  # type: ignore[attr-defined]
    model.parts = {"a": [1, threading.Lock()]}  # type: ignore[attr-defined]
    return model


def test_an_unpicklable_value_is_named_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(UnpicklableArtifactException) as caught:
        output(tmp_path).set("model", unpicklable())
    assert str(caught.value) == (
        "cannot pickle artifact `model`: `self.model.parts['a'][1]` is a `_thread.lock`, which "
        "cannot be stored (TypeError: cannot pickle '_thread.lock' object); remove it from the "
        "artifact, or make it again where it is needed"
    )


class Unwilling:
    def __getstate__(self) -> Any:
        raise RuntimeError("no state today")


def test_user_code_that_fails_while_pickling_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UnpicklableArtifactException, match=r"`self\.x\[0\]` is a .*Unwilling.*no sta"
    ):
        output(tmp_path).set("x", [Unwilling()])
    with pytest.raises(UnpicklableArtifactException, match=r"`self\.x\[0\]"):
        deep: list[Any] = []
        for _ in range(100_000):
            deep = [deep]
        output(tmp_path).set("x", deep)


def test_a_class_that_is_gone_is_told(tmp_path: Path) -> None:
    global Model
    round_trip(tmp_path, Model())
    kept, Model = Model, None  # type: ignore[misc, assignment]
    try:
        with pytest.raises(
            DataException, match=r"artifact `x` of task `F/1/s/1` \(attempt 0\) can"
        ):
            reopened(tmp_path).get("x")
    finally:
        Model = kept  # type: ignore[misc]


class Loud:
    """Any look at it beyond its type is noticed."""

    def __init__(self) -> None:
        self.quiet = True

    def __repr__(self) -> str:
        raise AssertionError("user code ran")

    def __len__(self) -> int:
        raise AssertionError("user code ran")


def test_previews_are_short_and_run_no_user_code(tmp_path: Path) -> None:
    expected = {
        "three": (3, "3"),
        "huge": (1 << 40_000, "integer of 40001 bits"),
        "text": ("a" * 500, "500 characters: '" + "a" * 60 + "'"),
        "list": ([1, "b", Loud(), 2, 3, 4], "6 items: 1, 'b', Loud, 2, 3, …"),
        "dict": ({"k": Loud()}, "1 keys: 'k'"),
        "array": (np.zeros((2, 3)), "shape (2, 3), <f8"),
        "loud": (Loud(), None),
    }
    pack = output(tmp_path)
    for name, (value, _) in expected.items():
        pack.set(name, value)
    pack.commit({})
    read = reopened(tmp_path)
    assert {name: read.info(name)["preview"] for name in expected} == {
        name: text for name, (_, text) in expected.items()
    }


def passed_on(root: Path, value: Any, change: Any = None) -> bool:
    """Whether a loaded value was handed on as it is."""
    pack = output(root)
    pack.set("x", value)
    pack.commit({})
    source = reopened(root)
    loaded = source.get("x")
    if change is not None:
        loaded = change(loaded)
    target = output(root, 2)
    target.pass_on_if_unchanged("x", loaded, source)
    target.commit({})
    again = reopened(root, 2).get("x")
    if isinstance(again, pd.DataFrame):
        pd.testing.assert_frame_equal(again, loaded)
    else:
        np.testing.assert_array_equal(again, loaded)
        assert type(again) is type(loaded)
    return target.digest("x") == source.digest("x")


def written(array: Any) -> Any:
    array[5] = 1
    return array


def reshaped(array: Any) -> Any:
    array.shape = (1000, 100)
    return array


def renamed(frame: Any) -> Any:
    frame.columns = ["y", "z"]
    return frame


def test_what_was_only_read_is_passed_on(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.arange(100_000.0), "b": np.arange(100_000)})
    assert passed_on(tmp_path, np.arange(100_000.0))
    assert passed_on(tmp_path, np.arange(100_000.0), lambda array: array + 0)
    assert passed_on(tmp_path, frame)
    assert passed_on(tmp_path, b"x" * 100_000)
    assert passed_on(tmp_path, [1, 2])
    assert passed_on(tmp_path, "x" * 100_000)


def test_what_was_changed_is_stored_anew(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.arange(100_000.0), "b": np.arange(100_000)})
    assert not passed_on(tmp_path, np.zeros(100_000), written)
    assert not passed_on(tmp_path, np.arange(100_000.0), reshaped)
    assert not passed_on(tmp_path, np.arange(100_000.0), lambda array: array[1:])
    assert not passed_on(tmp_path, np.arange(100_000.0), lambda array: array.view("i8"))
    assert not passed_on(tmp_path, frame, renamed)
    assert not passed_on(tmp_path, b"x" * 100_000, lambda value: value[1:] + b"y")
    assert not passed_on(tmp_path, [1, 2], lambda value: [*value, 3])
    assert not passed_on(tmp_path, np.arange(100_000.0), lambda array: [0])


def test_passing_on_needs_no_code_to_load_it(tmp_path: Path) -> None:
    pack = output(tmp_path)
    pack.set("small", Model())
    pack.set("large", [Model(), "x" * 100_000])
    pack.commit({})
    target = output(tmp_path, 2)
    for name in ("small", "large"):
        target.pass_on(name, reopened(tmp_path))
    target.commit({})
    assert isinstance(reopened(tmp_path, 2).get("small"), Model)
    assert reopened(tmp_path, 2).get("large")[1] == "x" * 100_000
    # Copied forward, not referenced through the older pack.
    os.unlink(tmp_path / "F/runs/1/s/1.0.pack")
    assert isinstance(reopened(tmp_path, 2).get("small"), Model)


FOREACH = {
    "few": [1, "b", None],
    "range": range(10**12),
    "text": "abc",
    "many": [f"item {n}" for n in range(20_000)],
    "odd": [(n, {n}, b"x" * n) for n in range(2000)],
    "arrays": [np.full(5000, n) for n in range(30)],
    "array": np.arange(100_000),
    "dict": {"a": 1, "b": 2},
    "tuple": tuple(range(30_000)),
}


@pytest.mark.parametrize("name", FOREACH)
def test_a_split_reads_its_own_item(tmp_path: Path, name: str) -> None:
    value = FOREACH[name]
    pack = output(tmp_path)
    pack.set("items", value)
    pack.set_foreach("items", value)
    pack.commit({})
    length = 3 if name == "range" else len(value)  # type: ignore[arg-type]
    expected = value if hasattr(value, "__getitem__") and name != "dict" else list(value)  # type: ignore[call-overload]
    for index in {0, 1, length // 2, length - 1}:
        item = _artifacts.foreach_item(reopened(tmp_path), "items", index)
        np.testing.assert_array_equal(item, expected[index])
        assert type(item) is type(expected[index])


def test_a_set_keeps_one_order_for_all_splits(tmp_path: Path) -> None:
    value = {f"word{n}" for n in range(100)}
    pack = output(tmp_path)
    pack.set("items", value)
    pack.set_foreach("items", value)
    pack.commit({})
    code = (
        "import sys; from metaflow._artifacts import *\n"
        f"p = InputPack({str(tmp_path)!r}, 'F', '1', 's', 1, 0)\n"
        "print(*[foreach_item(p, 'items', i) for i in range(100)])"
    )
    for seed in ("1", "2"):
        assert run_python(code, PYTHONHASHSEED=seed).split() == list(value)


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(PYTHON), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inputs_are_loaded_together_in_order(tmp_path: Path) -> None:
    for task in range(1, 301):
        pack = output(tmp_path, task)
        pack.set("x", {"task": task})
        if task % 2:
            pack.set("odd", (task,))
        pack.commit({})
    reference = {"run": "1", "step": "s", "tasks": [[1, 200, 0], [201, 300, 0]]}
    packs = _artifacts.open_inputs(str(tmp_path), "F", reference)
    assert [pack.task for pack in packs] == list(range(1, 301))
    assert _artifacts.load_many(packs, "x") == [{"task": task} for task in range(1, 301)]
    assert _artifacts.load_many(packs[:4], "odd", default=_artifacts.MISSING) == [
        (1,),
        _artifacts.MISSING,
        (3,),
        _artifacts.MISSING,
    ]
    with pytest.raises(KeyError):
        _artifacts.load_many(packs, "odd")
    os.unlink(tmp_path / "F/runs/1/s/250.0.pack")
    packs = _artifacts.open_inputs(str(tmp_path), "F", reference)
    with pytest.raises(
        MetaflowDataMissing, match=r"task `F/1/s/250` \(attempt 0\) has no stored data"
    ):
        _artifacts.load_many(packs, "x")


def test_no_thread_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/task"))
    round_trip(tmp_path, np.random.default_rng(1).random(8 << 20))
    round_trip(tmp_path, [b"x" * (20 << 20)])
    assert len(os.listdir("/proc/self/task")) == before


@pytest.mark.parametrize("value", [[1, 2], np.arange(100_000), b"x" * 100_000, (1,)], ids=str)
def test_a_flipped_byte_is_an_error_never_wrong_data(tmp_path: Path, value: Any) -> None:
    _, info = round_trip(tmp_path, value)
    pattern = "F/runs/1/s/*.pack" if info["inline"] else "data/*/*"
    (path,) = tmp_path.glob(pattern)
    data = path.read_bytes()
    for index in range(0, len(data), max(1, len(data) // 60)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 16]) + data[index + 1 :])
        with pytest.raises(
            DataException, match=r"task `F/1/s/1` \(attempt 0\) is damaged: the file"
        ):
            reopened(tmp_path).get("x")
    path.write_bytes(data[:-1])
    with pytest.raises(DataException):
        reopened(tmp_path).get("x")


def test_a_large_value_takes_little_extra_memory(tmp_path: Path) -> None:
    code = f"""
        import gc, re, metaflow._artifacts as A
        def peak():
            text = open("/proc/self/status").read()
            return int(re.search(r"VmHWM:\\s+(\\d+)", text)[1])
        data = b"0123456789abcdef" * (25 << 20)
        texts = [str(n) * 50 for n in range(200_000)]
        for name, value, most in (("d", data, 40_000), ("w", [data], 40_000), ("t", texts, 90_000)):
            gc.collect()
            open("/proc/self/clear_refs", "w").write("5")
            before = peak()
            pack = A.OutputPack({str(tmp_path)!r}, "F", "1", "s", 1, 0)
            pack.set(name, value)
            pack.commit({{}})
            print(name, peak() - before, most, peak() - before < most)
    """
    lines = run_python(code).splitlines()
    assert [line.split()[-1] for line in lines] == ["True"] * 3, lines


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small file system")
def test_a_full_disk_is_told_and_nothing_is_spoilt(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small file system here")
    try:
        check_full_disk(tmp_path)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def check_full_disk(root: Path) -> None:
    first = output(root)
    first.set("x", b"a" * 300_000)
    first.commit({"ok": True})
    second = output(root, 2)
    noise = np.random.default_rng(0)
    full = "the disk is full; free some space and try again"
    for value in (noise.bytes(900_000), noise.random(200_000), [noise.bytes(900_000)]):
        with pytest.raises(DataException, match=full):
            second.set("x", value)
    for number in range(60):
        second.set(f"x{number}", noise.bytes(30_000))
    with pytest.raises(DataException, match=full):
        second.commit({"ok": True})
    leftovers = [path for path in root.rglob("*") if path.name.startswith(".")]
    assert leftovers == []
    assert reopened(root).get("x") == b"a" * 300_000
    with pytest.raises(MetaflowDataMissing):
        reopened(root, 2).names()
    third = output(root, 3)
    third.set("x", b"a" * 300_000)
    third.commit({"ok": True})
    assert reopened(root, 3).get("x") == b"a" * 300_000


def test_many_processes_store_one_value(tmp_path: Path) -> None:
    code = f"""
        import sys, metaflow._artifacts as A
        pack = A.OutputPack({str(tmp_path)!r}, "F", "1", "s", int(sys.argv[1]), 0)
        pack.set("x", bytes(range(256)) * 4000)
        pack.commit({{}})
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(task)],
            env={**os.environ, "PYTHONPATH": str(PYTHON)},
        )
        for task in range(12)
    ]
    assert [process.wait() for process in processes] == [0] * 12
    assert len([path for path in (tmp_path / "data").rglob("*") if path.is_file()]) == 1
    for task in range(12):
        assert reopened(tmp_path, task).get("x") == bytes(range(256)) * 4000


def test_a_root_without_runs_reads_as_empty(tmp_path: Path) -> None:
    metadata = _native.Metadata(str(tmp_path))
    assert metadata.flows() == []
    assert metadata.runs("F") == []
    assert metadata.run("F", "1") is None
    assert metadata.tasks("F", "1") == metadata.tasks("F", "1", "s") == []
    assert metadata.attempts("F", "1", 1) == []
    assert metadata.metadata("F", "1", 1) == metadata.logs("F", "1", "s", 1, 0) == []
    assert list(tmp_path.iterdir()) == []


def test_version_is_that_of_the_workspace() -> None:
    text = (PYTHON.parent / "Cargo.toml").read_text()
    assert f'version = "{_native.version()}"' in text


def test_pickles_are_protocol_five(tmp_path: Path) -> None:
    value = (1, "x")
    _, info = round_trip(tmp_path, value)
    assert info["size"] == len(pickle.dumps(value, protocol=5))


def test_what_a_wide_foreach_shares_is_named_not_copied(tmp_path: Path) -> None:
    """Read by its splits or not: none of them has a copy in its pack."""
    items = [[number, "x" * 20] for number in range(1000)]
    parent = OutputPack(str(tmp_path), "F", "1", "start", 1, 0)
    parent.set("items", items)
    parent.set_foreach("items", items)
    parent.commit({"ok": True, "transition": {"num_splits": 1000}})
    source = InputPack(str(tmp_path), "F", "1", "start", 1, 0)
    assert _artifacts.foreach_item(source, "items", 7) == items[7]
    read, untouched, changed = (OutputPack(str(tmp_path), "F", "1", "w", n, 0) for n in (2, 3, 4))
    value = source.get("items")
    read.pass_on_if_unchanged("items", value, source)
    untouched.pass_on("items", source)
    changed.pass_on_if_unchanged("items", [*value, 1], source)
    for task, pack in ((2, read), (3, untouched), (4, changed)):
        pack.commit({"ok": True})
        assert InputPack(str(tmp_path), "F", "1", "w", task, 0).get("items")[:1000] == items
    sizes = [(tmp_path / f"F/runs/1/w/{task}.0.pack").stat().st_size for task in (2, 3, 4)]
    assert max(sizes[:2]) < 1500 < 20_000 < sizes[2], sizes
