"""The command line that both examples share: where the server is or how to start one, and how much to run."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common.apps import AppContext, AppResult, run_apps
from common.measure import difference, server_counters, summary, table, tokencake_counters
from common.server import MODES, Server, ServerError, ServerOptions

AppFactory = Callable[[argparse.Namespace], Callable[[AppContext, int], str]]
CACHE_DIR = Path(__file__).resolve().parents[2] / ".cache"


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-path", help="a model folder or name; a server is started for it and ended afterwards")
    parser.add_argument("--load-format", default=None,
                        help="SGLang load format; default: dummy where the folder holds no weights, else auto")
    parser.add_argument("--max-total-tokens", type=int, default=5000, help="KV pool of a started server, in tokens")
    parser.add_argument("--page-size", type=int, default=1)
    parser.add_argument("--hicache-ratio", type=float, default=4.0, help="host pool / device pool")
    parser.add_argument("--stock-tree", help="folder with an unpatched sglang package, for the stock modes")
    parser.add_argument("--server-arg", action="append", default=[], metavar="ARG",
                        help="one more argument for the started server; repeat it (--server-arg=--tp --server-arg=2)")
    parser.add_argument("--log-dir", type=Path, default=CACHE_DIR / "logs", help="where server logs go")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--apps", type=int, default=4, help="how many applications to run")
    parser.add_argument("--concurrency", type=int, default=4, help="how many of them at a time")
    parser.add_argument("--seed", type=int, default=1, help="picks the tasks of the applications")
    parser.add_argument("--tool-delay", type=float, default=1.5,
                        help="mean seconds added to each tool call, standing for a remote service (0: none)")
    parser.add_argument("--free", action="store_true",
                        help="let the model write freely (JSON schemas only); for real weights")
    parser.add_argument("--prefill", action="store_true",
                        help="send what is known of the next prompt while a tool runs (partial prefill)")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")


def server_options(args: argparse.Namespace) -> ServerOptions:
    load_format = args.load_format
    if load_format is None:
        folder = Path(args.model_path)
        bare = folder.is_dir() and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin"))
        load_format = "dummy" if bare else "auto"
    return ServerOptions(
        model_path=args.model_path, load_format=load_format, max_total_tokens=args.max_total_tokens,
        page_size=args.page_size, hicache_ratio=args.hicache_ratio, on_cpu=not cuda_available(),
        stock_tree=args.stock_tree, extra=tuple(args.server_arg))


def cuda_available() -> bool:
    import torch

    return torch.cuda.is_available()


def measure_run(title: str, url: str, app: Callable[[AppContext, int], str],
                args: argparse.Namespace) -> tuple[list[AppResult], dict[str, Any]]:
    """Run the applications once; returns their results and the column of the table."""
    before, moves_before = server_counters(url), tokencake_counters(url)
    begin = time.monotonic()
    results = run_apps(title, url, app, args.apps, args.concurrency, args.free, args.prefill)
    wall_s = time.monotonic() - begin
    column = summary(results, wall_s, difference(server_counters(url), before),
                     difference(tokencake_counters(url), moves_before))
    return results, column


def end_on_signal() -> None:
    """Let a termination signal unwind the program, so that a started server is ended too."""
    def leave(signum: int, frame: object) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, leave)


@contextlib.contextmanager
def server_url(args: argparse.Namespace) -> Iterator[str]:
    """The given server, or one started for this run."""
    if args.url:
        yield args.url.rstrip("/")
        return
    print(f"starting a {args.mode} server for {args.model_path} ...", flush=True)
    with Server(server_options(args), args.mode, args.log_dir / f"{args.mode}.log") as server:
        yield server.url


def main(title: str, description: str, app_factory: AppFactory, argv: list[str] | None = None) -> int:
    """Entry of an example's run.py; returns the exit status."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--url", help="a running server; otherwise --model-path starts one")
    parser.add_argument("--mode", choices=MODES, default="tokencake", help="which server to start")
    add_server_arguments(parser)
    add_run_arguments(parser)
    args = parser.parse_args(argv)
    if bool(args.url) == bool(args.model_path):
        parser.error("give exactly one of --url (a running server) and --model-path (start one)")
    end_on_signal()
    say_what_is_modelled(args)
    try:
        with server_url(args) as url:
            results, column = measure_run(title, url, app_factory(args), args)
    except ServerError as error:
        print(f"error: {error}")
        return 1
    print("\n" + table({args.mode if args.model_path else "server": column}))
    if args.out:
        args.out.write_text(json.dumps({"summary": column, "apps": [r.as_dict() for r in results]}, indent=1))
    for failed in (r for r in results if r.error):
        print(f"\n{failed.name} failed:\n{failed.error}")
    return 1 if any(r.error for r in results) else 0


def say_what_is_modelled(args: argparse.Namespace) -> None:
    if args.tool_delay > 0:
        print(f"Tools do their real work; each call also waits {args.tool_delay:g} s on average (half to one and a half"
              " times, by its arguments), standing for a remote service. --tool-delay 0 turns that off.")
    if not args.free:
        print("Output is constrained to valid tool calls, so that dummy weights can run the program;"
              " use --free with a real model.")
