"""The launcher's command line, settings file and choices; no server is started here."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from tokencake_sglang import launch_server, serving
from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.server import deployment, options

ON = ["--enable-tokencake"]


def config_of(*words: str) -> TokenCakeConfig | None:
    return options.config_from_flags(options.split(list(words))[0])


def test_our_flags_are_taken_out_and_the_rest_keeps_its_order():
    ours, rest = options.split(["--model-path", "m", *ON, "--tp", "2", "--tokencake-lease-s=3", "--port", "1"])
    assert rest == ["--model-path", "m", "--tp", "2", "--port", "1"]
    assert options.config_from_flags(ours) == TokenCakeConfig(lease_s=3.0)


def test_without_the_switch_there_are_no_settings():
    assert config_of("--model-path", "m") is None


@pytest.mark.parametrize(("words", "order"), [
    ([], "program"),
    (["--schedule-policy", "tokencake"], "program"),
    (["--schedule-policy=tokencake", "--tokencake-order", "program"], "program"),
    (["--schedule-policy", "lpm"], "sglang"),
    (["--enable-priority-scheduling"], "sglang"),
    (["--tokencake-order", "sglang"], "sglang"),
])
def test_tokencake_orders_the_queue_unless_the_user_asks_sglang_for_an_order(words, order):
    ours, rest = options.split(["--model-path", "m", *ON, *words])
    assert options.config_from_flags(ours).order == order
    assert not any("tokencake" in word for word in rest) and ("lpm" in rest) == ("lpm" in words)


@pytest.mark.parametrize(("words", "said"), [
    (["--schedule-policy", "tokencake"], "Add --enable-tokencake"),
    ([*ON, "--schedule-policy", "tokencake", "--tokencake-order", "sglang"], "--tokencake-order sglang are both given"),
    ([*ON, "--schedule-policy", "tokencake", "--enable-priority-scheduling"], "only one can order the queue"),
    ([*ON, "--schedule-policy", "lpm", "--tokencake-order", "program"], "Add --tokencake-order sglang"),
])
def test_two_orders_of_the_queue_are_refused(words, said, capsys, monkeypatch):
    monkeypatch.setattr(serving, "require_ready", lambda: None)
    monkeypatch.setattr(serving, "load_plugins", lambda config, trace: None)
    assert launch_server.main(["--model-path", "m", *words]) == 2
    assert said in capsys.readouterr().err


def test_an_order_in_sglangs_own_file_is_refused_beside_tokencakes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(serving, "require_ready", lambda: None)
    monkeypatch.setattr(serving, "load_plugins", lambda config, trace: None)
    (tmp_path / "serve.yaml").write_text("schedule-policy: lpm\n")
    assert launch_server.main(["--model-path", "m", *ON, "--config", str(tmp_path / "serve.yaml")]) == 2
    assert "--tokencake-order sglang" in capsys.readouterr().err


def test_every_setting_has_a_flag_that_sets_it(tmp_path):
    texts = {"tool_events": f"ipc://{tmp_path}/socket", "tenant_shares": "acme=0.2:0.6"}
    for f in fields(TokenCakeConfig):
        a_text = texts.get(f.name, str(tmp_path / "file"))
        other = (f.metadata["choices"] or [a_text])[-1] if isinstance(f.default, str) else f.metadata["high"]
        also = ("--tokencake-tenant-header", "x-tenant") if f.name == "tenant_shares" else ()
        config = config_of(*ON, *also, options.flag_of(f.name), str(other))
        assert getattr(config, f.name) == other and type(getattr(config, f.name)) is type(f.default)


@pytest.mark.parametrize(("words", "said"), [
    ([*ON, "--tokencake-lease"], "--tokencake-lease"),
    ([*ON, "--tokencake-nonsense", "3"], "unknown flag --tokencake-nonsense"),
    ([*ON, "--enable-tokencakes"], "unknown flag"),
    ([*ON, "--tokencake-lease-s"], "expected one argument"),
    ([*ON, "--tokencake-lease-s", "soon"], "'soon'"),
    ([*ON, "--tokencake-lease-s", "-1"], "0 to 3600"),
    ([*ON, "--tokencake-lease-s", "nan"], "0 to 3600"),
    ([*ON, "--tokencake-load-slots", "4.5"], "'4.5'"),
    ([*ON, "--tokencake-load-slots", "3"], "4 to 256"),
    ([*ON, "--tokencake-offload-policy", "best"], "cost, eager, none"),
    (["--tokencake-lease-s", "1"], "Add --enable-tokencake"),
    (["--tokencake-config", "x.json"], "Add --enable-tokencake"),
    ([*ON, "--tokencake-config", "missing.json"], "cannot be read"),
    ([*ON, "--tokencake-tool-events", "127.0.0.1:5"], "tcp://127.0.0.1:20390"),
])
def test_a_wrong_flag_ends_with_status_2_and_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch_server.main(["--model-path", "m", *words]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize(("name", "text"), [
    ("s.json", '{"lease_s": 2, "stall-floor-s": 0.1}'), ("s.yaml", "lease_s: 2\nstall-floor-s: 0.1\n"),
    ("s.YML", "lease_s: 2\nstall_floor_s: 0.1\n"),
])
def test_a_settings_file_is_read_and_flags_win_over_it(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    assert config_of(*ON, "--tokencake-config", str(path)) == TokenCakeConfig(lease_s=2, stall_floor_s=0.1)
    config = config_of(*ON, "--tokencake-config", str(path), "--tokencake-stall-floor-s", "7")
    assert (config.lease_s, config.stall_floor_s) == (2, 7.0)


def test_an_empty_yaml_file_means_the_defaults(tmp_path):
    (tmp_path / "s.yaml").write_text("")
    assert config_of(*ON, "--tokencake-config", str(tmp_path / "s.yaml")) == TokenCakeConfig()


@pytest.mark.parametrize(("name", "content", "said"), [
    ("s.json", b"{", "not valid json"), ("s.yaml", b"a: [", "not valid yaml"), ("s.yaml", b"- 1", "holds a list"),
    ("s.json", b'{"lease": 1}', "unknown TokenCake setting 'lease'"), ("s.toml", b"", "'.toml'"),
    ("s.json", b'{"lease_s": "1"}', "must be float"), ("s.json", b"\xff", "cannot be read"),
    ("s.json", b"[" * 100_000, "not valid json"), ("s.yaml", b"!!python/object:os.system {}", "not valid yaml"),
])
def test_a_wrong_settings_file_is_refused(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config_of(*ON, "--tokencake-config", str(tmp_path / name))
    assert said in str(caught.value)


def test_given_flags_are_told_from_defaults_under_any_spelling(tmp_path):
    parsed, given = launch_server.parse_given(
        ["--model", "m", "--tensor-parallel-size=2", "--hicache-io-backend", "direct", "--page-size", "1"])
    assert given["tp_size"] == parsed.tp_size == 2 and given["hicache_io_backend"] == "direct"
    assert given["page_size"] == 1 and "hicache_mem_layout" not in given and parsed.hicache_mem_layout
    (tmp_path / "sglang.yaml").write_text("model-path: m\nhicache-mem-layout: layer_first\n")
    _, given = launch_server.parse_given(["--config", str(tmp_path / "sglang.yaml")])
    assert given["hicache_mem_layout"] == "layer_first"


@pytest.mark.parametrize(("device", "given", "enabled", "expected"), [
    ("cuda", {}, False, {}),
    ("cuda", {}, True, {"radix_cache_backend": "tokencake", "enable_hierarchical_cache": True,
                        "hicache_write_policy": "write_through", "hicache_io_backend": "kernel",
                        "hicache_mem_layout": "page_first"}),
    ("cuda", {}, True, {"enable_mixed_chunk": True, "chunked_prefill_size": 128}),
    ("cuda", {"hicache_io_backend": "direct"}, True, {"hicache_mem_layout": "page_first_direct"}),
    ("cuda", {"hicache_mem_layout": "page_first_direct"}, True, {"hicache_io_backend": "direct"}),
    ("cuda", {"hicache_mem_layout": "layer_first"}, True, {"hicache_io_backend": "kernel"}),
    ("cpu", {}, False, {"attention_backend": "torch_native", "grammar_backend": "outlines"}),
    ("cpu", {"enable_hierarchical_cache": True}, False, {"hicache_io_backend": "direct"}),
    ("cpu", {"grammar_backend": "none"}, True, {"hicache_io_backend": "direct", "hicache_mem_layout": "layer_first",
                                                "hicache_write_policy": "write_through", "device": "cpu"}),
])
def test_settings_that_fit_the_device_are_chosen_and_never_over_the_users_own(device, given, enabled, expected):
    chosen = deployment.choose(device, given, enabled)
    assert expected.items() <= chosen.items() and not set(chosen) & set(given)
    if not enabled:
        assert "radix_cache_backend" not in chosen
        assert ("hicache_io_backend" in chosen) == ("hicache_io_backend" in expected)


@pytest.mark.parametrize("given", [{"enable_mixed_chunk": True}, {"chunked_prefill_size": 4096}])
def test_chunks_are_chosen_together_or_not_at_all(given):
    chosen = deployment.choose("cuda", given, True)
    assert not {"enable_mixed_chunk", "chunked_prefill_size"} & set(chosen)


def test_chunks_are_balanced_where_they_are_chosen_here_and_the_user_wants_no_others():
    def settled(device="cuda", given=(), **settings):
        chosen = deployment.choose(device, dict(given), True)
        chosen, config = deployment.settle_chunks(chosen, TokenCakeConfig(**settings))
        return chosen.get("chunked_prefill_size"), config.chunks

    assert settled() == settled(order="sglang") == settled(chunks="balanced") == (1024, "balanced")
    assert settled(chunks="fixed") == (128, "fixed")
    assert settled(given={"chunked_prefill_size": 4096}) == (None, "fixed"), "the user's own"
    assert settled(given={"chunked_prefill_size": 4096}, chunks="balanced") == (None, "balanced")
    assert settled("cpu") == (None, "fixed")


def test_chosen_flags_are_flags_of_sglang_with_the_values_that_it_reads_back():
    for device in ("cpu", "cuda"):
        chosen = deployment.choose(device, {}, True)
        _, given = launch_server.parse_given(["--model-path", "m", *deployment.as_flags(chosen)])
        assert {**given, "model_path": "m"} == {**chosen, "model_path": "m"}


@pytest.mark.parametrize(("given", "accelerator", "device"), [
    ({}, True, "cuda"), ({}, False, "cpu"), ({"device": "cpu"}, False, "cpu"), ({"device": "cuda"}, True, "cuda")])
def test_the_device_is_the_one_asked_for_or_the_one_there_is(given, accelerator, device):
    assert deployment.device_of(given, accelerator) == device


@pytest.mark.parametrize(("given", "accelerator"), [({"device": "cpu"}, True), ({"device": "cuda"}, False)])
def test_a_device_that_cannot_be_used_here_is_refused(given, accelerator):
    with pytest.raises(ConfigError, match="Leave --device out"):
        deployment.device_of(given, accelerator)


def test_a_plugin_list_without_ours_is_refused():
    deployment.check_plugins_variable({}, ["tokencake"])
    deployment.check_plugins_variable({"SGLANG_PLUGINS": "x, tokencake"}, ["tokencake"])
    with pytest.raises(ConfigError, match="leaves out the plugin 'tokencake'"):
        deployment.check_plugins_variable({"SGLANG_PLUGINS": "x"}, ["tokencake"])


def test_the_notice_names_every_setting_and_flag_and_marks_what_was_changed():
    chosen = deployment.choose("cuda", {}, True)
    text = serving.notice(TokenCakeConfig(lease_s=9.0), "cuda", chosen, "http://127.0.0.1:1")
    assert "lease_s: 9.0  (default 5.0)" in text and " ".join(deployment.as_flags(chosen)) in text
    assert all(name in text for name in json.loads(TokenCakeConfig().to_json()))
    assert "POST http://127.0.0.1:1/v1/tokencake/events" in text
    assert "OFF" in serving.notice(None, "cuda", {}, None)


def test_help_shows_both_halves(capsys):
    assert launch_server.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(options.flag_of(f.name) in text for f in fields(TokenCakeConfig))
    assert "--hicache-ratio" in text and "--tensor-parallel-size" in text
