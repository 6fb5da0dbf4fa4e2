"""What a flow object knows while it stands in a task: its inputs, what it inherits, where in which
foreach it is, and the transition it took.

Reading and writing packs is `_artifacts`' work, deciding what a task does `_task`'s.
"""

from __future__ import annotations

from metaflow._artifacts import foreach_item, open_inputs, store_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from metaflow._artifacts import InputPack

# Artifacts that say something of one task only: no other task inherits or merges them.
OWN_OF_TASK = frozenset(
    {
        "_current_step",
        "_exception",
        "_foreach_stack",
        "_graph_info",
        "_iteration_stack",
        "_success",
        "_task_ok",
        "_transition",
    }
)


class TakenTransition:
    """The `self.next` that ran."""

    __slots__ = ("foreach", "line", "num_splits", "targets")

    def __init__(
        self,
        targets: list[str],
        line: int | None = None,
        foreach: str | None = None,
        num_splits: int | None = None,
    ) -> None:
        self.targets = targets
        self.line = line
        self.foreach = foreach
        self.num_splits = num_splits

    def as_json(self) -> dict[str, Any]:
        """The form of `core::task::TakenTransition`."""
        return {"targets": self.targets, "num_splits": self.num_splits, "foreach": self.foreach}


class TaskState:
    """The part of a flow object that is ours; the rest of its attributes are artifacts."""

    __slots__ = (
        "_parameters",
        "_read_only_values",
        "deleted",
        "flow_name",
        "frames",
        "inherited",
        "inputs",
        "join",
        "loaded",
        "merged",
        "read_only",
        "root",
        "spec",
        "step",
        "transition",
    )

    def __init__(self, spec: dict[str, Any], read_only: frozenset[str]) -> None:
        self.spec = spec
        self.root = store_text(spec["store"])
        self.flow_name: str = spec["flow"]
        self.step: str = spec["step"]
        self.join: bool = spec["join"]
        self.read_only = read_only
        self.frames = Frames(self.root, self.flow_name, spec["foreach_stack"])
        self.inputs: Any = None
        self.inherited: InputPack | None = None
        self.merged: dict[str, InputPack] = {}
        self.loaded: dict[str, InputPack] = {}
        self.deleted: set[str] = set()
        self.transition: TakenTransition | None = None
        self._parameters: InputPack | None = None
        self._read_only_values: dict[str, Any] = {}

    def open_parent(self) -> None:
        """Opens what a step without `inputs` inherits from: its parent, or the parameters."""
        references = self.spec["inputs"] or [self.spec["parameters"]]
        self.inherited = open_inputs(self.root, self.flow_name, references[0])[0]

    def parameters(self) -> InputPack:
        """The pack that holds parameters and constants; a parent has passed them on."""
        if self.inherited is not None:
            return self.inherited
        if self._parameters is None:
            self._parameters = open_inputs(self.root, self.flow_name, self.spec["parameters"])[0]
        return self._parameters

    def source_of(self, name: str) -> InputPack | None:
        """The pack a name is inherited from."""
        if name in self.deleted or name in OWN_OF_TASK:
            return None
        merged = self.merged.get(name)
        if merged is not None:
            return merged
        if self.inherited is not None and name in self.inherited:
            return self.inherited
        return None

    def inherited_names(self) -> Iterator[tuple[str, InputPack]]:
        """Every name that is inherited, read-only ones included, with the pack it is in."""
        yield from self.merged.items()
        if self.inherited is not None:
            for name in self.inherited.names():
                if name not in self.deleted and name not in OWN_OF_TASK and name not in self.merged:
                    yield name, self.inherited
            return
        if not self.read_only:
            return
        pack = self.parameters()
        for name in pack.names():
            if name in self.read_only:
                yield name, pack

    def read_only_value(self, name: str) -> Any:
        """The value of a parameter or constant; read once, so that it stays the same object."""
        values = self._read_only_values
        if name not in values:
            pack = self.parameters()
            if name not in pack:
                # Python asks `FlowSpec.__getattr__` next, which says what is wrong.
                raise AttributeError(name)
            values[name] = pack.get(name)
        return values[name]

    def forget(self, name: str) -> None:
        """The name is not passed on."""
        if self.merged.pop(name, None) is None:
            self.deleted.add(name)
        self.loaded.pop(name, None)


class Frames:
    """The levels of foreach around a task, outermost first."""

    __slots__ = ("_flow_name", "_items", "_root", "_stack")

    def __init__(self, root: str, flow_name: str, stack: list[dict[str, Any]]) -> None:
        self._root = root
        self._flow_name = flow_name
        self._stack = stack
        self._items: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._stack)

    def index(self) -> int | None:
        """Index in the innermost foreach."""
        return int(self._stack[-1]["index"]) if self._stack else None

    def indices(self) -> list[int]:
        return [int(frame["index"]) for frame in self._stack]

    def variable(self, level: int = -1) -> str:
        return str(self._stack[level]["variable"])

    def item(self, level: int = -1) -> Any:
        """The item of one level; read once, from the task that split."""
        level %= len(self._stack)
        if level not in self._items:
            frame = self._stack[level]
            if not frame["variable"]:
                # A rank of a gang: its number stands for the item.
                return frame["index"]
            pack = open_inputs(self._root, self._flow_name, frame["source"])[0]
            self._items[level] = foreach_item(pack, frame["variable"], frame["index"])
        return self._items[level]

    def stack(self, items: list[Any]) -> list[tuple[int, int | None, Any]]:
        """`(index, number of splits, item)` of each level; a gang's has no number of splits."""
        return [
            (frame["index"], frame["num_splits"] if frame["variable"] else None, item)
            for frame, item in zip(self._stack, items, strict=True)
        ]
