"""Learned imports: what a task says about its body's imports, and what a zygote makes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_double import run_flow


def flow_with(body: str, before: str = "import os, sys") -> str:
    lines = "\n".join(f"        {line}" for line in body.strip("\n").splitlines())
    return f"{before}\nclass Flow:\n    @staticmethod\n    def step(spec, control):\n{lines}\n"


RUN = """
    def scenario(engine):
        zygote = engine.open_zygote()
        return zygote.run("step")
"""


def told(outcome: dict) -> list[str]:
    return [
        name
        for message in outcome["messages"]
        if message["type"] == "imported"
        for name in message["packages"]
    ]


def test_installed_packages_are_told_once_they_are_imported(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    (tmp_path / "own_module.py").write_text("import numpy\n")
    body = "import own_module\nimport numpy\nimport numpy.linalg"
    outcome = run_flow(tmp_path, flow_with(body), RUN)
    assert told(outcome) == ["numpy"]
    assert outcome["messages"][0]["type"] == "imported"
    assert outcome["messages"][-1]["outcome"]["imports"][0] == "numpy"
    assert "own_module" not in outcome["messages"][-1]["outcome"]["imports"]


@pytest.mark.parametrize(
    "change", ["os.environ['X'] = '1'", "sys.path.insert(0, 'lib')", "os.chdir('/')"]
)
def test_imports_after_a_change_of_surroundings_do_not_count(tmp_path: Path, change: str) -> None:
    pytest.importorskip("numpy")
    outcome = run_flow(tmp_path, flow_with(f"{change}\nimport numpy"), RUN)
    assert told(outcome) == []
    assert outcome["messages"][-1]["outcome"]["imports"] == []


def test_a_failed_import_is_not_told(tmp_path: Path) -> None:
    body = "try:\n    import no_such_module\nexcept ImportError as e:\n    return str(e)"
    outcome = run_flow(tmp_path, flow_with(body), RUN)
    assert outcome["result"] == "No module named 'no_such_module'"
    assert told(outcome) == []


def test_turned_off(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote(learn_imports=False)
            return [zygote.run("step"), zygote.learn("numpy")]
    """
    outcome, learned = run_flow(tmp_path, flow_with("import numpy"), scenario)
    assert told(outcome) == []
    assert learned["packages"] == []
    assert len(learned["refused"]) == 1


def test_only_the_zygote_that_learned_has_the_package(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    scenario = """
        def scenario(engine):
            one, two = engine.open_zygote(), engine.open_zygote()
            told = engine.open_zygote(learned=["numpy"])
            one.learn("numpy")
            return [zygote.run("step")["result"] for zygote in (one, two, told)]
    """
    flow = flow_with("return 'numpy' in sys.modules")
    assert run_flow(tmp_path, flow, scenario) == [True, False, True]


def test_packages_that_forbid_forking_stay_out(tmp_path: Path) -> None:
    pytest.importorskip("polars")
    pytest.importorskip("numpy")
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote()
            learned = zygote.learn("polars", "no_such_module", "numpy")
            return [learned, zygote.run("step")["result"]]
    """
    body = "return ['polars' in sys.modules, 'numpy' in sys.modules, bool(__import__('polars'))]"
    learned, present = run_flow(tmp_path, flow_with(body), scenario)
    assert learned["packages"] == ["numpy"]
    assert len(learned["refused"]) == 2
    assert learned["refused"][0].startswith("polars: ")
    assert learned["refused"][0].endswith("native thread started by importing polars")
    assert learned["refused"][1] == "no_such_module: importing it raised ModuleNotFoundError"
    assert present == [False, True, True]


def test_importing_a_package_that_ends_the_process_or_prints(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "deadly.py").write_text("import os\nos._exit(3)\n")
    (site / "chatty.py").write_text("print('chatter')\n")
    (site / "leaving.py").write_text("raise SystemExit(3)\n")
    before = f"import os, sys\nsys.path.append({str(site)!r})"
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote()
            learned = [zygote.learn(name) for name in ("deadly", "leaving", "chatty")]
            return [learned, zygote.run("step")]
    """
    learned, outcome = run_flow(
        tmp_path, flow_with("import chatty; return 'chatty' in sys.modules", before), scenario
    )
    assert [one["packages"] for one in learned] == [[], [], ["chatty"]]
    assert learned[0]["refused"] == ["deadly: importing it ended the process"]
    assert learned[1]["refused"] == ["leaving: importing it raised SystemExit"]
    assert (outcome["result"], outcome["stdout"]) == (True, "")


def test_tasks_start_while_a_package_is_being_probed(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    site.mkdir()
    (site / "slow.py").write_text(
        "import os, time\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    )
    before = f"import os, sys\nsys.path.append({str(site)!r})"
    scenario = """
        from engine_double import wait_until
        def scenario(engine):
            zygote = engine.open_zygote()
            zygote.connection.send({"type": "learn", "packages": ["slow"]})
            first = zygote.run("step")["result"]
            open("go", "w").close()
            wait_until(lambda: zygote.learned, lambda: zygote.pump(0.05))
            return [first, zygote.learned[0]["packages"], zygote.run("step")["result"]]
    """
    flow = flow_with("return 'slow' in sys.modules", before)
    assert run_flow(tmp_path, flow, scenario) == [False, ["slow"], True]
