"""How wide `parallel_map` is in this task when the user does not say.

Set when the task starts; read by `_multicore`, which is imported only by flows that use it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_step_cpus: float | None = None


def remember(flow_class: type, spec: dict[str, Any]) -> None:
    """Note the cpus that the step's decorators ask for."""
    global _step_cpus
    asked = [
        decorator["attributes"].get("cpu")
        for decorator in spec.get("decorators", ())
        if decorator["name"] in ("resources", "kubernetes", "batch")
    ]
    numbers = [float(cpu) for cpu in asked if _is_number(cpu)]
    # 1 is what the decorators fill in when the user names only memory, say: no wish at all.
    _step_cpus = max((cpu for cpu in numbers if cpu > 1), default=None)


def step_cpus() -> float | None:
    return _step_cpus


def _is_number(value: Any) -> bool:
    try:
        return float(value) > 0
    except (TypeError, ValueError):
        return False
