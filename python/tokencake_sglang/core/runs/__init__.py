"""Runs of graphs: how far each has come, and how long each of its nodes still keeps it from its end. Pure."""

from tokencake_sglang.core.runs.table import RunTable

__all__ = ["RunTable"]
