"""Starting a fresh interpreter on the flow: for spawned tasks, for a step's zygote with another
environment, and for the twin. What it does then is decided in `_main` by a variable that names a
descriptor it inherits.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn


def command() -> list[str]:
    """The command line the user typed, unbuffered. `sys.argv` will be the same again."""
    return [sys.executable, "-u", *sys.orig_argv[1:]]


def original_directory() -> str:
    """Where the interpreter was started, whatever the flow's import did since."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    for argument in sys.orig_argv[1:]:
        # Since 3.9 `__file__` is the absolute path of the script as it was typed.
        if isinstance(file, str) and argument.endswith(".py") and not os.path.isabs(argument):
            suffix = os.sep + argument
            if file.endswith(suffix):
                return file[: -len(suffix)] or os.sep
    shell_directory = os.environ.get("PWD", "")
    return shell_directory if os.path.isdir(shell_directory) else os.getcwd()


def become_fresh(
    descriptors: Mapping[str, int],
    directory: str,
    environment: Mapping[str, str],
    extra: Mapping[str, str] | None = None,
) -> NoReturn:
    """Replace this (forked) process. Each descriptor is inherited and named by its variable."""
    variables = {**environment, **(extra or {})}
    for variable, descriptor in descriptors.items():
        os.set_inheritable(descriptor, True)
        variables[variable] = str(descriptor)
    os.chdir(directory)
    os.execve(sys.executable, command(), variables)


def silence() -> None:
    """Connect the standard streams' descriptors to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    if null > 2:
        os.close(null)


def start_silently(descriptors: Mapping[str, int]) -> int:
    """Fork and run a fresh interpreter without input and output; returns its process id."""
    from metaflow import _forksafety, _origin

    pid = _forksafety.fork_quietly()
    if pid != 0:
        return pid
    try:
        _origin.give_back_for_exec()
        silence()
        become_fresh(descriptors, _origin.get().directory, _origin.get().environment)
    finally:
        os._exit(1)
