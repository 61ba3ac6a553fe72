"""Hardware platforms for SGLang that live outside its tree: today the torch CPU platform."""

from __future__ import annotations

import os

TORCH_CPU_PLATFORM = "tokencake_sglang.platforms.cpu.TorchCpuPlatform"


def activate() -> str | None:
    """Entry point of group ``sglang.srt.platforms``: say whether the torch CPU platform is the one to use.

    Returns:
        The dotted name of the platform class, or None where an accelerator is present (CUDA, ROCm, XPU, MPS and
        every other that torch knows) or where the user chose SGLang's own CPU engine (SGLANG_USE_CPU_ENGINE=1).
        SGLang calls this in every process, so nothing but torch is imported here.
    """
    if os.environ.get("SGLANG_USE_CPU_ENGINE", "0") == "1":
        return None
    import torch

    if torch.cuda.is_available() or torch.accelerator.is_available():
        return None
    return TORCH_CPU_PLATFORM
