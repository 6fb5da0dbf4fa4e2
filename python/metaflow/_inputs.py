"""`inputs` of a join and `merge_artifacts`.

An input is a view: it holds its position, the values are fetched by artifact for all inputs at
once. A join of 100,000 inputs therefore costs a small object each, and only once they are named.
"""

from __future__ import annotations

from types import FunctionType

from metaflow._artifacts import load_many, open_inputs
from metaflow._state import OWN_OF_TASK, Frames
from metaflow.exception import (
    MetaflowException,
    MissingInMergeArtifactsException,
    UnhandledInMergeArtifactsException,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    from metaflow._artifacts import InputPack
    from metaflow._flow import FlowSpec
    from metaflow._state import TaskState

_MISSING = object()
_MOST_OPEN_PACKS = 1000


class Inputs:
    """The tasks a join waits for: `inputs[0]`, `for input in inputs`, or, by the name of the step
    that leads into the join, `inputs.step_name`.

    Inputs of a foreach come in the order of its items, those of a static split in the order of
    its `self.next`.
    """

    __slots__ = ("_items", "_table")

    def __init__(self, flow: FlowSpec, state: TaskState) -> None:
        self._table = _Table(flow, state)
        self._items: list[Input] | None = None

    def __getitem__(self, position: Any) -> Any:
        return self._all()[position]

    def __iter__(self) -> Iterator[Input]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._table.steps)

    def __getattr__(self, step: str) -> Input:
        if step[:2] != "__":
            steps = self._table.steps
            for position in range(len(steps) - 1, -1, -1):
                if steps[position] == step:
                    return self._all()[position]
        raise AttributeError(
            f"no step `{step}` leads into this join: `inputs` has "
            f"{', '.join(f'`{each}`' for each in self._table.step_names())}",
            name=step,
            obj=self,
        )

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._table.step_names()})

    def __repr__(self) -> str:
        return f"<inputs {len(self)} of {', '.join(self._table.step_names())}>"

    def __reduce_ex__(self, _protocol: object) -> Any:
        raise MetaflowException(
            "`inputs` cannot be stored: keep the artifacts you need, such as [i.x for i in inputs]"
        )

    def __getstate__(self) -> None:
        # The search for what cannot be pickled stops here.
        return None

    def _source_of(self, name: str, value: Any) -> InputPack | None:
        """The pack that a value of the join was fetched from, if it is the artifact `name` of
        one of the inputs."""
        return self._table.source_of(name, value)

    def _all(self) -> list[Input]:
        if self._items is None:
            table = self._table
            self._items = [Input(table, position) for position in range(len(table.steps))]
        return self._items


class Input:
    """One input of a join; its attributes are the artifacts of that task."""

    __slots__ = ("__dict__", "__ferroflow_place__")

    def __init__(self, table: _Table, position: int) -> None:
        self.__ferroflow_place__ = (table, position)

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__":
            raise AttributeError(f"an input has no attribute `{name}`", name=name, obj=self)
        table, position = self.__ferroflow_place__
        return table.value(name, position, self)

    @property
    def index(self) -> int | None:
        """The task's index in its innermost foreach, None outside of one."""
        table, position = self.__ferroflow_place__
        return table.frames(position).index()

    @property
    def input(self) -> Any:
        """The task's item of its innermost foreach, None outside of one."""
        table, position = self.__ferroflow_place__
        frames = table.frames(position)
        return frames.item() if len(frames) else None

    def foreach_stack(self) -> list[tuple[int, int | None, Any]]:
        """`(index, number of splits, item)` for every foreach around the task, outermost first."""
        table, position = self.__ferroflow_place__
        frames = table.frames(position)
        return frames.stack([frames.item(level) for level in range(len(frames))])

    def __repr__(self) -> str:
        table, position = self.__ferroflow_place__
        return f"<input {position} of step {table.steps[position]}>"

    def __reduce_ex__(self, _protocol: object) -> Any:
        raise MetaflowException(
            "an input of a join cannot be stored: keep the artifacts you need, such as inputs[0].x"
        )

    def __getstate__(self) -> None:
        # The search for what cannot be pickled stops here.
        return None


class _Table:
    """The inputs of one join: where each is, and the columns fetched so far."""

    __slots__ = ("_columns", "_flow", "_frames", "_state", "packs", "steps")

    def __init__(self, flow: FlowSpec, state: TaskState) -> None:
        self._flow = flow
        self._state = state
        self._columns: dict[str, list[Any]] = {}
        self._frames: dict[int, Frames] = {}
        self.packs: list[InputPack] = []
        self.steps: list[str] = []
        for reference in state.spec["inputs"]:
            packs = open_inputs(state.root, state.flow_name, reference)
            self.packs.extend(packs)
            self.steps.extend([reference["step"]] * len(packs))

    def step_names(self) -> list[str]:
        return list(dict.fromkeys(self.steps))

    def value(self, name: str, position: int, asking: Input) -> Any:
        column = self._columns.get(name)
        if column is None and name not in OWN_OF_TASK:
            column = self._columns[name] = self._fetch(name)
        value = column[position] if column is not None else _MISSING
        if value is not _MISSING:
            return value
        attribute = getattr(type(self._flow), name, None)
        if name == "name":
            return type(self._flow).__name__
        if isinstance(attribute, FunctionType):
            # A helper method of the flow, called on an input.
            return attribute.__get__(asking)
        raise AttributeError(
            f"step `{self.steps[position]}` has no artifact `{name}`: "
            f"set self.{name} there, or in a step before",
            name=name,
            obj=asking,
        )

    def _fetch(self, name: str) -> list[Any]:
        """The artifact of every input that has it, in one go."""
        return load_many(self.packs, name, _MISSING)

    def source_of(self, name: str, value: Any) -> InputPack | None:
        for pack, fetched in zip(self.packs, self._columns.get(name, ()), strict=False):
            if fetched is value:
                return pack
        return None

    def frames(self, position: int) -> Frames:
        """The foreach levels around one input, as it has noted them itself."""
        frames = self._frames.get(position)
        if frames is None:
            column = self._columns.get("_foreach_stack")
            if column is None:
                column = self._columns["_foreach_stack"] = self._fetch("_foreach_stack")
            stack = column[position] if column[position] is not _MISSING else []
            frames = Frames(self._state.root, self._state.flow_name, stack)
            self._frames[position] = frames
        return frames


def merge_artifacts(
    flow: FlowSpec,
    inputs: Iterable[Any],
    exclude: Iterable[str] | None,
    include: Iterable[str] | None,
) -> None:
    """Passes on what the inputs agree on and `flow` does not have; see `FlowSpec`."""
    state = flow.__ferroflow__
    if state is None or not state.join:
        raise MetaflowException(
            "merge_artifacts can only be called in a join, a step that takes `inputs`"
        )
    excluded = _names("exclude", exclude)
    included = _names("include", include)
    if excluded and included:
        raise MetaflowException(
            "merge_artifacts takes `exclude` or `include`, not both: "
            "what `include` does not name is left out already"
        )
    found, conflicts = _compare(flow, state, _packs(inputs), excluded, included)
    missing = sorted(name for name in included if name not in found and not _has(flow, state, name))
    if missing:
        raise MissingInMergeArtifactsException(
            f"no input has {_listed(missing)}: correct `include`, or set them in a step before "
            f"`{state.step}`",
            missing,
        )
    if conflicts:
        names = sorted(conflicts)
        raise UnhandledInMergeArtifactsException(
            f"the inputs of step `{state.step}` differ in {_listed(names)}: set them on self "
            "before merge_artifacts, or name them in `exclude`",
            names,
        )
    state.merged.update(found)


def _names(option: str, names: Iterable[str] | None) -> set[str]:
    if isinstance(names, str):
        raise MetaflowException(
            f"`{option}` of merge_artifacts is a list of names: write {option}=[{names!r}]"
        )
    return set(names or ())


def _packs(inputs: Iterable[Any]) -> list[InputPack]:
    packs = []
    for each in inputs:
        if not isinstance(each, Input):
            raise MetaflowException(
                "merge_artifacts takes the `inputs` of the join, or some of them, "
                f"not a {type(each).__name__}"
            )
        table, position = each.__ferroflow_place__
        packs.append(table.packs[position])
    return packs


def _has(flow: FlowSpec, state: TaskState, name: str) -> bool:
    return name in flow.__dict__ or name in state.merged or name in state.read_only


def _compare(
    flow: FlowSpec,
    state: TaskState,
    packs: list[InputPack],
    excluded: set[str],
    included: set[str],
) -> tuple[dict[str, InputPack], set[str]]:
    """The names to pass on, each with a pack that has it, and those on which packs differ."""
    found: dict[str, InputPack] = {}
    digests: dict[str, Any] = {}
    conflicts: set[str] = set()
    skipped: dict[str, bool] = {}
    for pack in packs:
        for name in pack.names():
            skip = skipped.get(name)
            if skip is None:
                skip = skipped[name] = (
                    name == "name"
                    or name in OWN_OF_TASK
                    or name in excluded
                    or (bool(included) and name not in included)
                    or _has(flow, state, name)
                )
            if skip:
                continue
            digest = pack.digest(name)
            if name not in found:
                found[name] = pack
                digests[name] = digest
            elif digest != digests[name]:
                conflicts.add(name)
        if len(packs) > _MOST_OPEN_PACKS:
            # It is read again should anything ask for it: a wide join must not hold them all.
            pack._native = None
    return found, conflicts


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
