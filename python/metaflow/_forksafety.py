"""Whether a process that imported the flow may fork its tasks, decided by what the import left
behind and not by module names: threads, sockets, event queues, GPU devices, open files, children.

What to do instead of forking does not belong here.
"""

from __future__ import annotations

import os
import stat
import sys

from metaflow import _process

# Threads (by their kernel name) whose owner handles forks itself.
_BENIGN_THREADS = frozenset({"jemalloc_bg_thd"})
_GPU_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri/")
_NATIVE_MODULE_SUFFIXES = (".so", ".pyd", ".dylib")


class Residue:
    """What was there before the import in question and is no news."""

    __slots__ = ("children", "descriptors", "threads")

    def __init__(
        self, threads: frozenset[int], descriptors: frozenset[int], children: frozenset[int]
    ) -> None:
        self.threads = threads
        self.descriptors = descriptors
        # A zygote that learns an import has tasks running.
        self.children = children


NOTHING = Residue(frozenset(), frozenset(), frozenset())


def residue() -> Residue:
    return Residue(
        frozenset(_thread_ids()),
        frozenset(open_descriptors()),
        frozenset(_process.children_of(os.getpid())),
    )


def reason_against_forking(before: Residue = NOTHING, imported: str | None = None) -> str | None:
    """One line that names what forbids forking this process, or `None`. `imported` is the package
    to blame; without it the flow's import is, or the package that can be told."""
    if not _process.LINUX:
        return f"forking is only trusted on Linux, this is {sys.platform}"
    return (
        _python_threads(imported)
        or _native_threads(before.threads, imported)
        or _descriptors(before.descriptors, imported)
        or _child_processes(before.children, imported)
        or _temporary_directories(imported)
    )


def _by_import_of(imported: str | None) -> str:
    return f"by importing {imported or 'the flow'}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _python_threads(imported: str | None) -> str | None:
    threading = sys.modules.get("threading")
    if threading is None:
        return None
    names = [
        thread.name for thread in threading.enumerate() if thread is not threading.main_thread()
    ]
    if not names:
        return None
    return f"thread `{names[0]}` started {_by_import_of(imported)}"


def _thread_ids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except FileNotFoundError:
        return []


def is_single_threaded() -> bool:
    return len(_thread_ids()) < 2


def _native_threads(before: frozenset[int], imported: str | None) -> str | None:
    if is_single_threaded():
        return None
    # OpenBLAS and its like stop their threads when a process forks: what is left after a fork
    # is what counts.
    _fork_and_forget()
    left = [
        name
        for thread in _thread_ids()
        if thread != os.getpid() and thread not in before
        if (name := _thread_name(thread)) is not None and name not in _BENIGN_THREADS
    ]
    if not left:
        return None
    blamed = imported or _package_of_thread(left) or _only_native_package()
    return f"{_counted(len(left), 'native thread')} started {_by_import_of(blamed)}"


def _fork_and_forget() -> None:
    pid = fork_quietly()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def fork_quietly() -> int:
    """`os.fork` without the warning that a process with native threads forks: whoever calls this
    has looked at the threads."""
    if is_single_threaded():
        return os.fork()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return os.fork()


def _thread_name(thread: int) -> str | None:
    try:
        with open(f"/proc/self/task/{thread}/comm", encoding="utf-8", errors="replace") as name:
            return name.read().strip()
    except OSError:
        return None


def _package_of_thread(names: list[str]) -> str | None:
    """A thread called `polars-3` was started by polars."""
    for thread_name in names:
        start = thread_name.lower()
        for package in native_packages():
            if len(package) > 2 and start.startswith(package.lower()):
                return package
    return None


def _only_native_package() -> str | None:
    packages = native_packages()
    return packages[0] if len(packages) == 1 else None


def native_packages() -> list[str]:
    """Imported top-level packages, outside the standard library, with a native module."""
    found = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and file.endswith(_NATIVE_MODULE_SUFFIXES):
            found.add(name.partition(".")[0])
    return sorted(found - sys.stdlib_module_names - {"metaflow"})


def open_descriptors() -> list[int]:
    try:
        names = os.listdir("/proc/self/fd")
    except FileNotFoundError:
        return []
    # The listing itself holds one descriptor, closed by now.
    return [number for number in map(int, names) if _is_open(number)]


def _is_open(number: int) -> bool:
    try:
        os.get_inheritable(number)
    except OSError:
        return False
    return True


def is_written_file(number: int) -> bool:
    """Whether this is a file that Python code has opened for writing."""
    try:
        if os.get_inheritable(number) or not stat.S_ISREG(os.fstat(number).st_mode):
            return False
        import fcntl

        return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    except OSError:
        return False


def _descriptors(before: frozenset[int], imported: str | None) -> str | None:
    for number in open_descriptors():
        # Descriptors that survive exec came from the shell and reach every process alike.
        if number < 3 or number in before or os.get_inheritable(number):
            continue
        what = _troublesome_descriptor(number)
        if what is not None:
            return f"{what} opened {_by_import_of(imported)}"
    return None


def _troublesome_descriptor(number: int) -> str | None:
    try:
        target = os.readlink(f"/proc/self/fd/{number}")
        mode = os.fstat(number).st_mode
    except OSError:
        return None
    if stat.S_ISSOCK(mode):
        return "a socket"
    if target.startswith("anon_inode:"):
        return f"an {target.removeprefix('anon_inode:').strip('[]')} descriptor"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if target.startswith(_GPU_DEVICES):
        return f"the GPU device {target}"
    if stat.S_ISREG(mode) and not _appends(number):
        # Forked tasks would share one read or write position.
        return f"the file {target}"
    return None


def _appends(number: int) -> bool:
    import fcntl

    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    return bool(flags & os.O_APPEND) and bool(flags & os.O_WRONLY)


def _child_processes(before: frozenset[int], imported: str | None) -> str | None:
    children = set(_process.children_of(os.getpid())) - before
    if not children:
        return None
    return f"{_counted(len(children), 'child process')} started {_by_import_of(imported)}".replace(
        "processs", "processes"
    )


def _temporary_directories(imported: str | None) -> str | None:
    """The first task to end would delete a directory that all of them share."""
    weakref, tempfile = sys.modules.get("weakref"), sys.modules.get("tempfile")
    if weakref is None or tempfile is None:
        return None
    cleanup = tempfile.TemporaryDirectory._cleanup
    for finalizer in list(weakref.finalize._registry):
        details = finalizer.peek()
        if details is not None and getattr(details[1], "__func__", details[1]) in (
            cleanup,
            getattr(cleanup, "__func__", cleanup),
        ):
            return f"a temporary directory made {_by_import_of(imported)}"
    return None
