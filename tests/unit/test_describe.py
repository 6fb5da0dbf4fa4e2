"""The IR: what is read from a flow's source and how mistakes are told."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from metaflow.exception import MetaflowException

FLOW = '''
"""A module."""
import functools
from metaflow import FlowSpec, Parameter, catch, project, resources, retry, step


def logged(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)
    return wrapper


def hidden(function):
    def wrapper(self):
        return function(self)
    return wrapper


class Base(FlowSpec):
    LIMIT = 3

    @retry(times=2)
    @step
    def start(self):
        """Starts.

        More.
        """
        self.items = [1]
        self.next(self.work, foreach="items")


@project(name="demo")
class Described(Base):
    """The flow."""

    alpha = Parameter("alpha", default=1)
    names = ["a"]

    @resources(cpu=2, memory=16000)
    @catch
    @logged
    @step
    def work(
        self,
    ):
        def inner():
            import os
        self.next(
            self.join
        )

    @step
    @hidden
    def join(self):
        self.next(self.end)

    @step
    def end(self):
        pass
'''


def describe(flow_class):
    from metaflow._describe import describe

    return describe(flow_class)


def test_a_whole_flow(load_flow):
    flow_class = load_flow(FLOW)
    described = describe(flow_class)
    file = described["file"]
    assert file == sys.modules[flow_class.__module__].__file__
    steps = {each["name"]: each for each in described["steps"]}
    assert list(steps) == ["start", "work", "join", "end"]
    assert steps["start"] == {
        "name": "start",
        "file": file,
        "line": 25,
        "doc": "Starts.\n\nMore.",
        "arguments": 1,
        "transition": {"kind": "foreach", "target": "work", "variable": "items", "line": 31},
        "tail_line": 31,
        "is_start": False,
        "is_end": False,
        "has_imports": False,
        "decorators": [
            {
                "name": "retry",
                "attributes": {"times": 2},
                "file": file,
                "line": 23,
                "in_source": True,
            }
        ],
    }
    work = steps["work"]
    assert (work["line"], work["tail_line"], work["has_imports"]) == (45, 50, True)
    assert work["transition"] == {"kind": "linear", "target": "join", "line": 50}
    assert [(each["name"], each["line"]) for each in work["decorators"]] == [
        ("resources", 41),
        ("catch", 42),
    ]
    assert steps["join"]["line"] == 56
    assert steps["join"]["transition"] == {"kind": "linear", "target": "end", "line": 57}
    assert steps["end"]["transition"] is None and steps["end"]["tail_line"] == 61
    assert {name: described[name] for name in ("name", "doc", "line")} == {
        "name": "Described",
        "doc": "The flow.",
        "line": 35,
    }
    assert described["constants"] == [
        {"name": "LIMIT", "type": "int"},
        {"name": "names", "type": "list"},
    ]
    assert [each["name"] for each in described["decorators"]] == ["project"]
    assert described["parameters"] == [
        {
            "name": "alpha",
            "attribute": "alpha",
            "type": "int",
            "help": None,
            "required": False,
            "default_text": "1",
            "show_default": True,
            "separator": None,
            "multiple": False,
            "is_flag": False,
            "line": 38,
        }
    ]


def transition(load_flow, call):
    source = f"""
        from metaflow import FlowSpec, step

        class Moves(FlowSpec):
            @step
            def start(self):
                {call}
    """
    (start,) = describe(load_flow(source))["steps"]
    found = start["transition"]
    if found is not None:
        assert found.pop("line") == start["tail_line"] == 7
    return found


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("self.next(self.a)", {"kind": "linear", "target": "a"}),
        ("self.next(self.a, self.b)", {"kind": "split", "targets": ["a", "b"]}),
        (
            "self.next(self.a, foreach='v')",
            {"kind": "foreach", "target": "a", "variable": "v"},
        ),
        ("self.next(self.a, num_parallel=4)", {"kind": "parallel", "target": "a"}),
        (
            "self.next({1: self.a, -2.5: self.b, 'x': self.a, True: self.b}, condition='v')",
            {
                "kind": "switch",
                "condition": "v",
                "cases": [
                    {"key": 1, "target": "a"},
                    {"key": -2.5, "target": "b"},
                    {"key": "x", "target": "a"},
                    {"key": True, "target": "b"},
                ],
            },
        ),
        (
            "self.next({1: self.a})",
            {"kind": "switch", "condition": None, "cases": [{"key": 1, "target": "a"}]},
        ),
        ("pass", None),
        ("self.x = self.next(self.a)", None),
        ("return self.next(self.a)", None),
        ("other.next(self.a)", None),
        ("if 1: self.next(self.a)", None),
    ],
)
def test_forms_of_next(load_flow, call, expected):
    assert transition(load_flow, call) == expected


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("self.next()", "it names no step"),
        ("self.next(a)", "`a` is not a step written as `self.name`"),
        ("self.next('a')", "`'a'` is not a step written as `self.name`"),
        ("self.next(self.a())", "`self.a()` is not a step written as `self.name`"),
        ("self.next(*targets)", "`*targets` is not a step written as `self.name`"),
        ("self.next(self.a, **options)", "its arguments must be written out, without `**`"),
        ("self.next(self.a, foreach=v)", "`foreach` must be the name of an attribute in quotes"),
        ("self.next(self.a, self.b, foreach='v')", "`foreach` leads to exactly one step"),
        ("self.next(self.a, each='v')", "it has no argument `each`"),
        (
            "self.next(self.a, foreach='v', num_parallel=2)",
            "`foreach` and `num_parallel` cannot be combined",
        ),
        (
            "self.next(self.a, condition='v')",
            "`condition` needs one dictionary of cases written out",
        ),
        (
            "self.next({1: self.a}, condition=v)",
            "`condition` must be the name of an attribute in quotes",
        ),
        (
            "self.next({k: self.a}, condition='v')",
            "the case `k` must be text, a number, True or False",
        ),
        (
            "self.next({1: self.a}, condition='v', foreach='w')",
            "`condition` and `foreach` cannot be combined",
        ),
        (
            "self.next({**cases}, condition='v')",
            "its cases must be written out, without `**`",
        ),
    ],
)
def test_forms_that_are_not_supported(load_flow, call, problem):
    assert transition(load_flow, call) == {"kind": "unsupported", "problem": problem}


def test_self_may_have_another_name(load_flow):
    source = """
        from metaflow import FlowSpec, step

        class Moves(FlowSpec):
            @step
            def start(this, inputs):
                this.next(this.end)

            @step
            def end():
                pass
    """
    start, end = describe(load_flow(source))["steps"]
    assert start["arguments"] == 2 and start["transition"]["target"] == "end"
    assert end["arguments"] == 0


def test_overridden_steps_keep_their_place(load_flow):
    source = """
        from metaflow import FlowSpec, step

        class Base(FlowSpec):
            @step
            def start(self):
                self.next(self.middle)

            @step
            def middle(self):
                self.next(self.end)

            @step
            def end(self):
                pass

        class Derived(Base):
            @step
            def middle(self):
                import os
                self.next(self.end)

            end = None
    """
    steps = describe(load_flow(source))["steps"]
    assert [(each["name"], each["line"]) for each in steps] == [("start", 6), ("middle", 19)]
    assert steps[1]["has_imports"]


@pytest.mark.parametrize(
    ("imports", "found"),
    [
        ("import os", True),
        ("for i in (): from os import path", True),
        ("try: pass\n                except ValueError: import os", True),
        ("class A:\n                    import os", True),
        ("__import__('os')", False),
        ("'import os'", False),
    ],
)
def test_imports_are_found(load_flow, imports, found):
    source = f"""
        from metaflow import FlowSpec, step

        class Imports(FlowSpec):
            @step
            def start(self):
                {imports}
                pass
    """
    assert describe(load_flow(source))["steps"][0]["has_imports"] is found


def failure_of(load_flow, decorators="", body="pass", fields=""):
    source = f"""
        import threading
        from metaflow import FlowSpec, Parameter, environment, step

        class Wrong(FlowSpec):
            {fields or "pass"}
            {decorators or "pass"}
            @step
            def start(self):
                {body}
    """
    with pytest.raises(MetaflowException) as caught:
        describe(load_flow(source))
    return caught.value


def test_steps_that_would_run_nothing(load_flow):
    error = failure_of(load_flow, body="yield 1")
    assert error.message.startswith("step `start` contains `yield` or is `async`")
    assert error.line_no == 9 and error.source_file.endswith(".py")


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ("vars={'a': threading.Lock()}", "`a` in attribute `vars` of @environment is a lock: "),
        ("vars={(1, 2): 3}", "attribute `vars` of @environment has a key that is a tuple"),
        ("vars=float('nan')", "attribute `vars` of @environment is not a finite number: "),
    ],
)
def test_attributes_that_are_not_plain(load_flow, attributes, problem):
    error = failure_of(load_flow, decorators=f"@environment({attributes})")
    assert error.message.startswith(problem)
    assert error.line_no == 7


def test_plain_attributes(load_flow):
    source = """
        import pathlib, numpy
        from metaflow import FlowSpec, exit_hook, environment, step

        def hook(run):
            pass

        @exit_hook(on_success=[hook])
        class Plain(FlowSpec):
            @environment(vars={"a": numpy.int64(2), "b": pathlib.Path("x"), 3: (1, None)})
            @step
            def start(self):
                pass
    """
    described = describe(load_flow(source))
    assert described["decorators"][0]["attributes"] == {"on_success": ["hook"]}
    assert described["steps"][0]["decorators"][0]["attributes"] == {
        "vars": {"a": 2, "b": "x", "3": "(1, None)"}
    }


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("a = Parameter('run-id')", "parameter `run-id` has a reserved word for its name"),
        ("a = Parameter('max_workers')", "parameter `max_workers` has a reserved word"),
        ("a = Parameter('')", "parameter `` needs a name that can be an option"),
        ("a = Parameter('x', separator=',', type=int)", "parameter `x` has a separator, but its"),
        ("a = Parameter('x', separator='')", "the separator of parameter `x` is '': use text"),
        ("a = Parameter('x', required=len)", "`required` of parameter `x` is a function"),
        ("a = Parameter('x', colour=1)", "`colour` of parameter `x` is not in this version"),
    ],
)
def test_parameters_that_cannot_be(load_flow, field, problem):
    error = failure_of(load_flow, fields=field)
    assert error.message.startswith(problem)
    assert error.line_no == 6


def test_a_flow_without_source(tmp_path):
    code = """
from metaflow import FlowSpec, step
class Typed(FlowSpec):
    @step
    def start(self):
        pass
from metaflow._describe import describe
from metaflow.exception import MetaflowException
try:
    describe(Typed)
except MetaflowException as error:
    print(error.message)
"""
    done = subprocess.run(
        [sys.executable, "-"], input=code, text=True, capture_output=True, check=True
    )
    assert done.stdout.startswith("the source of the flow cannot be read: `<stdin>`")


def test_describing_is_quick(load_flow):
    flow_class = load_flow(FLOW)
    started = time.process_time()
    describe(flow_class)
    assert time.process_time() - started < 0.05
