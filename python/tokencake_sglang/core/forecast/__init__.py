"""When a tool call will end: forecasts from the caller's estimate, from what such calls took before, and from how
long this one has lasted."""

from tokencake_sglang.core.forecast.forecast import LEVELS, Forecast, latest

__all__ = ["LEVELS", "Forecast", "latest"]
