"""`FlowSpec`, the class users derive their flows from, as they meet it inside a step.

Artifacts are the plain attributes of the object; everything of ours is in one slot. What `next`
checks is in `_next`, joins are in `_inputs`, running a task is `_task`.
"""

from __future__ import annotations

import os
import sys

from metaflow._decorators import steps_of
from metaflow.exception import MetaflowException

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from metaflow._artifacts import InputPack
    from metaflow._state import TaskState

# What `str(self)` shows of the foreach item.
_SHOWN_CHARACTERS = 20


class ClassDefault:
    """A class attribute that gives way to the artifact of its name, if the task inherits one."""

    __slots__ = ("attribute", "value")

    def __init__(self, attribute: str, value: Any) -> None:
        self.attribute = attribute
        self.value = value

    def __get__(self, flow: FlowSpec | None, flow_class: type | None = None) -> Any:
        state = flow.__ferroflow__ if flow is not None else None
        source = state.source_of(self.attribute) if state is not None else None
        if flow is None or state is None or source is None:
            return self.default(flow_class)
        return _load(flow, state, self.attribute, source)

    def default(self, _flow_class: type | None) -> Any:
        return self.value


class _Name(ClassDefault):
    """`flow.name`: the name of the class, unless user code gave the artifact another value."""

    __slots__ = ()

    def default(self, flow_class: type | None) -> Any:
        return self if flow_class is None else flow_class.__name__


def let_artifacts_win(flow_class: type) -> None:
    """Private class attributes are no constants: steps may assign to them, and the next step has
    to see the artifact rather than what the class says."""
    from metaflow._parameters import class_attribute, is_data

    for attribute in dir(flow_class):
        if attribute.startswith("_") and not attribute.startswith(("__", "_abc_")):
            value = class_attribute(flow_class, attribute)
            if is_data(value):
                setattr(flow_class, attribute, ClassDefault(attribute, value))


class FlowSpec:
    """A flow: derive a class from this one, write its steps as methods marked with `@step`, and
    call the class under `if __name__ == "__main__":`.

    Attributes set on `self` in a step become artifacts, which later steps can read.
    """

    # A slot, so that it is no attribute among the user's.
    __slots__ = ("__dict__", "__ferroflow__", "__weakref__")
    __ferroflow__: TaskState | None

    if not TYPE_CHECKING:
        name = _Name("name", None)
    else:
        name: str

    def __new__(cls, *_arguments: Any, **_options: Any) -> FlowSpec:
        flow = super().__new__(cls)
        # Past a `__setattr__` of the user's own.
        object.__setattr__(flow, "__ferroflow__", None)
        return flow

    def __init__(self, use_cli: bool = True) -> None:
        """Runs the command line; with `use_cli=False` only makes the object."""
        if use_cli:
            from metaflow._main import main

            main(type(self))

    # --- moving on ---------------------------------------------------------------------------

    def next(self, *targets: Any, **options: Any) -> None:
        """Says which step follows; stands last in a step.

        `self.next(self.a)` goes on to one step, `self.next(self.a, self.b)` runs several in
        parallel, `self.next(self.a, foreach="items")` runs one step for every item of the
        attribute of that name, `self.next(self.a, num_parallel=4)` runs a step with @parallel four
        times at once, as a gang, `self.next({"x": self.a, "y": self.b}, condition="choice")` goes
        on to the step of the case that the attribute of that name holds.
        """
        from metaflow._next import take_transition

        take_transition(self, targets, options, sys._getframe(1).f_lineno)

    def merge_artifacts(
        self,
        inputs: Iterable[Any],
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """In a join: passes on the artifacts of the inputs that `self` does not have yet.

        Artifacts on which the inputs disagree have to be set before, or be named in `exclude`.
        With `include`, only those named there are passed on. No value is loaded.
        """
        from metaflow._inputs import merge_artifacts

        merge_artifacts(self, inputs, exclude, include)

    # --- where the task is -------------------------------------------------------------------

    @property
    def index(self) -> int | None:
        """Index of this task in the innermost foreach, None outside of one."""
        state = self.__ferroflow__
        return state.frames.index() if state is not None else None

    @property
    def input(self) -> Any:
        """This task's item of the innermost foreach, None outside of one."""
        state = self.__ferroflow__
        if state is None or not len(state.frames):
            return None
        return _item_of_frame(self, state, len(state.frames) - 1)

    def foreach_stack(self) -> list[tuple[int, int | None, Any]]:
        """`(index, number of splits, item)` for every foreach around this task, outermost first."""
        state = self.__ferroflow__
        if state is None:
            return []
        items = [_item_of_frame(self, state, level) for level in range(len(state.frames))]
        return state.frames.stack(items)

    # --- what is not an artifact ---------------------------------------------------------------

    @property
    def script_name(self) -> str:
        """File name of the flow."""
        module = sys.modules.get(type(self).__module__)
        return os.path.basename(getattr(module, "__file__", None) or sys.argv[0])

    def cmd(self, *_arguments: Any, **_options: Any) -> Any:
        """Not in this version: use `subprocess.run`."""
        raise MetaflowException(
            "`self.cmd` is not in this version of ferroflow: use subprocess.run instead"
        )

    def __iter__(self) -> Iterator[Any]:
        """The steps, as bound methods."""
        for function in steps_of(type(self)).values():
            yield function.__get__(self, type(self))

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are not set: artifacts not loaded yet, and mistakes.
        if name[:2] != "__":
            state = self.__ferroflow__
            source = state.source_of(name) if state is not None else None
            if source is not None and state is not None:
                return _load(self, state, name, source)
            if state is not None and name in state.read_only:
                raise AttributeError(
                    f"`{name}` has no value in this run: it was added to the flow after the run's "
                    "parameters were stored; start a new run",
                    name=name,
                    obj=self,
                )
        raise AttributeError(
            f"flow `{type(self).__name__}` has no attribute `{name}`", name=name, obj=self
        )

    def __delattr__(self, name: str) -> None:
        state = self.__ferroflow__
        if state is None or name in state.read_only or state.source_of(name) is None:
            object.__delattr__(self, name)
            return
        self.__dict__.pop(name, None)
        state.forget(name)

    def __dir__(self) -> list[str]:
        names = set(super().__dir__())
        state = self.__ferroflow__
        if state is not None:
            names.update(name for name, _ in state.inherited_names())
        return sorted(names)

    def __str__(self) -> str:
        return describe_place(self, with_input=True)

    __repr__ = __str__

    def __reduce_ex__(self, _protocol: object) -> Any:
        raise MetaflowException(
            f"flow objects cannot be serialized: something holds a reference to the flow "
            f"`{type(self).__name__}`, for example an artifact that keeps `self` or one of its "
            "methods; keep the values it needs instead"
        )

    def __getstate__(self) -> None:
        # The search for what cannot be pickled stops here.
        return None


# Functions, not methods: flows have helpers named `_load` and the like.


def _load(flow: FlowSpec, state: TaskState, name: str, source: InputPack) -> Any:
    value = source.get(name)
    state.loaded[name] = source
    flow.__dict__[name] = value
    return value


def _item_of_frame(flow: FlowSpec, state: TaskState, level: int) -> Any:
    if not state.join:
        return state.frames.item(level)
    # A join inherits nothing: the outer item is there only if the list of items is.
    variable = state.frames.variable(level)
    if not variable:
        return None
    if variable in flow.__dict__ or state.source_of(variable) is not None:
        return state.frames.item(level)
    return None


def describe_place(flow: FlowSpec, with_input: bool) -> str:
    """Flow, step, indices and, if asked for, the item: what `str(self)` shows."""
    state = flow.__ferroflow__
    flow_name = type(flow).__name__
    if state is None:
        return f"<flow {flow_name}>"
    text = f"<flow {flow_name} step {state.step}"
    if len(state.frames):
        text += f"[{','.join(map(str, state.frames.indices()))}]"
        item = str(flow.input) if with_input else ""
        if with_input:
            cut = "..." if len(item) > _SHOWN_CHARACTERS else ""
            text += f" (input: {item[:_SHOWN_CHARACTERS]}{cut})"
    return text + ">"
