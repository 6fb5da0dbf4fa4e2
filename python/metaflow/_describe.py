"""The flow as its IR: the JSON-able dictionary of `crates/core/src/ir.rs`.

Nothing is judged here beyond what the IR cannot express; rules of the graph and of decorators are
the engine's. Transitions come from the source, see `_source`.
"""

from __future__ import annotations

import json
import os

from metaflow._conversion import kind_of
from metaflow._decorators import mark_of, steps_of, uses_of_flow
from metaflow._parameters import RESERVED_NAMES, constants_of, parameters_of
from metaflow._source import (
    StepSource,
    class_line,
    file_of_class,
    forget_files,
    source_of_step,
)
from metaflow.exception import BadStepDecoratorException, MetaflowException

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from metaflow._decorators import DecoratorUse
    from metaflow._parameters import Parameter

# Options of click's that say only how `--help` looks; ours looks as it does.
_DISPLAY_ONLY = frozenset({"hidden", "metavar", "show_choices", "show_envvar"})
_CACHE = "__ferroflow_description__"
_MAKES_NO_CALL = 0x20 | 0x80 | 0x200  # generator, coroutine, asynchronous generator


def describe(flow_class: type) -> dict[str, Any]:
    """The IR of a flow. Raises `MetaflowException`, with file and line, for what has none."""
    cached: dict[str, Any] | None = flow_class.__dict__.get(_CACHE)
    if cached is not None:
        return cached
    file = file_of_class(flow_class)
    description = {
        "name": flow_class.__name__,
        "doc": clean_doc(flow_class.__doc__),
        "file": file,
        "line": class_line(flow_class),
        "steps": [
            _step(flow_class, name, function) for name, function in steps_of(flow_class).items()
        ],
        "parameters": [_parameter(each) for each in parameters_of(flow_class).values()],
        "constants": [
            {"name": name, "type": type(value).__name__}
            for name, value in constants_of(flow_class).items()
        ],
        "decorators": [_decorator(use) for use in uses_of_flow(flow_class)],
    }
    forget_files()
    setattr(flow_class, _CACHE, description)
    return description


def _step(flow_class: type, name: str, function: Any) -> dict[str, Any]:
    source = source_of_step(flow_class, name, function)
    _refuse_generators(name, function, source)
    mark = mark_of(function)
    assert mark is not None, "steps_of returns functions with a mark"
    return {
        "name": name,
        "file": source.file,
        "line": source.line,
        "doc": clean_doc(function.__doc__),
        "arguments": source.arguments,
        "transition": source.transition,
        "tail_line": source.tail_line,
        "is_start": mark.is_start,
        "is_end": mark.is_end,
        "has_imports": source.has_imports,
        "decorators": [_decorator(use) for use in mark.decorators],
    }


def _refuse_generators(name: str, function: Any, source: StepSource) -> None:
    while function is not None:
        flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
        if flags & _MAKES_NO_CALL:
            raise BadStepDecoratorException(
                f"step `{name}` contains `yield` or is `async`, so calling it would run nothing: "
                "move that code into a function that the step calls",
                source.line,
                source.file,
            )
        function = getattr(function, "__wrapped__", None)


def clean_doc(text: str | None) -> str | None:
    """A docstring without the indentation of the code around it."""
    if not text:
        return None
    first, *rest = text.expandtabs().split("\n")
    margins = [len(line) - len(line.lstrip()) for line in rest if line.strip()]
    margin = min(margins, default=0)
    lines = [first.lstrip(), *(line[margin:] for line in rest)]
    return "\n".join(lines).strip("\n") or None


# --- decorators --------------------------------------------------------------------------------


def _decorator(use: DecoratorUse) -> dict[str, Any]:
    return {
        "name": use.name,
        "attributes": {
            name: _plain(value, f"attribute `{name}` of @{use.name}", use)
            for name, value in _as_text(use).items()
        },
        "file": os.path.abspath(use.file),
        "line": use.line,
        "in_source": True,
    }


def _as_text(use: DecoratorUse) -> dict[str, Any]:
    """Variables of processes are text, as Python writes it, wherever the task runs."""
    variables = use.attributes.get("vars")
    if use.name != "environment" or not isinstance(variables, dict):
        return use.attributes
    plain = (bool, int, float, list, tuple, dict, type(None))
    texts = {
        name: str(value) if isinstance(value, plain) else value for name, value in variables.items()
    }
    return {**use.attributes, "vars": texts}


def _plain(value: Any, what: str, use: DecoratorUse) -> Any:
    """A value as JSON has it."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and value - value == 0:
        return float(value)
    if isinstance(value, dict):
        return {
            _key(key, what, use): _plain(each, f"`{key}` in {what}", use)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each, f"an item of {what}", use) for each in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "shape", None) == ():
        # numpy's scalars.
        return _plain(item(), what, use)
    if callable(value):
        # Hooks and the like, of decorators that the registry knows what to say about.
        return getattr(value, "__qualname__", type(value).__name__)
    raise MetaflowException(
        f"{what} is {'not a finite number' if isinstance(value, float) else _article(value)}: "
        "attributes of decorators are text, numbers, booleans, and lists or dictionaries of these",
        use.line,
        use.file,
    )


def _key(key: Any, what: str, use: DecoratorUse) -> str:
    if isinstance(key, (str, int, float)):
        return str(key)
    raise MetaflowException(
        f"{what} has a key that is {_article(key)}: use text", use.line, use.file
    )


def _article(value: Any) -> str:
    return f"a {type(value).__name__}"


# --- parameters --------------------------------------------------------------------------------


def _parameter(parameter: Parameter) -> dict[str, Any]:
    _check(parameter)
    show = parameter.show_default
    default = parameter.default
    return {
        "name": parameter.name,
        "attribute": parameter.attribute,
        "type": kind_of(parameter),
        "help": None if parameter.help is None else str(parameter.help),
        "required": bool(parameter.required) and default is None,
        "default_text": show if isinstance(show, str) else _default_text(parameter),
        "show_default": show is None or bool(show),
        "separator": parameter.separator,
        "multiple": bool(parameter.multiple),
        "is_flag": bool(parameter.is_flag),
        "line": parameter.line,
    }


def _default_text(parameter: Parameter) -> str | None:
    default = parameter.default
    if default is None:
        return None
    if callable(default):
        return f"value of {getattr(default, '__name__', 'a function')}()"
    if kind_of(parameter) == "json" and not isinstance(default, str):
        try:
            return json.dumps(default)
        except (TypeError, ValueError):
            return str(default)
    if isinstance(default, (list, tuple)):
        return (parameter.separator or ", ").join(map(str, default))
    return str(default)


def _check(parameter: Parameter) -> None:
    name = parameter.name
    problem = None
    if not isinstance(name, str) or not name or name.startswith("-") or name != name.strip():
        problem = f"parameter `{name}` needs a name that can be an option: use letters and dashes"
    elif name.replace("_", "-") in RESERVED_NAMES:
        problem = (
            f"parameter `{name}` has a reserved word for its name, an option of `run`: rename it"
        )
    elif parameter.separator is not None and kind_of(parameter) != "str":
        problem = (
            f"parameter `{name}` has a separator, but its type is {kind_of(parameter)}: "
            "only text can be split; use type=str"
        )
    else:
        problem = _problem_of_fields(parameter)
    if problem is not None:
        raise MetaflowException(problem, parameter.line, parameter.file)


def _problem_of_fields(parameter: Parameter) -> str | None:
    for field in ("required", "separator", "show_default"):
        if callable(getattr(parameter, field)):
            return (
                f"`{field}` of parameter `{parameter.name}` is a function: "
                "only its default can be one"
            )
    if parameter.separator is not None and not (
        isinstance(parameter.separator, str) and parameter.separator
    ):
        return (
            f"the separator of parameter `{parameter.name}` is {parameter.separator!r}: "
            "use text, for example separator=','"
        )
    for field in sorted(set(parameter.more) - _DISPLAY_ONLY):
        return f"`{field}` of parameter `{parameter.name}` is not in this version: remove it"
    return None
