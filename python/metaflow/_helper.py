"""The helper: a fork of the server for requests that run user code (parameter defaults, unpickled
artifacts), so that what that code leaves behind - threads, sockets, changed globals - never gets
into a task.
"""

from __future__ import annotations

import os
import traceback

from metaflow import _exit
from metaflow._wire import Connection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from metaflow._wire import Message

    Error = dict[str, Any]


def serve(flow_class: type, descriptor: int) -> NoReturn:
    """Answer requests until the server closes the socket."""
    helper = Helper(flow_class)
    connection = Connection(descriptor)
    try:
        while True:
            request = connection.receive().message
            reply = helper.answer(request)
            _exit.flush_streams()
            connection.send({"id": request["id"], **reply})
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(0)


class Helper:
    def __init__(self, flow_class: type) -> None:
        self._flow_class = flow_class
        self._values: dict[str, Any] = {}

    def answer(self, request: Message) -> Message:
        try:
            result, error = self._result_of(request)
        except Exception as problem:  # noqa: BLE001 - told to the user in full
            return {"error": error_from(problem)}
        return {"error": error} if error is not None else {"ok": result}

    def _result_of(self, request: Message) -> tuple[Any, Error | None]:
        kind = request["type"]
        if kind == "dump":
            return dump(request["store"], request["request"]), None
        from metaflow import _parameters

        if kind == "convert":
            self._values, error = _parameters.convert(
                self._flow_class, request["given"], request["user"]
            )
            return None, error
        _parameters.write(
            self._flow_class, self._values, request["store"], request["flow"], request["run"]
        )
        return None, None


def error_from(problem: Exception) -> Error:
    """A `wire::FrontEndError`."""
    from metaflow.exception import MetaflowException

    if isinstance(problem, MetaflowException):
        return {
            "usage": False,
            "headline": problem.headline,
            "message": str(getattr(problem, "message", problem)),
            "file": getattr(problem, "source_file", None),
            "line": getattr(problem, "line_no", None) or 0,
        }
    text = "".join(traceback.format_exception(problem)).rstrip()
    return {"usage": False, "headline": "Internal error", "message": text}


def dump(store: Message, request: Message) -> Message:
    """Artifacts as lines of text; or, with `file`, pickled there."""
    from metaflow._artifacts import store_text

    lines: list[str] = []
    errors: list[str] = []
    values: dict[str, dict[str, Any]] = {}
    for task in request["tasks"]:
        try:
            dumped = _Task(store_text(store), task, request)
            if request["file"]:
                values[task["pathspec"]] = dumped.values(errors)
            else:
                lines += dumped.lines(errors)
        except Exception as problem:  # noqa: BLE001 - must not hide the other tasks
            errors.append(f"{task['pathspec']}: {problem}")
    if request["file"]:
        _write_pickle(request["file"], values)
    return {"lines": lines, "errors": errors}


class _Task:
    """The artifacts of one task that a dump request asks for."""

    def __init__(self, root: str, task: Message, request: Message) -> None:
        from metaflow._artifacts import InputPack

        attempt = task["attempt"]
        self._pathspec = task["pathspec"]
        self._limit = int(request["max_value_size"])
        self._pack = InputPack(
            root, task["flow"], task["run"], task["step"], attempt["task"], attempt["attempt"]
        )
        self._names = [
            name
            for name in sorted(self._pack.names())
            if (name in request["include"] if request["include"] else True)
            and (request["private"] or not name.startswith("_"))
        ]

    def values(self, errors: list[str]) -> dict[str, Any]:
        found = {}
        for name in self._names:
            try:
                found[name] = self._pack.get(name)
            except Exception as problem:  # noqa: BLE001 - unpickling may raise anything
                errors.append(f"{self._pathspec}: {problem}")
        return found

    def lines(self, errors: list[str]) -> list[str]:
        return [self._line(name, errors) for name in self._names]

    def _line(self, name: str, errors: list[str]) -> str:
        info = self._pack.info(name)
        size = int(info["size"])
        text = "< artifact too large >"
        if self._limit > 0 and size <= self._limit:
            try:
                text = str(self._pack.get(name))
            except Exception as problem:  # noqa: BLE001 - so may `str`
                text = "< cannot be read >"
                errors.append(f"{self._pathspec}: {problem}")
        return f"{name} [size: {size} type: {_class_text(info['type'])}] = {text}"


def _class_text(type_name: str) -> str:
    return type_name if type_name.startswith("<class") else f"<class '{type_name}'>"


def _write_pickle(path: str, values: dict[str, dict[str, Any]]) -> None:
    import pickle

    try:
        with open(path, "wb") as out:
            pickle.dump(values, out, protocol=pickle.HIGHEST_PROTOCOL)
    except OSError as error:
        from metaflow.exception import MetaflowException

        raise MetaflowException(
            f"the artifacts cannot be written to `{path}`: {error.strerror}"
        ) from error
