"""The client API: what ran, what came of it, and its tags. The names below are all there is."""

from metaflow._client_run import Flow, Metaflow, Run, Step
from metaflow._client_settings import (
    default_metadata,
    default_namespace,
    get_metadata,
    get_namespace,
    metadata,
    namespace,
)
from metaflow._client_task import DataArtifact, Metadata, MetaflowData, Task
from metaflow._uncaught import hide_our_frames

__all__ = [
    "DataArtifact",
    "Flow",
    "Metadata",
    "Metaflow",
    "MetaflowData",
    "Run",
    "Step",
    "Task",
    "default_metadata",
    "default_namespace",
    "get_metadata",
    "get_namespace",
    "metadata",
    "namespace",
]

hide_our_frames()
