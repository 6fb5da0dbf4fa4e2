"""Metaflow's names, each imported from its private module when it is first used.

What a flow needs is `from metaflow import FlowSpec, step`; `__all__` lists everything there is.
Nothing but names belongs here: importing this package must cost next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from metaflow._client import DataArtifact as DataArtifact
    from metaflow._client import Flow as Flow
    from metaflow._client import Metaflow as Metaflow
    from metaflow._client import Run as Run
    from metaflow._client import Step as Step
    from metaflow._client import Task as Task
    from metaflow._client import default_metadata as default_metadata
    from metaflow._client import default_namespace as default_namespace
    from metaflow._client import get_metadata as get_metadata
    from metaflow._client import get_namespace as get_namespace
    from metaflow._client import metadata as metadata
    from metaflow._client import namespace as namespace
    from metaflow._current import current as current
    from metaflow._decorators import airflow_external_task_sensor as airflow_external_task_sensor
    from metaflow._decorators import airflow_s3_key_sensor as airflow_s3_key_sensor
    from metaflow._decorators import batch as batch
    from metaflow._decorators import card as card
    from metaflow._decorators import catch as catch
    from metaflow._decorators import conda as conda
    from metaflow._decorators import conda_base as conda_base
    from metaflow._decorators import environment as environment
    from metaflow._decorators import exit_hook as exit_hook
    from metaflow._decorators import kubernetes as kubernetes
    from metaflow._decorators import parallel as parallel
    from metaflow._decorators import project as project
    from metaflow._decorators import pypi as pypi
    from metaflow._decorators import pypi_base as pypi_base
    from metaflow._decorators import pytorch_parallel as pytorch_parallel
    from metaflow._decorators import resources as resources
    from metaflow._decorators import retry as retry
    from metaflow._decorators import schedule as schedule
    from metaflow._decorators import secrets as secrets
    from metaflow._decorators import step as step
    from metaflow._decorators import timeout as timeout
    from metaflow._decorators import trigger as trigger
    from metaflow._decorators import trigger_on_finish as trigger_on_finish
    from metaflow._flow import FlowSpec as FlowSpec
    from metaflow._multicore import parallel_imap_unordered as parallel_imap_unordered
    from metaflow._multicore import parallel_map as parallel_map
    from metaflow._parameters import JSONType as JSONType
    from metaflow._parameters import JSONTypeClass as JSONTypeClass
    from metaflow._parameters import Parameter as Parameter
    from metaflow._profile import profile as profile
    from metaflow._s3 import S3 as S3

__all__ = [
    "S3",
    "USER_SKIP_STEP",
    "Config",
    "ConfigValue",
    "DataArtifact",
    "DeployedFlow",
    "Deployer",
    "Flow",
    "FlowMutator",
    "FlowSpec",
    "IncludeFile",
    "JSONType",
    "JSONTypeClass",
    "Metaflow",
    "NBDeployer",
    "NBRunner",
    "Parameter",
    "Run",
    "Runner",
    "Step",
    "StepMutator",
    "Task",
    "UserStepDecorator",
    "__version__",
    "airflow_external_task_sensor",
    "airflow_s3_key_sensor",
    "batch",
    "card",
    "catch",
    "conda",
    "conda_base",
    "conda_environment_yml_parser",
    "config_expr",
    "current",
    "default_metadata",
    "default_namespace",
    "environment",
    "exit_hook",
    "get_metadata",
    "get_namespace",
    "inspect_spin",
    "kubernetes",
    "metadata",
    "namespace",
    "namespaced_event_name",
    "parallel",
    "parallel_imap_unordered",
    "parallel_map",
    "profile",
    "project",
    "pypi",
    "pypi_base",
    "pyproject_toml_parser",
    "pytorch_parallel",
    "requirements_txt_parser",
    "resources",
    "retry",
    "schedule",
    "secrets",
    "step",
    "timeout",
    "trigger",
    "trigger_on_finish",
    "user_step_decorator",
    "yaml_parser",
]

_HOMES = {
    "_client": (
        "DataArtifact Flow Metaflow Run Step Task default_metadata default_namespace "
        "get_metadata get_namespace metadata namespace"
    ),
    "_current": "current",
    "_decorators": (
        "airflow_external_task_sensor airflow_s3_key_sensor batch card catch conda conda_base "
        "environment exit_hook kubernetes parallel project pypi pypi_base pytorch_parallel "
        "resources retry schedule secrets step timeout trigger trigger_on_finish"
    ),
    "_flow": "FlowSpec",
    "_later": (
        "Config ConfigValue DeployedFlow Deployer FlowMutator IncludeFile NBDeployer NBRunner "
        "Runner StepMutator USER_SKIP_STEP UserStepDecorator conda_environment_yml_parser "
        "config_expr inspect_spin namespaced_event_name pyproject_toml_parser "
        "requirements_txt_parser user_step_decorator yaml_parser"
    ),
    "_multicore": "parallel_imap_unordered parallel_map",
    "_parameters": "JSONType JSONTypeClass Parameter",
    "_profile": "profile",
    "_s3": "S3",
    "_version": "__version__",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    module = __import__(f"{__name__}.{home}", fromlist=[name])
    if home == "_client":
        from metaflow._current import point_client_at_run

        point_client_at_run()
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
