"""What test_bounds.py has done in processes of their own (tests/support/emulations.py)."""

from __future__ import annotations

from typing import Any

from tokencake_sglang.emulator.configurations import configuration, names
from tokencake_sglang.emulator.profile import load_profile
from tokencake_sglang.emulator.program import Call, Output, Program, Text, ToolCall, Workload
from tokencake_sglang.emulator.run import _set_plugin, context_length, run, run_workload, server_args
from tokencake_sglang.emulator.spec import RunSpec, WorkloadSpec

PROFILE = "llama-3.1-8b@a10g-24gb"


def spec_of(name: str, pool_tokens: int) -> RunSpec:
    workload = WorkloadSpec("code_writer", 3, {"qps": 0.5, "applications": 2})
    return RunSpec(workload, configuration(name), PROFILE, pool_tokens=pool_tokens, overlap=False, samples=20)


def small_run(name: str) -> dict[str, Any]:
    """Two applications under a pool that is too small for them."""
    return run(spec_of(name, 20_000))


def two_sessions(name: str) -> dict[str, Any]:
    """A is used before B but returns sooner; C needs the room of one of them in between."""
    def conversation(agent: str, arrival_s: float, tool_s: float) -> Program:
        first = Call("1", agent, "t", (Text(agent, 800),), 10, tool=ToolCall("wait", tool_s))
        second = Call("2", agent, "t", (Text(agent, 800), Output("1"), Text(agent + "2", 20)), 10, after=("1",))
        return Program(agent, (first, second), arrival_s)

    passing = Program("C", (Call("1", "C", "t", (Text("C", 800),), 10),), 10.0)
    workload = Workload("two", (conversation("A", 0.0, 20.0), conversation("B", 5.0, 100.0), passing))
    return run_workload(spec_of(name, 2_000), workload, load_profile(PROFILE))


def queue_orders(name: str) -> dict[str, int]:
    """How often the waiting queue was sorted, changed its order, or changed its content or list."""
    from tokencake_sglang.emulator import bounds

    counts = {"sorts": 0, "moved": 0, "damaged": 0}
    install = bounds.install

    def installed(server: Any, clients: Any, bound: str) -> None:
        policy = server.scheduler.policy
        install(server, clients, bound)
        calc_priority = policy.calc_priority

        def watched(queue: list[Any], *args: Any, **kwargs: Any) -> None:
            before = list(queue)
            calc_priority(queue, *args, **kwargs)
            counts["sorts"] += 1
            counts["moved"] += before != queue
            counts["damaged"] += sorted(map(id, before)) != sorted(map(id, queue))

        policy.calc_priority = watched

    bounds.install = installed
    result = small_run(name)
    return {**counts, "apps_completed": result["counts"]["apps_completed"]}


def accepted_server_args(_: Any) -> dict[str, str]:
    """What SGLang says of the settings of every well-known configuration; "" if it takes them."""
    import tempfile
    from pathlib import Path

    from sglang.srt.managers.schedule_policy import SchedulePolicy
    from sglang.srt.mem_cache.radix_cache import RadixCache
    from sglang.srt.server_args import RADIX_EVICTION_POLICY_CHOICES, ServerArgs

    from tokencake_sglang.emulator.model import write_model
    from tokencake_sglang.emulator.workloads import build

    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_of("stock-fcfs", 30_000)
        write_model(Path(folder), 2, context_length(build(spec.workload)))
        for name in names():
            spec = spec_of(name, 30_000)
            _set_plugin(spec)
            try:
                args = ServerArgs(**server_args(spec, load_profile(PROFILE), folder))
                SchedulePolicy(args.schedule_policy, RadixCache.create_simulated(), args.enable_hierarchical_cache,
                               args.enable_priority_scheduling, args.schedule_low_priority_values_first)
                assert args.radix_eviction_policy in RADIX_EVICTION_POLICY_CHOICES
                answers[name] = ""
            except Exception as error:  # the test shows all of them
                answers[name] = f"{type(error).__name__}: {error}"
    return answers
