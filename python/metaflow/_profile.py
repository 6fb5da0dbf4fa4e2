"""`profile`: how long a block of code took."""

from __future__ import annotations

import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def profile(label: str, stats_dict: MutableMapping[str, Any] | None = None) -> Iterator[None]:
    """Measure the block in milliseconds.

    Prints a line before and one after it; with `stats_dict`, adds the time to
    `stats_dict[label]` and prints nothing. A block that raises is not counted.
    """
    if stats_dict is None:
        print(f"PROFILE: {label} starting")
    started = time.perf_counter()
    yield
    took = int((time.perf_counter() - started) * 1000)
    if stats_dict is None:
        print(f"PROFILE: {label} completed in {took}ms")
    else:
        stats_dict[label] = stats_dict.get(label, 0) + took
