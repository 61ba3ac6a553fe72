"""The file that keeps what calls took across restarts."""

from __future__ import annotations

import json
import logging
import os
import threading

import pytest

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.errors import ConfigError
from tokencake_sglang.core.forecast import make_forecaster
from tokencake_sglang.engine import history as module
from tokencake_sglang.engine.history import SAVE_INTERVAL_S, start_history
from tokencake_sglang.server.options import config_from


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture(params=["quantile", "paper"])
def config(request, tmp_path):
    return config_from({"history": str(tmp_path / "h.json"), "forecast": request.param})


def started(config, rank=0):
    forecaster = make_forecaster(config)
    return forecaster, start_history(config, forecaster, rank)


def expected(forecaster) -> float:
    return forecaster.predict("a", "k", None, None, 0.0).expected_s


def teach(forecaster, *durations) -> None:
    for duration in durations:
        forecaster.observe("a", "k", 4.0, duration)


def saved(config) -> bool:
    return os.path.exists(config.history)


def test_what_was_learnt_is_there_after_a_restart_on_every_rank(config):
    forecaster, history = started(config)
    teach(forecaster, 7.0, 8.0, 9.0)
    history.flush()
    for rank in (0, 1):
        again, _ = started(config, rank)
        assert expected(again) == pytest.approx(expected(forecaster), rel=1e-5)
        assert again.lessons == 0


def test_all_ranks_read_the_same(config):
    forecaster, history = started(config)
    teach(forecaster, 7.1, 8.2, 9.3)
    history.flush()
    first, second = started(config, 0)[0], started(config, 1)[0]
    assert first.dump() == second.dump()


def test_only_rank_0_writes(config):
    forecaster, history = started(config, rank=1)
    assert history is None
    assert not saved(config)


def test_a_save_is_made_once_a_minute_if_something_was_learnt(config, clock):
    forecaster, history = started(config)
    teach(forecaster, 7.0)
    history.poll()
    assert history._writer is None
    clock.now += SAVE_INTERVAL_S
    history.poll()
    history._writer.join()
    assert saved(config) and not os.path.exists(config.history + ".new")
    os.unlink(config.history)
    clock.now += SAVE_INTERVAL_S
    history.poll()
    history._writer.join()
    assert not saved(config)
    teach(forecaster, 7.0)
    history.poll()
    assert not saved(config)
    clock.now += SAVE_INTERVAL_S
    history.poll()
    history._writer.join()
    assert saved(config)


def test_the_end_of_the_process_saves_what_was_learnt_since(config, clock):
    forecaster, history = started(config)
    history.flush()
    assert not saved(config)
    teach(forecaster, 7.0)
    history.flush()
    os.unlink(config.history)
    history.flush()
    assert not saved(config)


@pytest.mark.parametrize(("text", "problem"), [
    ("", "Expecting value"), ("{", "Expecting"), ("[]", "no tokencake-history"), ("{}", "no tokencake-history"),
    (json.dumps({"format": "tokencake-history", "version": 2, "forecast": "quantile", "rows": []}), "version 2"),
    (json.dumps({"format": "tokencake-history", "version": 1, "forecast": "median", "rows": []}), "'median'"),
    ('{"format": "tokencake-history", "version": 1, "forecast": "FORECAST", "rows": 3}', "a list, found int"),
    ('{"format": "tokencake-history", "version": 1, "forecast": "FORECAST", "rows": [["x", [], [1]]]}', "table 'x'"),
    ('{"format": "tokencake-history", "version": 1, "forecast": "FORECAST"}', "found NoneType"),
    ("[" * 100_000, "recursion"), ("\udcff", "utf-8")])
def test_a_file_that_cannot_be_used_is_put_aside_with_one_warning(config, caplog, text, problem):
    raw = text.replace("FORECAST", config.forecast).encode(errors="surrogateescape")
    with open(config.history, "wb") as file:
        file.write(raw)
    with caplog.at_level(logging.WARNING):
        forecaster, _ = started(config)
    assert expected(forecaster) == 1.0
    assert not saved(config)
    with open(config.history + ".bad", "rb") as file:
        assert file.read() == raw
    (record,) = caplog.records
    assert problem in record.getMessage() and record.getMessage().endswith("starts without history.")


def test_another_rank_leaves_a_bad_file_to_rank_0_and_starts_without_it_too(config, caplog):
    with open(config.history, "w") as file:
        file.write("{")
    forecaster, _ = started(config, rank=1)
    assert expected(forecaster) == 1.0 and saved(config) and not caplog.records


def test_a_history_of_the_other_forecast_is_put_aside(tmp_path):
    path = str(tmp_path / "h.json")
    forecaster, history = started(TokenCakeConfig(history=path, forecast="paper"))
    teach(forecaster, 7.0)
    history.flush()
    started(TokenCakeConfig(history=path, forecast="quantile"))
    assert not os.path.exists(path) and os.path.exists(path + ".bad")


def test_a_save_that_fails_is_logged_once_leaves_the_old_file_and_is_tried_again(config, clock, caplog, monkeypatch):
    forecaster, history = started(config)
    teach(forecaster, 7.0)
    history.flush()
    with open(config.history) as file:
        before = file.read()

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    teach(forecaster, 9.0)
    for _ in range(2):
        history.flush()
    with open(config.history) as file:
        assert file.read() == before
    assert ["No space left" in record.getMessage() for record in caplog.records] == [True]
    monkeypatch.undo()
    history.flush()
    assert expected(started(config)[0]) == pytest.approx(expected(forecaster), rel=1e-5)


def test_what_was_learnt_while_a_save_runs_is_saved_by_the_next(config, clock):
    forecaster, history = started(config)
    teach(forecaster, 7.0)
    clock.now += SAVE_INTERVAL_S
    history.poll()
    teach(forecaster, 20.0)
    history.flush()
    assert expected(started(config)[0]) == pytest.approx(expected(forecaster), rel=1e-5)


def test_the_end_of_the_process_waits_for_the_save_that_is_under_way(config, clock, caplog, monkeypatch):
    forecaster, history = started(config)
    teach(forecaster, 7.0)
    clock.now += SAVE_INTERVAL_S
    release, order = threading.Event(), []

    def slow(_file) -> None:
        order.append(threading.current_thread().name)
        if len(order) == 1:
            release.wait(30)

    monkeypatch.setattr(module.os, "fsync", slow)
    history.poll()
    teach(forecaster, 20.0)
    threading.Timer(0.1, release.set).start()
    history.flush()
    history._writer.join()
    assert order == ["tokencake-history", "MainThread"] and not caplog.records
    assert expected(started(config)[0]) == pytest.approx(expected(forecaster), rel=1e-5)


# -- the setting ------------------------------------------------------------------------------------------------


def test_a_relative_path_becomes_absolute_and_nothing_is_left_by_the_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_from({"history": "h.json"}).history == str(tmp_path / "h.json")
    assert os.listdir(tmp_path) == []


def test_the_check_leaves_a_history_as_it_is(tmp_path):
    (tmp_path / "h.json").write_text("kept")
    config_from({"history": str(tmp_path / "h.json")})
    assert (tmp_path / "h.json").read_text() == "kept" and os.listdir(tmp_path) == ["h.json"]


@pytest.mark.parametrize(("path", "words"), [("no/such/h.json", "there is no folder"), (".", "is not a file"),
                                             ("taken/h.json", "cannot be written")])
def test_a_path_that_cannot_be_written_is_refused_in_a_sentence(tmp_path, monkeypatch, path, words):
    (tmp_path / "taken/h.json.new").mkdir(parents=True)  # no file can be made there, not even by root
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words) as caught:
        config_from({"history": path})
    assert "--tokencake-history" in str(caught.value) and str(caught.value).endswith(".")
