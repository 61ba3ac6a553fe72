"""`python -m tokencake_sglang.launch_server`: SGLang's server with every SGLang flag, and TokenCake's.

Exit status 2 and one line on standard error when the flags or the installation cannot be served.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from typing import Any

from tokencake_sglang import serving
from tokencake_sglang.core.errors import ConfigError, TokenCakeError
from tokencake_sglang.server import deployment, options, record, refuse, schedule


def main(argv: list[str] | None = None) -> int:
    """Start the server and stay until it ends; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print_help()
        return 0
    try:
        server_args = prepare(argv)
    except TokenCakeError as error:
        print("tokencake: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    return serve(server_args)


def prepare(argv: list[str]) -> Any:
    """Everything up to the start: SGLang's ServerArgs, checked; the environment and the plugins are ready.

    Settings are checked first, because that needs neither SGLang nor a device.
    """
    ours, rest = options.split(argv)
    config = options.config_from_flags(ours)
    trace = options.recording_from_flags(ours)
    serving.require_ready()
    serving.load_plugins(config, trace)
    from sglang.srt.server_args import prepare_server_args

    parsed, given = parse_given(rest)
    schedule.check(config, given)
    device, chosen, config = serving.prepare(given, config)
    if config is not None:
        refuse.check(parsed)
    try:
        server_args = prepare_server_args([*rest, *deployment.as_flags(chosen)])
    except ValueError as error:
        raise ConfigError(f"SGLang refuses these flags: {error}") from error
    if config is not None:
        refuse.check(server_args)
    if trace is not None:
        record.check(server_args)
    print(serving.notice(config, device, chosen, server_args.url(), trace), flush=True)
    return server_args


def parse_given(argv: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """SGLang's flags as SGLang parses them (with its --config file), and those of them that the user gave."""
    from sglang.srt.server_args import ServerArgs
    from sglang.srt.server_args_config_parser import ConfigArgumentMerger

    parser = argparse.ArgumentParser(prog="python -m tokencake_sglang.launch_server")
    ServerArgs.add_cli_args(parser)
    if "--config" in argv:
        argv = ConfigArgumentMerger(parser).merge_config_with_args(argv)
    parsed = parser.parse_args(argv)
    bare = copy.deepcopy(parser)
    for action in bare._actions:
        action.default = argparse.SUPPRESS
    return parsed, vars(bare.parse_args(argv))


def serve(server_args: Any) -> int:
    """Run SGLang's server; its processes are ended with it."""
    from sglang.launch_server import run_server
    from sglang.srt.utils import kill_process_tree

    try:
        run_server(server_args)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    return 0


def print_help() -> None:
    """Both halves: TokenCake's flags, then SGLang's."""
    options.build_parser().print_help()
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog="", usage="every flag of SGLang:", add_help=False)
    ServerArgs.add_cli_args(parser)
    print()
    parser.print_help()


if __name__ == "__main__":
    sys.exit(main())
