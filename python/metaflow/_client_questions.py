"""The client's reader inside a remote task: runs and tags are recorded on the machine of the run's
engine, so each look is a question to it, left in the store and answered there.

How the engine finds and answers it: `crates/compute/src/remote/questions.rs`. What can be asked:
`crates/store/src/questions.rs`.
"""

from __future__ import annotations

import json
import os
import time

from metaflow import _remote_store
from metaflow.exception import DataException, MetaflowNotFound, MetaflowTaggingError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from metaflow._client_store import Row

_FAULTS: dict[str, type[Exception]] = {
    "not_found": MetaflowNotFound,
    "refused": MetaflowTaggingError,
    "unavailable": DataException,
}
# An engine looks twice a second, and less often while the store keeps it waiting.
_PATIENCE_SECONDS = 90.0
_PAUSES_SECONDS = (0.05, 0.1, 0.2)


class Questions:
    """The methods of `_native.Metadata` that the client uses, one question each."""

    def __init__(self, location: Row) -> None:
        self._location = location
        self._prefix = os.environ["FERROFLOW_LOG_PREFIX"]

    def flows(self) -> list[str]:
        return self._list("flows")

    def runs(self, flow: str) -> list[Row]:
        return self._list("runs", flow=flow)

    def run(self, flow: str, run: str) -> Row | None:
        row: Row | None = self._ask("run", flow=flow, run=run)
        return row

    def steps(self, flow: str, run: str) -> list[Row]:
        return self._list("steps", flow=flow, run=run)

    def tasks(self, flow: str, run: str, step: str | None = None) -> list[Row]:
        return self._list("tasks", flow=flow, run=run, step=step)

    def attempts(self, flow: str, run: str, task: int) -> list[Row]:
        return self._list("attempts", flow=flow, run=run, task=task)

    def metadata(self, flow: str, run: str, task: int) -> list[Row]:
        return self._list("metadata", flow=flow, run=run, task=task)

    def mutate_tags(self, flow: str, run: str, add: list[str], remove: list[str]) -> list[str]:
        return self._list("mutate_tags", flow=flow, run=run, add=add, remove=remove)

    def _list(self, ask: str, **details: Any) -> list[Any]:
        found: list[Any] = self._ask(ask, **details)
        return found

    def _ask(self, ask: str, **details: Any) -> Any:
        text = json.dumps({"ask": ask, **details}).encode()
        # A connection for each question: what it needs in threads is gone when user code goes on.
        store = _remote_store.open_store(self._location)
        name = os.urandom(8).hex()
        try:
            store.put(f"{self._prefix}ask-{name}", text)
            answer = self._wait(store, f"{self._prefix}answer-{name}")
        except OSError as error:
            raise DataException(
                f"cannot ask the run's engine about runs and tags: {error}"
            ) from error
        if "fault" in answer:
            raise _FAULTS[answer["fault"]](answer["text"])
        return answer["found"]

    def _wait(self, store: _remote_store.Store, key: str) -> Row:
        end = time.monotonic() + _PATIENCE_SECONDS
        looks = 0
        while (data := store.get(key)) is None:
            if time.monotonic() > end:
                raise DataException(
                    "the engine of this run has not answered a question about runs and tags for "
                    f"{_PATIENCE_SECONDS:.0f} s: it may be gone. Artifacts of earlier steps are "
                    "in `self` without it"
                )
            time.sleep(_PAUSES_SECONDS[min(looks // 8, len(_PAUSES_SECONDS) - 1)])
            looks += 1
        store.delete(key)
        answer: Row = json.loads(data)
        return answer
