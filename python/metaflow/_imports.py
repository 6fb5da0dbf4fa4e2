"""Learned imports, task side: notices which installed packages a step's body imports, so that the
step's zygote can import them once for all later tasks.

Only imports that ran with environment, `sys.path` and working directory as the task found them
count: the zygote would get another module otherwise. The user's own modules are never learned.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType
    from typing import Any

# Quicker imports are not worth a message of their own; they are told with the next one.
_WORTH_A_MESSAGE_SECONDS = 0.005
# Modules of the standard library are worth learning from here on.
_WORTH_LEARNING_SECONDS = 0.002
# Importing these does something a user would notice.
_NEVER_LEARNED = frozenset({"antigravity", "this", "idlelib", "turtledemo", "test", "__main__"})
# Ours; setting them does not change what an import finds.
_OWN_VARIABLES = ("METAFLOW_", "FERROFLOW_")

_recorder: Recorder | None = None


def start(tell: Callable[[list[str]], None]) -> None:
    """Begin to record. `tell` is called with names as soon as they are worth it."""
    global _recorder
    _recorder = Recorder(tell)
    sys.meta_path.insert(0, _recorder)


def report() -> list[str]:
    """Modules worth importing before the next task of this step, in order of their import."""
    return [] if _recorder is None else list(_recorder.learned)


def stop() -> None:
    global _recorder
    if _recorder is not None and _recorder in sys.meta_path:
        sys.meta_path.remove(_recorder)
    _recorder = None


def _surroundings() -> tuple[dict[str, str], list[str], str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_OWN_VARIABLES)
    }
    try:
        directory = os.getcwd()
    except FileNotFoundError:
        directory = ""
    return environment, list(sys.path), directory


class Recorder:
    """A finder that finds nothing by itself: it asks the others and watches what they found being
    executed."""

    def __init__(self, tell: Callable[[list[str]], None]) -> None:
        self.learned: list[str] = []
        self._tell = tell
        self._untold: list[str] = []
        self._surroundings = _surroundings()
        self._process = os.getpid()
        self._inside_learned = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> Any:
        if self._inside_learned or os.getpid() != self._process:
            return None
        if name.partition(".")[0] in _NEVER_LEARNED:
            return None
        spec = self._ask_others(name, path, target)
        if spec is not None and is_installed(spec.origin) and self._undisturbed():
            self._watch(spec)
        return spec

    def _ask_others(self, name: str, path: Sequence[str] | None, target: ModuleType | None) -> Any:
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None

    def _undisturbed(self) -> bool:
        return self._surroundings == _surroundings()

    def _watch(self, spec: Any) -> None:
        loader = spec.loader
        if not hasattr(loader, "__dict__") or not hasattr(loader, "exec_module"):
            return
        execute = loader.exec_module

        def watched(module: ModuleType) -> None:
            del loader.exec_module
            if self._inside_learned:
                execute(module)
                return
            self._inside_learned = True
            started = time.perf_counter()
            try:
                execute(module)
            finally:
                self._inside_learned = False
            self._executed(spec.name, time.perf_counter() - started)

        loader.exec_module = watched

    def _executed(self, name: str, seconds: float) -> None:
        if name.partition(".")[0] in sys.stdlib_module_names and seconds < _WORTH_LEARNING_SECONDS:
            return
        self.learned.append(name)
        self._untold.append(name)
        if seconds >= _WORTH_A_MESSAGE_SECONDS:
            told, self._untold = self._untold, []
            self._tell(told)


_installed_roots: tuple[str, ...] | None = None


def installed_roots() -> tuple[str, ...]:
    """Folders whose modules are not the user's own: standard library and site-packages."""
    global _installed_roots
    if _installed_roots is None:
        import site

        roots = [os.path.dirname(os.__file__), *site.getsitepackages([sys.prefix, sys.base_prefix])]
        user_site = site.getusersitepackages()
        if isinstance(user_site, str):
            roots.append(user_site)
        both = {form for root in roots for form in (root, os.path.realpath(root))}
        _installed_roots = tuple(os.path.join(root, "") for root in sorted(both))
    return _installed_roots


def is_installed(origin: str | None) -> bool:
    """Whether a module's file belongs to the standard library or an installed package."""
    return origin is not None and origin.startswith(installed_roots())
