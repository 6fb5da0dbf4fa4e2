"""From what the user typed to the values of a run's parameters, and storing them.

Parsing the command line itself is the engine's work; it hands over texts by parameter name.
"""

from __future__ import annotations

import json
import sys

from metaflow._current import current
from metaflow._parameters import (
    JSONTypeClass,
    ParameterContext,
    constants_of,
    parameters_of,
)
from metaflow.exception import (
    MetaflowException,
    ParameterFieldFailed,
    ParameterFieldTypeMismatch,
    UnpicklableArtifactException,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from metaflow._parameters import Parameter

_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})


class _UsageError(Exception):
    """A mistake in what the user typed."""


def kind_of(parameter: Parameter) -> str:
    """The `ir::ParameterType` of a parameter; types of the user's own take text."""
    value_type = parameter.value_type()
    if isinstance(value_type, JSONTypeClass) or value_type is JSONTypeClass:
        return "json"
    if isinstance(value_type, type):
        for base, name in ((bool, "bool"), (int, "int"), (float, "float"), (str, "str")):
            if issubclass(value_type, base):
                return name
    return "str"


def convert(
    flow_class: type, given: dict[str, list[str]], user: str
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """See `_parameters.convert`. All usage errors are reported together."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    current._enter_flow(flow_class.__name__, user)
    try:
        parameters = parameters_of(flow_class)
        _refuse_duplicates(parameters)
        for attribute, parameter in parameters.items():
            try:
                values[attribute] = _value(
                    parameter, given.get(parameter.name), flow_class.__name__, user
                )
            except _UsageError as error:
                problems.append(str(error))
    except MetaflowException as error:
        return {}, front_end_error(error)
    finally:
        current._leave()
    if problems:
        return {}, _error(True, "Invalid parameter", "\n".join(problems), None, 0)
    return values, None


def front_end_error(error: MetaflowException) -> dict[str, Any]:
    """A `wire.FrontEndError`."""
    return _error(False, error.headline, error.message, error.source_file, error.line_no or 0)


def _error(usage: bool, headline: str, message: str, file: str | None, line: int) -> dict[str, Any]:
    return {"usage": usage, "headline": headline, "message": message, "file": file, "line": line}


def _refuse_duplicates(parameters: dict[str, Parameter]) -> None:
    seen: dict[str, Parameter] = {}
    for parameter in parameters.values():
        other = seen.setdefault(parameter.name.lower(), parameter)
        if other is not parameter or other.attribute != parameter.attribute:
            raise MetaflowException(
                f"parameter `{parameter.name}` is declared twice (`{other.name}` on line "
                f"{other.line}); names of parameters must differ by more than case: rename one",
                parameter.line,
                parameter.file,
            )


def _value(parameter: Parameter, texts: list[str] | None, flow_name: str, user: str) -> Any:
    if texts:
        if parameter.multiple:
            return tuple(_one(parameter, text) for text in texts)
        return _separated(parameter, _one(parameter, texts[-1]))
    if callable(parameter.default):
        return _separated(parameter, _from_function(parameter, flow_name, user))
    if parameter.default is None:
        if parameter.required:
            raise _UsageError(f"Missing option '--{parameter.name}'.")
        return False if parameter.is_flag else () if parameter.multiple else None
    default = parameter.default
    if parameter.multiple:
        many = default if isinstance(default, (list, tuple)) else (default,)
        return tuple(_one(parameter, each) for each in many)
    return _separated(parameter, _one(parameter, default))


def _separated(parameter: Parameter, value: Any) -> Any:
    if parameter.separator and isinstance(value, str) and value:
        return value.split(parameter.separator)
    return value


def _one(parameter: Parameter, given: Any) -> Any:
    """One text, or a default, as a value of the parameter's type."""
    if parameter.is_flag and given == "":
        return True
    value_type = parameter.value_type()
    kind = kind_of(parameter)
    if kind == "json":
        return _json(parameter, given)
    if kind == "bool":
        return _bool(parameter, given)
    if kind == "int":
        return _number(parameter, given, int, "integer")
    if kind == "float":
        return _number(parameter, given, float, "float")
    if value_type is str or (isinstance(value_type, type) and issubclass(value_type, str)):
        return _text(parameter, given)
    return _of_own_type(parameter, value_type, given)


def _text(parameter: Parameter, given: Any) -> Any:
    # A list default of a separated parameter is split already.
    if parameter.separator and isinstance(given, (list, tuple)):
        return list(given)
    return given if isinstance(given, str) else str(given)


def _bad(parameter: Parameter, given: Any, problem: str) -> _UsageError:
    return _UsageError(f"Invalid value for '--{parameter.name}': {given!r} {problem}")


def _bool(parameter: Parameter, given: Any) -> bool:
    if isinstance(given, bool):
        return given
    word = str(given).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise _bad(parameter, given, "is not a valid boolean.")


def _number(parameter: Parameter, given: Any, number_type: Any, kind: str) -> Any:
    try:
        return number_type(given)
    except (TypeError, ValueError, OverflowError):
        raise _bad(parameter, given, f"is not a valid {kind}.") from None


def _json(parameter: Parameter, given: Any) -> Any:
    if not isinstance(given, (str, bytes)):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise _bad(parameter, given, f"is not valid JSON: {error}") from None


def _of_own_type(parameter: Parameter, value_type: Any, given: Any) -> Any:
    """A type of click's, or anything that can be called with a text."""
    if not isinstance(given, str):
        return given
    convert_text = getattr(value_type, "convert", None)
    try:
        if convert_text is not None and not isinstance(value_type, type):
            return convert_text(given, None, None)
        return value_type(given)
    except Exception as error:
        # click's errors keep their sentence in `message`.
        problem = getattr(error, "message", None) or str(error) or type(error).__name__
        raise _UsageError(f"Invalid value for '--{parameter.name}': {problem}") from error


def _from_function(parameter: Parameter, flow_name: str, user: str) -> Any:
    context = ParameterContext(flow_name, user, parameter.name, _log)
    place = (parameter.line, parameter.file)
    try:
        value = parameter.default(context)
    except (Exception, SystemExit) as error:
        raise ParameterFieldFailed(_why_it_failed(parameter, error), *place) from error
    if value is None:
        return None
    kind = kind_of(parameter)
    expected = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}.get(kind)
    if kind == "json":
        try:
            return _json(parameter, value)
        except _UsageError as error:
            raise ParameterFieldTypeMismatch(str(error), *place) from None
    value_type = parameter.value_type()
    own_type = kind == "str" and value_type is not str
    separated = parameter.separator and isinstance(value, list)
    if parameter.multiple and isinstance(value, (list, tuple)):
        return tuple(_one(parameter, each) for each in value)
    wrong = expected is not None and not isinstance(value, expected)
    if (wrong or (kind != "bool" and isinstance(value, bool))) and not own_type and not separated:
        raise ParameterFieldTypeMismatch(
            f"the function that is the default of parameter `{parameter.name}` returned a "
            f"{type(value).__name__}, but its type is {kind}: return a {kind}, or give "
            f"`type={type(value).__name__}`",
            *place,
        )
    return float(value) if kind == "float" else value


def _why_it_failed(parameter: Parameter, error: BaseException) -> str:
    function = f"the function that is the default of parameter `{parameter.name}`"
    trace = error.__traceback__
    if isinstance(error, TypeError) and trace is not None and trace.tb_next is None:
        return f"{function} is called with one argument, a context, which it does not take: {error}"
    from metaflow._failure import Failure

    return f"{function} raised:\n{Failure(error).traceback}"


def _log(message: str) -> None:
    print(message, file=sys.stderr)


def write(
    flow_class: type, values: dict[str, Any], store: dict[str, Any], flow: str, run: str
) -> None:
    """See `_parameters.write`."""
    from metaflow._artifacts import OutputPack, store_text
    from metaflow._graph_info import graph_info

    pack = OutputPack(store_text(store), flow, run, "_parameters", 0, 0)
    pack.set("name", flow_class.__name__)
    pack.set("_graph_info", graph_info(flow_class))
    kinds = (("parameter", values), ("constant", constants_of(flow_class)))
    for kind, each in kinds:
        for attribute, value in each.items():
            try:
                pack.set(attribute, value)
            except UnpicklableArtifactException as error:
                raise UnpicklableArtifactException(
                    f"the {kind} `{attribute}` of flow `{flow}` cannot be stored with the run: "
                    f"{error.message}; make it in a step, or give it a name that starts with `_`"
                ) from error
    pack.commit({"ok": True, "success": True, "transition": {"targets": []}})
