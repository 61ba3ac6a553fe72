"""The error of the patching tool."""

from __future__ import annotations

from tokencake_sglang.core.errors import TokenCakeError


class PatchError(TokenCakeError):
    """The patch series, or the SGLang tree that it should be used on, is not what it must be. Nothing was changed."""
