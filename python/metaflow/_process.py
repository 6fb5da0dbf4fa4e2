"""Linux process plumbing of the fork server: subreaper, parent-death signal, walking and killing
the process tree, signal dispositions. Nothing here knows about flows, steps or tasks.
"""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    SignalHandlers = dict[int, Any]

LINUX = sys.platform == "linux"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_prctl: Callable[..., int] | None = None

# What the fork server ignores or uses itself, and a task must find as the user's import left it.
_TAKEN_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD)
_KILL_PATIENCE_SECONDS = 10.0
_LOOK_AGAIN_SECONDS = 0.02


class Detour(BaseException):
    """Unwinds the stack of a forked child up to `_main.main`, which then calls `action`: a task's
    stack must not show, nor count towards the recursion limit, what it was forked from."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__()
        self.action = action


def run_child(body: Callable[[], None]) -> NoReturn:
    """All that a forked child does. It never returns into what its parent was doing."""
    try:
        body()
    except Detour:
        raise
    except BaseException:  # noqa: BLE001 - an error of ours; the user's are handled by `_task`
        import traceback

        traceback.print_exc()
    os._exit(1)


def _call_prctl(option: int, value: int) -> None:
    global _prctl
    if not LINUX:
        return
    if _prctl is None:
        import ctypes

        _prctl = ctypes.CDLL(None, use_errno=True).prctl
    if _prctl(option, value, 0, 0, 0) != 0:
        raise OSError(f"prctl({option}) was refused by the kernel")


def become_subreaper() -> None:
    """Orphaned descendants become children of this process. Not inherited by forks."""
    _call_prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when the thread that forked it ends; leave if it has already."""
    _call_prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if LINUX and os.getppid() != parent:
        os._exit(1)


def signal_handlers() -> SignalHandlers:
    """The handlers `take_signals` and `ChildWatch` replace."""
    return {number: signal.getsignal(number) for number in _TAKEN_SIGNALS}


def take_signals() -> None:
    """Ignore what would end the fork server: that is the engine's to decide."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def give_signals_back(before: SignalHandlers) -> None:
    """Undo `take_signals` and `ChildWatch` in a forked child; may be repeated."""
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        # `None`: a handler that was not installed from Python; it cannot be put back.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


class ChildWatch:
    """A descriptor that becomes readable when a child ended (SIGCHLD)."""

    def __init__(self) -> None:
        self.read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.signal(signal.SIGCHLD, _do_nothing)
        signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)

    def clear(self) -> None:
        try:
            os.read(self.read_end, 65536)
        except BlockingIOError:
            return

    def close(self) -> None:
        os.close(self.read_end)
        os.close(self._write_end)


def _do_nothing(_number: int, _frame: Any) -> None:
    # The wake-up descriptor does the work; SIG_DFL or SIG_IGN would not write to it.
    return


def children_of(pid: int) -> list[int]:
    """Process ids of the living and unreaped children of a process."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as listing:
                while text := listing.read(1 << 20):
                    found.extend(map(int, text.split()))
        except FileNotFoundError:
            if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
                return _children_by_scan(pid)
        except OSError:
            continue
    return found


def _children_by_scan(parent: int) -> list[int]:
    """For kernels without `children` files."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            fields = process_stat(int(name))
            if fields is not None and int(fields[1]) == parent:
                found.append(int(name))
    return found


def process_stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/<pid>/stat from the state on: state, parent, process group, session …"""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            text = stat.read(4096)
    except OSError:
        return None
    return text[text.rindex(b")") + 2 :].split()


def descendants_of(pid: int) -> list[int]:
    found: list[int] = []
    pending = [pid]
    while pending:
        children = children_of(pending.pop())
        found += children
        pending += children
    return found


def kill_descendants() -> None:
    """Kill and reap until this process has no child left. As subreaper it inherits every orphan,
    so no child means no descendant."""
    give_up = time.monotonic() + _KILL_PATIENCE_SECONDS
    killed: set[int] = set()
    while True:
        stopped = _stop_descendants(killed)
        _signal_all(stopped, signal.SIGKILL)
        killed |= stopped
        # Looking at every process again costs more than waiting for those that are dying.
        if _reap_for(_LOOK_AGAIN_SECONDS) or time.monotonic() > give_up:
            return


def _stop_descendants(killed: set[int]) -> set[int]:
    """Stop all that are not being killed already. Each is stopped before its children are listed:
    the kernel lets no fork happen past a pending signal, so the list is complete and a process
    that forks faster than we look is caught all the same."""
    stopped: set[int] = set()
    pending = [os.getpid()]
    while pending:
        for child in children_of(pending.pop()):
            if child not in stopped and child not in killed:
                _signal_all({child}, signal.SIGSTOP)
                stopped.add(child)
                pending.append(child)
    return stopped


def _reap_for(patience: float) -> bool:
    """Reap what dies; whether no child is left."""
    end = time.monotonic() + patience
    while not _reap_all():
        if time.monotonic() > end:
            return False
        time.sleep(0.0005)
    return True


def _signal_all(pids: set[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _reap_all() -> bool:
    """Whether no child is left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            return False


def signal_group(pid: int, number: int) -> None:
    """Signal a task's process group; the process alone when it has not made its group yet."""
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
