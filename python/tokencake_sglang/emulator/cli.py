"""`tokencake emulate`: SGLang's scheduler in virtual time on a workload, several configurations side by side."""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.emulator.compare import compare, write_whole
from tokencake_sglang.emulator.report import is_void
from tokencake_sglang.emulator.request import DEFAULT_COMPARE, DEFAULT_PROFILE, experiment_of, one_number
from tokencake_sglang.emulator.table import markdown
from tokencake_sglang.emulator.zygote import Processes

PLOTS = ("svg", "png", "none")


def build_parser() -> argparse.ArgumentParser:
    """Values stay text until `request.experiment_of` checks them."""
    parser = argparse.ArgumentParser(prog="tokencake emulate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("workload", nargs="?", metavar="WORKLOAD", help="name of a workload, or the path of a trace: Mooncake .jsonl,"
        " TraceLab .csv")
    add("--list", action="store_true", help="show workloads, configurations and profiles, and run nothing")
    what = parser.add_argument_group("workload")
    add = what.add_argument
    add("--param", action="append", metavar="NAME=VALUE", help="a parameter of the workload; may be repeated")
    add("--seed", metavar="N", help="seed of the workload (default 1)")
    add("--seeds", metavar="N,N", help="several seeds: the report shows the median and the range")
    add("--qps", metavar="R,R", help="arrival rates in apps per second (default: the workload's own)")
    add("--apps", metavar="N", help="how many apps arrive (default: the workload's own)")
    device = parser.add_argument_group("device and server")
    add = device.add_argument
    add("--profile", metavar="ID|PATH", help=f"model and device (default {DEFAULT_PROFILE})")
    add("--pool", metavar="TOKENS,TOKENS", help="sizes of the device KV pool (default: the profile's)")
    add("--host-ratio", metavar="R,R", help="host KV pool over device KV pool (default 2)")
    add("--link", metavar="GB/S,GB/S", help="rates of the links between host and device, both directions (default: the"
        " profile's)")
    add("--normal-loop", action="store_true", help="SGLang's normal loop (default: its overlap loop, as SGLang's own)")
    add("--no-oracle", action="store_true", help="do not check the content of the KV that is read: faster")
    add("--compare", metavar="A,B,C", help="configurations and groups of them (default"
        f" {','.join(DEFAULT_COMPARE)}, and those of --config-file)")
    add("--server-arg", action="append", metavar="NAME=VALUE", help="an SGLang server argument for every"
        " configuration; may be repeated")
    add("--config-file", metavar="FILE", help="own configurations, .json or .yaml: names and fields of Configuration")
    add("--measure-from", metavar="S", help="measure real microseconds a step from this virtual second on (default 0)")
    add("--samples", metavar="N", help="samples of the KV pools, at least (default 200)")
    running = parser.add_argument_group("running and results")
    add = running.add_argument
    add("--jobs", metavar="N", help="runs at a time (default: one per core, as far as 2 GiB of memory each are free)")
    add("--out", metavar="DIR", help="folder of the results (default emulation)")
    add("--resume", action="store_true", help="keep the finished runs that --out already holds")
    add("--repeat-from", metavar="REPORT", help="run the comparison of a report.json again")
    add("--plots", choices=PLOTS, default="svg", help="file format of the plots (default svg)")
    return parser


def main(argv: list[str] | None = None, processes: Processes | None = None) -> int:
    """0: all runs finished and no KV read was bad. 1: else. 2: refused. 130: interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    given = build_parser().parse_args(arguments)
    try:
        if given.list:
            from tokencake_sglang.emulator.catalogue import catalogue

            print(catalogue())
            return 0
        jobs = None if given.jobs is None else one_number(given.jobs, "--jobs", int, above=0)
        experiment = experiment_of(given)
        out = output_folder(given.out or "emulation", given.resume)
    except ConfigError as error:
        print(f"tokencake emulate: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        report, documents = compare(experiment, out, jobs, given.resume, [shlex.quote(word) for word in arguments],
                                    processes, read_report(given.repeat_from))
    except KeyboardInterrupt:
        print(f"tokencake emulate: interrupted. Finished runs are kept in {out}; the same command with --resume goes"
              " on from there.", file=sys.stderr)
        return 130
    show(report, documents, out, given.plots)
    return 1 if any(is_void(run) for cell in report["cells"] for run in cell["runs"]) else 0


def output_folder(name: str, resume: bool) -> Path:
    """The folder, made if need be. ConfigError when it holds another comparison or cannot be written."""
    out = Path(name)
    if (out / "runs").exists() and not resume:
        raise ConfigError(f"the folder {name} already holds runs. Give another one with --out, add --resume to keep its"
                          " finished runs, or remove it.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {name} cannot be made: {error}. Give another one with --out.") from None
    return out


def read_report(path: str | None) -> dict[str, Any] | None:
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else None


def show(report: dict[str, Any], documents: dict[str, dict[str, Any]], out: Path, ending: str) -> None:
    """Writes the table and the plots; the table and where everything lies go to standard output."""
    text = markdown(report)
    write_whole(out / "report.md", text)
    print(text)
    print(f"Results: {out / 'report.json'}, {out / 'report.md'}, {out / 'runs'}")
    if ending == "none" or not documents:
        return
    from tokencake_sglang.emulator import plots

    if not plots.available():
        print(f"tokencake emulate: {plots.MISSING}", file=sys.stderr)
        return
    written = plots.write_plots(report, documents, out / "plots", ending)
    print(f"Plots: {len(written)} in {out / 'plots'}")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
