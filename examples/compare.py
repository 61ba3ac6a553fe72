"""Run both examples on the same server started stock and with TokenCake, and compare what came out and what it took."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from coding.program import make_app as coding_app  # noqa: E402
from common.apps import AppResult  # noqa: E402
from common.cli import (  # noqa: E402
    CACHE_DIR,
    add_run_arguments,
    add_server_arguments,
    end_on_signal,
    measure_run,
    say_what_is_modelled,
    server_options,
)
from common.measure import equal_outputs, table  # noqa: E402
from common.server import MODES, Server, ServerError  # noqa: E402
from deep_research.index import SearchIndex  # noqa: E402
from deep_research.program import make_app as research_app  # noqa: E402

SEARCHERS = 3
Outcome = dict[str, tuple[list[AppResult], dict[str, Any]]]


def run_mode(mode: str, args: argparse.Namespace, index: SearchIndex) -> Outcome:
    """Start the server in `mode`, run the examples one after the other, end the server."""
    apps = {"research": research_app(index, SEARCHERS, args.tool_delay, args.seed),
            "coding": coding_app(args.tool_delay, args.seed)}
    begin = time.monotonic()
    print(f"\n=== {mode}: starting the server ...", flush=True)
    with Server(server_options(args), mode, args.log_dir / f"compare-{mode}.log") as server:
        print(f"=== {mode}: ready after {time.monotonic() - begin:.0f} s", flush=True)
        return {title: measure_run(title, server.url, apps[title], args) for title in args.examples}


def verdict(title: str, outcomes: dict[str, Outcome]) -> tuple[list[str], bool]:
    """Sentences that compare every configuration's outputs with the first one's, and whether all is well."""
    names = list(outcomes)
    lines, good = [], True
    for name in names[1:]:
        same, total, different = equal_outputs(outcomes[names[0]][title][0], outcomes[name][title][0])
        lines.append(f"{title}: {same} of {total} outputs byte-equal between {names[0]} and {name}")
        lines += [f"  differs: {d}" for d in different[:5]]
        good = good and total > 0 and not different
    for name in names:
        for failed in (r for r in outcomes[name][title][0] if r.error):
            lines.append(f"{title}: {failed.name} failed under {name}: {failed.error.strip().splitlines()[-1]}")
            good = False
    return lines, good


def moved(outcomes: dict[str, Outcome]) -> tuple[list[str], bool]:
    """Whether the TokenCake run offloaded and uploaded at all."""
    if "tokencake" not in outcomes:
        return [], True
    columns = [column for _, column in outcomes["tokencake"].values()]
    offloads, uploads = (sum(c[name] or 0 for c in columns) for name in ("offloads completed", "uploads completed"))
    line = f"tokencake moved KV: {offloads:.0f} offloads, {uploads:.0f} uploads"
    return [line], offloads > 0 and uploads > 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_server_arguments(parser)
    add_run_arguments(parser)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["stock-hicache", "tokencake"],
                        help="the configurations; outputs are compared with the first one's")
    parser.add_argument("--examples", nargs="+", choices=["research", "coding"], default=["research", "coding"])
    parser.add_argument("--require-moves", action="store_true", help="fail unless KV was offloaded and uploaded")
    args = parser.parse_args(argv)
    if not args.model_path:
        parser.error("--model-path is needed: the servers are started here")
    end_on_signal()
    say_what_is_modelled(args)
    index = SearchIndex.open(CACHE_DIR)
    try:
        outcomes = {mode: run_mode(mode, args, index) for mode in args.modes}
    except ServerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return report(args, outcomes)


def report(args: argparse.Namespace, outcomes: dict[str, Outcome]) -> int:
    """Print the tables and the verdicts, write the JSON; the exit status."""
    good = True
    lines: list[str] = []
    for title in args.examples:
        print(f"\n{title}: {args.apps} applications, {args.concurrency} at a time, pool {args.max_total_tokens} tokens")
        print(table({mode: outcome[title][1] for mode, outcome in outcomes.items()}))
        said, fine = verdict(title, outcomes)
        lines += said
        good = good and fine
    said, fine = moved(outcomes)
    lines += said
    good = good and (fine or not args.require_moves)
    print("\n" + "\n".join(lines))
    if args.out:
        write_results(args.out, outcomes, good)
        print(f"results: {args.out}")
    print("PASS" if good else "FAIL")
    return 0 if good else 1


def write_results(path: Path, outcomes: dict[str, Outcome], good: bool) -> None:
    document = {"schema": 1, "good": good, "modes": {
        mode: {title: {"summary": column, "apps": [r.as_dict() for r in results]}
               for title, (results, column) in outcome.items()} for mode, outcome in outcomes.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as draft:
        json.dump(document, draft, indent=1)
    Path(draft.name).replace(path)


if __name__ == "__main__":
    sys.exit(main())
