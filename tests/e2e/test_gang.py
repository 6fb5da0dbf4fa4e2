"""`num_parallel` on this machine: ranks run at the same time, are joined in order, and start again
together."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import REPOSITORY, client, nothing_left, run_flow

GANG = REPOSITORY / "tests/e2e/flows/gang.py"


def joined(folder: Path, run: str) -> list[str]:
    return client(
        folder,
        f"""
        run = Run("GangFlow/{run}")
        join = run["join"].task.data
        print(join.places)
        print(join.heard)
        print(join.wheres)
        print(join.outside)
        train = run["train"]
        print(train.control_task.id, sorted((t.id, t.current_attempt) for t in train))
        """,
    )


def test_ranks_run_together_and_are_joined_in_order(folder: Path) -> None:
    # One worker is enough: a gang cannot wait for a part of itself.
    result = run_flow(folder, GANG, "run", "--max-workers", "1", deadline=60).ok()
    assert joined(folder, result.run_id) == [
        "[(0, 3, '2'), (1, 3, '2'), (2, 3, '2')]",
        "[[1, 2], 'welcome', 'welcome']",
        str([(i, i, [(i, None, i)], True) for i in range(3)]),
        "(None, None, [], False)",
        "2 [('2', 0), ('3', 0), ('4', 0)]",
    ]


@pytest.mark.parametrize("way", ["fails", "killed"])
def test_when_a_rank_fails_all_start_again(folder: Path, way: str) -> None:
    result = run_flow(folder, GANG, "run", f"--{way}", "1", deadline=60).ok()
    # Rank 0 waits for the rank that failed; rank 2 may have been served and done.
    stopped = "[1/train/2 (pid N)] Stopped because task 3 of its gang did not end well."
    assert stopped in result.lines, result.out
    assert joined(folder, result.run_id)[4] == "2 [('2', 1), ('3', 1), ('4', 1)]"


def test_a_gang_that_fails_for_good_leaves_nothing(folder: Path) -> None:
    flow = GANG.read_text().replace("times=1", "times=0")
    result = run_flow(folder, flow, "run", "--fails", "2", deadline=60).exited(1)
    assert "Step train (task-id 4) failed." in result.stderr
    nothing_left(folder)


def test_a_wrong_number_of_ranks_is_told(folder: Path) -> None:
    result = run_flow(folder, GANG, "run", "--ranks", "0").exited(1)
    assert "`num_parallel` must be a whole number, at least 1, not 0" in result.stdout
