"""TokenCake's own flags: made from the settings of `core.config`, read from a file and the command line.

Values on the command line win over the file. Used by the launcher; the offline Engine uses `config_from`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.server import history, record, schedule, tenant_shares, tool_events

PREFIX = "--tokencake-"
PROGRAM = "python -m tokencake_sglang.launch_server"


def flag_of(name: str) -> str:
    """The flag of a setting: `stall_floor_s` -> `--tokencake-stall-floor-s`."""
    return PREFIX + name.replace("_", "-")


def allowed_of(setting: Field) -> str:
    """The allowed values of a setting in words."""
    meta = setting.metadata
    if meta["choices"]:
        return ", ".join(meta["choices"])
    return "any text" if isinstance(setting.default, str) else f"{meta['low']:g} to {meta['high']:g}"


def build_parser() -> argparse.ArgumentParser:
    """A parser of TokenCake's flags alone; values stay text until they are checked."""
    parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    group = parser.add_argument_group("TokenCake", "agent-aware KV cache scheduling; every SGLang flag works too")
    group.add_argument("--enable-tokencake", action="store_true", help="Turn TokenCake on. Without it SGLang is"
                       " served as it is, and the control routes answer 503.")
    group.add_argument("--tokencake-config", metavar="FILE", help="Settings from a JSON or YAML file (by its ending):"
                       " an object of setting names and values. Flags win over the file.")
    group.add_argument(record.FLAG, "--record", dest="record", metavar="FILE", help="Record the requests of this"
                       " server as a trace that the emulator replays: lengths, times and prefix blocks, no token and no"
                       " text. FILE is new and ends in .csv (TraceLab's layout) or .jsonl (Mooncake's). Works with and"
                       " without --enable-tokencake.")
    for f in fields(TokenCakeConfig):
        text = f"{f.metadata['help']} Allowed: {allowed_of(f)}; default {f.default!r}."
        group.add_argument(flag_of(f.name), dest="set_" + f.name, metavar=type(f.default).__name__.upper(),
                           help=text.replace("%", "%%"))
    return parser


def split(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """TokenCake's flags, and the rest for SGLang. ConfigError on an unknown `--tokencake-` flag."""
    parser = build_parser()
    parser.error = _raise  # type: ignore[method-assign]
    ours, rest = parser.parse_known_args(argv)
    rest = _take_schedule_policy(ours, rest)
    for word in rest:
        if word.startswith((PREFIX, "--enable-tokencake")):
            names = ", ".join(["--tokencake-config", record.FLAG, *(flag_of(f.name) for f in fields(TokenCakeConfig))])
            raise ConfigError(f"unknown flag {word.split('=')[0]}; TokenCake's flags are --enable-tokencake, {names}."
                              " Remove it or correct its name.")
    return ours, rest


def _take_schedule_policy(ours: argparse.Namespace, rest: list[str]) -> list[str]:
    """`rest` without `--schedule-policy tokencake`, which SGLang does not know; what it asks for is kept on `ours`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.error = _raise  # type: ignore[method-assign]
    parser.add_argument("--schedule-policy")
    found, others = parser.parse_known_args(rest)
    priorities = "--enable-priority-scheduling" in rest
    ours.asked_order = {"schedule_policy": found.schedule_policy, "enable_priority_scheduling": priorities}
    return others if found.schedule_policy == schedule.OWN else rest


def recording_from_flags(ours: argparse.Namespace) -> str | None:
    """The absolute path of the trace to write, or None. ConfigError when it cannot be written."""
    return None if ours.record is None else record.check_path(ours.record)


def config_from_flags(ours: argparse.Namespace) -> TokenCakeConfig | None:
    """The settings, or None when TokenCake is not enabled. ConfigError on any wrong value."""
    given = {name[4:]: value for name, value in vars(ours).items() if name.startswith("set_") and value is not None}
    if not ours.enable_tokencake:
        schedule.settle(ours.asked_order, {}, False)
        if given or ours.tokencake_config:
            flag = flag_of(next(iter(given))) if given else "--tokencake-config"
            raise ConfigError(f"{flag} is given but TokenCake is not on. Add --enable-tokencake, or remove it.")
        return None
    values = load_file(ours.tokencake_config) if ours.tokencake_config else {}
    values.update({name: _convert(name, text) for name, text in given.items()})
    return config_from(schedule.settle(ours.asked_order, values, True))


def config_from(values: dict[str, Any]) -> TokenCakeConfig:
    """Settings from names (with underscores or dashes) and values; the path of a history absolute, and writable; the
    endpoint of tool events free."""
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    config = TokenCakeConfig.from_dict(tenant_shares.with_file(values, read_object))
    if config.tool_events:
        tool_events.check_endpoint(config.tool_events)
    return replace(config, history=history.check_path(config.history)) if config.history else config


def load_file(path: str) -> dict[str, Any]:
    """An object of setting names and values from a .json, .yaml or .yml file."""
    return {name.replace("-", "_"): value for name, value in read_object(path, "--tokencake-config").items()}


def read_object(path: str, flag: str) -> dict[str, Any]:
    """An object of names and values from a .json, .yaml or .yml file that was given with `flag`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {path} cannot be read: {error}. Give a readable file.") from None
    ending = Path(path).suffix.lower()
    try:
        if ending == ".json":
            values = json.loads(text)
        elif ending in (".yaml", ".yml"):
            values = _yaml(text)
        else:
            raise ConfigError(f"{flag} {path} ends in {ending!r}; allowed: .json, .yaml, .yml. Rename it.")
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        line = " ".join(str(error).split())
        raise ConfigError(f"{flag} {path} is not valid {ending[1:]}: {line}. Correct the file.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{flag} {path} holds a {type(values).__name__}; allowed: an object of names and values."
                          " Correct the file.")
    return {str(name): value for name, value in values.items()}


def _yaml(text: str) -> Any:
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    return {} if values is None else values


def _convert(name: str, text: str) -> Any:
    """Command-line text in the type of the setting; a wrong value stays text, and the config says what is allowed."""
    wanted = type(next(f.default for f in fields(TokenCakeConfig) if f.name == name))
    try:
        return wanted(text)
    except ValueError:
        raise ConfigError(f"{flag_of(name)} is {text!r}; allowed: {wanted.__name__}. Correct the value.") from None


def _raise(message: str) -> None:
    raise ConfigError(f"{message}. See --help.")
