"""Ranks of a gang (`num_parallel`): where they are, and how they reach rank 0.

How a gang is started and joined is the engine's.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from metaflow.exception import MetaflowException

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Set by a compute layer whose ranks are on machines of their own: the name of rank 0.
_MAIN_NAME = "FERROFLOW_GANG_MAIN"
# AWS Batch tells every node of a gang which it is, and all but the first where the first is.
_NODE_INDEX = "AWS_BATCH_JOB_NODE_INDEX"
_MAIN_ADDRESS = "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"
_HERE = "127.0.0.1"
_LOOK_SECONDS = 0.5
_WAIT_SECONDS = 600
# Ports of `@pytorch_parallel`: one that all ranks of a run agree on.
_FIRST_PORT, _PORTS = 51000, 10000


class Parallel(NamedTuple):
    """`current.parallel`: the gang as this rank sees it."""

    main_ip: str
    num_nodes: int
    node_index: int
    control_task_id: str | None


def parallel() -> Parallel:
    """The rank that this process is of, from its environment."""
    values = os.environ
    return Parallel(
        values.get("MF_PARALLEL_MAIN_IP", _HERE),
        int(values.get("MF_PARALLEL_NUM_NODES", "1")),
        int(values.get("MF_PARALLEL_NODE_INDEX", "0")),
        values.get("MF_PARALLEL_CONTROL_TASK_ID"),
    )


def enter_gang(
    spec: dict[str, Any],
    decorators: dict[str, dict[str, Any]],
    record: Callable[[str, str], None],
) -> None:
    """Before user code: finds rank 0 and tells the step and its frameworks who it is."""
    gang = spec["gang"]
    name = os.environ.pop(_MAIN_NAME, None)
    if name is not None:
        address = _find_main(name, gang["rank"], _patience(decorators))
    else:
        address = name = _main_of_nodes() if _NODE_INDEX in os.environ else _HERE
    rank, nodes = str(gang["rank"]), str(gang["nodes"])
    os.environ.update(
        MF_PARALLEL_MAIN_IP=address,
        MF_PARALLEL_NUM_NODES=nodes,
        MF_PARALLEL_NODE_INDEX=rank,
        MF_PARALLEL_CONTROL_TASK_ID=str(gang["control_task"]),
        MF_MASTER_ADDR=name,
        MF_WORLD_SIZE=nodes,
        UBF_CONTEXT="ubf_task" if gang["rank"] else "ubf_control",
    )
    if gang["rank"]:
        os.environ["MF_WORKER_REPLICA_INDEX"] = str(gang["rank"] - 1)
    else:
        record("internal_task_type", "control_task")
    record("parallel-world-size", nodes)
    if "pytorch_parallel" in decorators:
        _enter_torch(spec, decorators["pytorch_parallel"].get("master_port"))


def _patience(decorators: dict[str, dict[str, Any]]) -> float:
    attributes = decorators.get("kubernetes", {})
    return float(attributes.get("hostname_resolution_timeout") or _WAIT_SECONDS)


def _main_of_nodes() -> str:
    """The address of the first node of a job of AWS Batch."""
    import socket

    try:
        return os.environ.get(_MAIN_ADDRESS) or socket.gethostbyname(socket.gethostname())
    except OSError:
        return _HERE  # only the first looks itself up


def _find_main(name: str, rank: int, patience: float) -> str:
    """The address of rank 0; it may start later than the others."""
    import socket

    deadline = time.monotonic() + patience
    while True:
        try:
            return socket.gethostbyname(name)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise MetaflowException(
                    f"rank {rank} of the gang did not find rank 0 within {patience:g} seconds: "
                    f"its name `{name}` has no address ({error}). Either rank 0 has not started, "
                    "or the cluster has no DNS for headless services"
                ) from error
        time.sleep(_LOOK_SECONDS)


def _enter_torch(spec: dict[str, Any], port: Any) -> None:
    """The variables that `torch.distributed` reads."""
    number = sum(map(ord, f"{spec['flow']}/{spec['run']}/{spec['gang']['control_task']}"))
    place = parallel()
    os.environ.update(
        MASTER_ADDR=place.main_ip,
        MASTER_PORT=str(port or _FIRST_PORT + number % _PORTS),
        NODE_RANK=str(place.node_index),
        RANK=str(place.node_index),
        WORLD_SIZE=str(place.num_nodes),
        NUM_NODES=str(place.num_nodes),
    )
