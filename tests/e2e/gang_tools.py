"""Gangs on a real cluster: their flow, and one whose ranks all run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import REPOSITORY, client
from kubernetes_tools import Started, started

GANG = REPOSITORY / "tests/e2e/flows/gang.py"
WITH = ("--with", "kubernetes:cpu=0.1,memory=128")
RUN = ("run", *WITH)
# In a resumed run the ranks do not wait for somebody to end them.
WAITS = """
        print("rank", place.node_index, "is in the gang", flush=True)
        time.sleep(0 if current.origin_run_id else 600)
        self.next(self.join)
"""


def joined(folder: Path, run: str, environment: dict[str, str]) -> list[str]:
    return client(
        folder,
        f"""
        run = Run("GangFlow/{run}")
        join = run["join"].task.data
        print(join.places)
        print(join.heard)
        print(join.hosts)
        train = run["train"]
        print(train.control_task.id, sorted((t.id, t.current_attempt) for t in train))
        """,
        env=environment,
    )


@contextmanager
def gang(folder: Path, environment: dict[str, str], then: str = WAITS) -> Iterator[Started]:
    """A gang whose ranks have found each other; `then` is what they do next."""
    source = GANG.read_text()
    source = source.replace("\n        self.next(self.join)\n", then, 1)
    with started(folder, source, *WITH, env=environment) as run:
        for rank in range(3):
            run.wait_shown(f"rank {rank} is in the gang", 120)
        yield run
