"""Parameters: from text and defaults to values, and storing them."""

from __future__ import annotations

import pytest

HEADER = """
    import json
    import time
    from metaflow import FlowSpec, JSONType, Parameter, step

    class Text(str):
        pass

    class Choice:
        name = "choice"

        def convert(self, value, param, ctx):
            if value not in ("a", "b"):
                raise ValueError(f"{value} is not one of a, b")
            return value.upper()

    def default(context):
        return f"{context.flow_name} {context.user_name} {context.parameter_name}"

    class Given(FlowSpec):
        FIELD

        @step
        def start(self):
            pass
"""


def convert(load_flow, field, given=None):
    from metaflow._parameters import convert

    return convert(load_flow(HEADER.replace("FIELD", field)), given or {}, "tester")


@pytest.mark.parametrize(
    ("field", "given", "value"),
    [
        ("x = Parameter('x')", None, None),
        ("x = Parameter('x')", ["a"], "a"),
        ("x = Parameter('x')", ["a", "b"], "b"),
        ("x = Parameter('x', default=1)", None, 1),
        ("x = Parameter('x', default=1)", [" 5 "], 5),
        ("x = Parameter('x', default=1)", ["-1"], -1),
        ("x = Parameter('x', type=int, default='5')", None, 5),
        ("x = Parameter('x', type=float)", ["2"], 2.0),
        ("x = Parameter('x', default=0.5)", ["1e3"], 1000.0),
        ("x = Parameter('x', default=False)", [" YES "], True),
        ("x = Parameter('x', type=bool)", ["off"], False),
        ("x = Parameter('x', is_flag=True)", [""], True),
        ("x = Parameter('x', is_flag=True)", None, False),
        ("x = Parameter('x', is_flag=True, default=True)", ["false"], False),
        ("x = Parameter('x', type=JSONType)", ['{"a": [1]}'], {"a": [1]}),
        ("x = Parameter('x', type=JSONType, default='[1]')", None, [1]),
        ("x = Parameter('x', type=JSONType, default=[1])", None, [1]),
        ("x = Parameter('x', separator=',')", ["a,b"], ["a", "b"]),
        ("x = Parameter('x', separator=',')", [""], ""),
        ("x = Parameter('x', separator=',')", None, None),
        ("x = Parameter('x', separator=',', default='a,b')", None, ["a", "b"]),
        ("x = Parameter('x', separator=',', type=str, default=lambda c: 'a,b')", None, ["a", "b"]),
        ("x = Parameter('x', type=str, multiple=True)", ["a", "b"], ("a", "b")),
        ("x = Parameter('x', type=str, multiple=True, default=['q'])", None, ("q",)),
        ("x = Parameter('x', type=int, multiple=True)", None, ()),
        ("x = Parameter('x', multiple=True, default=['q'])", ["x", "y"], (["x"], ["y"])),
        ("x = Parameter('x', default=default)", None, "Given tester x"),
        ("x = Parameter('x', type=int, default=lambda c: 3)", None, 3),
        ("x = Parameter('x', type=float, default=lambda c: 3)", None, 3.0),
        ("x = Parameter('x', type=JSONType, default=lambda c: '[1]')", None, [1]),
        ("x = Parameter('x', type=JSONType, default=lambda c: {'a': 1})", None, {"a": 1}),
        ("x = Parameter('x', default=lambda c: 1 / 0)", ["given"], "given"),
        ("x = Parameter('x', default=Text('t'))", ["u"], "u"),
        ("x = Parameter('x', type=Choice())", ["a"], "A"),
        ("x = Parameter('x', required=True, default=2)", None, 2),
    ],
)
def test_values(load_flow, field, given, value):
    values, error = convert(load_flow, field, {"x": given} if given else {})
    assert error is None, error
    assert values == {"x": value}
    assert type(values["x"]) is type(value)


@pytest.mark.parametrize(
    ("arguments", "given", "problem"),
    [
        ("type=int", "y", "'y' is not a valid integer."),
        ("type=int", "1.5", "'1.5' is not a valid integer."),
        ("type=float", "y", "'y' is not a valid float."),
        ("type=bool", "2", "'2' is not a valid boolean."),
        (
            "type=JSONType",
            "{",
            "'{' is not valid JSON: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)",
        ),
        ("type=Choice()", "c", "c is not one of a, b"),
        ("type=int, default='a'", None, "'a' is not a valid integer."),
        ("required=True", None, None),
    ],
)
def test_usage_errors(load_flow, arguments, given, problem):
    field = f"x = Parameter('x', {arguments})"
    values, error = convert(load_flow, field, {"x": [given]} if given is not None else {})
    assert values == {}
    assert error == {
        "usage": True,
        "headline": "Invalid parameter",
        "message": f"Invalid value for '--x': {problem}" if problem else "Missing option '--x'.",
        "file": None,
        "line": 0,
    }


def test_all_usage_errors_at_once(load_flow):
    field = "x = Parameter('x', type=int); y = Parameter('y', required=True)"
    _, error = convert(load_flow, field, {"x": ["a"]})
    assert error["message"].splitlines() == [
        "Invalid value for '--x': 'a' is not a valid integer.",
        "Missing option '--y'.",
    ]


@pytest.mark.parametrize(
    ("field", "headline", "message"),
    [
        (
            "x = Parameter('x', default=lambda c: 1 / 0)",
            "Parameter field failed",
            "the function that is the default of parameter `x` raised:\nTraceback (most recent",
        ),
        (
            "x = Parameter('x', type=int, default=lambda c: 'a')",
            "Parameter field with a mismatching type",
            "the function that is the default of parameter `x` returned a str, but its type is int",
        ),
        (
            "x = Parameter('x', default=lambda c: 5)",
            "Parameter field with a mismatching type",
            "the function that is the default of parameter `x` returned a int, but its type is str",
        ),
        (
            "x = Parameter('x', type=JSONType, default=lambda c: '{')",
            "Parameter field with a mismatching type",
            "Invalid value for '--x': '{' is not valid JSON",
        ),
        (
            "x = Parameter('name-x'); y = Parameter('NAME-X')",
            "Flow failed",
            "parameter `NAME-X` is declared twice (`name-x` on line 21); names of parameters must",
        ),
    ],
)
def test_other_errors(load_flow, field, headline, message):
    _, error = convert(load_flow, field)
    assert error["usage"] is False
    assert error["headline"] == headline
    assert error["message"].startswith(message)
    assert error["line"] == 21
    assert error["file"].endswith(".py")


def test_a_traceback_of_a_default_shows_the_users_lines(load_flow):
    _, error = convert(load_flow, "x = Parameter('x', default=lambda c: 1 / 0)")
    assert error["message"].endswith("ZeroDivisionError: division by zero")
    assert "_conversion" not in error["message"]


def test_inherited_parameters_and_constants(load_flow):
    from metaflow._parameters import constants_of, parameters_of

    flow_class = load_flow(
        """
        from functools import cached_property
        from metaflow import FlowSpec, Parameter, step

        class Mixin:
            RATE = 0.5

        class Base(FlowSpec):
            b = Parameter("b")
            _private = 1
            MODE = "x"

            def helper(self): pass

            @property
            def computed(self): return 1

            @cached_property
            def cached(self): return 1

            @staticmethod
            def static(): pass

            class Nested: pass

        class Derived(Mixin, Base):
            a = Parameter("a")

            @step
            def start(self):
                pass
        """
    )
    assert list(parameters_of(flow_class)) == ["a", "b"]
    assert constants_of(flow_class) == {"MODE": "x", "RATE": 0.5}


def test_a_constant_that_cannot_be_stored(load_flow, tmp_path):
    from metaflow._parameters import write
    from metaflow.exception import UnpicklableArtifactException

    flow_class = load_flow(
        """
        import threading
        from metaflow import FlowSpec, step

        class Locked(FlowSpec):
            lock = threading.Lock()

            @step
            def start(self):
                pass
        """
    )
    with pytest.raises(UnpicklableArtifactException) as caught:
        write(flow_class, {}, {"kind": "local", "root": str(tmp_path)}, "Locked", "1")
    assert caught.value.message.startswith(
        "the constant `lock` of flow `Locked` cannot be stored with the run: "
    )


def test_current_during_conversion(load_flow):
    field = (
        "x = Parameter('x', default=lambda c: json.dumps("
        "[__import__('metaflow').current.flow_name, "
        "__import__('metaflow').current.is_running_flow]))"
    )
    values, error = convert(load_flow, field)
    assert error is None and values == {"x": '["Given", false]'}
