"""The spatial scheduler: who goes next, who waits at the door, and what each program and pool holds. Pure."""

from tokencake_sglang.core.spatial.scheduler import SpatialScheduler
from tokencake_sglang.core.spatial.views import Demand, Waiting

__all__ = ["Demand", "SpatialScheduler", "Waiting"]
