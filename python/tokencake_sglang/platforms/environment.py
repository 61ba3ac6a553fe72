"""Process environment that two or more tensor-parallel ranks need on a machine without a GPU."""

from __future__ import annotations

import os

NO_NCCL = "/nonexistent/tokencake-cpu-has-no-nccl"
_set_here: dict[str, str] = {}


def cpu_environment(tp_size: int) -> dict[str, str]:
    """Set, where the user did not, the environment with which ``tp_size`` ranks run on this machine's cores.

    Call it before the server starts its processes; they inherit it. The torch CPU platform calls it by itself when
    SGLang resolves its arguments, so only a launcher that wants the thread count set before its own import of torch
    needs to call it first. Calling it again with another ``tp_size`` replaces what it set, never what the user set.

    Args:
        tp_size: number of tensor-parallel ranks on this machine, at least 1.

    Returns:
        The variables now in force that were set here, for a log line.
    """
    cores = sorted(os.sched_getaffinity(0))
    wanted = {"OMP_NUM_THREADS": str(max(1, len(cores) // tp_size))}
    if tp_size > 1:
        # Without it SGLang asks for one NUMA node per rank.
        wanted["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(_cores_of_ranks(cores, tp_size))
        # torch's CUDA wheel brings an NCCL that loads and then aborts without a device; gloo does the work here.
        wanted["SGLANG_NCCL_SO_PATH"] = NO_NCCL
    for name in [*_set_here, *wanted]:
        if name in _set_here and os.environ.get(name) == _set_here[name]:
            del os.environ[name]
        _set_here.pop(name, None)
    for name, value in wanted.items():
        if name not in os.environ:
            os.environ[name] = _set_here[name] = value
    return dict(_set_here)


def _cores_of_ranks(cores: list[int], tp_size: int) -> list[str]:
    """One comma-separated list of cores per rank: equal shares, or shared cores where there are too few."""
    share = max(1, len(cores) // tp_size)
    starts = [rank * share % len(cores) for rank in range(tp_size)]
    return [",".join(str(core) for core in cores[start : start + share]) for start in starts]
