"""Names of the package, decorators where they are written, flows outside of tasks."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest

import metaflow
from metaflow import FlowSpec, catch, current, project, resources, retry, step
from metaflow.exception import (
    BadFlowDecoratorException,
    BadStepDecoratorException,
    DuplicateFlowDecoratorException,
    DuplicateStepDecoratorException,
    InvalidNextException,
    MetaflowException,
    NotInThisVersion,
    UnhandledInMergeArtifactsException,
)


class Plain(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


def test_every_name_is_there():
    assert len(metaflow.__all__) == len(set(metaflow.__all__))
    assert set(metaflow._HOME_OF) == set(metaflow.__all__)
    for name in metaflow.__all__:
        assert getattr(metaflow, name) is not None, name


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'metaflow' has no attribute 'FlowSpecs'"):
        _ = metaflow.FlowSpecs
    with pytest.raises(ImportError):
        from metaflow import stepp  # noqa: F401


def test_importing_is_lazy():
    code = (
        "import sys; before = set(sys.modules)\n"
        "from metaflow import FlowSpec, step, resources, Parameter, retry, current\n"
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    loaded = eval(done.stdout)
    assert {name for name in loaded if not name.startswith("metaflow")} <= {"__future__", "types"}


def test_later_names_refuse_when_used():
    from metaflow import Config, FlowMutator, Runner, config_expr, user_step_decorator
    from metaflow.cards import Markdown, get_cards
    from metaflow.integrations import ArgoEvent

    for use in (Config, Runner, config_expr, user_step_decorator, Markdown, get_cards, ArgoEvent):
        with pytest.raises(NotInThisVersion, match="is not in this version of ferroflow: "):
            use("x")
    with pytest.raises(NotInThisVersion, match="`FlowMutator` is not in this version"):

        class Mine(FlowMutator):
            pass


def test_decorators_are_recorded():
    @retry(times=3)
    @catch
    @step
    def start(self):
        pass

    uses = start.__ferroflow_step__.decorators
    assert [(use.name, use.attributes) for use in uses] == [("retry", {"times": 3}), ("catch", {})]
    assert uses[1].line == uses[0].line + 1
    assert uses[0].file == __file__


def test_decorators_used_wrongly():
    with pytest.raises(BadStepDecoratorException) as caught:

        @step
        @retry
        def below(self):
            pass

    assert caught.value.message == (
        "@retry is applied to the function `below`, which is not declared as a step: "
        "put @step directly above the `def`, and @retry above @step"
    )
    assert caught.value.line_no is not None

    with pytest.raises(BadStepDecoratorException, match="takes its attributes by name only"):
        retry(3)
    with pytest.raises(DuplicateStepDecoratorException, match="already has the decorator @retry"):

        @retry
        @retry(times=1)
        @step
        def twice(self):
            pass

    with pytest.raises(BadStepDecoratorException, match="applied to the class `Flow`"):

        @resources(cpu=1)
        class Flow:
            pass

    with pytest.raises(BadFlowDecoratorException, match="@project decorates flows"):

        @project(name="x")
        @step
        def decorated(self):
            pass

    with pytest.raises(BadStepDecoratorException, match="@step marks methods of a flow"):

        @step
        class NotAFunction:
            pass


def test_flow_decorators_are_inherited_once():
    @project(name="a")
    class Base(FlowSpec):
        pass

    with pytest.raises(DuplicateFlowDecoratorException, match="already has the decorator @project"):

        @project(name="b")
        class Derived(Base):
            pass


def test_a_flow_outside_of_a_task():
    flow = Plain(use_cli=False)
    assert (flow.name, flow.index, flow.input, flow.foreach_stack()) == ("Plain", None, None, [])
    assert str(flow) == "<flow Plain>"
    assert flow.script_name == "test_flow.py"
    assert [each.__name__ for each in flow] == ["start", "end"]
    with pytest.raises(AttributeError, match="flow `Plain` has no attribute `missing`"):
        _ = flow.missing
    with pytest.raises(InvalidNextException, match="inside a running step"):
        flow.next(flow.end)
    with pytest.raises(MetaflowException, match="subprocess"):
        flow.cmd("ls")
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(MetaflowException, match="flow objects cannot be serialized"):
            copying(flow)


def test_current_outside_of_a_task():
    assert current.is_running_flow is False
    for field in ("flow_name", "run_id", "pathspec", "retry_count", "namespace", "run", "task"):
        assert getattr(current, field) is None
        assert field not in current
    assert current.get("run_id", 5) == 5
    assert current.tempdir == "."
    with pytest.raises(RuntimeError, match="Graph is not available"):
        _ = current.graph
    with pytest.raises(AttributeError, match="`current` has no `card` here: it comes with @card"):
        _ = current.card


def test_exceptions_survive_pickling():
    error = UnhandledInMergeArtifactsException("text", ["a"])
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.artifact_names) == (type(error), "text", ["a"])
    again = pickle.loads(pickle.dumps(MetaflowException("text", 3, "f.py")))
    assert str(again) == "Flow failed in file f.py on line 3: text"


NEXT = """
    from metaflow import FlowSpec, step

    class Moves(FlowSpec):
        @step
        def start(self):
            self.items = [1]
            self.choice = 'a'
            CALL

        def helper(self):
            pass

        @step
        def end(self):
            pass
"""


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("self.next(self.end); self.next(self.end)", "has called self.next already on line 9"),
        ("self.next()", "self.next names no step"),
        ("self.next(self.end, each='items')", "self.next has no argument `each`"),
        ("self.next(self.end, foreach=self.items)", "`foreach` must be the name of an attribute"),
        ("self.next(self.end, foreach='itens')", "foreach='itens' names an attribute that does"),
        ("self.next(self.end, self.end, foreach='items')", "a foreach leads to exactly one step"),
        ("self.next({'a': self.end})", "self.next has cases but no `condition="),
        ("self.next({'a': self.end}, condition=3)", "`condition` must be the name of"),
        ("self.next({}, condition='choice')", "`condition` needs one dictionary of cases"),
        ("self.next(self.end, condition='choice')", "`condition` needs one dictionary of cases"),
        ("self.next({'a': self.end}, condition='x')", "condition='x' names an attribute that"),
        (
            "self.next({'a': self.end}, condition='choice', foreach='items')",
            "self.next cannot have both `condition` and `foreach`",
        ),
        ("self.next('end')", "self.next got 'end', which is not a step of this flow"),
        ("self.next(self.end())", "self.next got a NoneType, which is not a step"),
        ("self.next(self.helper)", "self.next names `helper`, which is not a step"),
        (
            "self.next(self.end, num_parallel=0)",
            "`num_parallel` must be a whole number",
        ),
    ],
)
def test_mistakes_in_next(task_runner, call, problem):
    start = task_runner(NEXT.replace("CALL", call)).run("start")
    assert start.exit_code == 1
    assert start.stderr.splitlines()[1] == (
        "    Invalid self.next() transition detected on line 9:"
    )
    assert problem in start.stderr
