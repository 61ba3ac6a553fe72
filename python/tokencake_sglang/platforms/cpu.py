"""SGLang on an x86 machine without a GPU, with torch operations only."""

from __future__ import annotations

import logging
import platform

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import CpuArchEnum, PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

from tokencake_sglang.platforms.environment import cpu_environment

logger = logging.getLogger(__name__)

ATTENTION_BACKEND = "torch_native"
REPLACEABLE_ATTENTION_BACKENDS = (None, "intel_amx", ATTENTION_BACKEND)


class UnsupportedOnCpuError(ValueError):
    """A server argument asks for something that needs a GPU kernel."""

    def __init__(self, asked: str, allowed: str) -> None:
        super().__init__(f"{asked} cannot run on the torch CPU platform of tokencake-sglang. {allowed}")


class TorchCpuPlatform(CpuDeviceMixin, SRTPlatform):
    """Serves dense MHA/GQA models in float32 or bfloat16, any page size, with or without HiCache, on gloo.

    Chosen by `tokencake_sglang.platforms.activate` when no accelerator is present. For correctness and for trying
    things out, not for speed: attention runs request by request, and a prefix hit saves no attention work. Models with
    sliding windows, state-space layers or multi-head latent attention need pools and kernels that are not here.
    """

    _enum = PlatformEnum.OOT
    device_name = "cpu"
    device_type = "cpu"

    def apply_server_args_defaults(self, server_args) -> None:
        """Fill in what the user left open, and refuse what cannot run here before any process starts.

        Raises:
            UnsupportedOnCpuError: naming the flag and what to use instead.
        """
        refuse_unsupported(server_args, self.get_cpu_architecture())
        server_args.attention_backend = ATTENTION_BACKEND
        if server_args.dtype == "auto":
            # SGLang's auto turns float32 checkpoints into float16, which x86 mostly emulates.
            server_args.dtype = "float32"
        if server_args.grammar_backend is None:
            server_args.grammar_backend = "outlines"
        if server_args.enable_hierarchical_cache:
            _use_direct_copies(server_args)
        logger.info("Torch CPU platform, environment set: %s", cpu_environment(server_args.tp_size))

    def get_default_attention_backend(self) -> str:
        return ATTENTION_BACKEND

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_mla_kv_pool_cls(self) -> type:
        raise UnsupportedOnCpuError("A model with multi-head latent attention (MLA)", "Use a model with MHA or GQA.")

    def get_dsa_kv_pool_cls(self) -> type:
        raise UnsupportedOnCpuError("A model with sparse attention (DSA)", "Use a model with MHA or GQA.")

    def get_paged_allocator_cls(self) -> type:
        from tokencake_sglang.platforms.allocator import TorchPagedTokenToKVPoolAllocator

        return TorchPagedTokenToKVPoolAllocator

    def get_device(self, local_rank: int | None = None) -> str:
        """The device string: SGLang parses it when no --device is given, and torch takes it everywhere else."""
        return "cpu"

    def is_pin_memory_available(self, device=None) -> bool:
        return False

    def get_dispatch_key_name(self) -> str:
        return "native"

    def get_torch_profiler_activity_str(self) -> str:
        return "CPU"

    def get_torch_profiler_activity(self):
        import torch

        return torch.profiler.ProfilerActivity.CPU

    def init_backend(self) -> None:
        from tokencake_sglang.platforms import shims

        shims.install()


def refuse_unsupported(server_args, architecture: CpuArchEnum) -> None:
    """Raise `UnsupportedOnCpuError` for the first argument that needs a GPU kernel or another machine.

    Args:
        server_args: SGLang's ServerArgs, before resolution has finished.
        architecture: of this machine.
    """
    if architecture != CpuArchEnum.X86:
        raise UnsupportedOnCpuError(
            f"Serving on {platform.machine()}",
            "It serves on x86-64 machines; elsewhere use an accelerator or SGLang's own SGLANG_USE_CPU_ENGINE=1.",
        )
    if server_args.device != "cpu":
        raise UnsupportedOnCpuError(f"--device {server_args.device}", "Leave --device out or give cpu.")
    for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend"):
        backend = getattr(server_args, name)
        if backend not in REPLACEABLE_ATTENTION_BACKENDS:
            flag = "--" + name.replace("_", "-")
            raise UnsupportedOnCpuError(f"{flag} {backend}", f"Leave it out or give {ATTENTION_BACKEND}.")
    if server_args.speculative_algorithm is not None:
        raise UnsupportedOnCpuError(
            f"--speculative-algorithm {server_args.speculative_algorithm}", "Leave speculative decoding out."
        )
    if server_args.quantization is not None:
        raise UnsupportedOnCpuError(
            f"--quantization {server_args.quantization}", "Serve the unquantized weights, --dtype float32 or bfloat16."
        )
    if server_args.kv_cache_dtype not in ("auto", "bfloat16", "bf16"):
        raise UnsupportedOnCpuError(f"--kv-cache-dtype {server_args.kv_cache_dtype}", "Use auto or bfloat16.")
    if server_args.enable_lora or server_args.lora_paths:
        raise UnsupportedOnCpuError("--enable-lora", "Its adapter memory is pinned for a GPU; merge the adapter.")
    if server_args.disaggregation_mode != "null":
        raise UnsupportedOnCpuError(
            f"--disaggregation-mode {server_args.disaggregation_mode}", "Serve prefill and decode in one server."
        )


def _use_direct_copies(server_args) -> None:
    """HiCache's copy kernels are CUDA's; the direct backend with the layer_first layout is plain indexing."""
    found = (server_args.hicache_io_backend, server_args.hicache_mem_layout)
    server_args.hicache_io_backend, server_args.hicache_mem_layout = "direct", "layer_first"
    if found != ("direct", "layer_first"):
        logger.info("HiCache on the CPU copies with io backend direct, layout layer_first, instead of %s, %s", *found)
