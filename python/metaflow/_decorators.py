"""`@step` and the recorders behind every other decorator: they note what the user wrote and where.

What a decorator means, which attributes it takes and whether this version has it is judged by the
engine's registry, never here. Acting on decorators inside a task belongs to `_task`.
"""

from __future__ import annotations

import sys
from types import FunctionType

from metaflow.exception import (
    BadFlowDecoratorException,
    BadStepDecoratorException,
    DuplicateFlowDecoratorException,
    DuplicateStepDecoratorException,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Protocol, TypeVar, overload

    _Decorated = TypeVar("_Decorated")

    class _Attach(Protocol):
        def __call__(self, target: _Decorated, /) -> _Decorated: ...

    class Decorator(Protocol):
        """A decorator as type checkers see it: what it decorates keeps its type."""

        @overload
        def __call__(self, target: _Decorated, /) -> _Decorated: ...

        @overload
        def __call__(self, **attributes: Any) -> _Attach: ...


_OF_STEPS = frozenset(
    {
        "airflow_external_task_sensor",
        "airflow_s3_key_sensor",
        "batch",
        "card",
        "catch",
        "conda",
        "environment",
        "kubernetes",
        "parallel",
        "pypi",
        "pytorch_parallel",
        "resources",
        "retry",
        "secrets",
        "timeout",
    }
)
_OF_FLOWS = frozenset(
    {
        "airflow_external_task_sensor",
        "airflow_s3_key_sensor",
        "conda_base",
        "exit_hook",
        "project",
        "pypi_base",
        "schedule",
        "trigger",
        "trigger_on_finish",
    }
)
# Those that may stand several times on one step or flow.
_REPEATABLE = frozenset(
    {"airflow_external_task_sensor", "airflow_s3_key_sensor", "card", "exit_hook"}
)

# Where a step function keeps its mark. `functools.wraps` copies it to a wrapper.
MARK = "__ferroflow_step__"
# Where a flow class keeps its own decorators.
USES = "__ferroflow_decorators__"


class DecoratorUse:
    """A decorator as it stands in the source."""

    __slots__ = ("attributes", "file", "line", "name")

    def __init__(self, name: str, attributes: dict[str, Any], frame: FrameType) -> None:
        self.name = name
        self.attributes = attributes
        self.file = frame.f_code.co_filename
        self.line = frame.f_lineno


class StepMark:
    """What makes a function a step: the arguments of its `@step`, and its decorators, topmost
    first."""

    __slots__ = ("decorators", "is_end", "is_start", "node_info")

    def __init__(self, is_start: bool, is_end: bool, node_info: dict[str, Any] | None) -> None:
        self.is_start = is_start
        self.is_end = is_end
        self.node_info = node_info or {}
        self.decorators: list[DecoratorUse] = []


def step(
    function: Any = None,
    *,
    start: bool = False,
    end: bool = False,
    node_info: dict[str, Any] | None = None,
) -> Any:
    """Marks a method of a flow as a step; stands directly above its `def`.

    `@step(start=True)` and `@step(end=True)` make a step of another name than `start` or `end`
    the first or the last one; `node_info` is kept beside the step in the graph.
    """
    mark = StepMark(start, end, node_info)
    frame = sys._getframe(1)
    place = (frame.f_lineno, frame.f_code.co_filename)

    def declare(candidate: Any) -> Any:
        if not isinstance(candidate, FunctionType):
            raise BadStepDecoratorException(
                f"@step marks methods of a flow, not {_kind(candidate)}: "
                "write it directly above a `def`",
                *place,
            )
        setattr(candidate, MARK, mark)
        return candidate

    return declare if function is None else declare(function)


class _Decorator:
    """Something that can be written as `@name` or as `@name(attribute=value)`."""

    __slots__ = ("__name__",)

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __repr__(self) -> str:
        return f"<decorator @{self.__name__}>"

    def __call__(self, *arguments: Any, **attributes: Any) -> Any:
        use = DecoratorUse(self.__name__, attributes, sys._getframe(1))
        if not arguments:
            return _pending(self, use)
        if len(arguments) > 1 or attributes or not callable(arguments[0]):
            raise BadStepDecoratorException(
                f"@{self.__name__} takes its attributes by name only: "
                f"write @{self.__name__}(attribute=value)",
                use.line,
                use.file,
            )
        return self.attach(arguments[0], use)

    def attach(self, target: Any, use: DecoratorUse) -> Any:
        if isinstance(target, type) and self.__name__ in _OF_FLOWS:
            return _attach_to_flow(target, use)
        if self.__name__ in _OF_STEPS:
            return _attach_to_step(target, use)
        raise BadFlowDecoratorException(
            f"@{self.__name__} decorates flows, not {_kind(target)}: "
            "write it above the class of the flow",
            use.line,
            use.file,
        )


def _pending(decorator: _Decorator, use: DecoratorUse) -> Callable[[Any], Any]:
    def attach(target: Any) -> Any:
        return decorator.attach(target, use)

    return attach


def _attach_to_step(function: Any, use: DecoratorUse) -> Any:
    mark: StepMark | None = None if isinstance(function, type) else getattr(function, MARK, None)
    if mark is None:
        what = _kind(function)
        raise BadStepDecoratorException(
            f"@{use.name} is applied to {what}, which is not declared as a step: "
            f"put @step directly above the `def`, and @{use.name} above @step",
            use.line,
            use.file,
        )
    if use.name not in _REPEATABLE and any(use.name == other.name for other in mark.decorators):
        raise DuplicateStepDecoratorException(
            f"step `{function.__name__}` already has the decorator @{use.name}: remove one of them",
            use.line,
            use.file,
        )
    # Decorators are applied from the bottom up; the list reads like the source.
    mark.decorators.insert(0, use)
    return function


def _attach_to_flow(flow_class: type, use: DecoratorUse) -> type:
    own: list[DecoratorUse] | None = flow_class.__dict__.get(USES)
    if own is None:
        own = []
        setattr(flow_class, USES, own)
    own.insert(0, use)
    uses_of_flow(flow_class)
    return flow_class


def uses_of_flow(flow_class: type) -> list[DecoratorUse]:
    """The decorators of a flow, its own before those of the classes it derives from."""
    uses: list[DecoratorUse] = []
    for ancestor in flow_class.__mro__:
        for use in ancestor.__dict__.get(USES, ()):
            if use.name not in _REPEATABLE and any(use.name == other.name for other in uses):
                raise DuplicateFlowDecoratorException(
                    f"flow `{flow_class.__name__}` already has the decorator @{use.name}, "
                    "its own or inherited: remove one of them",
                    use.line,
                    use.file,
                )
            uses.append(use)
    return uses


def mark_of(candidate: object) -> StepMark | None:
    """The mark of a class attribute, if that is a step."""
    if isinstance(candidate, FunctionType) or hasattr(candidate, "__wrapped__"):
        mark = getattr(candidate, MARK, None)
        return mark if isinstance(mark, StepMark) else None
    return None


def steps_of(flow_class: type) -> dict[str, Any]:
    """The steps of a flow by name: inherited ones first, each class's own in source order."""
    cached: dict[str, Any] | None = flow_class.__dict__.get("__ferroflow_steps__")
    if cached is not None:
        return cached
    steps: dict[str, Any] = {}
    for ancestor in reversed(flow_class.__mro__):
        for name, value in list(ancestor.__dict__.items()):
            if mark_of(value) is not None:
                steps[name] = value
            else:
                # A subclass that gives the name another meaning takes the step away.
                steps.pop(name, None)
    flow_class.__ferroflow_steps__ = steps  # type: ignore[attr-defined]
    return steps


def is_end_step(flow_class: type, name: str) -> bool:
    """Whether no step follows `name`: it is marked so, or called `end`, or the only one."""
    steps = steps_of(flow_class)
    marked = [each for each, function in steps.items() if function.__ferroflow_step__.is_end]
    if marked:
        return name in marked
    return name == "end" or len(steps) == 1


def _kind(target: object) -> str:
    if isinstance(target, type):
        return f"the class `{target.__name__}`"
    if isinstance(target, FunctionType):
        return f"the function `{target.__name__}`"
    return f"a {type(target).__name__}"


airflow_external_task_sensor: Decorator = _Decorator("airflow_external_task_sensor")
airflow_s3_key_sensor: Decorator = _Decorator("airflow_s3_key_sensor")
batch: Decorator = _Decorator("batch")
card: Decorator = _Decorator("card")
catch: Decorator = _Decorator("catch")
conda: Decorator = _Decorator("conda")
conda_base: Decorator = _Decorator("conda_base")
environment: Decorator = _Decorator("environment")
exit_hook: Decorator = _Decorator("exit_hook")
kubernetes: Decorator = _Decorator("kubernetes")
parallel: Decorator = _Decorator("parallel")
project: Decorator = _Decorator("project")
pypi: Decorator = _Decorator("pypi")
pypi_base: Decorator = _Decorator("pypi_base")
pytorch_parallel: Decorator = _Decorator("pytorch_parallel")
resources: Decorator = _Decorator("resources")
retry: Decorator = _Decorator("retry")
schedule: Decorator = _Decorator("schedule")
secrets: Decorator = _Decorator("secrets")
timeout: Decorator = _Decorator("timeout")
trigger: Decorator = _Decorator("trigger")
trigger_on_finish: Decorator = _Decorator("trigger_on_finish")
