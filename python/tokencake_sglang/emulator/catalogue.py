"""What `tokencake emulate --list` prints: workloads with their parameters, configurations, profiles."""

from __future__ import annotations

from typing import Any

from tokencake_sglang.emulator.spec import Configuration


def catalogue() -> str:
    """One line for each thing that has a name."""
    from tokencake_sglang.emulator import configurations, device_facts, workloads
    from tokencake_sglang.emulator.profile import load_profile

    lines = ["Workloads (--param NAME=VALUE; here with the defaults)"]
    lines += [f"  {name}: {', '.join(f'{key}={one.default}' for key, one in workloads.parameters(name).items())}"
              for name in workloads.names()]
    lines += ["", "Configurations (--compare)"]
    lines += [f"  {name}: {described(configurations.configuration(name))}" for name in configurations.names()]
    lines += ["", "Profiles (--profile)"]
    for name in device_facts.profile_ids(device_facts.shipped_facts()):
        profile = load_profile(name)
        lines.append(f"  {name}: pool {profile.pool_tokens:,} tokens, {profile.kv_bytes_per_token / 1024:g} KiB each,"
                     f" host to device {profile.h2d_bytes_per_s / 1e9:g} GB/s")
    return "\n".join(lines)


def described(configuration: Configuration) -> str:
    """A configuration in words: whose it is, what the clients send, and its server arguments."""
    kind = "stock SGLang" if configuration.tokencake is None else f"TokenCake{_pairs(configuration.tokencake)}"
    if configuration.bound:
        kind = f"bound, {configuration.bound}"
    extra = ["routing key of the program"] if configuration.routing_key else []
    extra += [f"priority by {configuration.priority}"] if configuration.priority != "none" else []
    extra += [f"host pool {configuration.host_ratio:g} x"] if configuration.host_ratio is not None else []
    return ", ".join([kind, *extra]) + _pairs(configuration.server_args)


def _pairs(values: dict[str, Any]) -> str:
    return " (" + ", ".join(f"{key}={value}" for key, value in values.items()) + ")" if values else ""
