"""Two passes over spooled updates, their geometry and the plan a rule made of it, and means."""

from matl_coordinator.aggregation.apply import apply_update
from matl_coordinator.aggregation.executor import Executor, LocalExecutor
from matl_coordinator.aggregation.gram_pass import measure
from matl_coordinator.aggregation.mean import extend_mean
from matl_coordinator.aggregation.plan_pass import aggregate_chunks
from matl_coordinator.aggregation.ray_executor import RayExecutor
from matl_coordinator.aggregation.rows import Row
from matl_coordinator.aggregation.sketch import Histories, sketch_rows

__all__ = [
    "Executor",
    "Histories",
    "LocalExecutor",
    "RayExecutor",
    "Row",
    "aggregate_chunks",
    "apply_update",
    "extend_mean",
    "measure",
    "sketch_rows",
]
