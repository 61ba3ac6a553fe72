"""Apply our patch series to SGLang, check it, take it back. Standard library only; SGLang is never imported."""

from tokencake_sglang.patching.errors import PatchError
from tokencake_sglang.patching.state import FileState, PatchState, PatchStatus, require_patched, status

__all__ = ["FileState", "PatchError", "PatchState", "PatchStatus", "export_stock", "require_patched", "status"]


def __getattr__(name: str):
    if name == "export_stock":
        from tokencake_sglang.patching.operations import export_stock

        return export_stock
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
