"""How many prompt tokens a mixed batch computes: as many as take the device as long as the decoding beside them.

Decoding reads memory and leaves the device's arithmetic idle; computing a prompt does the opposite. In one batch prompt
tokens up to this number are nearly free. How many they are depends on the model, the device and what decodes just now.
"""

from __future__ import annotations

from tokencake_sglang.core.costs import Costs

MIN_PROMPT_TOKENS = 128  # of a batch, however short its decoding is: beside few requests prompts matter more


def balanced_chunk(costs: Costs, requests: int, context: int, position: int) -> int:
    """Tokens of a batch in which `requests` requests decode, whose contexts are `context` tokens together, beside a
    prompt of which `position` tokens are computed. As SGLang counts, each decoding request is one of the tokens."""
    idle_s = costs.decode_s(requests, context) - costs.compute_s(requests)
    prompt = int(min(idle_s / max(costs.compute_s(1, position), 1e-12), 1e9))
    return requests + max(MIN_PROMPT_TOKENS, prompt)
