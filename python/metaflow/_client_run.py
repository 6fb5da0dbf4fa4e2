"""Flows, runs and steps. Tasks and artifacts are in `_client_task`."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from metaflow._client_base import MetaflowObject, in_namespace, optional_time
from metaflow._client_graph import end_step, steps_after, steps_before
from metaflow._client_settings import get_namespace
from metaflow._client_store import Row, client_store
from metaflow._client_task import MetaflowData, Task

if TYPE_CHECKING:
    from metaflow._client_code import MetaflowCode


class Metaflow:
    """All flows of the metadata provider that have a run in the namespace."""

    def __init__(self, _current_metadata: str | None = None) -> None:
        if _current_metadata is not None:
            from metaflow._client_settings import metadata

            metadata(_current_metadata)
        self._store = client_store()
        self._namespace = get_namespace()

    @property
    def flows(self) -> list["Flow"]:
        return list(self)

    def __iter__(self) -> Iterator["Flow"]:
        for name in self._store.flows():
            if name in self:
                yield Flow(name)

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        return any(in_namespace(row, self._namespace) for row in self._store.runs(name))

    def __getitem__(self, name: str) -> "Flow":
        if name not in self:
            raise KeyError(name)
        return Flow(name)

    def __repr__(self) -> str:
        return "Metaflow()"


class Flow(MetaflowObject):
    """A flow: `Flow('MyFlow')`. Iterating gives its runs, newest first."""

    _KIND = "flow"
    _PARTS = ("Flow",)

    def _find(self) -> None:
        if not self._store.runs(self.id):
            raise self._missing()

    def _created(self) -> int:
        created: int = self._store.runs(self.id)[-1]["created_at"]
        return created

    def is_in_namespace(self) -> bool:
        """Whether any of its runs is."""
        return any(in_namespace(row, self._namespace) for row in self._store.runs(self.id))

    def _rows(self) -> Iterator[Row]:
        for row in self._store.runs(self.id):
            if in_namespace(row, self._namespace):
                yield row

    def _run_row(self) -> Row:
        """A flow's tags are those of its newest run in the namespace."""
        return next(self._rows(), {"tags": [], "system_tags": []})

    def _children(self) -> Iterator["Run"]:
        for row in self._rows():
            yield Run._found(self, row)

    def _child(self, name: str) -> "Run | None":
        row = self._store.run(self.id, name)
        if row is None or not in_namespace(row, self._namespace):
            return None
        return Run._found(self, row)

    @property
    def latest_run(self) -> "Run | None":
        """The newest run in the namespace."""
        return next(self._children(), None)

    @property
    def latest_successful_run(self) -> "Run | None":
        """The newest run in the namespace that ended well."""
        return next((run for run in self._children() if run.successful), None)

    def runs(self, *tags: str) -> Iterator["Run"]:
        """Runs that carry all these tags, newest first."""
        for row in self._rows():
            if {*row["tags"], *row["system_tags"]}.issuperset(tags):
                yield Run._found(self, row)


class Run(MetaflowObject):
    """A run: `Run('MyFlow/3')`. Iterating gives its steps, newest first."""

    _KIND = "run"
    _PARTS = ("Flow", "run")

    @classmethod
    def _found(cls, flow: Flow, row: Row) -> "Run":
        run = cls.__new__(cls)
        run._inherit(flow, row["run"])
        return run

    def _find(self) -> None:
        if self._store.run(*self._components) is None:
            raise self._missing()

    def _created(self) -> int:
        created: int = self._run_row()["created_at"]
        return created

    @property
    def parent(self) -> Flow:
        flow = Flow.__new__(Flow)
        flow._store, flow._namespace = self._store, self._namespace
        flow._attempt, flow._components = None, self._components[:1]
        return flow

    @property
    def origin_pathspec(self) -> str:
        """The run that this one resumed; `Flow/None` for one that resumed nothing."""
        return f"{self._components[0]}/{self._run_row()['origin_run']}"

    def _children(self) -> Iterator["Step"]:
        for row in self._store.steps(*self._components):
            if not row["step"].startswith("_"):
                yield Step._found(self, row["step"])

    def _child(self, name: str) -> "Step | None":
        rows = self._store.steps(*self._components)
        return Step._found(self, name) if any(row["step"] == name for row in rows) else None

    def steps(self, *tags: str) -> Iterator["Step"]:
        """Steps that have started, newest first."""
        if self.tags.issuperset(tags):
            yield from self._children()

    @property
    def state(self) -> str:
        """`running`, `done`, `failed`, `cancelled`, or `lost`: its engine died."""
        state: str = self._run_row()["state"]
        return state

    @property
    def cause(self) -> str | None:
        """Why the run failed, was cancelled or got lost."""
        cause = self._run_row()["cause"]
        return cause["text"] if cause else None

    @property
    def end_task(self) -> Task | None:
        """The task of the end step; `None` until it has started."""
        name = end_step(self._store.graph(self._run_row()))
        step = self._child(name) if name else None
        return step.task if step else None

    @property
    def successful(self) -> bool:
        """The end task ran without an exception."""
        task = self.end_task
        return task is not None and task.successful

    @property
    def finished(self) -> bool:
        """The end task has finished. See `state` for runs that ended another way."""
        task = self.end_task
        return task is not None and task.finished

    @property
    def finished_at(self) -> datetime | None:
        """When the end task finished, in local time."""
        task = self.end_task
        return task.finished_at if task else None

    @property
    def data(self) -> MetaflowData | None:
        """Artifacts of the end task."""
        task = self.end_task
        return task.data if task else None

    @property
    def code(self) -> "MetaflowCode | None":
        """The code package of the run's remote tasks; local runs make none."""
        codes = (task.code for step in self if (task := step.task) is not None)
        return next((code for code in codes if code is not None), None)

    @property
    def trigger(self) -> None:
        """What triggered the run; nothing triggers local runs."""
        return

    def add_tag(self, tag: str | Iterable[str]) -> None:
        """Adds a tag; a tag that is there already is no mistake."""
        self._mutate(_tag_list(tag), [])

    def add_tags(self, tags: Iterable[str]) -> None:
        self._mutate(_tag_list(tags), [])

    def remove_tag(self, tag: str | Iterable[str]) -> None:
        """Removes a tag; one that is not there is no mistake, a system tag is."""
        self._mutate([], _tag_list(tag))

    def remove_tags(self, tags: Iterable[str]) -> None:
        self._mutate([], _tag_list(tags))

    def replace_tag(
        self, tag_to_remove: str | Iterable[str], tag_to_add: str | Iterable[str]
    ) -> None:
        """Removes, then adds, in one go."""
        self._mutate(_tag_list(tag_to_add), _tag_list(tag_to_remove))

    def replace_tags(self, tags_to_remove: Iterable[str], tags_to_add: Iterable[str]) -> None:
        self._mutate(_tag_list(tags_to_add), _tag_list(tags_to_remove))

    def _mutate(self, add: list[str], remove: list[str]) -> None:
        flow, run = self._components
        self._store.mutate_tags(flow, run, add, remove)


def _tag_list(tags: str | Iterable[str]) -> list[str]:
    from metaflow.exception import MetaflowTaggingError

    try:
        given: list[Any] = [tags] if isinstance(tags, str) else list(tags)
    except TypeError:
        given = [tags]
    for tag in given:
        if not isinstance(tag, str):
            raise MetaflowTaggingError(f"a tag is a text, not {tag!r}")
    return given


class Step(MetaflowObject):
    """A step of a run: `Step('MyFlow/3/train')`. Iterating gives its tasks, newest first."""

    _KIND = "step"
    _PARTS = ("Flow", "run", "step")

    @classmethod
    def _found(cls, run: Run, name: str) -> "Step":
        step = cls.__new__(cls)
        step._inherit(run, name)
        return step

    def _find(self) -> None:
        flow, run, name = self._components
        if not any(row["step"] == name for row in self._store.steps(flow, run)):
            raise self._missing()

    def _created(self) -> int:
        flow, run, name = self._components
        created: int = next(
            row["created_at"] for row in self._store.steps(flow, run) if row["step"] == name
        )
        return created

    @property
    def parent(self) -> Run:
        run = Run.__new__(Run)
        run._store, run._namespace = self._store, self._namespace
        run._attempt, run._components = None, self._components[:2]
        return run

    @property
    def origin_pathspec(self) -> str | None:
        origin = self._run_row()["origin_run"]
        flow, _, name = self._components
        return f"{flow}/{origin}/{name}" if origin else None

    def _rows(self) -> list[Row]:
        return self._store.tasks(*self._components)

    def _children(self) -> Iterator[Task]:
        for row in reversed(self._rows()):
            yield Task._found(self, row)

    def _child(self, name: str) -> Task | None:
        flow, run, step = self._components
        row = self._store.task(flow, run, step, name, None)
        return Task._found(self, row) if row else None

    @property
    def task(self) -> Task | None:
        """The newest task; for steps with a single one, the task."""
        return next(self._children(), None)

    def tasks(self, *tags: str) -> Iterator[Task]:
        """All tasks, newest first; none if the run lacks one of the tags."""
        if self.tags.issuperset(tags):
            yield from self._children()

    @property
    def finished_at(self) -> datetime | None:
        """When the last task finished; `None` while one has not."""
        times = [row["finished_at"] for row in self._rows()]
        if not times or None in times:
            return None
        return optional_time(max(times))

    @property
    def environment_info(self) -> dict[str, Any] | None:
        task = self.task
        return task.environment_info if task else None

    @property
    def parent_steps(self) -> Iterator["Step"]:
        """Steps that lead to this one."""
        yield from self._steps(steps_before(self._graph(), self.id))

    @property
    def child_steps(self) -> Iterator["Step"]:
        """Steps that follow this one, as far as they have started."""
        yield from self._steps(steps_after(self._graph(), self.id))

    @property
    def control_task(self) -> Task | None:
        """The control task of a `num_parallel` step, its rank 0; None in other steps."""
        return next(self.control_tasks(), None)

    def control_tasks(self, *tags: str) -> Iterator[Task]:
        """Control tasks of the step: several where its gang is inside a foreach."""
        for task in self.tasks(*tags):
            if task.metadata_dict.get("internal_task_type") == "control_task":
                yield task

    def _graph(self) -> Row:
        return self._store.graph(self._run_row())

    def _steps(self, names: list[str]) -> Iterator["Step"]:
        run = self.parent
        for name in names:
            step = run._child(name)
            if step is not None:
                yield step
