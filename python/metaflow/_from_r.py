"""Vectors and data frames that an R flow stored, as Python objects.

R writes each column as a buffer of its own; the pickle before them calls `restore`. Data frames
become pandas', vectors and matrices numpy's; where these are not installed, dictionaries of lists
and lists.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

_NUMPY_TYPES = {"d": "<f8", "i": "<i4", "l": "<i4"}
# R's NA of integers and logicals.
_MISSING = -(2**31)


def restore(header: str, buffers: tuple[Any, ...]) -> Any:
    """What `r/src/rust/src/columns.rs` wrote."""
    description = json.loads(header)
    rest = iter(buffers)
    if "vector" in description:
        return _vector(description["vector"], rest)
    return _frame(description["frame"], rest)


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def _vector(column: dict[str, Any], buffers: Iterator[Any]) -> Any:
    if column["kind"] == "c":
        return _texts(next(buffers), next(buffers))
    if "levels" in column or "class" in column:
        return _classed(column, buffers)
    buffer, numpy = next(buffers), _numpy()
    if numpy is None:
        return _plain(column, buffer)
    values = numpy.frombuffer(buffer, _NUMPY_TYPES[column["kind"]])
    if column["kind"] == "l" and not (values == _MISSING).any():
        values = values.astype(bool)
    return values.reshape(column["dim"], order="F") if "dim" in column else values


def _classed(column: dict[str, Any], buffers: Iterator[Any]) -> Any:
    """A factor, dates or times."""
    try:
        pandas: Any = __import__("pandas")
    except ImportError:
        return _levels(column, _vector_as_list(column, buffers))
    return _column(pandas, column, buffers)


def _plain(column: dict[str, Any], buffer: Any) -> list[Any]:
    data = memoryview(buffer).cast("B")
    values: list[Any] = list(data.cast("d") if column["kind"] == "d" else data.cast("i"))
    if column["kind"] == "d":
        return values
    convert: Callable[[int], int] = bool if column["kind"] == "l" else int
    return [None if value == _MISSING else convert(value) for value in values]


def _texts(lengths: Any, data: Any) -> list[str | None]:
    text = bytes(data)
    values: list[str | None] = []
    start = 0
    for length in memoryview(lengths).cast("B").cast("i"):
        if length < 0:
            values.append(None)
            continue
        values.append(text[start : start + length].decode())
        start += length
    return values


def _frame(frame: dict[str, Any], buffers: Iterator[Any]) -> Any:
    try:
        pandas: Any = __import__("pandas")
    except ImportError:
        names, columns = frame["names"], frame["columns"]
        return {
            name: _levels(column, _vector_as_list(column, buffers))
            for name, column in zip(names, columns, strict=True)
        }
    columns = [_column(pandas, column, buffers) for column in frame["columns"]]
    index = frame["row_names"] if frame["row_names"] is not None else range(frame["rows"])
    if isinstance(index, dict):
        index = _vector(index, buffers)
    values = pandas.DataFrame(dict(enumerate(columns)), index=range(frame["rows"]))
    values.columns = frame["names"]
    values.index = pandas.Index(index)
    return values


def _vector_as_list(column: dict[str, Any], buffers: Iterator[Any]) -> list[Any]:
    if column["kind"] == "c":
        return _texts(next(buffers), next(buffers))
    return _plain(column, next(buffers))


def _levels(column: dict[str, Any], values: list[Any]) -> list[Any]:
    if "levels" not in column:
        return values
    return [None if code is None else column["levels"][code - 1] for code in values]


def _column(pandas: Any, column: dict[str, Any], buffers: Iterator[Any]) -> Any:
    import numpy

    if column["kind"] == "c":
        return numpy.array(_texts(next(buffers), next(buffers)), dtype=object)
    values = numpy.frombuffer(next(buffers), _NUMPY_TYPES[column["kind"]])
    if "levels" in column:
        codes = numpy.where(values == _MISSING, 0, values) - 1
        return pandas.Categorical.from_codes(codes, column["levels"], ordered=column["ordered"])
    if "class" in column:
        missing = values == _MISSING if column["kind"] == "i" else False
        return _time(pandas, column, numpy.where(missing, numpy.nan, values))
    if column["kind"] == "d":
        return values
    missing = values == _MISSING
    if column["kind"] == "l":
        clean = numpy.where(missing, 0, values).astype(bool)
        return pandas.arrays.BooleanArray(clean, missing) if missing.any() else clean
    return pandas.arrays.IntegerArray(values.copy(), missing) if missing.any() else values


def _time(pandas: Any, column: dict[str, Any], values: Any) -> Any:
    if column["class"] == ["Date"]:
        return pandas.to_datetime(values, unit="D")
    times = pandas.to_datetime(values, unit="s", utc=True)
    return times.tz_convert(column["zone"]) if column.get("zone") else times
