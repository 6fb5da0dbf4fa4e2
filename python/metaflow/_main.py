"""What `MyFlow()` does: describes the flow, hands it to the engine and becomes its fork server; or,
in an interpreter that we started ourselves, runs the task, the zygote or the twin it is there for.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_ENGINE_VARIABLE = "FERROFLOW_ENGINE"
_EXECUTABLE_STARTS = (b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe")


def main(flow_class: type) -> None:
    """Never returns to the flow file."""
    from metaflow._process import Detour

    try:
        _choose_role(flow_class)
    except Detour as detour:
        action = detour.action
    action()


def _choose_role(flow_class: type) -> NoReturn:
    from metaflow import _child, _isolation, _server

    if (control := _descriptor(_child.TASK_VARIABLE)) is not None:
        _child.run_spawned(flow_class, control, _descriptor(_child.SPEC_VARIABLE))
    if (twin := _descriptor(_isolation.TWIN_VARIABLE)) is not None:
        _isolation.write_digests(twin)
        os._exit(0)
    if (zygote := _descriptor(_server.ZYGOTE_VARIABLE)) is not None:
        _serve_fresh_zygote(flow_class, zygote)
    _start(flow_class)


def _descriptor(variable: str) -> int | None:
    """A descriptor this interpreter was started for. The variable must not reach what the user's
    code starts."""
    text = os.environ.pop(variable, None)
    if text is None:
        return None
    os.set_inheritable(int(text), False)
    return int(text)


def _start(flow_class: type) -> NoReturn:
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if not isinstance(file, str) or not os.path.isfile(file):
        _refuse(
            f"`{flow_class.__name__}()` runs a flow from a file; this is an interactive session or "
            "a notebook. Save the flow as flow.py and run `python flow.py run`"
        )
    _fill_standard_descriptors()
    description = _describe(flow_class)
    engine = _find_engine()
    _hand_over(flow_class, engine, _hello(description))


def _fill_standard_descriptors() -> None:
    """Where the caller closed stdin, stdout or stderr (`>&-`), our sockets would take the number,
    and the engine's output would go into them."""
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.open(os.devnull, os.O_RDWR)
    os.close(descriptor)


def _describe(flow_class: type) -> dict[str, Any]:
    from metaflow import _describe as describer
    from metaflow.exception import MetaflowException

    try:
        return describer.describe(flow_class)
    except MetaflowException as problem:
        print_problem(problem)
        sys.exit(1)


def print_problem(problem: Any) -> None:
    """An error of the flow's, in the shape all of them have."""
    place = ""
    if source := getattr(problem, "source_file", None):
        place += f" in file {source}"
    if line := getattr(problem, "line_no", None):
        place += f" on line {line}"
    message = str(getattr(problem, "message", problem))
    lines = [f"{problem.headline}{place}:", *message.splitlines()]
    print("\n".join(f"    {line}" if line else "" for line in lines) + "\n", file=sys.stderr)


def _refuse(sentence: str) -> NoReturn:
    print(sentence + ".", file=sys.stderr)
    sys.exit(1)


def _find_engine() -> str:
    chosen = os.environ.get(_ENGINE_VARIABLE)
    if chosen:
        if not os.access(chosen, os.X_OK):
            _refuse(f"{_ENGINE_VARIABLE} names `{chosen}`, which is not an executable file")
        return chosen
    candidates = [
        os.path.join(os.path.dirname(sys.executable), "metaflow"),
        *_script_directories(),
        os.path.join(os.path.dirname(__file__), "_bin", "metaflow"),
    ]
    stranger = None
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            if _is_native(candidate):
                return candidate
            stranger = stranger or candidate
    if stranger is not None:
        _refuse(
            f"`{stranger}` belongs to the Python package `metaflow`, which cannot be installed "
            "beside `ferroflow`: run `pip uninstall metaflow`, then "
            "`pip install --force-reinstall ferroflow`"
        )
    _refuse(
        f"the engine `metaflow` was not found beside {sys.executable}: reinstall it with "
        f"`pip install --force-reinstall ferroflow`, or set {_ENGINE_VARIABLE} to its path"
    )


def _script_directories() -> list[str]:
    import sysconfig

    schemes = ["posix_prefix", "posix_user"]
    return [os.path.join(sysconfig.get_path("scripts", scheme), "metaflow") for scheme in schemes]


def _is_native(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) in _EXECUTABLE_STARTS
    except OSError:
        return False


def _hello(description: dict[str, Any]) -> dict[str, Any]:
    from metaflow._wire import PROTOCOL_VERSION

    return {
        "protocol": PROTOCOL_VERSION,
        "language": "python",
        "language_version": ".".join(map(str, sys.version_info[:3])),
        "executable": sys.executable,
        "script": sys.argv[0],
        "module": _module_of_package(),
        "arguments": sys.argv[1:],
        "pid": os.getpid(),
        "module_folder": os.path.dirname(os.path.abspath(__file__)),
        "flow": description,
    }


def _module_of_package() -> str | None:
    """What the user typed behind `-m`, if relative imports depend on it."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None and spec.parent else None


def _hand_over(flow_class: type, engine: str, hello: dict[str, Any]) -> NoReturn:
    """The engine takes this process over, so that it has the signals and the exit code; the
    forked child serves it."""
    import socket

    from metaflow import _exit, _forksafety, _origin, _process, _server

    _origin.remember()
    engine_end, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    _exit.flush_streams()
    # Ctrl-C between the fork and the server's precautions must not hit only one of the two.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if _forksafety.fork_quietly() == 0:
        _process.take_signals()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        engine_end.close()
        descriptor = server_end.detach()
        _process.run_child(lambda: _server.serve(flow_class, descriptor, hello))
    os.set_inheritable(engine_end.fileno(), True)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        os.execv(engine, [engine, "flow", "--socket-fd", str(engine_end.fileno())])
    except OSError as error:
        _refuse(f"the engine `{engine}` cannot be executed: {error.strerror}")


def _serve_fresh_zygote(flow_class: type, descriptor: int) -> NoReturn:
    """This interpreter has imported the flow with a step's `@environment`."""
    import json

    from metaflow import _isolation, _origin, _process, _server, _zygote

    settings = json.loads(os.environ.pop(_server.ZYGOTE_SETTINGS_VARIABLE))

    def serve() -> None:
        os.set_inheritable(settings["took_over"], False)
        origin = _origin.remember(frozenset({descriptor, settings["took_over"]}))
        _process.take_signals()
        actions: list[Any] | None = []
        if origin.spawn_reason is None and not settings["spawn"]:
            actions = _isolation.actions_now(origin.random_module_state, flow_class)
            _zygote.prepare(flow_class)
        chosen = _zygote.settings_from(settings)
        if actions is None:
            chosen.spawn_reason = _isolation.TWIN_FAILED
        os.write(settings["took_over"], b"1")
        os.close(settings["took_over"])
        _zygote.serve(flow_class, descriptor, chosen, actions or [], {})

    _process.run_child(serve)
