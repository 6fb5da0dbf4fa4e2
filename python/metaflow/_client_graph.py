"""Which tasks come before and after a task, from the run's graph and each task's place in it.

A task's place is its step and its `foreach_path` (split indices, outermost first). Two tasks of
neighbouring steps belong together when the shorter path begins the longer one: equal for linear
steps and branches, one longer behind a foreach, one shorter behind its join.
"""

from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]


def targets_of(step: Row) -> list[str]:
    """Steps that a step's `self.next` names, each once, in source order."""
    transition = step.get("transition")
    if not transition:
        return []
    if "target" in transition:
        return [transition["target"]]
    if "targets" in transition:
        return list(transition["targets"])
    return list(dict.fromkeys(case["target"] for case in transition.get("cases", [])))


def steps_before(graph: Row, name: str) -> list[str]:
    return [step["name"] for step in graph["steps"] if name in targets_of(step)]


def steps_after(graph: Row, name: str) -> list[str]:
    for step in graph["steps"]:
        if step["name"] == name:
            return targets_of(step)
    return []


def end_step(graph: Row) -> str | None:
    """The step marked as the end, else the one named `end`, else the only one."""
    names = [step["name"] for step in graph["steps"]]
    for step in graph["steps"]:
        if step.get("is_end"):
            name: str = step["name"]
            return name
    if "end" in names:
        return "end"
    return names[0] if len(names) == 1 else None


def parents(row: Row, candidates: Iterable[Row]) -> Iterator[Row]:
    """Of tasks in a step before `row`'s, those that led to it."""
    for candidate in candidates:
        if _neighbours(candidate, row) and _in_order(candidate, row):
            yield candidate


def children(row: Row, candidates: Iterable[Row]) -> Iterator[Row]:
    """Of tasks in a step after `row`'s, those that it led to."""
    for candidate in candidates:
        if _neighbours(row, candidate) and _in_order(row, candidate):
            yield candidate


def _neighbours(before: Row, after: Row) -> bool:
    targets = before.get("targets")
    if targets and after["step"] not in targets:
        return False
    one, other = before["foreach_path"], after["foreach_path"]
    shorter = min(len(one), len(other))
    return abs(len(one) - len(other)) <= 1 and one[:shorter] == other[:shorter]


def _in_order(before: Row, after: Row) -> bool:
    """Iterations of a recursive step follow one another; only the first has an outside parent."""
    if before["step"] == after["step"]:
        return bool(after["iteration"] == before["iteration"] + 1)
    return not after["iteration"]
