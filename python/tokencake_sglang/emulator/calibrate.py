"""`tokencake calibrate`: measure a real server and write a device profile that the emulator loads."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.emulator import fit
from tokencake_sglang.emulator.calibration_grid import Grid, Measured, drive
from tokencake_sglang.emulator.profile import DeviceProfile, FittedCost

ASSUMED_BYTES_PER_S = 25e9
DIGITS = 6


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, or 2 with one line on standard error."""
    argv = sys.argv[1:] if argv is None else argv
    in_process = "--in-process" in argv
    parser = build_parser(in_process)
    arguments, rest = parser.parse_known_args(argv) if in_process else (parser.parse_args(argv), [])
    if in_process and "--model-path" not in rest:
        parser.error("--in-process needs --model-path and takes every other flag of SGLang's server; it takes no URL")
    grid = Grid(arguments.new, arguments.prefix, arguments.batch, arguments.context, arguments.repeats,
                arguments.decode_steps)
    try:
        document = profile_document(measure(arguments, rest, grid), arguments.id)
        Path(arguments.out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except (TokenCakeError, OSError) as error:
        print("tokencake: " + " ".join(str(error).split()), file=sys.stderr)
        return 2
    print(table(document))
    print(f"written to {arguments.out}")
    return 0


def build_parser(in_process: bool) -> argparse.ArgumentParser:
    """The command's own flags. Without `in_process` it needs a URL; with it, it leaves other flags to SGLang."""
    grid = Grid()
    parser = argparse.ArgumentParser(
        prog="tokencake calibrate", description="Measure a server and write a device profile for the emulator.",
        epilog="With --in-process, every other flag goes to SGLang: --model-path MODEL, --max-total-tokens N, ...",
        allow_abbrev=False)
    if not in_process:
        parser.add_argument("url", help="a running SGLang server that serves nothing else meanwhile")
    parser.add_argument("--in-process", action="store_true", help="start SGLang's offline Engine here and measure that")
    parser.add_argument("--out", required=True, help="the profile file to write")
    parser.add_argument("--id", default="", help="id of the profile (MODEL@DEVICE)")
    parser.add_argument("--model-config", default="", help="directory of the model's config.json (with a URL)")
    for name, what in (("new", "new tokens of a prefill"), ("prefix", "cached tokens before them"),
                       ("batch", "requests of a decode step"), ("context", "tokens of each of them")):
        parser.add_argument(f"--{name}", type=_numbers, default=getattr(grid, name), metavar="N,N,...", help=what)
    parser.add_argument("--repeats", type=int, default=grid.repeats, help="measurements of each point")
    parser.add_argument("--decode-steps", type=int, default=grid.decode_steps, help="tokens of each decode point")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (-1,)
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 16,64,256")
    return numbers


def measure(arguments: argparse.Namespace, rest: Sequence[str], grid: Grid) -> Measured:
    """Drive the server that the arguments name over the grid."""
    if not arguments.in_process:
        from tokencake_sglang.emulator.calibration_url import UrlServer

        server = UrlServer(arguments.url, os.environ.get("TOKENCAKE_API_KEY", ""), arguments.model_config)
        drive(server, grid)
        return server.measured()
    from tokencake_sglang.emulator.calibration_engine import EngineServer
    from tokencake_sglang.launch_server import parse_given

    with EngineServer(parse_given(list(rest))[1]) as server:
        drive(server, grid)
        return server.measured()


def profile_document(measured: Measured, profile_id: str = "") -> dict[str, Any]:
    """The profile file: what `DeviceProfile.to_dict` gives, and how it was measured.

    Raises:
        FitError: too few points for the coefficients.
    """
    facts, assumed = measured.facts, list(measured.assumed)
    prefill, decode = fit.fit_prefill(measured.prefill), fit.fit_decode(measured.decode)
    held_out = {"prefill": prefill.report(), "decode": decode.report()}
    links, rates = {}, {}
    for direction in ("d2h", "h2d"):
        points = [point for point in measured.copies if point.direction == direction]
        try:
            links[direction] = fit.fit_copies(points)
        except fit.FitError:
            assumed.append(f"{direction}_bytes_per_s is assumed: {len(points)} copies were measured")
            rates[direction] = ASSUMED_BYTES_PER_S
            continue
        held_out[f"copy {direction}"] = links[direction].report()
        rates[direction] = facts.kv_bytes_per_token / links[direction].coefficients["token"]
    profile = DeviceProfile(
        id=profile_id or f"{facts.model}@{_slug(facts.device)}", kv_bytes_per_token=facts.kv_bytes_per_token,
        layers=facts.layers, pool_tokens=facts.pool_tokens,
        h2d_bytes_per_s=_rounded(rates["h2d"]), d2h_bytes_per_s=_rounded(rates["d2h"]),
        copy_latency_s=_mean(links, "latency"), copy_run_s=_mean(links, "run"),
        step_overhead_s=_rounded(measured.step_overhead_s),
        cost=FittedCost(**{k: _rounded(v) for k, v in {**prefill.coefficients, **decode.coefficients}.items()}))
    return {**profile.to_dict(), "calibration": {
        "source": measured.source, "held_out_every": fit.HOLD_OUT_EVERY, "held_out_errors": held_out,
        "request_overhead_s": _rounded(measured.request_overhead_s), "assumed": assumed}}


def _mean(links: dict[str, fit.Fit], term: str) -> float:
    found = [link.coefficients[term] for link in links.values()]
    return _rounded(sum(found) / len(found)) if found else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def table(document: dict[str, Any]) -> str:
    """Errors and coefficients, for a terminal."""
    calibration, cost = document["calibration"], document["cost"]
    lines = [f"{document['id']}: {document['pool_tokens']} tokens of {document['kv_bytes_per_token']} bytes",
             f"{'step':<10} {'points':>7} {'held out':>9} {'median error':>13} {'max error':>10}"]
    for name, report in calibration["held_out_errors"].items():
        lines.append(f"{name:<10} {report['points']:>7} {report['held_out']:>9} "
                     f"{report['median_relative_error']:>12.1%} {report['max_relative_error']:>10.1%}")
    lines += [f"{name:<16} {value:.3g} s" for name, value in cost.items() if name != "form" and value]
    lines.append(f"{'step_overhead_s':<16} {document['step_overhead_s']:.3g} s")
    lines.append(f"{'copies':<16} d2h {document['d2h_bytes_per_s'] / 1e9:.3g} GB/s, h2d "
                 f"{document['h2d_bytes_per_s'] / 1e9:.3g} GB/s, {document['copy_latency_s']:.3g} s each, "
                 f"{document['copy_run_s']:.3g} s a run")
    return "\n".join([*lines, *calibration["assumed"]])


if __name__ == "__main__":
    sys.exit(main())
