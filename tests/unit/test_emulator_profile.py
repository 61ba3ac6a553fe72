"""Device profiles: the published examples, the shape of the costs, users' own files, and what is refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tokencake_sglang.emulator import device_facts
from tokencake_sglang.emulator.device_facts import ProfileError
from tokencake_sglang.emulator.profile import DeviceProfile, FittedCost, load_profile

ROOT = Path(__file__).resolve().parents[2]
FACTS = device_facts.shipped_facts()
ENTRIES = {entry["id"]: entry for entry in FACTS["profiles"]}
A100 = "qwen2.5-14b@a100-80gb"
FITTED = DeviceProfile("fitted", 1024, 2, 1000, 1e9, 2e9, 1e-3, 1e-4, FittedCost(
    prefill_step=1.0, prefill_request=2.0, new=0.1, prefix=0.01, new_prefix=1e-3, new_new=1e-2, prefix_prefix=1e-4,
    prefill_floor=4.0, decode_step=0.5, decode_request=0.25, decode_context=0.125))


def examples(kind: str) -> list[tuple[str, str, float]]:
    return [(name, case, ms) for name, entry in ENTRIES.items() for case, ms in entry["examples"][kind].items()]


def numbers(case: str) -> tuple[int, int]:
    first, second = map(int, re.findall(r"[a-z](\d+)", case))
    return first, second


def written(path: Path, values: object) -> str:
    path.write_text(json.dumps(values))
    return str(path)


# -- the shipped facts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case", "ms"), examples("decode_step_ms"))
def test_a_decode_step_takes_what_the_facts_file_says(name, case, ms):
    profile, (batch, context) = load_profile(name), numbers(case)
    found = profile.decode_s(batch, batch * context) + profile.step_overhead_s
    assert found * 1e3 == pytest.approx(ms, abs=0.006)


@pytest.mark.parametrize(("name", "case", "ms"), examples("prefill_ms"))
def test_a_prefill_takes_what_the_facts_file_says(name, case, ms):
    profile = load_profile(name)
    assert (profile.prefill_s([numbers(case)]) + profile.step_overhead_s) * 1e3 == pytest.approx(ms, abs=0.06)


@pytest.mark.parametrize("name", ENTRIES)
def test_copies_take_what_the_facts_file_says(name):
    profile, given = load_profile(name), ENTRIES[name]["examples"]
    out, back = profile.copy_s(4096, 1, "d2h"), profile.copy_s(4096, 1, "h2d")
    assert out * 1e3 == pytest.approx(given["transfer_out_ms_4096_tokens"], abs=0.06)
    recompute = profile.recompute_s(4096, 0) + profile.step_overhead_s
    assert recompute / (out + back) == pytest.approx(given["recompute_over_round_trip_4096"], abs=0.06)


@pytest.mark.parametrize("name", ENTRIES)
def test_pool_and_rates_follow_from_the_facts_of_model_and_device(name):
    """A profile that names only its model and its device equals the one that spells the figures out."""
    bare = {**FACTS, "profiles": [{key: ENTRIES[name][key] for key in ("id", "model", "device")}]}
    derived = DeviceProfile.from_dict(device_facts.values_of(bare, name))
    shipped = load_profile(name)
    assert derived.pool_tokens == shipped.pool_tokens == ENTRIES[name]["kv_pool_tokens"]
    assert derived.h2d_bytes_per_s == pytest.approx(shipped.h2d_bytes_per_s)
    assert derived.decode_s(8, 40000) == pytest.approx(shipped.decode_s(8, 40000))
    assert derived.prefill_s([(4096, 100)]) == pytest.approx(shipped.prefill_s([(4096, 100)]))


@pytest.mark.parametrize("name", FACTS["models"])
def test_the_facts_of_a_model_follow_from_its_shape(name):
    shape = {key: FACTS["models"][name][key] for key in device_facts.MODEL_SHAPE}
    derived = device_facts.model_facts({**shape, "qkv_bias": name.startswith("qwen")}, name)
    given = {key: value for key, value in FACTS["models"][name].items() if key != "source"}
    assert {key: derived[key] for key in given} == given


def test_the_pool_and_the_kv_bytes_agree_with_the_published_ones():
    checks = FACTS["cross_checks"]
    profile = load_profile(A100)
    assert profile.pool_tokens == checks[0]["here"]
    assert profile.pool_tokens == pytest.approx(checks[0]["published_tokens"], rel=0.02)
    assert profile.kv_bytes_per_token == checks[2]["here"] == 192 * 2**20 / 1024


def test_the_data_file_is_shipped_with_the_package():
    code = ("import runpy, setuptools\nsetuptools.setup = lambda **given: print(given['package_data'])\n"
            "runpy.run_path('setup.py')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "{'tokencake_sglang.emulator': ['data/*']}", done.stderr


# -- the shape of the costs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [*map(load_profile, ENTRIES), FITTED], ids=[*ENTRIES, "fitted"])
def test_more_work_never_takes_less_time(profile):
    sizes = [0, 1, 16, 500, 4096, 8192]
    for more, less in zip(sizes[1:], sizes, strict=False):
        assert profile.prefill_s([(more, 100)]) >= profile.prefill_s([(max(less, 1), 100)])
        assert profile.prefill_s([(100, more)]) >= profile.prefill_s([(100, less)])
        assert profile.prefill_s([(100, 0)] * more) >= profile.prefill_s([(100, 0)] * less)
        assert profile.decode_s(8, 8 + more) >= profile.decode_s(8, 8 + less)
        assert profile.decode_s(more, 9000) >= profile.decode_s(less, 9000)
        assert profile.mixed_s([(100, 0)], more, 9000) >= profile.mixed_s([(100, 0)], less, 9000)
        assert profile.copy_s(more, 1, "h2d") > profile.copy_s(less, 1, "h2d")
        assert profile.recompute_s(more, 0) >= profile.recompute_s(less, 0)


@pytest.mark.parametrize("profile", [load_profile(A100), FITTED], ids=["roofline", "fitted"])
def test_a_mixed_step_lies_between_its_longer_part_and_the_sum(profile):
    chunks = [(512, 1024)]
    parts = profile.prefill_s(chunks), profile.decode_s(16, 90000)
    assert max(parts) < profile.mixed_s(chunks, 16, 90000) < sum(parts)
    assert profile.mixed_s(chunks, 0, 0) == parts[0]
    assert profile.mixed_s([], 16, 90000) == parts[1]


def test_a_step_without_work_takes_no_time():
    for profile in (load_profile(A100), FITTED):
        assert profile.prefill_s([]) == profile.decode_s(0, 0) == profile.mixed_s([], 0, 0) == 0
        assert profile.copy_s(0, 0, "d2h") == profile.recompute_s(0, 0) == 0


def test_a_recompute_is_the_sum_of_its_chunks():
    profile = load_profile(A100)
    expected = sum(profile.prefill_s([chunk]) for chunk in ((8192, 50), (8192, 8242), (616, 16434)))
    assert profile.recompute_s(17000, 50) == pytest.approx(expected)
    assert profile.recompute_s(100, 50, chunk=60) == profile.prefill_s([(60, 50)]) + profile.prefill_s([(40, 110)])


def test_fitted_coefficients_add_up_above_the_floor():
    assert FITTED.prefill_s([(10, 20)]) == pytest.approx(1 + 2 + 1 + 0.2 + 0.2 + 1 + 0.04)
    assert FITTED.prefill_s([(1, 0)]) == 4.0
    assert FITTED.decode_s(3, 100) == pytest.approx(0.5 + 0.75 + 12.5)


def test_each_run_of_a_copy_costs_what_the_profile_says():
    profile = replace(FITTED, copy_run_s=0.01)
    assert profile.copy_s(500, 7, "h2d") - profile.copy_s(500, 2, "h2d") == pytest.approx(0.05)
    assert FITTED.copy_s(500, 7, "h2d") == FITTED.copy_s(500, 1, "h2d") == pytest.approx(1e-3 + 500 * 1024 / 1e9)
    assert FITTED.copy_s(500, 7, "d2h") == pytest.approx(1e-3 + 500 * 1024 / 2e9)


def test_a_copy_in_no_known_direction_is_refused():
    with pytest.raises(ValueError, match="allowed: 'h2d', 'd2h'"):
        FITTED.copy_s(1, 1, "up")


# -- overrides and files ----------------------------------------------------------------------------------------


def test_overrides_change_what_they_name_and_nothing_else():
    slow = load_profile(A100, {"h2d_bytes_per_s": 8e9, "flops_per_s": 1e14})
    base = load_profile(A100)
    assert slow.h2d_bytes_per_s == 8e9 and slow.d2h_bytes_per_s == base.d2h_bytes_per_s
    assert slow.prefill_s([(4096, 0)]) > base.prefill_s([(4096, 0)])
    assert slow.decode_s(1, 4096) == base.decode_s(1, 4096)
    assert slow.id == f"{A100}?h2d_bytes_per_s=8e+09&flops_per_s=1e+14"


def test_a_suffix_says_the_same_as_a_dict_of_overrides():
    by_suffix = load_profile(f"{A100}?h2d_bytes_per_s=8e9&pool_tokens=48800")
    assert by_suffix == load_profile(A100, {"h2d_bytes_per_s": 8e9, "pool_tokens": 48800})
    assert isinstance(by_suffix.pool_tokens, int)


def test_the_kv_size_is_changed_for_copies_and_for_decode():
    half = load_profile(f"{A100}?kv_bytes_per_token=98304")
    base = load_profile(A100)
    assert half.copy_s(4096, 1, "h2d") < base.copy_s(4096, 1, "h2d")
    assert half.decode_s(8, 90000) < base.decode_s(8, 90000)


def test_any_known_model_goes_with_any_known_device():
    profile = load_profile("llama-3.1-8b@h200")
    assert profile.kv_bytes_per_token == load_profile("llama-3.1-8b@a10g-24gb").kv_bytes_per_token
    assert profile.h2d_bytes_per_s == load_profile("qwen2.5-14b@h200").h2d_bytes_per_s


def test_a_profile_survives_being_written_and_read(tmp_path):
    for profile in (load_profile(A100), FITTED):
        assert load_profile(written(tmp_path / "p.json", profile.to_dict())) == profile


def test_a_users_file_adds_a_model_and_a_device_and_overrides_shipped_facts(tmp_path):
    own = {
        "schema": "gpu-profiles/1",
        "models": {"tiny": {"layers": 4, "hidden": 64, "query_heads": 4, "kv_heads": 2, "head_dim": 16, "ffn": 128,
                            "vocab": 1000}},
        "devices": {"a100-80gb": {"mfu": 0.3}},
        "profiles": [{"id": "mine", "model": "tiny", "device": "a100-80gb", "kv_pool_tokens": 5000}],
    }
    path = written(tmp_path / "mine.json", own)
    mine = load_profile(path)
    assert (mine.id, mine.layers, mine.pool_tokens) == ("mine", 4, 5000)
    assert mine.kv_bytes_per_token == 2 * 4 * 2 * 16 * 2
    assert mine.cost.flops_per_s == pytest.approx(312e12 * 0.3)
    assert load_profile(f"{path}#llama-3.1-8b@h200").layers == 32
    assert load_profile(f"{path}?h2d_bytes_per_s=1e9").h2d_bytes_per_s == 1e9


# -- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen2.5-14b", "gpt@h200", "qwen2.5-14b@tpu", ""])
def test_an_unknown_id_is_refused_with_the_known_ones(name):
    with pytest.raises(ProfileError, match="llama-3.1-8b@a10g-24gb.*docs/calibrate.md"):
        load_profile(name)


def test_a_model_that_does_not_fit_the_device_is_refused():
    with pytest.raises(ProfileError, match="nothing is left for the KV cache"):
        load_profile("qwen2.5-32b@a10g-24gb")


@pytest.mark.parametrize(("values", "words"), [
    ([], "schema None"),
    ({"schema": "other/2"}, "schema 'other/2'; allowed: 'tokencake-profile/1', 'gpu-profiles/1'"),
    ({"schema": "gpu-profiles/1"}, "0 profiles"),
    ({"schema": "gpu-profiles/1", "profiles": [{"id": "x", "model": "tiny", "device": "h200"}]}, "has no 'tiny'"),
    ({"schema": "gpu-profiles/1", "profiles": [{"id": "x", "model": "m", "device": "h200"}],
      "models": {"m": {"layers": 2}}}, "model m does not say 'hidden'"),
    ({"schema": "tokencake-profile/1", "id": "x"}, "does not say 'cost'"),
    ({"schema": "tokencake-profile/1", "id": "x", "cost": {"form": "guess"}}, "allowed: roofline, fitted"),
    ({"schema": "tokencake-profile/1", "id": "x", "cost": {"form": "fitted", "newer": 1}}, "unknown entry 'newer'"),
    ({"schema": "tokencake-profile/1", "id": "x", "cost": {"form": "fitted"}}, "does not say 'kv_bytes_per_token'"),
    ({**FITTED.to_dict(), "cost": {"form": "fitted", "new": -1.0}}, "new is -1.0; allowed: numbers 0 or more"),
    ({**FITTED.to_dict(), "h2d_bytes_per_s": 0}, "h2d_bytes_per_s is 0; allowed: numbers above 0"),
    ({**FITTED.to_dict(), "layers": "two"}, "layers is 'two'"),
])
def test_a_file_that_does_not_say_what_it_has_to_is_refused(tmp_path, values, words):
    with pytest.raises(ProfileError, match=re.escape(words)):
        load_profile(written(tmp_path / "p.json", values))


def test_a_file_that_is_not_there_or_not_json_is_refused(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    for name in ("missing.json", "bad.json"):
        with pytest.raises(ProfileError, match="cannot be read"):
            load_profile(str(tmp_path / name))


@pytest.mark.parametrize(("suffix", "words"), [("h2d=1e9", "'h2d' cannot be set"), ("mfu", "is not NAME=NUMBER"),
                                               ("h2d_bytes_per_s=nan", "numbers above 0"), ("id=3", "cannot be set")])
def test_a_wrong_override_is_refused(suffix, words):
    with pytest.raises(ProfileError, match=re.escape(words)):
        load_profile(f"{A100}?{suffix}")
