"""One emulated run in this process: `run(spec)`, or `python -m tokencake_sglang.emulator.run SPEC.json OUT.json`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokencake_sglang.emulator.compare import write_whole
from tokencake_sglang.emulator.program import Workload
from tokencake_sglang.emulator.server_defaults import chunked_prefill_size
from tokencake_sglang.emulator.spec import RunSpec

CONTEXT_MARGIN = 64
UNIFIED_TREE = "SGLANG_ENABLE_UNIFIED_RADIX_TREE"


def run(spec: RunSpec, progress: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Run `spec` and return the result document (docs/emulator.md). Once per process: SGLang keeps global state.

    Raises:
        ValueError: an unknown workload, profile or parameter.
        EmulationStuckError: the server under test stopped making progress.
    """
    from tokencake_sglang.emulator.profile import load_profile
    from tokencake_sglang.emulator.workloads import build

    workload = build(spec.workload)
    profile = load_profile(spec.profile)
    return run_workload(spec, workload, profile, progress)


def run_workload(spec: RunSpec, workload: Workload, profile: Any,
                 progress: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """`run` with programs and profile at hand."""
    _set_plugin(spec)
    from tokencake_sglang.emulator.model import write_model
    from tokencake_sglang.emulator.server import EMULATED_LAYERS, EmulatedServer

    with tempfile.TemporaryDirectory(prefix="tokencake-emulator-") as directory:
        write_model(Path(directory), EMULATED_LAYERS, context_length(workload))
        server = EmulatedServer(profile, server_args(spec, profile, directory), oracle=spec.oracle)
    from tokencake_sglang.emulator.session import Session

    return Session(server, workload, spec, progress).run()


def context_length(workload: Workload) -> int:
    """The longest request of the workload, in tokens, with a margin."""
    from tokencake_sglang.emulator.workloads.parts import output_lengths, prompt_tokens

    longest = 0
    for program in workload.programs:
        outputs = output_lengths(program)
        for call in program.calls:
            asked = max(call.output_tokens, call.max_new_tokens or 0)
            longest = max(longest, prompt_tokens(call.prompt, outputs) + asked)
    return longest + CONTEXT_MARGIN


def server_args(spec: RunSpec, profile: Any, model: str) -> dict[str, Any]:
    """ServerArgs of the run: what every configuration has in common, then the configuration's own."""
    configuration = spec.configuration
    ratio = configuration.host_ratio if configuration.host_ratio is not None else spec.host_ratio
    values: dict[str, Any] = dict(
        model_path=model, load_format="dummy", device="cpu", dtype="float32", skip_tokenizer_init=True,
        mem_fraction_static=0.9, max_total_tokens=spec.pool_tokens or profile.pool_tokens,
        chunked_prefill_size=chunked_prefill_size(profile), disable_overlap_schedule=not spec.overlap,
        stream_interval=1_000_000, log_level="error", random_seed=1, watchdog_timeout=1_000_000.0)
    values.update(configuration.server_args)
    if configuration.tokencake is not None:
        values.update(enable_hierarchical_cache=True, radix_cache_backend="tokencake")
    if values.get("enable_hierarchical_cache"):
        values.update(hicache_ratio=ratio, hicache_io_backend="direct", hicache_mem_layout="layer_first")
    return values


def _set_plugin(spec: RunSpec) -> None:
    """What the launcher does: settings for the plugin in the environment, or none for stock.

    The session radix cache exists only on the unified tree, which SGLang builds when this variable says so.
    """
    os.environ.pop("TOKENCAKE_CONFIG", None)
    os.environ.pop(UNIFIED_TREE, None)
    if spec.configuration.server_args.get("enable_session_radix_cache"):
        os.environ[UNIFIED_TREE] = "1"
    if spec.configuration.tokencake is not None:
        from tokencake_sglang.core.config import TokenCakeConfig
        from tokencake_sglang.server import schedule

        settings = schedule.settle(spec.configuration.server_args, spec.configuration.tokencake, True)
        os.environ["TOKENCAKE_CONFIG"] = TokenCakeConfig.from_dict(settings).to_json()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tokencake_sglang.emulator.run", description=__doc__)
    parser.add_argument("spec", type=Path, help="RunSpec as JSON")
    parser.add_argument("out", type=Path, help="where to write the result document")
    parser.add_argument("--progress", action="store_true", help="write PROGRESS lines to stderr")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.ERROR)
    spec = RunSpec.from_dict(json.loads(arguments.spec.read_text()))
    result = run(spec, _print_progress if arguments.progress else None)
    write_whole(arguments.out, json.dumps(result))
    return 0


def _print_progress(values: dict[str, Any]) -> None:
    print("PROGRESS " + json.dumps(values), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
