"""The version of this package and of the one SGLang release that it supports."""

__version__ = "0.1.0"
SGLANG_VERSION = "0.5.17"
