"""Parameters of a flow: declaring them and reading them in a step.

Text from the command line becomes values in `_conversion`; what a parameter looks like to the
engine is `_describe`'s.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from metaflow._flow import FlowSpec

RESERVED_NAMES = frozenset(
    {
        "decospecs",
        "help",
        "max-log-size",
        "max-num-splits",
        "max-workers",
        "namespace",
        "obj",
        "params",
        "run-id",
        "run-id-file",
        "runner-attribute-file",
        "tag",
        "tags",
        "task-id",
        "user-namespace",
        "with",
    }
)


class JSONTypeClass:
    """Type of a parameter whose text is JSON and whose value is what that decodes to."""

    name = "JSON"

    def __repr__(self) -> str:
        return "JSON"


JSONType = JSONTypeClass()


class ParameterContext:
    """What a function given as a parameter's default is called with."""

    __slots__ = ("configs", "ds_type", "flow_name", "logger", "parameter_name", "user_name")

    def __init__(
        self, flow_name: str, user_name: str, parameter_name: str, logger: Callable[[str], None]
    ) -> None:
        self.flow_name = flow_name
        self.user_name = user_name
        self.parameter_name = parameter_name
        self.logger = logger
        self.ds_type = "local"
        self.configs: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        return f"<ParameterContext of {self.flow_name}, parameter {self.parameter_name}>"


class Parameter:
    """A value given on the command line of `run` as `--<name>`; class attribute of a flow.

    `default` may be a function: it is called with a `ParameterContext` when a run starts that does
    not give the parameter. `type` is str, int, float, bool or `JSONType`, by default that of
    `default`. `separator` splits text into a list, `multiple=True` lets the option be repeated and
    makes the value a tuple, `is_flag=True` makes it an option without a value.

    In a step, `self.<attribute>` is the value; it cannot be assigned to.
    """

    def __init__(
        self,
        name: str,
        default: Any = None,
        type: Any = None,
        help: str | None = None,
        required: bool | None = None,
        show_default: bool | str | None = None,
        separator: str | None = None,
        *,
        multiple: bool = False,
        is_flag: bool = False,
        **more: Any,
    ) -> None:
        frame = sys._getframe(1)
        self.name = name
        self.default = default
        self.type = type
        self.help = help
        self.required = required
        self.show_default = show_default
        self.separator = separator
        self.multiple = multiple
        self.is_flag = is_flag
        self.more = more
        self.attribute: str | None = None
        self.file = frame.f_code.co_filename
        self.line = frame.f_lineno

    def __repr__(self) -> str:
        return f"<Parameter --{self.name}>"

    def __set_name__(self, _owner: type, attribute: str) -> None:
        if self.attribute is None:
            self.attribute = attribute

    def __get__(self, flow: FlowSpec | None, _flow_class: Any = None) -> Any:
        if flow is None:
            return self
        state = getattr(flow, "__ferroflow__", None)
        if state is None:
            return self
        return state.read_only_value(self.attribute or self.name)

    def __set__(self, flow: FlowSpec, _value: Any) -> None:
        raise not_modifiable(flow, self.attribute or self.name, "parameter")

    def __delete__(self, flow: FlowSpec) -> None:
        raise not_modifiable(flow, self.attribute or self.name, "parameter")

    def value_type(self) -> Any:
        """The type as given, else that of the default, else str."""
        if self.type is not None:
            return self.type
        if self.default is None or callable(self.default):
            return bool if self.is_flag else str
        return type(self.default)


class Constant:
    """A class attribute as tasks see it: read from the run's stored constants, not modifiable."""

    __slots__ = ("attribute", "value")

    def __init__(self, attribute: str, value: Any) -> None:
        self.attribute = attribute
        self.value = value

    def __get__(self, flow: FlowSpec | None, _flow_class: Any = None) -> Any:
        state = None if flow is None else getattr(flow, "__ferroflow__", None)
        return self.value if state is None else state.read_only_value(self.attribute)

    def __set__(self, flow: FlowSpec, _value: Any) -> None:
        raise not_modifiable(flow, self.attribute, "class attribute")

    def __delete__(self, flow: FlowSpec) -> None:
        raise not_modifiable(flow, self.attribute, "class attribute")


def not_modifiable(flow: object, attribute: str, kind: str) -> AttributeError:
    """The exception for assigning to what is the same in the whole run."""
    return AttributeError(
        f"flow level attributes and parameters are not modifiable: `{attribute}` is a {kind} of "
        f"`{type(flow).__name__}`; assign to an attribute of another name",
        name=attribute,
        obj=flow,
    )


def parameters_of(flow_class: type) -> dict[str, Parameter]:
    """The flow's parameters by attribute, in alphabetical order, inherited ones included."""
    found: dict[str, Parameter] = {}
    for attribute in dir(flow_class):
        value = class_attribute(flow_class, attribute)
        if isinstance(value, Parameter):
            if value.attribute is None:
                value.attribute = attribute
            found[attribute] = value
    return found


def constants_of(flow_class: type) -> dict[str, Any]:
    """The flow's constants, class attributes that are data, with their values."""
    cached: dict[str, Any] | None = flow_class.__dict__.get("__ferroflow_constants__")
    if cached is not None:
        return cached
    from metaflow._flow import FlowSpec

    ours = set(dir(FlowSpec))
    found: dict[str, Any] = {}
    for attribute in dir(flow_class):
        if attribute.startswith("_") or attribute in ours:
            continue
        value = class_attribute(flow_class, attribute)
        if isinstance(value, Constant):
            value = value.value
        if is_data(value):
            found[attribute] = value
    flow_class.__ferroflow_constants__ = found  # type: ignore[attr-defined]
    return found


def class_attribute(flow_class: type, attribute: str) -> Any:
    """The attribute as the class holds it, without asking a descriptor."""
    for ancestor in flow_class.__mro__:
        if attribute in ancestor.__dict__:
            return ancestor.__dict__[attribute]
    return None


def is_data(value: Any) -> bool:
    """Whether a class attribute holds a value rather than behaviour."""
    if callable(value) or isinstance(value, (Parameter, property, classmethod, staticmethod)):
        return False
    # Other descriptors (cached_property, slots) compute something rather than hold it.
    return not hasattr(type(value), "__get__")


def make_read_only(flow_class: type) -> frozenset[str]:
    """Puts a `Constant` in the place of every constant; names of all read-only attributes."""
    names: frozenset[str] | None = flow_class.__dict__.get("__ferroflow_read_only__")
    if names is not None:
        return names
    constants = constants_of(flow_class)
    for attribute, value in constants.items():
        setattr(flow_class, attribute, Constant(attribute, value))
    names = frozenset([*parameters_of(flow_class), *constants])
    flow_class.__ferroflow_read_only__ = names  # type: ignore[attr-defined]
    return names


def convert(
    flow_class: type, given: dict[str, list[str]], user: str
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Values of all parameters by attribute, from what the user typed (texts by parameter name)
    and from defaults; or a `wire.FrontEndError`."""
    from metaflow import _conversion

    return _conversion.convert(flow_class, given, user)


def write(
    flow_class: type, values: dict[str, Any], store: dict[str, Any], flow: str, run: str
) -> None:
    """Stores parameters and constants as task 0 of step `_parameters`."""
    from metaflow import _conversion

    _conversion.write(flow_class, values, store, flow, run)
