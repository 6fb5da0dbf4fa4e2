"""Forked tasks look like fresh processes (design D3): the same odd flows, run both ways."""

import re
from pathlib import Path

import pytest
from harness import Result, finish, start

FLOWS = Path(__file__).parent / "flows"
# Set in both: the flows tell which variables of ours they see.
FORK = {"FERROFLOW_START_METHOD": "fork"}
SPAWN = {"FERROFLOW_START_METHOD": "spawn"}


def run(folder: Path, flow: str, *arguments: str, **env: str) -> Result:
    folder.mkdir(exist_ok=True)
    own = {"ODD_FILE": str(folder / "odd.txt"), **env}
    return finish(start(folder, FLOWS / flow, "run", *arguments, env=own), folder)


def both(folder: Path, flow: str, *arguments: str) -> tuple[Result, Result]:
    forked = run(folder / "forked", flow, *arguments, **FORK)
    spawned = run(folder / "spawned", flow, *arguments, **SPAWN)
    return forked, spawned


def printed(result: Result) -> list[str]:
    """What tasks printed, without the names of tasks, sorted: order holds within a stream only."""
    lines = [re.sub(r"\(pid \d+\)", "(pid N)", line) for line in result.stdout.splitlines()]
    lines = [re.sub(r"^\S+ \S+ ", "", line).replace(str(result.folder), "DIR") for line in lines]
    lines = [re.sub(r"^\[(\d+)/(\w+)/\d+ ", r"[\1/\2/N ", line) for line in lines]
    lines = [re.sub(r"/(forked|spawned)\b", "/WAY", line) for line in lines]
    return sorted(line for line in lines if "Task is starting" not in line)


def test_facts_about_the_process_are_the_same(folder: Path) -> None:
    forked, spawned = both(folder, "odd_facts.py")
    forked.ok(), spawned.ok()
    assert printed(forked) == printed(spawned)
    for result in (forked, spawned):
        assert (result.folder / "odd.txt.end").read_text() == "written at exit"
        lines = sorted((result.folder / "odd.txt").read_text().splitlines())
        assert lines == ["import-file 0", "import-file 1"]
        assert "FACT imported-here-only False" in result.stdout
        assert "FACT late-thread printed" in result.stdout
        assert "FACT partial-line" in result.stdout


def draws(result: Result) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for kind, name, value in re.findall(r"(SEEDED|UNSEEDED)\|([^|]+)\|(\S+)", result.stdout):
        found.setdefault((kind, name), []).append(value)
    return found


@pytest.mark.parametrize("flow", ["odd_random.py", "odd_global_seeds.py"])
def test_generators_draw_as_in_fresh_processes(folder: Path, flow: str) -> None:
    forked, spawned = both(folder, flow)
    first, second = draws(forked.ok()), draws(spawned.ok())
    assert first.keys() == second.keys() and first
    for (kind, name), values in first.items():
        other = second[kind, name]
        if kind == "SEEDED":
            assert set(values) == set(other) and len(set(values)) == 1, name
        else:
            assert len(set(values + other)) == len(values + other), name


def test_unseeded_generators_of_learned_imports_differ(folder: Path) -> None:
    flow = folder / "learned.py"
    flow.write_text(
        "from metaflow import FlowSpec, step\n"
        "class Learned(FlowSpec):\n"
        "    @step\n"
        "    def start(self):\n"
        "        self.items = range(40)\n"
        "        self.next(self.draw, foreach='items')\n"
        "    @step\n"
        "    def draw(self):\n"
        "        import numpy\n"
        "        self.x = (numpy.random.random(), numpy.random.default_rng().random())\n"
        "        self.next(self.join)\n"
        "    @step\n"
        "    def join(self, inputs):\n"
        "        print('distinct', len({v for i in inputs for v in i.x}))\n"
        "        self.next(self.end)\n"
        "    @step\n"
        "    def end(self):\n"
        "        import sys\n"
        "        print('numpy here', 'numpy' in sys.modules)\n"
        "if __name__ == '__main__':\n"
        "    Learned()\n"
    )
    result = finish(start(folder, flow, "run"), folder).ok()
    assert "distinct 80" in result.stdout
    assert "numpy here False" in result.stdout


def test_native_threads_of_an_import_lead_to_spawned_tasks(folder: Path) -> None:
    forked, spawned = both(folder, "odd_polars.py")
    forked.ok(), spawned.ok()
    assert "total 499500 499500" in forked.stdout
    assert printed(forked) == printed(spawned)
    assert re.search(r"native thread", forked.stderr), forked.stderr


WAYS = {
    "none": 0,
    "exit0": 1,
    "exit4": 1,
    "exit-text": 1,
    "_exit3": 1,
    "_exit0": 1,
    "_exit202": 1,
    "abort": 1,
    "segfault": 1,
    "kill": 1,
    "term": 1,
    "interrupt": 1,
    "raise": 1,
    "close-stdout": 0,
    "stop-iteration": 1,
    "keyboard": 1,
    "recursion": 1,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_leave_a_step_is_told_alike(folder: Path, way: str) -> None:
    forked, spawned = both(folder, "odd_exits.py", "--way", way)
    assert (forked.code, spawned.code) == (WAYS[way], WAYS[way])
    assert printed(forked) == printed(spawned)
