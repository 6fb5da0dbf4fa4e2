"""Random numbers of forked tasks: as a fresh process would draw them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from engine_double import run_flow

SCENARIO = """
    def scenario(engine):
        forked = engine.open_zygote()
        spawned = engine.open_zygote(spawn=True)
        assert forked.ready["spawn_reason"] is None, forked.ready
        return [forked.run("step")["result"] for _ in range(3)] + [
            spawned.run("step")["result"] for _ in range(2)]
"""

# What the import does, what the task draws, and whether every task draws the same.
CASES = {
    "random, not seeded": ("import random", "random.random()", False),
    "random, seeded": ("import random; random.seed(1)", "random.random()", True),
    "random, seeded and drawn from": (
        "import random; random.seed(1); random.random()",
        "random.random()",
        True,
    ),
    "random, seeded with the time": (
        "import random, time; random.seed(time.time_ns())",
        "random.random()",
        False,
    ),
    "an instance": ("import random; r = random.Random()", "r.random()", False),
    "a seeded instance": ("import random; r = random.Random(3)", "r.random()", True),
    "an instance in a closure": (
        "import random\ndef make():\n    g = random.Random()\n    return lambda: g.random()\n"
        "draw = make()",
        "draw()",
        False,
    ),
    "a subclass, seeded": (
        "import random\nclass R(random.Random): pass\nr = {'deep': [R(5)]}",
        "r['deep'][0].random()",
        True,
    ),
    "one seeded, one not": (
        "import random; a = random.Random(1); b = random.Random()",
        "b.random()",
        False,
    ),
    "numpy, not seeded": ("import numpy as np", "np.random.random()", False),
    "numpy, seeded": ("import numpy as np; np.random.seed(7)", "np.random.random()", True),
    "numpy, a left-over normal": (
        "import numpy as np; np.random.normal()",
        "np.random.normal()",
        False,
    ),
    "a Generator": ("import numpy as np; g = np.random.default_rng()", "g.random()", False),
    "a seeded Generator": ("import numpy as np; g = np.random.default_rng(1)", "g.random()", True),
    "a Generator's children": (
        "import numpy as np; g = np.random.default_rng()",
        "g.bit_generator.seed_seq.spawn(1)[0].generate_state(1).tolist()",
        False,
    ),
    "a RandomState": ("import numpy as np; r = np.random.RandomState()", "r.rand()", False),
    "a seeded RandomState": (
        "import numpy as np; r = np.random.RandomState(2)",
        "r.rand()",
        True,
    ),
    "Philox": (
        "import numpy as np; g = np.random.Generator(np.random.Philox())",
        "g.random()",
        False,
    ),
    "a seeded SFC64": (
        "import numpy as np; g = np.random.Generator(np.random.SFC64(9))",
        "g.random()",
        True,
    ),
    "a SeedSequence": (
        "import numpy as np; s = np.random.SeedSequence()",
        "np.random.default_rng(s).random()",
        False,
    ),
    "a seeded SeedSequence": (
        "import numpy as np; s = np.random.SeedSequence(4)",
        "np.random.default_rng(s).random()",
        True,
    ),
    "numpy imported by the task": ("import os", "__import__('numpy').random.random()", False),
    "temporary names": (
        "import tempfile; tempfile.mktemp()",
        "tempfile.mktemp()",
        False,
    ),
    "unique ids": ("import uuid", "str(uuid.uuid1()) + str(uuid.uuid4())", False),
}


@pytest.mark.parametrize("case", CASES)
def test_forked_tasks_draw_like_fresh_processes(tmp_path: Path, case: str) -> None:
    before, drawn, is_same = CASES[case]
    if "numpy" in before + drawn:
        pytest.importorskip("numpy")
    flow = f"{before}\nclass Flow:\n    @staticmethod\n    def step(spec, control):\n"
    found = run_flow(tmp_path, flow + f"        return {drawn}\n", SCENARIO)
    distinct = {str(number) for number in found}
    assert len(distinct) == (1 if is_same else len(found)), found


def test_numpy_learned_by_the_zygote_is_reseeded(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote()
            learned = zygote.learn("numpy")
            return [learned["packages"], learned["refused"]] + [
                zygote.run("step")["result"] for _ in range(3)]
    """
    flow = """
class Flow:
    @staticmethod
    def step(spec, control):
        import sys
        assert "numpy" in sys.modules
        import numpy
        return [numpy.random.random(), numpy.random.default_rng().random()]
"""
    learned, refused, *found = run_flow(tmp_path, flow, scenario)
    assert (learned, refused) == (["numpy"], [])
    assert len({str(numbers) for numbers in found}) == 3


def test_a_twin_that_fails_makes_tasks_spawn(tmp_path: Path) -> None:
    """The import succeeds only once."""
    before = (
        "import random, os\nr = random.Random(1)\n"
        "if 'FERROFLOW_TWIN_FD' in os.environ: raise KeyError('no second time')\n"
    )
    flow = f"{before}\nclass Flow:\n    @staticmethod\n    def step(spec, control):\n"
    scenario = """
        def scenario(engine):
            zygote = engine.open_zygote()
            return [zygote.ready["spawn_reason"], zygote.run("step")["result"]]
    """
    reason, drawn = run_flow(tmp_path, flow + "        return r.random()\n", scenario)
    assert "second import of the flow failed" in reason
    assert drawn == pytest.approx(0.13436424411240122)


def test_no_twin_where_nothing_can_be_seeded(tmp_path: Path) -> None:
    before = (
        "import random, os\nopen('imports.txt', 'a').write('x')\n"
        "class Flow:\n    @staticmethod\n    def step(spec, control):\n        return 1\n"
    )
    run_flow(tmp_path, before, "def scenario(engine):\n    engine.open_zygote().run('step')\n")
    assert (tmp_path / "imports.txt").read_text() == "x"


@pytest.mark.parametrize(
    "source, may_seed",
    [
        ("random.seed(1)", True),
        ("np.random.seed( 3 )", True),
        ("seed_everything(1)", True),
        ("transformers.set_seed(1)", True),
        ("from random import seed", True),
        ("reseed = random.seed", True),
        ("rng = np.random.default_rng", True),
        ("r = random.Random(1)", True),
        ("np.random.set_state(kept)", True),
        ("seed = Parameter('seed', default=1)", False),
        ("def gen() -> Generator[int, None, None]: yield 1", False),
        ("x = random.random()", False),
    ],
)
def test_words_that_seed(source: str, may_seed: bool) -> None:
    from metaflow import _isolation

    assert (_isolation._MAY_SEED.search(source.encode()) is not None) is may_seed


def test_seeding_inside_steps_needs_no_twin(tmp_path: Path) -> None:
    """Steps do not run during the import."""
    pytest.importorskip("metaflow._native")
    import importlib.util

    source = (
        "from metaflow import FlowSpec, step\nimport random\n\n"
        "class Seeding(FlowSpec):\n"
        "    @step\n"
        "    def start(self):\n"
        "        def inner():\n"
        "            random.seed(1)\n"
        "        inner()\n"
        "        self.next(self.end)\n\n"
        "    @step\n"
        "    def end(self):\n"
        "        random.seed(2)\n"
    )
    for extra, may_seed in (("", False), ("\nrandom.seed(3)\n", True)):
        file = tmp_path / f"flow{len(extra)}.py"
        file.write_text(source + extra)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        from metaflow import _isolation

        text = _isolation._without(
            file.read_bytes(), _isolation._step_lines(module.Seeding)[str(file)]
        )
        assert (_isolation._MAY_SEED.search(text) is not None) is may_seed
