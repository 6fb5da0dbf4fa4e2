"""What a remote task prints, on its way to the artifact store; and the run's lease. One thread does
all that waits for the store, so that the task never waits for a store that does not answer.

The format is `core::log_segment`'s.
"""

from __future__ import annotations

import json
import os
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from metaflow._remote_store import Store

# A segment is written anew, longer, with each flush until it has this size.
SEGMENT_SIZE = 128 << 10
# Of a task that prints faster than that.
_LARGEST_SEGMENT = 1 << 20
# At most one write of a segment in so many seconds; after MANY_WRITES of them, in twice as many.
# So a task costs at most 400 writes and then 2,400 an hour, however much it prints.
_BETWEEN_WRITES = 0.75
MANY_WRITES = 400
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)
# Kept while the store cannot be reached; what is beyond is in the container's own log only.
_MOST_PENDING = 8 << 20
# A task that prints faster than a working store takes it waits from here on.
_MANY_PENDING = 4 << 20
_LAST_FLUSH_SECONDS = 30.0


class Lease:
    """Whether an engine still renews the run's lease. Judged by how long its contents have not
    changed, so that no two clocks are compared."""

    def __init__(self, store: Store, key: str, seconds: float) -> None:
        self._store = store
        self._key = key
        self._seconds = seconds
        self._contents: bytes | None = None
        self._seen = time.monotonic()
        self._next = self._seen + self._between()
        self.expired = False

    def _between(self) -> float:
        return min(60.0, self._seconds / 4)

    def due_in(self, now: float) -> float:
        return max(0.0, self._next - now)

    def look(self) -> None:
        now = time.monotonic()
        self._next = now + self._between()
        try:
            contents = self._store.get(self._key)
        except OSError:
            # A store that cannot be reached says nothing about the engine, until it has for long.
            contents = self._contents
        if contents != self._contents:
            self._contents, self._seen = contents, now
        self.expired = now - self._seen > self._seconds


def _chunk(letter: str, data: bytes) -> bytes:
    return f"{int(time.time() * 1000)} {letter} {len(data)} ".encode() + data + b"\n"


class Shipper:
    """Writes what is added to the store, soon but not too often."""

    def __init__(self, store: Store, prefix: str, lease: Lease, wake: int) -> None:
        self.lease = lease
        self._store = store
        self._prefix = prefix
        self._wake = wake
        self._changed = threading.Condition()
        self._pending = bytearray()
        self._dropped = 0
        self._closing = False
        self._give_up_at = 0.0
        self._thread = threading.Thread(target=self._work, daemon=True, name="log")
        # Of the thread alone.
        self._segment = bytearray()
        self._number = 0
        self._writes = 0
        self._failures = 0
        self._last_error = ""
        self._refused = False
        self._next_write = 0.0

    def start(self) -> None:
        self._thread.start()

    def add(self, letter: str, data: bytes) -> None:
        chunk = _chunk(letter, data)
        with self._changed:
            if len(self._pending) > _MOST_PENDING:
                self._dropped += len(data)
                return
            was_empty = not self._pending
            self._pending += chunk
            if was_empty:
                self._changed.notify()

    @property
    def is_full(self) -> bool:
        """Nothing more should be added before the supervisor is woken."""
        return len(self._pending) > _MANY_PENDING and not self._failures

    def finish(self, message: dict[str, Any]) -> str | None:
        """Writes what is left, and behind it how the task ended; a sentence when not all of it
        could be written."""
        ending = _chunk("x", json.dumps(message).encode())
        with self._changed:
            if not self._dropped:
                self._pending += ending
            self._closing = True
            self._give_up_at = time.monotonic() + _LAST_FLUSH_SECONDS
            self._changed.notify()
        self._thread.join(_LAST_FLUSH_SECONDS * 2)
        lost = self._dropped + len(self._pending)
        if not lost:
            return None
        return f"the last {lost} bytes of the log are not in the store: {self._last_error}"

    def say_ending(self, message: dict[str, Any]) -> None:
        """For layers whose containers have no termination message. Best effort: the exit code
        says what is most important."""
        data = json.dumps(message).encode()
        for wait in (0.5, 1.0, 2.0, None):
            try:
                self._store.put(f"{self._prefix}end", data)
                return
            except (PermissionError, FileNotFoundError):
                return
            except OSError:
                if wait is not None:
                    time.sleep(wait)

    def has(self, key: str) -> bool:
        """Whether the store has that object."""
        return self._store.get(key) is not None

    def _work(self) -> None:
        while True:
            with self._changed:
                while (patience := self._patience()) > 0:
                    self._changed.wait(patience)
                if self._closing and not self._pending:
                    return
                taken = self._take()
            if taken and not self._write(taken):
                with self._changed:
                    if self._closing and (self._refused or time.monotonic() > self._give_up_at):
                        return
            if not self._closing and self.lease.due_in(time.monotonic()) == 0:
                self.lease.look()
                if self.lease.expired:
                    self._wake_supervisor()

    def _patience(self) -> float:
        """Seconds until there is something to do."""
        now = time.monotonic()
        if self._closing:
            # The last words do not wait, unless the store has just refused some.
            return max(0.0, self._next_write - now) if self._failures and self._pending else 0.0
        if self._pending:
            return min(self._next_write - now, self.lease.due_in(now))
        return self.lease.due_in(now)

    def _take(self) -> bytes:
        if not self._pending or (not self._closing and time.monotonic() < self._next_write):
            return b""
        room = max(1, SEGMENT_SIZE - len(self._segment))
        if not self._segment:
            room = max(room, min(len(self._pending), _LARGEST_SEGMENT))
        return bytes(self._pending[:room])

    def _write(self, taken: bytes) -> bool:
        """Writes the current segment with `taken` behind what it has. Chunks may be cut anywhere:
        readers put segments together."""
        longer = bytes(self._segment + taken)
        try:
            self._store.put(f"{self._prefix}{self._number:06}", longer)
        except OSError as error:
            self._last_error = str(error)
            self._refused = isinstance(error, (PermissionError, FileNotFoundError))
            wait = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
            self._failures += 1
            self._wake_supervisor()
            self._next_write = time.monotonic() + wait
            return False
        self._failures, self._refused = 0, False
        self._writes += 1
        self._segment += taken
        if len(self._segment) >= SEGMENT_SIZE:
            self._segment.clear()
            self._number += 1
        with self._changed:
            was_full = len(self._pending) > _MANY_PENDING
            del self._pending[: len(taken)]
        if was_full:
            self._wake_supervisor()
        behind = len(self._pending) >= SEGMENT_SIZE
        between = _BETWEEN_WRITES if self._writes < MANY_WRITES else 2 * _BETWEEN_WRITES
        self._next_write = time.monotonic() + (0.0 if behind else between)
        return True

    def _wake_supervisor(self) -> None:
        try:
            os.write(self._wake, b"\0")
        except BlockingIOError:
            return  # full, so it wakes anyway
