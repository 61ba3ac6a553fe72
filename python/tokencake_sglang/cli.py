"""The `tokencake` command: one subcommand per task, each imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import sys

SUBCOMMANDS = {
    "calibrate": ("tokencake_sglang.emulator.calibrate:main", "measure a server and write a device profile"),
    "demo-model": ("tokencake_sglang.demo_model:main", "write a small model directory that SGLang can serve"),
    "doctor": ("tokencake_sglang.doctor:main", "check this installation and say how to mend it"),
    "emulate": ("tokencake_sglang.emulator.cli:main", "compare configurations on a workload in virtual time"),
}


def main(argv: list[str] | None = None) -> int:
    """Run ``tokencake SUBCOMMAND ...`` and return its exit status; each subcommand parses its own arguments."""
    parser = argparse.ArgumentParser(prog="tokencake", description="Tools around TokenCake on SGLang.")
    subparsers = parser.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    for name, (_, summary) in SUBCOMMANDS.items():
        subparsers.add_parser(name, help=summary, add_help=False)
    arguments = sys.argv[1:] if argv is None else argv
    chosen = parser.parse_args(arguments[:1]).subcommand
    module_name, function_name = SUBCOMMANDS[chosen][0].split(":")
    return getattr(importlib.import_module(module_name), function_name)(arguments[1:]) or 0


if __name__ == "__main__":
    sys.exit(main())
