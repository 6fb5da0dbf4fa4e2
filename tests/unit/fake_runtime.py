"""Stands in for the SDK around the process side (`_describe`, `_task`, `_parameters`): a flow is a
class whose static methods are steps, called as `step(spec, control)`. Used by flows of the tests.
"""

from __future__ import annotations

import sys
import time
import traceback
import types
from typing import Any


def install() -> None:
    def module(name: str, **members: Any) -> None:
        made = types.ModuleType(f"metaflow.{name}")
        made.__dict__.update(members)
        sys.modules[f"metaflow.{name}"] = made
        setattr(sys.modules["metaflow"], name, made)

    import metaflow  # noqa: F401

    module("_describe", describe=describe)
    module("_task", prepare=lambda flow_class: None, run=run)
    module("_parameters", convert=convert, write=write)


def describe(flow_class: type) -> dict[str, Any]:
    failure = getattr(flow_class, "describe_failure", None)
    if failure is not None:
        raise failure
    return {"name": flow_class.__name__, "file": "flow.py", "steps": []}


def run(flow_class: type, spec: dict[str, Any], control: Any) -> int:
    code = 0
    try:
        result = getattr(flow_class, spec["step"])(spec, control)
    except SystemExit as leaving:
        result, code = None, int(leaving.code or 0)
    except BaseException:  # noqa: BLE001 - reported below
        traceback.print_exc()
        result, code = None, 1
    control.send({"type": "outcome", "result": result, "outcome": {"ok": code == 0}})
    return code


def convert(
    flow_class: type, given: dict[str, list[str]], user: str
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    if "explode" in given:
        raise ValueError("exploded")
    if "die" in given:
        import os

        os._exit(3)
    if "wrong" in given:
        return {}, {"usage": True, "headline": "Bad value", "message": "wrong is wrong"}
    return {"given": given, "user": user}, None


def write(
    flow_class: type, values: dict[str, Any], store: dict[str, Any], flow: str, run: str
) -> None:
    import json
    import os

    with open(os.path.join(store["root"], "written.json"), "w") as out:
        json.dump({"values": values, "flow": flow, "run": run}, out)


def main(flow_class: type) -> None:
    from metaflow import _main

    _main.main(flow_class)


def now() -> float:
    return time.monotonic()
