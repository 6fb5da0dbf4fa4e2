"""What every client object has: a pathspec, a parent, tags, time of creation, a namespace check."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, ClassVar

from metaflow._client_settings import get_namespace
from metaflow._client_store import Row, client_store, client_store_at

MAX_ATTEMPTS = 6


def local_time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000)


def optional_time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else local_time(milliseconds)


def in_namespace(run_row: Row, namespace: str | None) -> bool:
    return namespace is None or namespace in run_row["tags"] or namespace in run_row["system_tags"]


class MetaflowObject:
    """A flow, run, step, task or artifact; found by its pathspec, e.g. `Run('MyFlow/3')`."""

    _KIND: ClassVar[str] = ""
    _PARTS: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        pathspec: str | None = None,
        attempt: int | None = None,
        *,
        _namespace_check: bool = True,
    ) -> None:
        self._store = client_store()
        self._namespace = get_namespace() if _namespace_check else None
        self._attempt = self._checked_attempt(attempt)
        self._components = self._parsed(pathspec)
        self._find()
        if not self.is_in_namespace():
            from metaflow.exception import MetaflowNamespaceMismatch

            raise MetaflowNamespaceMismatch(
                f"{self._KIND} `{self.pathspec}` is not in the namespace `{self._namespace}`; "
                "`namespace(None)` shows everything"
            )

    def _parsed(self, pathspec: str | None) -> tuple[str, ...]:
        parts = tuple(pathspec.split("/")) if pathspec else ()
        if len(parts) != len(self._PARTS) or not all(parts):
            from metaflow.exception import MetaflowInvalidPathspec

            form = "/".join(self._PARTS)
            raise MetaflowInvalidPathspec(
                f"`{pathspec}` is not the pathspec of a {self._KIND}: write `{form}`"
            )
        return parts

    def _checked_attempt(self, attempt: int | None) -> int | None:
        if attempt is None:
            return None
        if self._KIND not in ("task", "artifact"):
            raise self._not_found(f"a {self._KIND} has no attempts; only tasks and artifacts do")
        if not isinstance(attempt, int) or isinstance(attempt, bool):
            raise self._not_found(f"`attempt` is a whole number from 0, not {attempt!r}")
        if not 0 <= attempt < MAX_ATTEMPTS:
            raise self._not_found(
                f"there is no attempt {attempt}: attempts go from 0 to {MAX_ATTEMPTS - 1}"
            )
        return attempt

    @staticmethod
    def _not_found(message: str) -> Exception:
        from metaflow.exception import MetaflowNotFound

        return MetaflowNotFound(message)

    def _missing(self) -> Exception:
        text = f"{self._KIND} `{self.pathspec}` does not exist in `{self._store.root}`"
        if self._attempt is not None:
            text = f"attempt {self._attempt} of {text}"
        return self._not_found(text)

    def _inherit(self, parent: "MetaflowObject", *more: str) -> None:
        """Fills in a child that was found through its parent; nothing is checked again."""
        self._store = parent._store
        self._namespace = parent._namespace
        self._attempt = parent._attempt
        self._components = (*parent._components, *more)

    def _find(self) -> None:
        """Raises `MetaflowNotFound` unless the object exists."""
        raise NotImplementedError(self._KIND)

    def _run_row(self) -> Row:
        """The run as it is now: tags and state of everything below it are the run's."""
        flow, run = self._components[:2]
        row = self._store.run(flow, run)
        if row is None:
            raise self._not_found(f"run `{flow}/{run}` does not exist in `{self._store.root}`")
        return row

    def _created(self) -> int:
        raise NotImplementedError(self._KIND)

    @property
    def id(self) -> str:
        """The last part of the pathspec."""
        return self._components[-1]

    @property
    def pathspec(self) -> str:
        """`Flow/run/step/task/artifact`, as far as this object goes."""
        return "/".join(self._components)

    @property
    def path_components(self) -> list[str]:
        return list(self._components)

    @property
    def parent(self) -> "MetaflowObject | None":
        """The object this one belongs to; `None` for a flow."""
        return None

    @property
    def user_tags(self) -> frozenset[str]:
        """Tags that users gave the run."""
        return frozenset(self._run_row()["tags"])

    @property
    def system_tags(self) -> frozenset[str]:
        """Tags that the system gave the run."""
        return frozenset(self._run_row()["system_tags"])

    @property
    def tags(self) -> frozenset[str]:
        """User and system tags of the run, as they are now."""
        row = self._run_row()
        return frozenset(row["tags"]) | frozenset(row["system_tags"])

    @property
    def created_at(self) -> datetime:
        """When it was created, in local time."""
        return local_time(self._created())

    @property
    def origin_pathspec(self) -> str | None:
        """The object that this one was cloned from by a resume."""
        return None

    def is_in_namespace(self) -> bool:
        """Whether the run carries the namespace as a tag."""
        return in_namespace(self._run_row(), self._namespace)

    def _children(self) -> Iterator["MetaflowObject"]:
        raise NotImplementedError(self._KIND)

    def _child(self, name: str) -> "MetaflowObject | None":
        raise NotImplementedError(self._KIND)

    def __iter__(self) -> Iterator[Any]:
        """Children, newest first."""
        return self._children()

    def __getitem__(self, name: str) -> Any:
        child = self._child(name)
        if child is None:
            raise KeyError(name)
        return child

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._child(name) is not None

    def __repr__(self) -> str:
        attempt = "" if self._attempt is None else f", attempt={self._attempt}"
        return f"{type(self).__name__}('{self.pathspec}'{attempt})"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, MetaflowObject)
            and type(self) is type(other)
            and self._components == other._components
            and self._attempt == other._attempt
            and self._store.root == other._store.root
        )

    def __hash__(self) -> int:
        return hash((type(self), self._components, self._attempt))

    def __getstate__(self) -> dict[str, Any]:
        return {
            "root": self._store.root,
            "namespace": self._namespace,
            "attempt": self._attempt,
            "components": self._components,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._store = client_store_at(state["root"])
        self._namespace = state["namespace"]
        self._attempt = state["attempt"]
        self._components = state["components"]
        self._find()
