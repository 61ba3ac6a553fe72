"""Stalls that nobody reports: from the tool calls in an answer to the request that brings their results."""

from tokencake_sglang.server.turns.inference import Exchange, StallInference
from tokencake_sglang.server.turns.request import ROUTES, offers_tools

__all__ = ["ROUTES", "Exchange", "StallInference", "offers_tools"]
