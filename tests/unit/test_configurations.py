"""Names of configurations and bounds: what they stand for, and what is refused."""

from __future__ import annotations

import pytest

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.emulator import bounds
from tokencake_sglang.emulator.configurations import EVICTIONS, GROUPS, SCHEDULES, configuration, describe, group, names


def test_every_well_known_name_is_a_configuration_of_its_own():
    made = {name: configuration(name) for name in names()}
    assert all(found.name == name for name, found in made.items())
    # The default written out: lru is SGLang's default eviction.
    same = {"stock-fcfs-lru", "stock-lpm-lru", "hicache-fcfs-lru", "hicache-lpm-lru"}
    kinds = [str(found).replace(repr(name), "") for name, found in made.items() if name not in same]
    assert len(set(kinds)) == len(kinds)


def test_every_name_is_described_in_one_line():
    lines = {describe(name) for name in names()}
    assert len(lines) == len(names())
    assert not any("\n" in line for line in lines)


def test_a_long_name_sets_all_that_it_says():
    found = configuration("hicache-lpm-slru-mixed-chunk512-selective-host1.5+gate4+clairvoyant-evict")
    assert found.server_args == {
        "enable_hierarchical_cache": True, "hicache_write_policy": "write_through_selective", "schedule_policy": "lpm",
        "radix_eviction_policy": "slru", "enable_mixed_chunk": True, "chunked_prefill_size": 512}
    assert found.host_ratio == 1.5
    assert bounds.parse(found.bound) == bounds.Bound(eviction="clairvoyant-evict", gate=4)
    assert (found.tokencake, found.routing_key, found.priority) == (None, False, "none")


def test_priority_after_the_tier_is_the_schedule_and_after_a_schedule_the_eviction():
    schedule, eviction = configuration("stock-priority"), configuration("stock-lpm-priority")
    assert schedule.server_args == {"schedule_policy": "fcfs", "enable_priority_scheduling": True}
    assert eviction.server_args == {"schedule_policy": "lpm", "radix_eviction_policy": "priority"}
    assert schedule.priority == eviction.priority == "program_age"


def test_routing_key_makes_clients_send_their_program():
    assert configuration("hicache-routing-key-mixed").routing_key
    assert not configuration("hicache-lpm").routing_key


@pytest.mark.parametrize(("name", "policy", "order"), [
    ("tokencake", "cost", "program"), ("tokencake-none-lpm", "none", "sglang"), ("tokencake-eager", "eager", "program"),
    ("tokencake-cost-program-mixed", "cost", "program"), ("tokencake-lpm", "cost", "sglang"),
    ("tokencake-program", "cost", "program"), ("tokencake-pools.paper", "cost", "program"),
    ("tokencake-none-program-pools.demand-host1", "none", "program")])
def test_tokencake_has_settings_that_its_own_check_accepts(name, policy, order):
    found = configuration(name)
    config = TokenCakeConfig.from_dict(found.tokencake)
    assert (config.offload_policy, config.order) == (policy, order)
    assert found.server_args["hicache_write_policy"] == "write_through"


@pytest.mark.parametrize(("name", "chunk"), [
    ("tokencake", 1024), ("tokencake-none", 1024), ("tokencake-program", None),
    ("tokencake-program-mixed-chunk64", 64)])
def test_tokencake_alone_is_what_the_launcher_starts(name, chunk):
    found = configuration(name)
    args = found.server_args
    assert found.tokencake.get("chunks") == ("balanced" if chunk == 1024 else None)
    assert args["schedule_policy"] == "fcfs" and args.get("chunked_prefill_size") == chunk
    assert args.get("enable_mixed_chunk", False) == (chunk is not None)


def test_settings_of_tokencake_leave_it_as_the_launcher_starts_it_otherwise():
    found = configuration("tokencake-maxtokens-tenants")
    assert found.server_args == configuration("tokencake").server_args
    assert found.tokencake == {
        "order": "program", "chunks": "balanced", "admission": "max-tokens", "tenant_header": "x-tenant"}
    assert describe("tokencake-tenants").endswith("as the launcher starts it, tenants told apart")
    with pytest.raises(ValueError, match="unknown or out of place"):
        configuration("hicache-lpm-tenants")


def test_balanced_chunks_are_the_launchers_with_any_order():
    found, alone = configuration("tokencake-cost-lpm-balanced"), configuration("tokencake")
    assert found.server_args == {**alone.server_args, "schedule_policy": "lpm"}
    assert found.tokencake == {"offload_policy": "cost", "order": "sglang", "chunks": "balanced"}
    assert configuration("tokencake-balanced").server_args == alone.server_args


def test_only_tokencake_has_the_order_by_program():
    with pytest.raises(ValueError, match="unknown or out of place"):
        configuration("hicache-program")


def test_stock_says_nothing_about_a_host_tier_or_tokencake():
    assert configuration("stock-fcfs").server_args == {"schedule_policy": "fcfs"}
    assert configuration("stock-fcfs").tokencake is None


def test_several_truths_can_be_told_together():
    found = bounds.parse(configuration("tokencake-cost-lpm+known-tools+known-people+gate4").bound)
    assert found == bounds.Bound(gate=4, known=("tools", "people"))


def test_clairvoyant_is_both_bounds_on_hicache():
    found = configuration("clairvoyant")
    assert found.server_args == configuration("hicache-fcfs").server_args
    assert bounds.parse(found.bound) == bounds.Bound("clairvoyant-evict", "clairvoyant-order")


def test_the_stock_to_beat_is_every_strong_order_with_every_chunk_size():
    best = group("best-stock")
    assert len(best) == len(set(best)) == 48
    assert set(group("best-stock-short")) <= set(best)
    for order in ("lpm", "routing-key", "priority"):
        for mixed in ("", "-mixed"):
            assert {f"hicache-{order}{mixed}{chunk}" for chunk in ("", "-chunk128", "-chunk8192")} <= set(best)


def test_groups_cover_every_schedule_and_every_eviction_policy():
    assert {f"stock-{name}" for name in SCHEDULES} <= set(group("schedule"))
    assert {f"hicache-fcfs-{name}" for name in EVICTIONS} <= set(group("eviction"))
    assert set(names()) >= {name for kind in GROUPS for name in group(kind)}


@pytest.mark.parametrize(("name", "said"), [
    ("", "Begin with one of stock, hicache"), ("best", "'best' is no tier"), ("hicache-lpmm", "Schedules: lpm, random"),
    ("hicache-mixed-lpm", "out of place"), ("hicache--lpm", "single dashes"), ("hicache-lpm-mixed-mixed", "twice"),
    ("stock-fcfs-chunk0", "chunkN"), ("stock-fcfs-writeback", "needs a host tier"), ("stock-fcfs-host2", "host tier"),
    ("hicache-lpm-host0", "above 0"), ("hicache-writeback-selective", "two write policies"),
    ("tokencake-writeback", "refuses write-back"), ("hicache-lpm-nopreempt", "needs the schedule priority"),
    ("hicache+", "no bound"), ("hicache+oracle", "Allowed, joined by '+': clairvoyant"),
    ("hicache+program+clairvoyant-evict", "replaces the eviction twice"), ("hicache+gate0", "no bound 'gate0'"),
    ("tokencake-cost+clairvoyant", "only the bounds clairvoyant-evict, known-... and gateN"),
    ("tokencake-cost+program-evict", "only the bounds clairvoyant-evict, known-... and gateN"),
    ("session-radix+clairvoyant", "the tier session"),
    ("hicache-lpm+known-tools", "the tier hicache has no forecasts to replace"),
    ("tokencake-cost+known-tools+clairvoyant-evict", "knows all and a part"),
    ("tokencake-cost+known-weather", "no bound 'known-weather'"),
])
def test_a_name_that_makes_no_sense_is_refused_with_what_is_allowed(name, said):
    with pytest.raises(ValueError, match="(?i)allowed|use|begin|give|join|form|name|leave") as error:
        configuration(name)
    assert said in str(error.value)


def test_an_unknown_group_is_refused_with_the_groups():
    with pytest.raises(ValueError, match="Allowed: best-stock"):
        group("best")


def test_pools_change_nothing_else_of_what_the_launcher_starts():
    plain, pools = configuration("tokencake"), configuration("tokencake-pools.shipped")
    assert pools.server_args == plain.server_args
    assert pools.tokencake == {**plain.tokencake, "pools": "shipped"}
    assert "pools shipped" in describe("tokencake-pools.shipped")


@pytest.mark.parametrize("name", [
    "hicache-pools.paper", "tokencake-pools.", "tokencake-pools.best", "tokencake-lpm-pools.paper",
    "tokencake-pools.paper-pools.demand"])
def test_pools_that_do_not_exist_or_do_not_go_with_the_rest_are_refused(name):
    with pytest.raises(ValueError, match="pools"):
        configuration(name)
