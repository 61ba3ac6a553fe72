"""What the runs' own processes do: plain values in, plain values out."""

from __future__ import annotations

from typing import Any


def run_spec(spec: dict[str, Any], mutation: str = "") -> dict[str, Any]:
    """The result document of a run, or of one with a defect built in."""
    from tests.emulator import mutations
    from tokencake_sglang.emulator.run import run
    from tokencake_sglang.emulator.spec import RunSpec

    if mutation:
        getattr(mutations, mutation)()
    return run(RunSpec.from_dict(spec))


def run_program(calls: list[dict[str, Any]], spec: dict[str, Any]) -> dict[str, Any]:
    """A run of one program whose calls have one text each: name, prompt_tokens, and other fields of Call."""
    from tokencake_sglang.emulator.profile import load_profile
    from tokencake_sglang.emulator.program import Call, Program, Text, Workload
    from tokencake_sglang.emulator.run import run_workload
    from tokencake_sglang.emulator.spec import RunSpec

    made = [
        Call(prompt=(Text(values["name"], values.pop("prompt_tokens")),), agent=values["name"], agent_type="any",
             **{**values, "after": tuple(values.pop("after", ()))})
        for values in calls]
    run_spec = RunSpec.from_dict(spec)
    return run_workload(run_spec, Workload("one", (Program("app", tuple(made)),)), load_profile(run_spec.profile))


def run_beside_an_endless_program(
        spec: dict[str, Any], chains: int, length: int, tenants: tuple[str, str] = ("", "")) -> dict[str, float]:
    """When things end (seconds): `endless`, a program of `chains` agents with `length` calls each, and `poor`, one of a
    single call that arrives a second later; and when the poor one is scheduled. `tenants` are those of the two."""
    from tokencake_sglang.emulator.profile import load_profile
    from tokencake_sglang.emulator.program import Call, Program, Text, Workload
    from tokencake_sglang.emulator.run import run_workload
    from tokencake_sglang.emulator.spec import RunSpec

    def call(name: str, agent: str, after: tuple[str, ...] = (), output_tokens: int = 20) -> Call:
        return Call(name, agent, "any", (Text(name, 200),), output_tokens, after)

    endless = tuple(
        call(f"{chain}-{number}", f"a{chain}", (f"{chain}-{number - 1}",) if number else (), 17 + chain)
        for number in range(length) for chain in range(chains))
    programs = (Program("endless", endless, tenant=tenants[0]),
                Program("poor", (call("only", "a"),), arrival_s=1.0, tenant=tenants[1]))
    run_spec = RunSpec.from_dict(spec)
    result = run_workload(run_spec, Workload("two", programs), load_profile(run_spec.profile))
    ends = {app["app_id"]: app["end_s"] for app in result["apps"]}
    poor = next(call for call in result["calls"] if call["app_id"] == "poor")
    return {**ends, "scheduled": poor["scheduled_s"], "retracted": result["counts"]["retracted"]}


def run_extended(calls: list[dict[str, Any]], spec: dict[str, Any], extension: str) -> dict[str, Any]:
    """`run_program` with a scheduler extension of tests.emulator.extensions, and the batches that it was told of."""
    from tests.emulator import extensions

    extensions.register(extension)
    return {**run_program(calls, spec), "admitted": extensions.admitted}


def run_on_a_small_machine(spec: dict[str, Any], available: int) -> dict[str, Any]:
    """A run where so many bytes of memory are free."""
    from types import SimpleNamespace

    import psutil

    memory = psutil.virtual_memory()._asdict()
    psutil.virtual_memory = lambda: SimpleNamespace(**{**memory, "available": available})
    return run_spec(spec)


def modules_with_real_time(spec: dict[str, Any]) -> dict[str, list[str]]:
    """Modules that saw the real clock before and after a run in this process."""
    from tokencake_sglang.emulator import time_shim

    before = [module.__name__ for module in time_shim.with_real_time()]
    run_spec(spec)
    return {"before": before, "after": [module.__name__ for module in time_shim.with_real_time()]}


def run_watching_uploads(spec: dict[str, Any]) -> dict[str, list[list[Any]]]:
    """`uploads`: [begin, end] of each copy that TokenCake starts outside a batch, on the link; `passes`: [begin, end,
    length without waiting, whether all of it decodes] of each forward pass. Virtual nanoseconds."""
    from tokencake_sglang.emulator.observe import Watch
    from tokencake_sglang.emulator.run import run
    from tokencake_sglang.emulator.spec import RunSpec
    from tokencake_sglang.engine.cache import TokenCakeHiRadixCache

    uploads, passes = [], []
    start_loading_now, on_pass = TokenCakeHiRadixCache.start_loading_now, Watch._on_pass

    def watched_start(cache: Any, chain: list[Any]) -> tuple[int, int]:
        link = cache.cache_controller.load_stream
        begin = link.start_ns()
        load = start_loading_now(cache, chain)
        uploads.append([begin, link.free_at_ns])
        return load

    def watched_pass(watch: Watch, done: Any) -> None:
        is_decode = all(rid in done.decoding for rid in done.rids)
        passes.append([done.begin_ns, done.end_ns, done.duration_ns, is_decode])
        on_pass(watch, done)

    TokenCakeHiRadixCache.start_loading_now, Watch._on_pass = watched_start, watched_pass
    run(RunSpec.from_dict(spec))
    return {"uploads": uploads, "passes": passes}
