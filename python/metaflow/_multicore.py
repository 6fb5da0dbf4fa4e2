"""`parallel_map` and `parallel_imap_unordered`: a function over items, each in a forked process.

Forking lets the function be anything callable and see everything its closure holds without a
copy. A result comes back through a file in memory (or in `dir`): its large buffers are mapped
where they are, so gigabytes cross without passing through a pipe.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import resource
import select
import signal
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeVar

from metaflow import _exit, _forksafety, _multicore_width, _process
from metaflow.exception import MetaflowException, MulticoreException

Item = TypeVar("Item")
Result = TypeVar("Result")

_NUMBER = struct.Struct("<Q")
_ALIGNMENT = 64
# Below this a mapping costs more than a copy.
_SMALLEST_MAPPING = 1 << 20
# Smaller buffers cost less inside the pickle.
_SMALLEST_BUFFER = 1 << 12
# A write of more than 2 GiB would be cut short by the kernel.
_LARGEST_WRITE = 1 << 30
_FAILED = 1


def parallel_map(
    func: Callable[[Item], Result],
    iterable: Iterable[Item],
    max_parallel: int | None = None,
    dir: str | None = None,
) -> list[Result]:
    """`[func(item) for item in iterable]`, each call in a process of its own.

    `max_parallel` calls run at a time: the step's cpus by default, else what this process may
    use. Results are pickled in memory, or in files in the folder `dir`. A call that fails stops
    the others and raises `MulticoreException`; the call's traceback is in the task's log.
    """
    results = sorted(_run(func, iterable, max_parallel, dir), key=lambda pair: pair[0])
    return [result for _, result in results]


def parallel_imap_unordered(
    func: Callable[[Item], Result],
    iterable: Iterable[Item],
    max_parallel: int | None = None,
    dir: str | None = None,
) -> Iterator[Result]:
    """Like `parallel_map`, but yields each result as soon as it is there."""
    for _, result in _run(func, iterable, max_parallel, dir):
        yield result


def default_width() -> int:
    """How many calls run at a time when the user does not say."""
    asked = _multicore_width.step_cpus()
    return max(1, int(asked)) if asked is not None else usable_cpus()


def usable_cpus() -> int:
    """Processors this process may use: its affinity, cut to its cgroup's quota."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, count if quota is None else min(count, -(-quota[0] // quota[1])))


def _cgroup_quota() -> tuple[int, int] | None:
    """CPU time and period of the narrowest cgroup around this process."""
    narrowest = None
    for folder in _cgroup_folders():
        found = _quota_in(folder)
        if found is not None and (
            narrowest is None or found[0] / found[1] < narrowest[0] / narrowest[1]
        ):
            narrowest = found
    return narrowest


def _cgroup_folders() -> Iterator[str]:
    """Folders of this process' cgroup and those above it. In a container the path that /proc
    tells may be the host's; the mount point itself then is the container's."""
    for line in (_text_of("/proc/self/cgroup") or "").splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            root = "/sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            root = "/sys/fs/cgroup/cpu"
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for length in range(len(parts), -1, -1):
            yield "/".join([root, *parts[:length]])


def _quota_in(folder: str) -> tuple[int, int] | None:
    unified = _text_of(f"{folder}/cpu.max")
    if unified is not None:
        quota, period = unified.split()
        return None if quota == "max" else (int(quota), int(period))
    quota_text = _text_of(f"{folder}/cpu.cfs_quota_us")
    period_text = _text_of(f"{folder}/cpu.cfs_period_us")
    if quota_text is None or period_text is None or int(quota_text) <= 0:
        return None
    return int(quota_text), int(period_text)


def _text_of(path: str) -> str | None:
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return None


class _Call:
    """One forked call."""

    def __init__(self, number: int, pid: int, file: int) -> None:
        self.number, self.pid, self.file = number, pid, file
        self.handle = _open_process(pid)

    def close(self) -> None:
        os.close(self.file)
        if self.handle is not None:
            os.close(self.handle)


def _open_process(pid: int) -> int | None:
    """A descriptor that is readable once the process ended; `None` where there is none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def _run(
    func: Callable[[Item], Result],
    iterable: Iterable[Item],
    max_parallel: int | None,
    folder: str | None,
) -> Iterator[tuple[int, Result]]:
    """Numbered results in order of completion."""
    if max_parallel is not None and max_parallel < 1:
        raise MetaflowException(f"`max_parallel` must be at least 1, it is {max_parallel}")
    width = default_width() if max_parallel is None else max_parallel
    kills_before = _out_of_memory_kills()
    waiting = enumerate(iterable)
    running: dict[int, _Call] = {}
    try:
        while True:
            while len(running) < width and (item := next(waiting, None)) is not None:
                call = _start(item[0], func, item[1], folder)
                running[call.pid] = call
            if not running:
                return
            call, code = _wait_for_one(running)
            try:
                _raise_if_failed(call, code, kills_before)
                result: Result = _load(call.file)
            finally:
                call.close()
            yield call.number, result
    finally:
        _stop(running)


def _start(number: int, func: Callable[[Item], Result], item: Item, folder: str | None) -> _Call:
    file = _result_file(folder)
    # What is not written yet would be written by the child as well.
    _exit.flush_streams()
    parent = os.getpid()
    try:
        pid = _forksafety.fork_quietly()
    except OSError:
        os.close(file)
        raise
    if pid == 0:
        _run_call(parent, func, item, file)
    return _Call(number, pid, file)


def _result_file(folder: str | None) -> int:
    if folder is None and hasattr(os, "memfd_create"):
        return os.memfd_create("parallel_map", os.MFD_CLOEXEC)
    file, path = tempfile.mkstemp(prefix="parallel_map_", dir=folder)
    os.unlink(path)
    return file


def _run_call(parent: int, func: Callable[[Item], Result], item: Item, file: int) -> NoReturn:
    code = _FAILED
    try:
        if threading.current_thread() is threading.main_thread():
            # From another thread the signal would come when that thread ends.
            _process.die_with_parent(parent)
        _save(func(item), file)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) and leaving.code else _FAILED
        print(f"a call of parallel_map left with {leaving!r}", file=sys.stderr)
    except BaseException as error:  # noqa: BLE001 - the parent raises for it
        # Without the frame that is ours.
        below = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(type(error), error, below)
    finally:
        _exit.flush_streams()
        os._exit(code)


def _save(result: Any, file: int) -> None:
    """Pickle, then each buffer at a multiple of 64 bytes, then the table of their lengths."""
    buffers: list[pickle.PickleBuffer] = []

    def keep_outside(buffer: pickle.PickleBuffer) -> bool:
        try:
            large = buffer.raw().nbytes >= _SMALLEST_BUFFER
        except BufferError:
            return True  # not contiguous: pickled like anything else
        if large:
            buffers.append(buffer)
        return not large

    with open(file, "wb", closefd=False) as out:
        pickle.Pickler(out, protocol=5, buffer_callback=keep_outside).dump(result)
        lengths = [out.tell()]
        for buffer in buffers:
            out.write(bytes(-out.tell() % _ALIGNMENT))
            view = buffer.raw()
            lengths.append(view.nbytes)
            for start in range(0, view.nbytes, _LARGEST_WRITE):
                out.write(view[start : start + _LARGEST_WRITE])
        for number in (*lengths, len(lengths)):
            out.write(_NUMBER.pack(number))


def _load(file: int) -> Any:
    """The result. Its buffers are this process' private, writable view of the file."""
    size = os.fstat(file).st_size
    content = _mapped(file, size) if size >= _SMALLEST_MAPPING else _read(file, size)
    (count,) = _NUMBER.unpack_from(content, size - _NUMBER.size)
    table = size - _NUMBER.size * (count + 1)
    lengths = [_NUMBER.unpack_from(content, table + _NUMBER.size * n)[0] for n in range(count)]
    end = lengths[0]
    buffers = []
    for length in lengths[1:]:
        start = end + -end % _ALIGNMENT
        end = start + length
        buffers.append(content[start:end])
    return pickle.loads(content[: lengths[0]], buffers=buffers)


def _mapped(file: int, size: int) -> memoryview:
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(file, size, mmap.MAP_PRIVATE, trackfd=False))
    # The mapping keeps a descriptor open: thousands of results must not use all of them up.
    if file > resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4:
        return _read(file, size)
    return memoryview(mmap.mmap(file, size, mmap.MAP_PRIVATE))


def _read(file: int, size: int) -> memoryview:
    content = memoryview(bytearray(size))
    done = 0
    while done < size:
        done += os.preadv(file, [content[done : done + _LARGEST_WRITE]], done)
    return content


def _wait_for_one(running: dict[int, _Call]) -> tuple[_Call, int]:
    """Takes a call that ended out of `running`; with its exit code. The user's own children are
    not waited for."""
    while True:
        for call in running.values():
            pid, status = os.waitpid(call.pid, os.WNOHANG)
            if pid:
                del running[pid]
                return call, os.waitstatus_to_exitcode(status)
        _sleep_until_one_ends(running)


def _sleep_until_one_ends(running: dict[int, _Call]) -> None:
    poll = select.poll()
    for call in running.values():
        if call.handle is None:
            time.sleep(0.005)
            return
        poll.register(call.handle, select.POLLIN)
    poll.poll()


def _raise_if_failed(call: _Call, code: int, kills_before: int | None) -> None:
    if code == 0:
        return
    where = f"Child failed: the call of `parallel_map` for item {call.number}"
    if code == _FAILED:
        raise MulticoreException(f"{where} raised an exception; its traceback is in the log above")
    if code > 0:
        raise MulticoreException(f"{where} ended with exit code {code} before it had a result")
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
    killed = f"{where} was killed by signal {-code} ({name})"
    kills_now = _out_of_memory_kills()
    if -code == signal.SIGKILL and (kills_now or 0) > (kills_before or 0):
        killed += ": the machine ran out of memory. Lower `max_parallel`, or ask for more memory"
    raise MulticoreException(killed)


def _out_of_memory_kills() -> int | None:
    """How many processes the kernel killed for lack of memory since it started."""
    for line in (_text_of("/proc/vmstat") or "").splitlines():
        name, _, number = line.partition(" ")
        if name == "oom_kill":
            return int(number)
    return None


def _stop(running: dict[int, _Call]) -> None:
    for call in running.values():
        os.kill(call.pid, signal.SIGKILL)
    for call in running.values():
        # User code may have waited for it.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(call.pid, 0)
        call.close()
