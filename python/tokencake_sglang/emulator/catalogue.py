"""What `tokencake emulate --list` prints: workloads with their parameters, configurations, profiles."""

from __future__ import annotations


def catalogue() -> str:
    """One line for each thing that has a name."""
    from tokencake_sglang.emulator import configurations, device_facts, workloads
    from tokencake_sglang.emulator.profile import load_profile

    lines = ["Workloads (--param NAME=VALUE; here with the defaults)"]
    lines += [f"  {name}: {', '.join(f'{key}={one.default}' for key, one in workloads.parameters(name).items())}"
              for name in workloads.names()]
    lines += ["", "Configurations (--compare); a name is made of parts, and other combinations work too"]
    lines += [f"  {name}: {configurations.describe(name)}" for name in configurations.names()]
    lines += ["", "Groups of configurations (--compare)"]
    lines += [f"  {name}: {', '.join(configurations.group(name))}" for name in configurations.GROUPS]
    lines += ["", "Profiles (--profile)"]
    for name in device_facts.profile_ids(device_facts.shipped_facts()):
        profile = load_profile(name)
        lines.append(f"  {name}: pool {profile.pool_tokens:,} tokens, {profile.kv_bytes_per_token / 1024:g} KiB each,"
                     f" host to device {profile.h2d_bytes_per_s / 1e9:g} GB/s")
    return "\n".join(lines)
