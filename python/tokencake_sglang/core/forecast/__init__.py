"""When a tool call will end: forecasts from the caller's estimate, from what such calls took before, and from how
long this one has lasted."""

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.forecast.forecast import LEVELS, Forecast, latest
from tokencake_sglang.core.forecast.forecaster import Forecaster, Row, Stages, stage_kind
from tokencake_sglang.core.forecast.paper import PaperForecaster
from tokencake_sglang.core.forecast.quantile import QuantileForecaster

__all__ = ["LEVELS", "Forecast", "Forecaster", "Row", "Stages", "latest", "make_forecaster", "stage_kind"]


def make_forecaster(config: TokenCakeConfig) -> Forecaster:
    """The one that the setting `forecast` names."""
    if config.forecast == "paper":
        return PaperForecaster(config.default_stall_s)
    assert config.forecast == "quantile", config.forecast
    return QuantileForecaster(config.default_stall_s)
