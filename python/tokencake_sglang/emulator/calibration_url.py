"""Calibration of a running server over HTTP: times as a client sees them, from SGLang's own routes.

The time to the first token holds the way of the request through HTTP, tokenizer manager and back. It is estimated
once, as what a prefill of one token takes longer than a decode step of one, and taken off. The host's time per step
cannot be told from the device's: it stays in the coefficients.
"""

from __future__ import annotations

import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.emulator.calibration_grid import Facts, Measured
from tokencake_sglang.emulator.fit import HOLD_OUT_EVERY, CopyPoint, DecodePoint, PrefillPoint, typical

TIMEOUT_S = 600
OVERHEAD_REPEATS = 5
MOST_OVERHEAD = 0.8  # of a time to first token that is taken off at most
LOAD_TOKENS = (256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
LOAD_SHARE = 8  # a load-back takes at most this part of the pool


@dataclass
class Answer:
    """Arrival times of one request's tokens, seconds since it was sent; cached tokens by tier."""

    times: list[float]
    device: int = 0
    host: int = 0


class UrlServer:
    """The server at `url` (http://host:port); `api_key` where it wants one.

    Raises:
        TokenCakeError: it does not answer, or does not say what is needed.
    """

    def __init__(self, url: str, api_key: str = "", model_config: str = "") -> None:
        self.url, self.api_key = url.rstrip("/"), api_key
        info = json.loads(self._open("/server_info").read())
        self.hicache = bool(info.get("enable_hierarchical_cache"))
        self.facts = facts_of(info, model_config or info["model_path"])
        self.prefills: dict[tuple[int, int], list[float]] = {}
        self.decodes: dict[tuple[int, int], list[tuple[float, float]]] = {}  # (context, seconds) of steps

    def _open(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            raise TokenCakeError(f"{self.url}{path} answered {error.code}: {error.read(500).decode(errors='replace')}."
                                 " An SGLang server that serves nothing else is needed.") from None
        except OSError as error:
            raise TokenCakeError(f"{self.url}{path} cannot be reached: {error}. Start the server, or mend the URL."
                                 ) from None

    def _generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[Answer]:
        params = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
        answers = [Answer([]) for _ in prompts]
        start = time.perf_counter()
        body = {"input_ids": list(prompts), "sampling_params": params, "stream": True}
        for event in events(self._open("/generate", body)):
            now = time.perf_counter() - start
            if "error" in event:
                raise TokenCakeError(f"{self.url}/generate: {event['error']}. Choose a smaller grid.")
            answer, meta = answers[event.get("index", 0)], event["meta_info"]
            new = meta["completion_tokens"] - len(answer.times)
            answer.times += [now] * new
            tiers = meta.get("cached_tokens_details") or {}
            answer.device = tiers.get("device", meta["cached_tokens"])
            answer.host = tiers.get("host", 0)
        return answers

    def warm(self, prompt: list[int]) -> None:
        self._generate([prompt], 4)

    def prefill(self, prompt: list[int]) -> None:
        (answer,) = self._generate([prompt], 1)
        cached = answer.device + answer.host
        self.prefills.setdefault((len(prompt) - cached, cached), []).append(answer.times[0])

    def decode(self, prompts: list[list[int]], steps: int) -> None:
        answers = self._generate(prompts, steps)
        begin = max(answer.times[0] for answer in answers)
        end = min(answer.times[-1] for answer in answers)
        tokens, times = sum(map(len, prompts)), answers[0].times
        found = self.decodes.setdefault((len(prompts), tokens), [])
        for i, (before, after) in enumerate(zip(times, times[1:], strict=False)):
            if begin <= before < after <= end:
                found.append((tokens + len(prompts) * (i + 1), after - before))

    def flush(self) -> None:
        self._open("/flush_cache?timeout=30", {}).read()

    def measured(self) -> Measured:
        """All points so far, after measuring the way of a request and, with HiCache, load-backs."""
        overhead = self.request_overhead_s()
        prefill = [PrefillPoint((key,), max(typical(times) - overhead, (1 - MOST_OVERHEAD) * typical(times)))
                   for key, times in self.prefills.items()]
        decode = [DecodePoint(batch, fmean(context for context, _ in found), typical([time for _, time in found]))
                  for (batch, _), found in self.decodes.items() if found]
        assumed = ["step_overhead_s is 0: the host's time per step is inside the coefficients"]
        copies = self.load_backs() if self.hicache else []
        if len(copies) < HOLD_OUT_EVERY:
            copies = []
        else:
            assumed.append("d2h copies take as long as h2d ones: a client cannot see them")
            copies += [CopyPoint("d2h", point.tokens, point.runs, point.seconds) for point in copies]
        return Measured(self.facts, "url", prefill, decode, copies, request_overhead_s=overhead, assumed=assumed)

    def request_overhead_s(self) -> float:
        """Time of a prefill of one token beyond a decode step of one token."""
        firsts, steps = [], []
        for i in range(OVERHEAD_REPEATS):
            (answer,) = self._generate([[7 + i]], 8)
            firsts.append(answer.times[0])
            steps += [after - before for before, after in zip(answer.times, answer.times[1:], strict=False)]
        self.flush()
        return max(0.0, typical(firsts) - typical(steps))

    def load_backs(self) -> list[CopyPoint]:
        """Times by which a hit in host memory is answered later than the same hit on the device.

        Other prompts fill the pool until the first ones have left the device. Points that were not hit as intended
        are left out.
        """
        chance, facts = random.Random(2), self.facts
        limit = min(facts.pool_tokens // LOAD_SHARE, facts.context_tokens - 8)

        def compute(tokens: int) -> list[int]:
            prompt = [chance.randrange(5, facts.vocab) for _ in range(tokens)]
            self._generate([prompt], 1)
            return prompt

        prompts = [compute(tokens) for tokens in LOAD_TOKENS if tokens <= limit]
        piece = min(limit, facts.max_chunk)
        for _ in range(0, facts.pool_tokens, piece):
            compute(piece)
        points = []
        for prompt in prompts:
            (from_host,), (again,) = self._generate([prompt], 1), self._generate([prompt], 1)
            seconds = from_host.times[0] - again.times[0]
            if from_host.host > len(prompt) // 2 and again.host == 0 and seconds > 0:
                points.append(CopyPoint("h2d", from_host.host, 1, seconds))
        self.flush()
        return points


def events(stream: Any) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events, as they arrive."""
    with stream:
        for line in stream:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                yield json.loads(line[6:])


def facts_of(info: Mapping[str, Any], model_config: str) -> Facts:
    """Facts from /server_info and the model's configuration, which transformers reads."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model_config).get_text_config()
    except (OSError, ValueError) as error:
        raise TokenCakeError(f"The configuration of the model {model_config} cannot be read here: {error}. Give "
                             "--model-config, a directory with its config.json.") from None
    state = info["internal_states"][0]
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv_dtype = info["kv_cache_dtype"] if info["kv_cache_dtype"] != "auto" else info["dtype"]
    item = 1 if "fp8" in kv_dtype else 4 if "float32" in kv_dtype else 2
    return Facts(
        model=info["served_model_name"].rstrip("/").rsplit("/", 1)[-1],
        device=state["device"],
        kv_bytes_per_token=2 * config.num_hidden_layers * heads * dim * item,
        layers=config.num_hidden_layers,
        pool_tokens=info["max_total_num_tokens"],
        max_chunk=info["chunked_prefill_size"] if info["chunked_prefill_size"] > 0 else info["max_prefill_tokens"],
        context_tokens=info.get("context_length") or config.max_position_embeddings,
        vocab=config.vocab_size,
    )
