"""Names of Metaflow whose work comes in a later version: they import, and refuse when used.

Decorators are not here: they are recorded like any other, and the engine's registry refuses them
with the file and line (`_decorators`).
"""

from __future__ import annotations

from metaflow.exception import NotInThisVersion

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CONFIG = "use a Parameter, or read the file with your own code when the module is imported"
_STEP_CODE = "put the code into the step, or into a function that the step calls"
_DEPLOY = "start runs with `python flow.py run`"
_NOTEBOOK = "write the flow to a file and start it with `python flow.py run`"
_RUNNER = "start the flow with subprocess.run([sys.executable, 'flow.py', 'run'])"
_CARD = "keep what you want to show in an artifact"

# What to use instead, by name.
ADVICE = {
    "ArgoEvent": _DEPLOY,
    "Config": _CONFIG,
    "ConfigValue": _CONFIG,
    "DeployedFlow": _DEPLOY,
    "Deployer": _DEPLOY,
    "FlowMutator": _STEP_CODE,
    "IncludeFile": "read the file in the first step, its path being a Parameter",
    "NBDeployer": _DEPLOY,
    "NBRunner": _NOTEBOOK,
    "Runner": _RUNNER,
    "StepMutator": _STEP_CODE,
    "UserStepDecorator": _STEP_CODE,
    "conda_environment_yml_parser": _CONFIG,
    "config_expr": _CONFIG,
    "get_cards": _CARD,
    "inspect_spin": "run the flow, or resume it from the step you are working on",
    "namespaced_event_name": _DEPLOY,
    "pyproject_toml_parser": _CONFIG,
    "requirements_txt_parser": _CONFIG,
    "user_step_decorator": _STEP_CODE,
    "yaml_parser": _CONFIG,
}

# Names that user code may derive classes from or test instances against.
_CLASSES = frozenset(
    {
        "ArgoEvent",
        "Config",
        "ConfigValue",
        "DeployedFlow",
        "Deployer",
        "FlowMutator",
        "IncludeFile",
        "NBDeployer",
        "NBRunner",
        "Runner",
        "StepMutator",
        "UserStepDecorator",
    }
)

# A step decorator of the user's that wants the body skipped says so with this value.
USER_SKIP_STEP: dict[str, object] = {}


def refusal(name: str, advice: str) -> NotInThisVersion:
    """The exception that says a name is not in this version, and what to use instead."""
    from metaflow._uncaught import hide_our_frames

    hide_our_frames()
    return NotInThisVersion(f"`{name}` is not in this version of ferroflow: {advice}")


def later_class(name: str, advice: str) -> type:
    """A class that can be named, but neither instantiated nor derived from."""

    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise refusal(name, advice)

    namespace = {
        "__doc__": f"Not in this version: {advice}.",
        "__module__": "metaflow",
        "__new__": refuse,
        "__init_subclass__": classmethod(refuse),
    }
    return type(name, (), namespace)


def later_function(name: str, advice: str) -> Any:
    """A function that refuses to be called."""

    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise refusal(name, advice)

    refuse.__name__ = refuse.__qualname__ = name
    refuse.__doc__ = f"Not in this version: {advice}."
    return refuse


def __getattr__(name: str) -> Any:
    advice = ADVICE.get(name)
    if advice is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    make = later_class if name in _CLASSES else later_function
    value = globals()[name] = make(name, advice)
    return value
