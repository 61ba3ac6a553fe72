"""Runs that give what the server has learnt of its costs, beside what its profile says."""

from __future__ import annotations

from typing import Any


def learnt_costs(spec: dict[str, Any]) -> dict[str, Any]:
    """Figures after a run, those that policies see, and the profile's seconds for the same operations."""
    from tokencake_sglang.emulator import server as emulated

    servers: list[Any] = []
    build = emulated.EmulatedServer._build

    def kept(server: Any, *args: Any) -> Any:
        servers.append(server)
        return build(server, *args)

    emulated.EmulatedServer._build = kept
    from tests.emulator.jobs import run_spec

    run_spec(spec)
    profile = servers[0].profile
    extension = next(e for e in servers[0].scheduler.extensions if hasattr(e, "measure"))
    told = extension.mover.costs
    copies = _copies(profile)
    passes = [(new, position, profile.recompute_s(new, position))
              for new in (500, 2000, 4000) for position in (0, 4000)]
    return {
        "samples": extension.measure.learner.samples, "figures": extension.measure.learner.costs().to_tuple(),
        "told": told.to_tuple(), "passes": [(*p, told.prefill_s(*p[:2])) for p in passes],
        "copies": [(*c, told.upload_s(c[0]), told.offload_s(c[0])) for c in copies],
        "step_overhead_s": profile.step_overhead_s,
        "decodes": [(n, c, profile.decode_s(n, c), told.decode_s(n, c)) for n, c in ((1, 3000), (4, 20_000))],
        "arithmetic": [(n, profile.prefill_s([(n, 0)]), told.compute_s(n, n * n / 2)) for n in (1000, 4000)]}


def first_costs(spec: dict[str, Any]) -> dict[str, Any]:
    """What the server has learnt before its first request, beside the profile's seconds."""
    from tokencake_sglang.emulator import server as emulated

    found: dict[str, Any] = {}
    run = emulated.EmulatedServer.run

    def looked(server: Any) -> None:
        learner = next(e.measure.learner for e in server.scheduler.extensions if hasattr(e, "measure"))
        costs = learner.costs()
        found.update(samples=learner.samples, copies=[
            (*c, costs.upload_s(c[0]), costs.offload_s(c[0])) for c in _copies(server.profile)])
        run(server)

    emulated.EmulatedServer.run = looked
    from tests.emulator.jobs import run_spec

    run_spec(spec)
    return found


def _copies(profile: Any) -> list[tuple[int, float, float]]:
    return [(tokens, *(profile.copy_s(tokens, 1, d) for d in ("h2d", "d2h"))) for tokens in (500, 2000, 8000)]
