"""Cards come in a later version: their names import, and refuse when used."""

from __future__ import annotations

from metaflow._later import ADVICE, later_class, later_function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [  # noqa: F822 - resolved by __getattr__
    "Artifact",
    "BlankCard",
    "DefaultCard",
    "ErrorCard",
    "EventsTimeline",
    "Image",
    "JSONViewer",
    "Markdown",
    "MetaflowCard",
    "MetaflowCardComponent",
    "ProgressBar",
    "PythonCode",
    "Table",
    "TaskSpecCard",
    "ValueBox",
    "VegaChart",
    "YAMLViewer",
    "get_cards",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    make = later_function if name == "get_cards" else later_class
    value = globals()[name] = make(name, ADVICE["get_cards"])
    return value
