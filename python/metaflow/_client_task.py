"""Tasks, their artifacts, logs and metadata. Flows, runs and steps are in `_client_run`."""

import json
from collections import namedtuple
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from metaflow._client_base import MetaflowObject, local_time, optional_time
from metaflow._client_graph import children, parents, steps_after, steps_before
from metaflow._client_store import Row

if TYPE_CHECKING:
    from metaflow._client_code import MetaflowCode
    from metaflow._client_run import Step
    from metaflow.exception import MetaflowExceptionWrapper


class Metadata(NamedTuple):
    """A metadata entry of a task; `created_at` in milliseconds since the epoch."""

    name: str
    value: str
    created_at: int
    type: str
    task: "Task"


class MetaflowData:
    """Artifacts of a task as attributes; each is loaded when it is first asked for."""

    def __init__(self, task: "Task") -> None:
        self.__dict__["_task"] = task
        self.__dict__["_values"] = {}

    def __getattr__(self, name: str) -> Any:
        values: dict[str, Any] = self.__dict__["_values"]
        if name not in values:
            task: Task = self.__dict__["_task"]
            if name not in task._artifact_names():
                raise AttributeError(f"task `{task.pathspec}` has no artifact `{name}`")
            values[name] = task._load(name)
        return values[name]

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__["_task"]._artifact_names()

    def __dir__(self) -> list[str]:
        return self.__dict__["_task"]._public_names()  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<MetaflowData: {', '.join(dir(self))}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return MetaflowData, (self.__dict__["_task"],)


class Task(MetaflowObject):
    """A task: `Task('MyFlow/3/train/5')`, or an earlier attempt with `attempt=0`."""

    _KIND = "task"
    _PARTS = ("Flow", "run", "step", "task")

    @classmethod
    def _found(cls, step: "Step", row: Row) -> "Task":
        task = cls.__new__(cls)
        task._inherit(step, str(row["task"]))
        task._cached, task._pack_cache = row, None
        return task

    def _find(self) -> None:
        self._pack_cache: Any = None
        flow, run, step, task = self._components
        row = self._store.task(flow, run, step, task, self._attempt)
        if row is None:
            raise self._missing()
        self._cached: Row = row

    def _row(self) -> Row:
        """The attempt as it is now; one that went well does not change any more."""
        if not self._cached["ok"]:
            flow, run, step, task = self._components
            row = self._store.task(flow, run, step, task, self._attempt)
            if row is not None and row["attempt"] != self._cached["attempt"]:
                self._pack_cache = None
            self._cached = row or self._cached
        return self._cached

    def _created(self) -> int:
        created: int = self._cached["created_at"]
        return created

    @property
    def parent(self) -> "Step":
        from metaflow._client_run import Step

        step = Step.__new__(Step)
        step._store, step._namespace = self._store, self._namespace
        step._attempt, step._components = None, self._components[:3]
        return step

    @property
    def origin_pathspec(self) -> str | None:
        origin = self._cached["origin"]
        if not origin:
            return None
        flow, _, step, _ = self._components
        return f"{flow}/{origin['run']}/{step}/{origin['task']}"

    # --- what became of it ---

    @property
    def state(self) -> str:
        """`queued`, `waiting`, `starting`, `running`, `finishing`, `done`, `failed`,
        `cancelled`, or `lost`: the engine died before the task ended."""
        state: str = self._row()["state"]
        return state

    @property
    def cause(self) -> str | None:
        """Why the attempt failed, was cancelled or got lost."""
        cause = self._row()["cause"]
        return cause["text"] if cause else None

    @property
    def successful(self) -> bool:
        """The step's code ran without an exception; an exception caught by `@catch` counts."""
        return bool(self._row()["success"])

    @property
    def finished(self) -> bool:
        """The task is done: it succeeded, or `@catch` handled its failure."""
        return bool(self._row()["ok"])

    @property
    def finished_at(self) -> datetime | None:
        """When the attempt ended, in local time."""
        return optional_time(self._row()["finished_at"])

    @property
    def current_attempt(self) -> int:
        """Number of the attempt that this object shows, from 0."""
        attempt: int = self._row()["attempt"]
        return attempt

    @property
    def exception(self) -> "MetaflowExceptionWrapper | None":
        """The exception that made the task fail; `None` if there was none or `@catch` took it."""
        if self._row()["ok"]:
            return None
        pack = self._pack()
        recorded = pack.outcome.get("exception") if pack is not None else None
        if not recorded:
            return None
        from metaflow.exception import MetaflowExceptionWrapper

        return MetaflowExceptionWrapper(
            recorded["message"],
            type_text=recorded.get("class") or recorded["type"],
            stacktrace=recorded["traceback"],
        )

    @property
    def index(self) -> int | None:
        """Index of the split in the innermost foreach; `None` outside of one."""
        path = self._cached["foreach_path"]
        return path[-1] if path else None

    @property
    def runtime_name(self) -> str | None:
        """Value of the `runtime:` tag."""
        for tag in self.system_tags:
            if tag.startswith("runtime:"):
                return tag.removeprefix("runtime:")
        return None

    @property
    def code(self) -> "MetaflowCode | None":
        """The code package it ran with; local tasks need none."""
        described = self.metadata_dict.get("code-package")
        if described is None:
            return None
        from metaflow._client_code import MetaflowCode

        flow, run = self._components[:2]
        return MetaflowCode(self._store.data_root(flow, run), json.loads(described))

    @property
    def environment_info(self) -> dict[str, Any] | None:
        """What is recorded of the environment the task ran in."""
        prefixes = ("python_version:", "metaflow_version:", "r_version:")
        info = dict(
            tag.split(":", 1) for tag in sorted(self.system_tags) if tag.startswith(prefixes)
        )
        return {"type": "local", **info} if info else None

    # --- artifacts ---

    def _pack(self) -> Any:
        """The attempt's artifacts; nothing while it has not written them."""
        row = self._row()
        if self._pack_cache is None:
            self._pack_cache = self._store.pack(self._components[0], row)
        return self._pack_cache

    def _artifact_names(self) -> list[str]:
        pack = self._pack()
        return list(pack.names()) if pack is not None else []

    def _public_names(self) -> list[str]:
        return sorted(name for name in self._artifact_names() if not name.startswith("_"))

    def _load(self, name: str) -> Any:
        return self._pack().get(name)

    def _children(self) -> Iterator["DataArtifact"]:
        for name in self._public_names():
            yield DataArtifact._found(self, name)

    def _child(self, name: str) -> "DataArtifact | None":
        return DataArtifact._found(self, name) if name in self._artifact_names() else None

    @property
    def artifacts(self) -> Any:
        """All artifacts as a named tuple of `DataArtifact`: `task.artifacts.x.data`."""
        names = self._public_names()
        kind = namedtuple("MetaflowArtifacts", names, rename=True)  # type: ignore[misc]
        return kind(*(DataArtifact._found(self, name) for name in names))

    @property
    def data(self) -> MetaflowData:
        """All artifacts as attributes: `task.data.x`."""
        return MetaflowData(self)

    # --- metadata and logs ---

    @property
    def metadata(self) -> list[Metadata]:
        """All metadata entries, newest first."""
        flow, run, _, task = self._components
        rows = self._store.metadata(flow, run, int(task))
        if self._attempt is not None:
            rows = [row for row in rows if row["attempt"] == self._attempt]
        entries = [
            Metadata(row["name"], row["value"], row["created_at"], row["type"], self)
            for row in rows
        ]
        return sorted(entries, key=lambda entry: entry.created_at, reverse=True)

    @property
    def metadata_dict(self) -> dict[str, str]:
        """The latest value of each metadata entry."""
        return {entry.name: entry.value for entry in reversed(self.metadata)}

    def _log_lines(self, stream: str) -> Iterator[tuple[int, bytes]]:
        return self._store.log_lines(self._components[0], self._row(), stream)

    def _log_text(self, stream: str) -> str:
        return "".join(
            line.decode("utf-8", errors="replace") + "\n" for _, line in self._log_lines(stream)
        )

    @property
    def stdout(self) -> str:
        """What the task printed. A cloned task shows what its origin printed."""
        return self._log_text("stdout")

    @property
    def stderr(self) -> str:
        """What the task wrote to its standard error."""
        return self._log_text("stderr")

    @property
    def stdout_size(self) -> int:
        """Bytes of `stdout`."""
        return sum(len(line) + 1 for _, line in self._log_lines("stdout"))

    @property
    def stderr_size(self) -> int:
        """Bytes of `stderr`."""
        return sum(len(line) + 1 for _, line in self._log_lines("stderr"))

    def loglines(
        self, stream: str, as_unicode: bool = True
    ) -> Iterator[tuple[datetime, str | bytes]]:
        """Time (UTC, without a zone) and text of each line of `stdout` or `stderr`."""
        if stream not in ("stdout", "stderr"):
            raise ValueError(f"`stream` is `stdout` or `stderr`, not {stream!r}")
        for at, line in self._log_lines(stream):
            when = datetime.fromtimestamp(at / 1000, UTC).replace(tzinfo=None)
            yield when, line.decode("utf-8", errors="replace") if as_unicode else line

    # --- tasks before and after ---

    def _related(self, names: list[str], choose: Any) -> Iterator["Task"]:
        flow, run = self._components[:2]
        siblings = self.parent.parent
        for name in names:
            step = siblings._child(name)
            if step is None:
                continue
            for row in choose(self._row(), self._store.tasks(flow, run, name)):
                yield Task._found(step, row)

    def _graph(self) -> Row:
        return self._store.graph(self._run_row())

    @property
    def parent_tasks(self) -> Iterator["Task"]:
        """Tasks that led to this one, in order of their ids within each step."""
        yield from self._related(steps_before(self._graph(), self._components[2]), parents)

    @property
    def child_tasks(self) -> Iterator["Task"]:
        """Tasks that this one led to, as far as they have started."""
        yield from self._related(steps_after(self._graph(), self._components[2]), children)

    @property
    def parent_task_pathspecs(self) -> Iterator[str]:
        for task in self.parent_tasks:
            yield task.pathspec

    @property
    def child_task_pathspecs(self) -> Iterator[str]:
        for task in self.child_tasks:
            yield task.pathspec


class DataArtifact(MetaflowObject):
    """An artifact: `DataArtifact('MyFlow/3/train/5/model')`."""

    _KIND = "artifact"
    _PARTS = ("Flow", "run", "step", "task", "artifact")

    @classmethod
    def _found(cls, task: Task, name: str) -> "DataArtifact":
        artifact = cls.__new__(cls)
        artifact._inherit(task, name)
        artifact._task = task
        return artifact

    def _find(self) -> None:
        flow, run, step, number, name = self._components
        row = self._store.task(flow, run, step, number, self._attempt)
        if row is None:
            raise self._missing()
        task = Task.__new__(Task)
        task._store, task._namespace, task._attempt = self._store, self._namespace, self._attempt
        task._components = self._components[:4]
        task._cached, task._pack_cache = row, None
        self._task = task
        if name not in task._artifact_names():
            raise self._missing()

    def _created(self) -> int:
        row = self._task._row()
        created: int = row["finished_at"] or row["created_at"]
        return created

    def _info(self) -> Any:
        return self._task._pack().info(self.id)

    @property
    def parent(self) -> Task:
        return self._task

    @property
    def origin_pathspec(self) -> str | None:
        origin = self._task.origin_pathspec
        return f"{origin}/{self.id}" if origin else None

    @property
    def data(self) -> Any:
        """The value."""
        return self._task._load(self.id)

    @property
    def size(self) -> int:
        """Bytes of the value as it is stored."""
        size: int = self._info()["size"]
        return size

    @property
    def sha(self) -> str:
        """Hash of the value as it is stored; equal hashes are equal values."""
        digest: str = self._info()["hash"]
        return digest

    @property
    def finished_at(self) -> datetime:
        """When the artifact was written, in local time."""
        return local_time(self._created())

    def _children(self) -> Iterator[MetaflowObject]:
        return iter(())

    def _child(self, name: str) -> None:
        return
