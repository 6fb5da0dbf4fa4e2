"""Artifacts as Python objects: encoding into a task's pack, decoding from others'.

The bytes, files and checksums are `metaflow._native`'s work; which artifacts a task has, and
when they are read, is decided by the task runtime.
"""

from __future__ import annotations

import sys

import metaflow._native as _native
from metaflow._store_environment import AsAtStart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

# Values up to this many encoded bytes stay inside the pack; the same number as in Rust.
INLINE_LIMIT = 64 * 1024
# Smaller buffers cost less inside the pickle than as entries of a table.
_SMALLEST_BUFFER = 4096
# Packs kept open after `load_many`, in bytes.
_KEPT_PACKS = 32 << 20
_PACKS_AT_ONCE = 1024
_PLAIN = frozenset({str, int, float, bool, type(None), list, dict})
_INDEXABLE = frozenset({list, tuple, str, bytes, range})
_PREVIEW_LENGTH = 100


class _Missing:
    """What `load_many` returns for a pack without the artifact, when asked to."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


class InputPack:
    """A finished attempt's artifacts, decoded when asked for."""

    __slots__ = ("_mappings", "_native", "attempt", "flow", "root", "run", "step", "task")

    def __init__(self, root: str, flow: str, run: str, step: str, task: int, attempt: int) -> None:
        self.root = root
        self.flow = flow
        self.run = run
        self.step = step
        self.task = task
        self.attempt = attempt
        self._native: _native.Pack | None = None
        self._mappings: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"InputPack({self.flow}/{self.run}/{self.step}/{self.task}, attempt={self.attempt})"

    @property
    def native(self) -> _native.Pack:
        """The pack, read and verified on first use."""
        if self._native is None:
            with AsAtStart():
                self._native = _native.Pack.open(
                    self.root, self.flow, self.run, self.step, self.task, self.attempt
                )
        return self._native

    def names(self) -> list[str]:
        """Names of all artifacts, in the order they were written."""
        return self.native.names()

    def __contains__(self, name: str) -> bool:
        return name in self.native

    def get(self, name: str) -> Any:
        """Decodes an artifact; `KeyError` when there is none of that name."""
        with AsAtStart():
            encoding, value, buffers, mapping = self.native.load(name)
        if encoding != "pickle-5":
            return value
        if mapping is None:
            return self._unpickle(name, value, buffers)
        view = memoryview(mapping)
        if not buffers:
            return self._unpickle(name, view, [])
        self._remember_mapping(name, mapping, value, buffers)
        parts = [view[offset : offset + length] for offset, length in buffers]
        return self._unpickle(name, view[:value], parts)

    def info(self, name: str) -> dict[str, Any]:
        """`type`, `size`, `hash`, `encoding`, `preview` of an artifact."""
        return self.native.info(name)

    def digest(self, name: str) -> str:
        """Hash of an artifact's encoding: equal digests, equal values."""
        return self.native.digest(name)

    @property
    def outcome(self) -> dict[str, Any]:
        """The outcome the attempt was committed with."""
        outcome: dict[str, Any] = self.native.outcome
        return outcome

    def _unpickle(self, name: str, stream: Any, buffers: list[Any]) -> Any:
        try:
            return _pickle_module().loads(stream, buffers=buffers)
        except Exception as error:
            raise _load_error(self, name, error) from error

    def _remember_mapping(self, name: str, mapping: Any, pickle: int, table: Any) -> None:
        import weakref

        if self._mappings is None:
            self._mappings = {}
        self._mappings[name] = (weakref.ref(mapping), pickle, table)

    def _mapping_of(self, name: str) -> tuple[Any, int, Any] | None:
        """The memory an artifact was loaded into, while something still uses it."""
        if self._mappings is None or name not in self._mappings:
            return None
        reference, pickle, table = self._mappings[name]
        mapping = reference()
        return None if mapping is None else (mapping, pickle, table)


def store_text(store: dict[str, Any]) -> str:
    """A `core::task::StoreLocation` as the extension takes it: a local folder, or JSON."""
    if store["kind"] == "local":
        root: str = store["root"]
        return root
    text = _native.encode_json(store, 1 << 20)
    assert text is not None, "a location is plain data"
    return text.decode()


def open_inputs(root: str, flow: str, input_ref: dict[str, Any]) -> list[InputPack]:
    """The attempts an input reference names, in order; nothing is read yet."""
    run, step = input_ref["run"], input_ref["step"]
    return [
        InputPack(root, flow, run, step, task, attempt)
        for first, last, attempt in input_ref["tasks"]
        for task in range(first, last + 1)
    ]


def load_many(packs: Sequence[InputPack], name: str, default: Any = ...) -> list[Any]:
    """One artifact of many attempts. A pack without it: `default`, or `KeyError` without one."""
    with AsAtStart():
        return _load_many(packs, name, default)


def _load_many(packs: Sequence[InputPack], name: str, default: Any) -> list[Any]:
    values: list[Any] = []
    kept = 0
    for start in range(0, len(packs), _PACKS_AT_ONCE):
        chunk = packs[start : start + _PACKS_AT_ONCE]
        opened = _open_together(chunk)
        if chunk[0].root.startswith("{"):
            _native.fetch_artifact([pack.native for pack in chunk], name)
        for pack in chunk:
            if default is not ... and name not in pack.native:
                values.append(default)
            else:
                values.append(pack.get(name))
        kept += sum(pack.native.size for pack in opened)
        if kept > _KEPT_PACKS:
            for pack in opened:
                pack._native = None
    return values


def _open_together(packs: Sequence[InputPack]) -> list[InputPack]:
    """Opens those that are not open yet; returns them."""
    closed = [pack for pack in packs if pack._native is None]
    groups: dict[tuple[str, str], list[InputPack]] = {}
    for pack in closed:
        groups.setdefault((pack.root, pack.flow), []).append(pack)
    for (root, flow), group in groups.items():
        places = [(pack.run, pack.step, pack.task, pack.attempt) for pack in group]
        with AsAtStart():
            natives = _native.load_packs(root, flow, places)
        for pack, native in zip(group, natives, strict=True):
            pack._native = native
    return closed


def foreach_item(pack: InputPack, variable: str, index: int) -> Any:
    """Item `index` of a foreach over `variable`; of a large list only that item is read."""
    with AsAtStart():
        found = pack.native.item(variable, index)
    if found is not None:
        encoding, value = found
        return pack._unpickle(variable, value, []) if encoding == "pickle-5" else value
    return _nth(pack.get(variable), index)


def _nth(value: Any, index: int) -> Any:
    if type(value) in _INDEXABLE or _is_array(value):
        return value[index]
    from itertools import islice

    return next(islice(iter(value), index, None))


class OutputPack:
    """A task's own artifacts, encoded as they are set and sealed by `commit`."""

    def __init__(self, root: str, flow: str, run: str, step: str, task: int, attempt: int) -> None:
        self._flow = flow
        self._step = step
        self._writer = _native.PackWriter(root, flow, run, step, task, attempt)

    def __contains__(self, name: str) -> bool:
        return name in self._writer

    def set(self, name: str, value: Any) -> None:
        """Encodes a value under a name, replacing what was there."""
        kind = type(value)
        if kind is bytes:
            self._writer.add_raw(name, _type_text(kind), preview(value), value)
        elif kind not in _PLAIN or not self._writer.add_json(
            name, _type_text(kind), preview(value), value
        ):
            sink, buffers = self._pickle(name, value)
            self._writer.add_pickle(name, _type_text(kind), preview(value), sink, buffers)

    def pass_on(self, name: str, source: InputPack) -> None:
        """Forwards an artifact of another attempt without decoding it."""
        self._writer.pass_on(name, source.native)

    def pass_on_if_unchanged(self, name: str, value: Any, source: InputPack) -> None:
        """Like `set`, for a value that was loaded from `source`: forwards the artifact where
        it can be known cheaply that it is still the same."""
        if name not in source or source.info(name)["inline"]:
            self.set(name, value)
        elif source.info(name)["size"] <= INLINE_LIMIT:
            # A blob although it is small: many tasks share it, and each would copy it.
            self.set(name, value)
            if self._writer.digest(name) == source.digest(name):
                self._writer.pass_on(name, source.native)
        elif type(value) is bytes:
            if not self._writer.pass_on_equal_bytes(name, source.native, value):
                self.set(name, value)
        else:
            self._set_or_pass_on_mapped(name, value, source)

    def _set_or_pass_on_mapped(self, name: str, value: Any, source: InputPack) -> None:
        loaded = source._mapping_of(name)
        if loaded is None:
            self.set(name, value)
            return
        mapping, pickle, table = loaded
        sink, buffers = self._pickle(name, value)
        if mapping.is_unchanged(sink, pickle, table, buffers):
            self._writer.pass_on(name, source.native)
        else:
            self._writer.add_pickle(name, _type_text(type(value)), preview(value), sink, buffers)

    def set_foreach(self, variable: str, value: Any) -> None:
        """Lets splits read their own item of `value` where reading all of it would be slow or,
        as with sets, come in another order. Call it after the artifact itself was set."""
        if (type(value) in _INDEXABLE or _is_array(value)) and (
            variable in self._writer and self._writer.in_band_size(variable) <= INLINE_LIMIT
        ):
            return
        if type(value) in (range, str, bytes):
            return
        sink = self._writer.items_sink(variable)
        for item in value:
            self._add_item(variable, sink, item)
        self._writer.set_items(variable, sink)

    def _add_item(self, variable: str, sink: _native.ItemsSink, item: Any) -> None:
        kind = type(item)
        if kind is bytes:
            sink.add_raw(item)
        elif kind not in _PLAIN or not sink.add_json(item):
            try:
                data = _pickle_module().dumps(item, protocol=5)
            except MemoryError:
                raise
            except Exception as error:
                raise _pickle_error(variable, item, error) from error
            sink.add_pickle(data)

    def digest(self, name: str) -> str:
        """Hash of the artifact's encoding, comparable with `InputPack.digest`."""
        return self._writer.digest(name)

    def commit(self, outcome: dict[str, Any]) -> None:
        """Writes the pack durably; `outcome` is plain data."""
        self._writer.commit(_plain_copy(outcome))

    def _pickle(self, name: str, value: Any) -> tuple[_native.Sink, list[memoryview]]:
        buffers: list[memoryview] = []

        def take_buffer(buffer: Any) -> bool:
            try:
                raw: memoryview = buffer.raw()
            except BufferError:
                return True  # not contiguous: the pickler copies it or says why it cannot
            if raw.nbytes < _SMALLEST_BUFFER:
                return True
            buffers.append(raw)
            return False

        sink = self._writer.sink(name)
        try:
            _pickle_module().Pickler(sink, 5, buffer_callback=take_buffer).dump(value)
        except MemoryError:
            raise  # says nothing of the value
        except Exception as error:
            if _is_ours(error):
                raise
            raise _pickle_error(name, value, error) from error
        return sink, buffers


def _is_ours(error: Exception) -> bool:
    """The sink failed (a full disk), not the value."""
    from metaflow.exception import DataException

    return isinstance(error, DataException)


def _pickle_module() -> Any:
    # The C module alone: `pickle` imports `re` and more.
    import _pickle

    return _pickle


def _plain_copy(value: Any) -> Any:
    """Plain data without shared containers; lone surrogates (of a user's message) escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_plain_copy(str(key)): _plain_copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_copy(item) for item in value]
    return value


def _type_text(kind: type) -> str:
    # `type.__repr__`, not a metaclass's.
    return type.__repr__(kind).encode("utf-8", "backslashreplace").decode("utf-8")


def preview(value: Any) -> str | None:
    """A few words about a value of a known type; never runs code of the value's class."""
    kind = type(value)
    text: str | None = None
    if value is None or kind in (bool, int, float, complex, str, bytes):
        text = _primitive(value)
    elif kind in (list, tuple, set, frozenset):
        text = f"{len(value)} items: {_some(value)}" if value else "0 items"
    elif kind is dict:
        text = f"{len(value)} keys: {_some(value)}" if value else "0 keys"
    elif kind is range:
        text = repr(value) if value.stop.bit_length() < 200 else "range"
    elif _is_array(value):
        text = f"shape {value.shape}, {value.dtype.str if value.dtype.names is None else 'fields'}"
    elif _is_frame(value):
        text = f"shape {value.shape}"
    if text is not None and len(text) > _PREVIEW_LENGTH:
        return text[: _PREVIEW_LENGTH - 1] + "…"
    return text


def _primitive(value: Any) -> str:
    if type(value) is int and value.bit_length() > 300:
        return f"integer of {value.bit_length()} bits"
    if type(value) in (str, bytes) and len(value) > _PREVIEW_LENGTH:
        unit = "characters" if type(value) is str else "bytes"
        return f"{len(value)} {unit}: {value[:60]!r}"
    return repr(value)


def _some(values: Iterable[Any]) -> str:
    parts: list[str] = []
    for value in values:
        if len(parts) == 5:
            parts.append("…")
            break
        known = value is None or type(value) in (bool, int, float, str, bytes)
        parts.append(_primitive(value)[:30] if known else type(value).__name__[:30])
    return ", ".join(parts)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is getattr(numpy, "ndarray", None)


def _is_frame(value: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and type(value) in (
        getattr(pandas, "DataFrame", None),
        getattr(pandas, "Series", None),
    )


def _load_error(pack: InputPack, name: str, error: Exception) -> Exception:
    from metaflow.exception import DataException

    place = f"{pack.flow}/{pack.run}/{pack.step}/{pack.task}"
    return DataException(
        f"artifact `{name}` of task `{place}` (attempt {pack.attempt}) cannot be loaded: "
        f"{type(error).__name__}: {error}; is the code it was made with importable here?"
    )


def _pickle_error(name: str, value: Any, error: Exception) -> Exception:
    from metaflow._unpicklable import find
    from metaflow.exception import UnpicklableArtifactException

    path, culprit, reason = find(value, f"self.{name}", error)
    kind = _type_text(type(culprit))[8:-2]
    return UnpicklableArtifactException(
        f"cannot pickle artifact `{name}`: `{path}` is a `{kind}`, which cannot be stored "
        f"({type(reason).__name__}: {reason}); remove it from the artifact, or make it again "
        "where it is needed"
    )
