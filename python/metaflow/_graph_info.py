"""The graph as `current.graph` shows it, made from the IR: a dictionary of plain data."""

from __future__ import annotations

import os

from metaflow._decorators import is_end_step, steps_of
from metaflow._describe import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_KINDS = {
    "foreach": "split-foreach",
    "linear": "linear",
    "parallel": "split-parallel",
    "split": "split-static",
    "switch": "split-switch",
}


def graph_info(flow_class: type) -> dict[str, Any]:
    """File, steps, parameters, constants and decorators of a flow."""
    flow = describe(flow_class)
    steps = {step["name"]: step for step in flow["steps"]}
    start, end = _ends(flow_class)
    joins = _matching_joins(steps, start)
    return {
        "file": os.path.basename(flow["file"]),
        "start_step": start,
        "end_step": end,
        "parameters": [
            {"name": each["attribute"], "type": each["type"]} for each in flow["parameters"]
        ],
        "constants": flow["constants"],
        "steps": {
            name: _step(flow_class, step, start, end, joins.get(name))
            for name, step in steps.items()
        },
        "graph_structure": _structure(steps, joins, start, None),
        "doc": flow["doc"] or "",
        "decorators": [_decorator(each) for each in flow["decorators"]],
        "extensions": {},
    }


def _ends(flow_class: type) -> tuple[str | None, str | None]:
    steps = steps_of(flow_class)
    marked = [name for name, function in steps.items() if function.__ferroflow_step__.is_start]
    start = marked[0] if marked else "start" if "start" in steps else next(iter(steps), None)
    ends = [name for name in steps if is_end_step(flow_class, name)]
    return start, ends[0] if ends else None


def _targets(step: dict[str, Any]) -> list[str]:
    transition = step["transition"] or {}
    if "cases" in transition:
        return list(dict.fromkeys(case["target"] for case in transition["cases"]))
    if "targets" in transition:
        return list(transition["targets"])
    return [transition["target"]] if "target" in transition else []


def _is_split(step: dict[str, Any]) -> bool:
    return (step["transition"] or {}).get("kind") in ("split", "foreach", "parallel")


def _step(
    flow_class: type, step: dict[str, Any], start: str | None, end: str | None, join: str | None
) -> dict[str, Any]:
    name = step["name"]
    transition = step["transition"] or {}
    kind = _KINDS.get(transition.get("kind", ""), "linear")
    if step["arguments"] == 2:
        kind = "join"
    elif name == start and kind == "linear":
        kind = "start"
    elif name == end:
        kind = "end"
    info = {
        "name": name,
        "type": kind,
        "line": step["line"],
        "source_file": step["file"],
        "doc": step["doc"] or "",
        "decorators": [_decorator(each) for each in step["decorators"]],
        "next": _targets(step),
        "node_info": steps_of(flow_class)[name].__ferroflow_step__.node_info,
    }
    if transition.get("kind") == "foreach":
        info["foreach_artifact"] = transition["variable"]
    if transition.get("kind") == "switch":
        info["condition"] = transition["condition"]
        info["switch_cases"] = {case["key"]: case["target"] for case in transition["cases"]}
    if join is not None:
        info["matching_join"] = join
    return info


def _decorator(decorator: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": decorator["name"],
        "attributes": decorator["attributes"],
        "statically_defined": decorator["in_source"],
        "inserted_by": None,
    }


def _matching_joins(steps: dict[str, Any], start: str | None) -> dict[str, str]:
    """The join that closes each split: walking forward, every join closes the innermost split."""
    joins: dict[str, str] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    pending: list[tuple[str, tuple[str, ...]]] = [(start, ())] if start else []
    while pending:
        name, splits = pending.pop()
        step = steps.get(name)
        if step is None or (name, splits) in seen:
            continue
        seen.add((name, splits))
        if step["arguments"] == 2 and splits:
            joins.setdefault(splits[-1], name)
            splits = splits[:-1]
        if _is_split(step):
            splits = (*splits, name)
        pending.extend((target, splits) for target in _targets(step))
    return joins


def _structure(
    steps: dict[str, Any], joins: dict[str, str], name: str | None, until: str | None
) -> list[Any]:
    """Names of steps in order; a split is followed by the list of its branches."""
    structure: list[Any] = []
    seen: set[str] = set()
    while name is not None and name != until and name in steps and name not in seen:
        seen.add(name)
        structure.append(name)
        targets = _targets(steps[name])
        join = joins.get(name)
        if _is_split(steps[name]) and join is not None:
            structure.append([_structure(steps, joins, target, join) for target in targets])
            name = join
        elif len(targets) > 1:
            ahead = [target for target in targets if target not in seen]
            structure.append([_structure(steps, joins, target, until) for target in ahead])
            name = None
        else:
            name = targets[0] if targets else None
    return structure
