"""What the client reads through: the only client module that knows the native reader.

Rows are the JSON shapes of `crates/core/src/metadata.rs` (`RunRow`, `TaskRow`) as dictionaries.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]

# The same names as in crates/cli/src/datastore.rs.
_ENDPOINTS = {
    "s3": "METAFLOW_S3_ENDPOINT_URL",
    "azure": "METAFLOW_AZURE_STORAGE_BLOB_SERVICE_ENDPOINT",
}

_open: dict[tuple[str, int], "ClientStore"] = {}


def client_store() -> "ClientStore":
    """The store in force; one reader per folder and process."""
    from metaflow._client_settings import local_root

    return client_store_at(local_root())


def client_store_at(root: str) -> "ClientStore":
    # A forked child must not share the parent's database connection.
    key = (root, os.getpid())
    store = _open.get(key)
    if store is None:
        from metaflow._current import wait_until_recorded

        store = _open[key] = ClientStore(root)
        wait_until_recorded(store)
    return store


class ClientStore:
    """Runs, tasks, logs and artifacts of one datastore root. A missing root reads as empty."""

    def __init__(self, root: str) -> None:
        self.root = root
        from metaflow._client_settings import remote_store

        self._remote = remote_store(root)
        self._reader: Any = None
        self._data_roots: dict[tuple[str, str], str] = {}

    def _metadata(self) -> Any:
        """The native reader, or nothing while the folder does not exist."""
        if self._reader is None and self._remote is not None:
            from metaflow._client_questions import Questions

            self._reader = Questions(self._remote)
        if self._reader is None and os.path.isdir(self.root):
            from metaflow import _native

            self._reader = _native.Metadata(self.root)
        return self._reader

    def flows(self) -> list[str]:
        reader = self._metadata()
        return list(reader.flows()) if reader else []

    def runs(self, flow: str) -> list[Row]:
        """Newest first."""
        reader = self._metadata()
        return list(reader.runs(flow)) if reader else []

    def run(self, flow: str, run: str) -> Row | None:
        reader = self._metadata()
        row: Row | None = reader.run(flow, run) if reader else None
        return row

    def graph(self, run_row: Row) -> Row:
        """The flow's description (`ir::Flow`) that the run was started with."""
        graph: Row = json.loads(run_row["graph"])
        return graph

    def tasks(self, flow: str, run: str, step: str | None = None) -> list[Row]:
        """Latest attempts in order of task id; one query."""
        reader = self._metadata()
        return list(reader.tasks(flow, run, step)) if reader else []

    def steps(self, flow: str, run: str) -> list[Row]:
        """`step` and `created_at` of each step that has a task, newest first."""
        reader = self._metadata()
        return list(reader.steps(flow, run)) if reader else []

    def task(self, flow: str, run: str, step: str, task: str, attempt: int | None) -> Row | None:
        """One task's latest attempt, or the attempt asked for."""
        reader = self._metadata()
        if not reader or not task.isdecimal():
            return None
        rows = reader.attempts(flow, run, int(task))
        if attempt is None:
            row: Row | None = rows[-1] if rows else None
        else:
            row = next((each for each in rows if each["attempt"] == attempt), None)
        return row if row is not None and row["step"] == step else None

    def metadata(self, flow: str, run: str, task: int) -> list[Row]:
        reader = self._metadata()
        return list(reader.metadata(flow, run, task)) if reader else []

    def mutate_tags(self, flow: str, run: str, add: list[str], remove: list[str]) -> list[str]:
        return list(self._metadata().mutate_tags(flow, run, add, remove))

    def log_lines(self, flow: str, row: Row, stream: str) -> Iterator[tuple[int, bytes]]:
        """Milliseconds and bytes of one stream; a clone shows the lines of its origin."""
        run, task, attempt = data_place(row)
        root = self.data_root(flow, row["run"])
        if root == self.root:
            lines = self._metadata().logs(flow, run, row["step"], task, attempt)
        else:
            from metaflow import _native

            lines = _native.read_log(root, flow, run, row["step"], task, attempt)
        for line_stream, at, line in lines:
            if line_stream == stream:
                yield at, line

    def data_root(self, flow: str, run: str) -> str:
        """Where a run's packs and logs are: its own record says so. A clone's are its origin's,
        which are in the same store."""
        key = (flow, run)
        root = self._data_roots.get(key)
        if root is None:
            row = self.run(flow, run)
            store = row.get("store") if row else None
            if self._remote is not None:
                root = _reached_from(self._remote, f"{flow}/{run}", store)
            else:
                root = _located(store) if store else self.root
            self._data_roots[key] = root
        return root

    def pack(self, flow: str, row: Row) -> Any:
        """The artifacts of an attempt; nothing when it wrote none (yet)."""
        from metaflow import _artifacts
        from metaflow.exception import MetaflowDataMissing

        run, task, attempt = data_place(row)
        root = self.data_root(flow, row["run"])
        pack = _artifacts.InputPack(root, flow, run, row["step"], task, attempt)
        try:
            pack.names()
        except MetaflowDataMissing:
            return None
        return pack


def _located(store: Row) -> str:
    """A run's recorded location, reached as this machine is configured to."""
    from metaflow._artifacts import store_text
    from metaflow._client_settings import configured

    options = dict(store.get("options", {}))
    settings = {"endpoint": _ENDPOINTS.get(store["kind"]), "cache": "METAFLOW_TEMPDIR"}
    for option, name in settings.items():
        value = configured(name) if name else None
        if value:
            options[option] = os.path.join(value, "ferroflow") if option == "cache" else value
    return store_text({**store, "options": options})


def _reached_from(own: Row, run: str, store: Row | None) -> str:
    """A run's recorded location, reached as a remote task reaches its own run's."""
    from metaflow._artifacts import store_text
    from metaflow.exception import DataException

    if store is None or store["kind"] != own["kind"]:
        kind = store["kind"] if store else "local"
        raise DataException(
            f"what run `{run}` made is in a datastore of kind `{kind}`, which this task cannot "
            f"reach: its own is of kind `{own['kind']}`"
        )
    options = {**own.get("options", {})}
    options.pop("scope", None)
    if scope := store.get("options", {}).get("scope"):
        options["scope"] = scope
    return store_text({**store, "options": options})


def data_place(row: Row) -> tuple[str, int, int]:
    """Run, task and attempt whose pack and logs stand for this attempt."""
    data = row.get("data")
    if data:
        return data["run"], data["task"], data["attempt"]
    return row["run"], row["task"], row["attempt"]
