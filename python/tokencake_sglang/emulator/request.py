"""From the words of the command line to an `Experiment`. Every refusal says what was asked, found and allowed.

Names of workloads and configurations are looked up only here, inside functions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.emulator.cells import Experiment, Grid, with_link
from tokencake_sglang.emulator.report import SCHEMA
from tokencake_sglang.emulator.spec import Configuration, RunSpec

TRACES = {".jsonl": "mooncake", ".csv": "tracelab"}  # endings of trace files and the workload that reads them
DEFAULT_COMPARE = ("stock-fcfs", "hicache-fcfs", "hicache-lpm", "hicache-lpm-mixed", "hicache-routing-key",
                   "tokencake", "tokencake-lpm")
DEFAULT_PROFILE = RunSpec.__dataclass_fields__["profile"].default
WITH_RATE = ("poisson", "even")  # arrivals that --qps sets the rate of
COUNTS_OF_APPS = ("applications", "sessions", "agents", "chats", "limit")  # what --apps sets, by workload
PLAN_FLAGS = ("workload", "param", "seed", "seeds", "qps", "apps", "profile", "pool", "host_ratio", "link",
              "normal_loop", "no_oracle", "measure_from", "samples", "server_arg", "config_file")
PRIORITIES = ("none", "program_age")

T = TypeVar("T")


def experiment_of(given: argparse.Namespace) -> Experiment:
    """The experiment that the flags ask for. ConfigError when it cannot be run."""
    if given.repeat_from:
        return _repeated(given)
    if not given.workload:
        raise ConfigError("no workload is named. Name one, or a trace file; `tokencake emulate --list` shows them all.")
    if given.seed is not None and given.seeds is not None:
        raise ConfigError("--seed and --seeds are both given. Keep one of them.")
    workload, params = _workload(given)
    grid = Grid(
        qps=values(given.qps, "--qps", float, above=0) if given.qps else (None,),
        pools=values(given.pool, "--pool", int, above=0) if given.pool else (None,),
        host_ratios=values(given.host_ratio, "--host-ratio", float, above=-1) if given.host_ratio else (2.0,),
        seeds=values(given.seeds or given.seed or "1", "--seeds" if given.seeds else "--seed", int),
        links=values(given.link, "--link", float, above=0) if given.link else (None,))
    own = read_configurations(given.config_file) if given.config_file else {}
    server_args = {name.replace("-", "_"): value for name, value in assignments(given.server_arg, "--server-arg")}
    compared = tuple(replace(one, server_args={**one.server_args, **server_args}) for one in _compared(given, own))
    experiment = Experiment(
        workload, params, grid.cells(), compared, given.profile or DEFAULT_PROFILE, overlap=not given.normal_loop,
        oracle=not given.no_oracle,
        measure_from_s=one_number(given.measure_from or "0", "--measure-from", float, above=-1),
        samples=one_number(given.samples or "200", "--samples", int, above=-1))
    check(experiment)
    return experiment


def check(experiment: Experiment) -> None:
    """Refuses, before the first process starts, a profile that does not exist and programs that cannot be built."""
    from tokencake_sglang.emulator import workloads
    from tokencake_sglang.emulator.profile import load_profile

    for link in {cell.link_gb_s for cell in experiment.cells}:
        load_profile(with_link(experiment.profile, link))
    cells = {cell.qps: cell for cell in experiment.cells}  # another seed, pool or ratio is not refused
    for cell in cells.values():
        try:
            workload = workloads.build(experiment.workload_spec(cell))
        except ValueError as error:
            raise ConfigError(f"{error}. `tokencake emulate --list` shows what there is.") from None
        if not workload.programs:
            raise ConfigError(f"the workload {experiment.workload} has no programs with these parameters, so there is"
                              " nothing to run. Change --apps or --param.")


def _workload(given: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    name, params = given.workload, dict(assignments(given.param, "--param"))
    kind = TRACES.get(Path(name).suffix.lower())
    if kind is not None:
        if not Path(name).is_file():
            raise ConfigError(f"the trace {name} does not exist or is no file. Give the path of a Mooncake .jsonl or a"
                              " TraceLab .csv file.")
        name, params = kind, {"path": str(Path(name).resolve()), **params}
    known = _parameters(name)
    if given.qps is not None:
        _check_rate(name, known, params)
    if given.apps is not None:
        key = next((one for one in COUNTS_OF_APPS if one in known), None)
        if key is None or key in params:
            problem = f"and --param {key}=... are both given" if key else f"is given, but {name} has no number of apps"
            raise ConfigError(f"--apps {problem}. Allowed: --param with {', '.join(known)}. Remove --apps.")
        params[key] = one_number(given.apps, "--apps", int, above=0)
    return name, params


def _parameters(workload: str) -> Mapping[str, Any]:
    from tokencake_sglang.emulator import workloads

    try:
        return workloads.parameters(workload)
    except ValueError as error:
        raise ConfigError(f"{error}. `tokencake emulate --list` shows what there is.") from None


def _check_rate(workload: str, known: Mapping[str, Any], params: dict[str, Any]) -> None:
    """--qps must have an effect: arrivals of a trace or of closed loops have no rate."""
    if "qps" in params:
        raise ConfigError("--qps and --param qps=... are both given. Keep one of them.")
    arrival = params.get("arrival", known["arrival"].default) if "arrival" in known else "fixed"
    if arrival not in WITH_RATE:
        remedy = "Add --param arrival=poisson, or remove --qps" if "arrival" in known else "Remove --qps"
        raise ConfigError(f"--qps is given, but the arrivals of {workload} are {arrival!r} and have no rate. Allowed:"
                          f" --qps with arrivals {' or '.join(WITH_RATE)}. {remedy}.")


def _compared(given: argparse.Namespace, own: dict[str, Configuration]) -> list[Configuration]:
    asked = names_of(given.compare) if given.compare else [*DEFAULT_COMPARE, *own]
    names = dict.fromkeys(name for one in asked for name in ([one] if one in own else _members(one)))
    return [own[name] if name in own else _shipped(name, own) for name in names]


def _members(name: str) -> list[str]:
    """The configurations of a group; another name stands for itself."""
    from tokencake_sglang.emulator import configurations

    return configurations.group(name) if name in configurations.GROUPS else [name]


def _shipped(name: str, own: dict[str, Configuration]) -> Configuration:
    from tokencake_sglang.emulator import configurations

    try:
        return configurations.configuration(name)
    except ValueError as error:
        also = f" Those of --config-file are {', '.join(own)}." if own else ""
        raise ConfigError(f"--compare names {name!r}, which is no configuration: {error}{also}"
                          " `tokencake emulate --list` shows them.") from None


def names_of(text: str) -> list[str]:
    """Names between commas, each once."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice:
        found = f"names {twice[0]} twice" if twice else "is empty"
        raise ConfigError(f"--compare {found}. Allowed: names of configurations, each once, with commas between them.")
    return names


def values(text: str, flag: str, kind: Callable[[str], T], above: float | None = None) -> tuple[T, ...]:
    """Numbers between commas, each once."""
    found = tuple(one_number(part, flag, kind, above) for part in text.split(","))
    if len(set(found)) < len(found):
        raise ConfigError(f"{flag} is {text!r}, which has a number twice. Allowed: each number once.")
    return found


def one_number(text: str, flag: str, kind: Callable[[str], T], above: float | None = None) -> T:
    """A number of one kind; `above`: a bound that it must pass (-1 stands for "0 or more")."""
    try:
        number = kind(text.strip())
        fits = above is None or (above < number < float("inf") and (above >= 0 or number >= 0))
    except ValueError:
        fits = False
    if not fits:
        words = "whole numbers" if kind is int else "numbers"
        bound = "" if above is None else " of 0 or more" if above < 0 else " above 0"
        raise ConfigError(f"{flag} is {text!r}; allowed: {words}{bound}. Correct the value.")
    return number


def assignments(words: list[str] | None, flag: str) -> list[tuple[str, Any]]:
    """`name=value` pairs; a value is read as JSON where it is JSON, else it is text."""
    pairs: dict[str, Any] = {}
    for word in words or ():
        name, sign, text = word.partition("=")
        name = name.strip()
        if not sign or not name or name in pairs:
            problem = "is given twice" if name in pairs else "is not of the form name=value"
            raise ConfigError(f"{flag} {word} {problem}. Allowed: {flag} name=value, each name once.")
        try:
            pairs[name] = json.loads(text)
        except ValueError:
            pairs[name] = text
    return list(pairs.items())


def read_configurations(path: str) -> dict[str, Configuration]:
    """A user's configurations by name from a JSON or YAML file: an object of names and fields of Configuration."""
    from tokencake_sglang.server.options import read_object

    allowed = [f.name for f in fields(Configuration) if f.name != "name"]
    found = {}
    for name, entry in read_object(path, "--config-file").items():
        where = f"--config-file {path}: the configuration {name!r}"
        if not isinstance(entry, dict) or set(entry) - set(allowed):
            problem = "is no object" if not isinstance(entry, dict) else (
                f"has the field {sorted(map(str, set(entry) - set(allowed)))[0]!r}")
            raise ConfigError(f"{where} {problem}. Allowed: an object of {', '.join(allowed)}. Correct the file.")
        found[str(name)] = _configuration(str(name), entry, where)
    return found


def _configuration(name: str, entry: dict[str, Any], where: str) -> Configuration:
    if not name or set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."):
        raise ConfigError(f"{where} has a name that cannot be a file's. Allowed: letters, digits, - _ and dot.")
    server_args, tokencake = entry.get("server_args", {}), entry.get("tokencake")
    if not isinstance(server_args, dict) or not isinstance(tokencake, (dict, type(None))):
        raise ConfigError(f"{where}: server_args must be an object, tokencake an object or null. Correct the file.")
    if entry.get("priority", "none") not in PRIORITIES:
        raise ConfigError(f"{where}: priority is {entry['priority']!r}; allowed: {', '.join(PRIORITIES)}.")
    if tokencake is not None:
        TokenCakeConfig.from_dict(tokencake)
    plain = {str(key).replace("-", "_"): value for key, value in server_args.items()}
    return Configuration(name, **{**entry, "server_args": plain})


def _repeated(given: argparse.Namespace) -> Experiment:
    clash = [name for name in PLAN_FLAGS if getattr(given, name) not in (None, False, [])]
    if clash:
        flag = "a workload" if clash[0] == "workload" else "--" + clash[0].replace("_", "-")
        raise ConfigError(f"--repeat-from takes workload, cells and profile from the report, but {flag} is given too."
                          " Allowed beside it: --compare, --out, --jobs, --resume, --plots. Remove the flag.")
    experiment = read_experiment(given.repeat_from)
    if given.compare:
        own = {one.name: one for one in experiment.configurations}
        experiment = replace(experiment, configurations=tuple(_compared(given, own)))
    check(experiment)
    return experiment


def read_experiment(path: str) -> Experiment:
    """The experiment of a report; ConfigError when the file is none."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        found = report.get("schema") if isinstance(report, dict) else None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--repeat-from {path} cannot be read: {error}. Give the report.json of a comparison.") \
            from None
    if found != SCHEMA:
        raise ConfigError(f"--repeat-from {path} has the schema {found!r}; allowed: {SCHEMA!r}, which report.json has.")
    return Experiment.from_dict(report["experiment"])
