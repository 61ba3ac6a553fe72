"""Command line of the patching tool: ``python -m tokencake_sglang.patching COMMAND``."""

from __future__ import annotations

import argparse
import sys

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.patching import operations
from tokencake_sglang.patching.state import PatchState, describe, status
from tokencake_sglang.patching.wheel import build_wheel

EXIT_CODES = {PatchState.PATCHED: 0, PatchState.PRISTINE: 1}
REFUSED = 2


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m tokencake_sglang.patching",
        description="Apply, check and take back the patches that tokencake-sglang needs in SGLang.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "apply": "patch the installed SGLang, or a tree; all files or none",
        "check": "exit code 0: patched, 1: pristine, 2: half-patched or anything else",
        "revert": "bring the pristine files back, byte for byte",
        "export-stock": "write a pristine copy of the package to DIR/sglang",
        "wheel": "build a patched wheel from the pristine one",
        "hashes": "for maintainers: write HASHES.json from a pristine tree",
    }
    added = {name: commands.add_parser(name, help=text, description=text) for name, text in helps.items()}
    for name, command in added.items():
        command.add_argument("--patches", metavar="DIR", help="patch series (default: the one of this package)")
        if name in ("apply", "check", "revert", "export-stock"):
            command.add_argument(
                "--tree",
                metavar="DIR",
                help="directory with the package `sglang`, or a source checkout (default: the installed SGLang)",
            )
    added["check"].add_argument("-v", "--verbose", action="store_true", help="print one line for each file")
    added["export-stock"].add_argument("dest", metavar="DIR", help="where to write; DIR/sglang must not exist")
    added["wheel"].add_argument("--from", dest="source", metavar="WHEEL", help="pristine wheel (default: pip download)")
    added["wheel"].add_argument("--out", default="dist", metavar="DIR", help="where to write it (default: dist)")
    added["hashes"].add_argument("--pristine", required=True, metavar="DIR", help="pristine tree")
    return parser


def _check(args: argparse.Namespace) -> int:
    found = status(args.tree, args.patches)
    if args.verbose:
        for file in found.files:
            print(describe(file))
    print(found.message(args.tree))
    return EXIT_CODES.get(found.state, REFUSED)


def _run(args: argparse.Namespace) -> int:
    if args.command == "check":
        return _check(args)
    if args.command == "apply":
        print(operations.apply(args.tree, args.patches))
    elif args.command == "revert":
        print(operations.revert(args.tree, args.patches))
    elif args.command == "export-stock":
        print(f"Wrote stock SGLang to {operations.export_stock(args.dest, args.tree, args.patches)}")
    elif args.command == "wheel":
        print(f"Wrote {build_wheel(args.source, args.out, args.patches)}")
    else:
        print(operations.write_hashes(args.pristine, args.patches))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. A refusal is one message on stderr and code 2."""
    args = build_parser().parse_args(argv)
    try:
        return _run(args)
    except TokenCakeError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {args.command} stopped: {error}", file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
