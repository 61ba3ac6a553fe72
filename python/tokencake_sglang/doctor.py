"""`tokencake doctor`: can this installation serve? One line per check, with the mend of what fails. Starts nothing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tokencake_sglang.version import SGLANG_VERSION, __version__

ENTRY_POINTS = {
    "sglang.srt.plugins": "tokencake_sglang.engine.plugin:register",
    "sglang.srt.platforms": "tokencake_sglang.platforms:activate",
}
SMALL_HOST_MEMORY_GIB = 4


@dataclass(frozen=True)
class Finding:
    """The result of one check; `mend` says what to do when it is not ok."""

    ok: bool
    found: str
    mend: str = ""


def check_python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding((3, 10) <= sys.version_info[:2] <= (3, 12), found, "Use Python 3.10, 3.11 or 3.12.")


def check_sglang() -> Finding:
    mend = f"pip install sglang=={SGLANG_VERSION}"
    try:
        found = importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError:
        return Finding(False, "not installed", mend)
    return Finding(found.split("+")[0] == SGLANG_VERSION, found, mend)


def check_patches() -> Finding:
    from tokencake_sglang.patching import status

    found = status()
    return Finding(found.ok, found.message(), "Run the command named above.")


def check_entry_points() -> Finding:
    for group, value in ENTRY_POINTS.items():
        if value not in {point.value for point in importlib.metadata.entry_points(group=group)}:
            return Finding(False, f"{value} is not registered in {group}", "pip install tokencake-sglang again.")
    return Finding(True, "plugin and platform are registered with SGLang")


def check_plugins_variable() -> Finding:
    from tokencake_sglang.core.errors import ConfigError
    from tokencake_sglang.server.deployment import check_plugins_variable as check

    try:
        check(os.environ, ["tokencake", "tokencake_cpu"])
    except ConfigError as error:
        return Finding(False, str(error), "Unset SGLANG_PLUGINS, or add both names.")
    return Finding(True, "SGLANG_PLUGINS leaves ours in")


def check_device() -> Finding:
    import torch

    if torch.cuda.is_available():
        devices = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
        return Finding(True, f"torch {torch.__version__}, {devices}")
    from tokencake_sglang import platforms

    active = platforms.activate()
    found = f"torch {torch.__version__}, no accelerator; CPU platform: {active or 'inactive'}"
    return Finding(active is not None, found,
                   "Unset SGLANG_USE_CPU_ENGINE to serve on the CPU, or install a driver for your GPU.")


def check_host_tier() -> Finding:
    """HiCache's copies: SGLang's own on CUDA, the torch CPU platform's elsewhere."""
    import torch

    if torch.cuda.is_available():
        ok = importlib.util.find_spec("sgl_kernel") is not None
        found = "HiCache copies by sgl_kernel" if ok else "sgl_kernel is missing"
        return Finding(ok, found, "pip install sglang again.")
    ok = importlib.util.find_spec("tokencake_sglang.platforms.shims") is not None
    return Finding(ok, "HiCache copies by torch on the CPU", "pip install tokencake-sglang again.")


def check_host_memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    return Finding(free >= SMALL_HOST_MEMORY_GIB, f"{free:.1f} GiB of host memory free (the host tier needs"
                   " --hicache-ratio times the device's KV pool, 2 unless set)",
                   f"Free memory until {SMALL_HOST_MEMORY_GIB} GiB are available, or set --hicache-size.")


def check_grammar() -> Finding:
    names = [name for name in ("outlines", "xgrammar", "llguidance") if importlib.util.find_spec(name)]
    return Finding("outlines" in names or "xgrammar" in names, f"grammar backends: {', '.join(names) or 'none'}",
                   "pip install outlines (it is used on the CPU).")


CHECKS: tuple[tuple[str, Callable[[], Finding]], ...] = (
    ("Python", check_python), ("SGLang", check_sglang), ("patches", check_patches),
    ("entry points", check_entry_points), ("plugin list", check_plugins_variable), ("device", check_device),
    ("host tier", check_host_tier), ("host memory", check_host_memory), ("grammar", check_grammar),
)


def diagnose() -> list[tuple[str, Finding]]:
    """All checks in order; a check that raises is a failed one, with what it raised."""
    results = []
    for name, check in CHECKS:
        try:
            results.append((name, check()))
        except Exception as error:  # a diagnosis must come to its end whatever is broken
            results.append((name, Finding(False, f"{type(error).__name__}: {error}", "Install this package again.")))
    return results


def main(argv: list[str] | None = None) -> int:
    """Print the diagnosis; 0 when everything is ok, else 1."""
    parser = argparse.ArgumentParser(prog="tokencake doctor", description=__doc__)
    parser.parse_args(argv)
    print(f"tokencake-sglang {__version__}, made for SGLang {SGLANG_VERSION}")
    results = diagnose()
    for name, finding in results:
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {name}: {finding.found}")
        if not finding.ok:
            print(f"      mend: {finding.mend}")
    failed = sum(not finding.ok for _, finding in results)
    print(f"{failed} of {len(results)} checks failed." if failed else "Ready to serve.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
