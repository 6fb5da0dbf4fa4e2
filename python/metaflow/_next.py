"""What `self.next` checks when it runs, and the transition that follows from it.

That the transition is the one in the source is checked by the engine.
"""

from __future__ import annotations

from itertools import islice

from metaflow._decorators import steps_of
from metaflow._state import TakenTransition
from metaflow.exception import InvalidNextException

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from metaflow._flow import FlowSpec

# A generator is drained to count its items; this far past the limit it counts as endless.
_DRAIN_MARGIN = 1_000_000
_COUNTED_BY_LEN = (list, tuple, range, str, bytes, dict, set, frozenset)
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_OPTIONS = frozenset({"condition", "foreach", "num_parallel"})


def take_transition(
    flow: FlowSpec, targets: tuple[Any, ...], options: dict[str, Any], line: int
) -> None:
    """Checks a call of `self.next` and notes the transition on the flow."""
    state = flow.__ferroflow__
    if state is None:
        raise InvalidNextException("self.next can only be called inside a running step", line)
    if state.transition is not None:
        before = state.transition.line
        raise InvalidNextException(
            f"step `{state.step}` has called self.next already on line {before}: "
            "call it once, as the last line of the step",
            line,
        )
    _check_options(state.step, targets, options, line)
    if options.get("condition") is not None:
        state.transition = _switch(flow, state.step, targets[0], options["condition"], line)
        return
    names = [_target_name(flow, state.step, target, line) for target in targets]
    if options.get("foreach") is not None:
        state.transition = _foreach(flow, state.step, names, options["foreach"], line)
        return
    ranks = options.get("num_parallel")
    state.transition = TakenTransition(
        names, line, num_splits=None if ranks is None else int(ranks)
    )


def _check_options(step: str, targets: tuple[Any, ...], options: dict[str, Any], line: int) -> None:
    def refuse(problem: str) -> InvalidNextException:
        return InvalidNextException(f"in step `{step}`, {problem}", line)

    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise refuse(
            f"self.next has no argument `{unknown[0]}`: it takes steps and `foreach`, "
            "`num_parallel` or `condition`"
        )
    if not targets:
        raise refuse("self.next names no step: write self.next(self.some_step)")
    given = [name for name in ("condition", "foreach", "num_parallel") if options.get(name)]
    if len(given) > 1:
        raise refuse(f"self.next cannot have both `{given[0]}` and `{given[1]}`")
    _check_ranks(targets, options.get("num_parallel"), refuse)
    _check_condition(targets, options.get("condition"), refuse)
    foreach = options.get("foreach")
    if foreach is None:
        return
    if not isinstance(foreach, str):
        raise refuse(
            "`foreach` must be the name of an attribute in quotes, such as foreach='items', "
            f"not a {type(foreach).__name__}"
        )
    if len(targets) > 1:
        raise refuse(f"a foreach leads to exactly one step, but self.next names {len(targets)}")


def _check_ranks(targets: tuple[Any, ...], ranks: Any, refuse: Any) -> None:
    if ranks is None:
        return
    if isinstance(ranks, bool) or not hasattr(ranks, "__index__") or ranks < 1:
        raise refuse(f"`num_parallel` must be a whole number, at least 1, not {ranks!r}")
    if len(targets) > 1:
        raise refuse(f"num_parallel leads to exactly one step, but self.next names {len(targets)}")


def _check_condition(targets: tuple[Any, ...], condition: Any, refuse: Any) -> None:
    if condition is None:
        if any(isinstance(target, dict) for target in targets):
            raise refuse("self.next has cases but no `condition='name of an attribute'`")
        return
    if len(targets) != 1 or not isinstance(targets[0], dict) or not targets[0]:
        raise refuse(
            "`condition` needs one dictionary of cases, such as {'a': self.one, 'b': self.other}"
        )
    if not isinstance(condition, str):
        raise refuse(
            "`condition` must be the name of an attribute in quotes, "
            f"not a {type(condition).__name__}"
        )


def _target_name(flow: FlowSpec, step: str, target: Any, line: int) -> str:
    function = getattr(target, "__func__", None)
    if function is None or getattr(target, "__self__", None) is not flow:
        shown = repr(target) if isinstance(target, str) else f"a {type(target).__name__}"
        raise InvalidNextException(
            f"in step `{step}`, self.next got {shown}, which is not a step of this flow: "
            "write self.next(self.some_step), without quotes and without calling the step",
            line,
        )
    for name, candidate in steps_of(type(flow)).items():
        if candidate is function:
            return name
    raise InvalidNextException(
        f"in step `{step}`, self.next names `{function.__name__}`, which is not a step: "
        f"put @step above its `def`",
        line,
    )


def _attribute(flow: FlowSpec, step: str, option: str, variable: str, line: int) -> Any:
    try:
        return getattr(flow, variable)
    except AttributeError:
        raise InvalidNextException(
            f"in step `{step}`, {option}='{variable}' names an attribute that does not exist: "
            f"set self.{variable} before self.next",
            line,
        ) from None


def _switch(
    flow: FlowSpec, step: str, cases: dict[Any, Any], variable: str, line: int
) -> TakenTransition:
    value = _attribute(flow, step, "condition", variable, line)
    names = {key: _target_name(flow, step, target, line) for key, target in cases.items()}
    try:
        target = names.get(value)
    except TypeError:
        # An unhashable value equals no case.
        target = None
    if target is None:
        raise RuntimeError(_no_case(step, variable, value, names))
    return TakenTransition([target], line)


def _no_case(step: str, variable: str, value: Any, names: dict[Any, str]) -> str:
    cases = ", ".join(repr(key) for key in names)
    return (
        f"step `{step}` branches on self.{variable}, whose value is {value!r}, "
        f"but self.next has no such case; its cases are {cases}"
    )


def _foreach(
    flow: FlowSpec, step: str, names: list[str], variable: str, line: int
) -> TakenTransition:
    value = _attribute(flow, step, "foreach", variable, line)
    try:
        count = _count_items(flow, variable, value)
    except TypeError as error:
        if _is_iterable(value):
            raise
        raise InvalidNextException(
            f"in step `{step}`, foreach='{variable}' cannot be iterated over: "
            f"self.{variable} is a {type(value).__name__}",
            line,
        ) from error
    if count == 0:
        raise InvalidNextException(
            f"in step `{step}`, foreach='{variable}' has zero items, so no task would follow: "
            f"make sure that self.{variable} has at least one item, or branch before",
            line,
        )
    return TakenTransition(names, line, variable, count)


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True


def _count_items(flow: FlowSpec, variable: str, value: Any) -> int:
    if isinstance(value, _COUNTED_BY_LEN):
        return len(value)
    iterator = iter(value)
    if iterator is not value and not isinstance(value, _VIEWS):
        return sum(1 for _ in iterator)
    # What can be walked once only, or cannot be stored, becomes a list.
    state = flow.__ferroflow__
    limit = (state.spec["max_num_splits"] if state is not None else 0) + _DRAIN_MARGIN
    items = list(islice(iterator, limit))
    flow.__dict__[variable] = items
    return len(items)
