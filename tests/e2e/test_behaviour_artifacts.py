"""What flows may call their attributes, and what the search for an unpicklable part says."""

from pathlib import Path

import pytest
from harness import run_flow


def test_a_flow_may_name_its_helpers_as_it_likes(folder: Path) -> None:
    result = run_flow(
        folder,
        """
        class HelperFlow(FlowSpec):
            def _load(self, path):
                return "loaded " + path

            def _describe(self):
                return "described"

            def _item_of_frame(self):
                return "item"

            @step
            def start(self):
                self.kept = [1]
                self.items = ["a", "b"]
                self.next(self.work, foreach="items")

            @step
            def work(self):
                print(self._load("x"), self._describe(), self._item_of_frame(), self.kept, self)
                self.next(self.join)

            @step
            def join(self, inputs):
                self.next(self.end)

            @step
            def end(self):
                self._load = 5
        """,
        "run",
    ).ok()
    texts = [line.partition("] ")[2] for line in result.lines if "loaded" in line]
    assert sorted(texts) == [
        f"loaded x described item [1] <flow HelperFlow step work[{index}] (input: {item})>"
        for index, item in enumerate("ab")
    ]


def test_a_flow_may_watch_its_own_attributes(folder: Path) -> None:
    result = run_flow(
        folder,
        """
        class WatchingFlow(FlowSpec):
            def __setattr__(self, name, value):
                print("set", name)
                super().__setattr__(name, value)

            def __getattr__(self, name):
                return 42 if name == "answer" else super().__getattr__(name)

            @step
            def start(self):
                self.x = 1
                self.next(self.end)

            @step
            def end(self):
                print("found", self.x, self.answer)
        """,
        "run",
    ).ok()
    printed = [line.partition("] ")[2] for line in result.lines if "(pid N)" in line]
    assert [line for line in printed if not line.startswith("Task")] == ["set x", "found 1 42"]
    assert "set" not in result.err


FAILING = """
    class PickleFlow(FlowSpec):
        @step
        def start(self):
            {body}
            self.next(self.end)

        @step
        def end(self):
            pass
"""


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("import sys; self.m = {'s': sys}", "`self.m['s']` is a `module`, which cannot be stored"),
        (
            "self.m = type('Hungry', (), {'__reduce__': lambda s: bytes(1 << 62)})()",
            "    MemoryError",
        ),
    ],
)
def test_what_cannot_be_stored_is_told_truthfully(folder: Path, body: str, told: str) -> None:
    result = run_flow(folder, FAILING.replace("{body}", body), "run").exited(1)
    assert told.strip() in result.out
    assert ("Cannot pickle artifact" in result.out) == ("MemoryError" not in told)
