"""`current`: where the running code is. Filled by `_task` when a task starts.

How a task runs does not belong here, nor does reading past runs (that is the client's).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Fields that exist everywhere and are None outside a task.
_ALWAYS = frozenset(
    {
        "flow_name",
        "namespace",
        "origin_run_id",
        "retry_count",
        "run_id",
        "step_name",
        "tags",
        "task_id",
        "username",
    }
)
# How long the client, in a task, waits for the engine's record of the task, and how often it looks.
_RECORD_SECONDS = 10.0
_RECORD_PAUSE_SECONDS = 0.005
_COMPUTED = frozenset({"graph", "is_running_flow", "pathspec", "run", "task", "tempdir"})
# Fields that a decorator adds, or one of a later version would.
_LATER = {
    "branch_name": "@project",
    "card": "@card",
    "is_production": "@project",
    "is_parallel": "@parallel and num_parallel",
    "is_user_branch": "@project",
    "parallel": "@parallel and num_parallel",
    "project_flow_name": "@project",
    "project_name": "@project",
    "spot_termination_notice": "a remote compute layer",
    "trigger": "@trigger or @trigger_on_finish",
}


# Written in a remote task when AWS takes its Spot instance back.
SPOT_NOTICE_FILE = "/tmp/spot_termination_notice"


class Current:
    """The running flow, run, step and task; outside a task most fields are None.

    `"x" in current` is true if the field exists and is not None; `current.get("x", default)`
    never raises.
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._flow_class: type | None = None
        self._store_root: str | None = None
        self._client_namespace: str | None = None
        self._remote_store: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        if name in _ALWAYS:
            return self.__dict__["_values"].get(name)
        values = self.__dict__.get("_values", {})
        if name in values:
            return values[name]
        if name == "parallel" and values.get("is_parallel"):
            from metaflow._parallel import parallel

            return parallel()
        needs = _LATER.get(name)
        reason = f": it comes with {needs}" if needs else ""
        raise AttributeError(f"`current` has no `{name}` here{reason}", name=name, obj=self)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """The field, or `default` where it does not exist or cannot be known."""
        if name.startswith("_"):
            return default
        try:
            value = getattr(self, name)
        except (AttributeError, RuntimeError):
            return default
        return default if value is None else value

    def __dir__(self) -> list[str]:
        return sorted({*_ALWAYS, *_COMPUTED, "get", *self._values})

    def __repr__(self) -> str:
        return f"<current {self.pathspec or 'outside a task'}>"

    @property
    def is_running_flow(self) -> bool:
        """Whether this code runs inside a task."""
        return "task_id" in self._values

    @property
    def pathspec(self) -> str | None:
        """`Flow/run/step/task`."""
        if not self.is_running_flow:
            return None
        values = self._values
        return "/".join(values[part] for part in ("flow_name", "run_id", "step_name", "task_id"))

    @property
    def tempdir(self) -> str:
        """A folder for temporary files."""
        return os.environ.get("METAFLOW_TEMPDIR") or "."

    @property
    def graph(self) -> dict[str, Any]:
        """The flow's graph as plain data: its steps, their transitions and decorators."""
        if self._flow_class is None:
            raise RuntimeError("Graph is not available outside a running flow")
        from metaflow._graph_info import graph_info

        return graph_info(self._flow_class)

    @property
    def run(self) -> Any:
        """The running run as a client object, whatever the namespace."""
        return self._client_object("Run", 2)

    @property
    def task(self) -> Any:
        """The running task as a client object, whatever the namespace."""
        return self._client_object("Task", 4)

    def _client_object(self, kind: str, parts: int) -> Any:
        pathspec = self.pathspec
        if pathspec is None:
            return None
        import metaflow

        # Through the package, which first points the client at the run's own store.
        constructor = getattr(metaflow, kind)
        return constructor("/".join(pathspec.split("/")[:parts]), _namespace_check=False)

    def _enter_task(self, flow_class: type, spec: dict[str, Any], parameters: list[str]) -> None:
        self._flow_class = flow_class
        store = spec["store"]
        # The metadata of a remote store's runs stays in a local folder.
        self._store_root = store.get("options", {}).get("metadata") or store["root"]
        # In a container neither the folder nor the metadata is there.
        elsewhere = store["kind"] != "local" and self._store_root == store["root"]
        self._remote_store = store if elsewhere else None
        self._client_namespace = spec.get("namespace")
        self._values = {
            "flow_name": spec["flow"],
            "run_id": str(spec["run"]),
            "step_name": spec["step"],
            "task_id": str(spec["task"]),
            "retry_count": spec["attempt"],
            "origin_run_id": spec.get("origin_run"),
            "namespace": spec["identity"],
            "username": spec["user"],
            "tags": set(spec["tags"]),
            "parameter_names": parameters,
        }
        if spec.get("gang"):
            self._values["is_parallel"] = True
        if self._remote_store is not None:
            self._values["spot_termination_notice"] = SPOT_NOTICE_FILE

    def _enter_flow(self, flow_name: str, user: str) -> None:
        """For code that runs before any task does: defaults of parameters."""
        self._values = {"flow_name": flow_name, "username": user}

    def _leave(self) -> None:
        self.__init__()  # type: ignore[misc]


def wait_until_recorded(store: Any) -> None:
    """User code may run before the engine has written down that its task does. Records are written
    in order: once the task's own is there, so is all that it may know of, its parents included."""
    if not current.is_running_flow or store.root != current._store_root:
        return
    import time

    values = current._values
    place = [values[part] for part in ("flow_name", "run_id", "step_name", "task_id")]
    deadline = time.monotonic() + _RECORD_SECONDS
    while store.task(*place, values["retry_count"]) is None and time.monotonic() < deadline:
        time.sleep(_RECORD_PAUSE_SECONDS)


current = Current()


def point_client_at_run() -> None:
    """Inside a task: makes the run's own store and namespace the client's defaults."""
    if current.is_running_flow and current._store_root is not None:
        from metaflow._client_settings import enter_task

        enter_task(current._store_root, current._client_namespace, current._remote_store)
