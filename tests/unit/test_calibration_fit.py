"""From times to coefficients: known ones are found again, errors are those of points the fit never saw."""

from __future__ import annotations

import json
import os
import random
import threading
from dataclasses import asdict
from itertools import product
from types import SimpleNamespace

import pytest

from tokencake_sglang.core.errors import TokenCakeError
from tokencake_sglang.emulator import calibrate, calibration_engine, fit, step_log
from tokencake_sglang.emulator.calibration_engine import decode_points, host_overhead_s, prefill_points
from tokencake_sglang.emulator.calibration_grid import Facts, Grid, Measured, drive
from tokencake_sglang.emulator.fit import CopyPoint, DecodePoint, FitError, PrefillPoint
from tokencake_sglang.emulator.profile import DeviceProfile, FittedCost

TRUE = FittedCost(prefill_step=2e-3, new=3e-5, prefix=2e-6, new_prefix=1e-8, new_new=2e-8, prefix_prefix=3e-9,
                  decode_step=4e-3, decode_request=1e-4, decode_context=2e-7)
FACTS = Facts("m", "Some GPU 9", 2048, 4, 20000, 2048, 8192, 1000)
NEW, PREFIX = (16, 64, 200, 512, 1024, 2048), (0, 256, 1024, 4096)


def prefills(cost: FittedCost = TRUE, noise: float = 0.0) -> list[PrefillPoint]:
    chance = random.Random(1)
    return [PrefillPoint(((new, prefix),), cost.step_s([(new, prefix)], 0, 0) * chance.uniform(1 - noise, 1 + noise))
            for prefix, new in product(PREFIX, NEW)]


def decodes() -> list[DecodePoint]:
    return [DecodePoint(batch, batch * context, TRUE.step_s((), batch, batch * context))
            for batch, context in product((1, 2, 4, 8), (64, 500, 3000))]


def copies(direction: str = "h2d", latency: float = 1e-4, run: float = 1e-6, token: float = 2e-7) -> list[CopyPoint]:
    return [CopyPoint(direction, tokens, runs, latency + run * runs + token * tokens)
            for tokens, runs in product((64, 1024, 8192), (1, 4, 64))]


def test_known_coefficients_of_a_prefill_are_found_again():
    found = fit.fit_prefill(prefills())
    for term in ("prefill_step", "new", "prefix", "new_prefix", "new_new", "prefix_prefix"):
        assert found.coefficients[term] == pytest.approx(getattr(TRUE, term), rel=1e-3), term
    assert found.max_error < 1e-6
    assert (found.points, found.held_out) == (24, 6)


def test_known_coefficients_of_a_decode_are_found_again():
    found = fit.fit_decode(decodes())
    assert found.coefficients == pytest.approx({"decode_step": 4e-3, "decode_request": 1e-4, "decode_context": 2e-7})


def test_known_coefficients_of_copies_are_found_again():
    found = fit.fit_copies(copies())
    assert found.coefficients == pytest.approx({"latency": 1e-4, "run": 1e-6, "token": 2e-7})


def test_copies_in_one_run_have_no_cost_of_a_run():
    found = fit.fit_copies([point for point in copies(run=0.0) if point.runs == 1] * 2)
    assert found.coefficients == pytest.approx({"latency": 1e-4, "run": 0.0, "token": 2e-7})


def test_copies_whose_time_does_not_grow_are_put_on_the_tokens():
    found = fit.fit_copies([CopyPoint("h2d", tokens, 1, 1e-3) for tokens in (100, 200, 300, 400, 500)])
    assert found.coefficients["token"] > 0


def test_the_cost_of_a_request_is_told_from_the_cost_of_a_step_when_batches_differ():
    cost = FittedCost(prefill_step=1e-3, prefill_request=5e-4, new=1e-5)
    chunks = [tuple([(new, 0)] * count) for new, count in product((16, 64, 256, 1024), (1, 2, 5))]
    found = fit.fit_prefill([PrefillPoint(each, cost.step_s(each, 0, 0)) for each in chunks])
    assert found.coefficients["prefill_request"] == pytest.approx(5e-4, rel=1e-3)
    assert found.coefficients["prefill_step"] == pytest.approx(1e-3, rel=1e-3)


def test_a_floor_below_which_no_prefill_falls_is_found():
    cost = FittedCost(prefill_floor=0.02, prefill_step=1e-3, new=1e-4)
    found = fit.fit_prefill(prefills(cost))
    assert found.coefficients["prefill_floor"] == pytest.approx(0.02)
    assert found.max_error < 0.05


def test_with_noise_no_coefficient_is_negative_and_the_error_is_of_its_size():
    found = fit.fit_prefill(prefills(noise=0.1))
    assert min(found.coefficients.values()) >= 0
    assert 0.005 < found.median_error < 0.2


def test_errors_are_those_of_the_points_held_out():
    """Every fourth point is wrong by a factor of two; the fit does not follow, and says so."""
    points = prefills()
    points[3::4] = [PrefillPoint(point.chunks, 2 * point.seconds) for point in points[3::4]]
    found = fit.fit_prefill(points)
    assert found.coefficients["new"] == pytest.approx(TRUE.new, rel=1e-3)
    assert (found.median_error, found.max_error) == (pytest.approx(0.5), pytest.approx(0.5))


@pytest.mark.parametrize(("what", "call"), [
    ("6 prefill", lambda: fit.fit_prefill(prefills()[:6])), ("3 decode", lambda: fit.fit_decode(decodes()[:3])),
    ("0 copy", lambda: fit.fit_copies([]))])
def test_too_few_points_are_refused(what, call):
    with pytest.raises(FitError, match=f"{what} points were measured.*Measure a larger grid"):
        call()


def test_the_number_of_points_asked_for_is_enough():
    with pytest.raises(FitError, match="at least 7"):
        fit.fit_prefill(prefills()[:6])
    assert fit.fit_prefill(prefills()[:7 + 1]).held_out == 2


def test_a_time_of_nothing_is_refused():
    with pytest.raises(FitError, match="not above 0"):
        fit.fit_decode([DecodePoint(1, 10, 0.0)] * 8)


# -- the profile made of it -------------------------------------------------------------------------------------


def test_the_profile_document_loads_and_predicts_what_was_measured():
    measured = Measured(FACTS, "in-process", prefills(), decodes(), copies() + copies("d2h", token=4e-7), 5e-4)
    document = calibrate.profile_document(measured)
    profile = DeviceProfile.from_dict(document)
    assert (profile.id, profile.pool_tokens, profile.step_overhead_s) == ("m@some-gpu-9", 20000, 5e-4)
    assert profile.prefill_s([(700, 900)]) == pytest.approx(TRUE.step_s([(700, 900)], 0, 0), rel=1e-3)
    assert profile.decode_s(6, 6000) == pytest.approx(TRUE.step_s((), 6, 6000), rel=1e-3)
    assert profile.copy_s(4096, 3, "h2d") == pytest.approx(1e-4 + 3e-6 + 4096 * 2e-7, rel=1e-3)
    assert profile.copy_s(4096, 3, "d2h") == pytest.approx(1e-4 + 3e-6 + 4096 * 4e-7, rel=1e-3)
    assert set(document["calibration"]["held_out_errors"]) == {"prefill", "decode", "copy d2h", "copy h2d"}
    assert all(word in calibrate.table(document) for word in ("prefill", "decode", "copy h2d", "max error"))


def test_links_that_were_not_measured_are_said_to_be_assumed():
    document = calibrate.profile_document(Measured(FACTS, "url", prefills(), decodes()), "mine")
    assert document["id"] == "mine"
    assert document["h2d_bytes_per_s"] == document["d2h_bytes_per_s"] == 25e9
    assert sum("is assumed: 0 copies" in line for line in document["calibration"]["assumed"]) == 2


# -- the grid ---------------------------------------------------------------------------------------------------


class Recorder:
    """A server that only notes what it is asked, with a radix cache of whole prompts."""

    facts = FACTS

    def __init__(self) -> None:
        self.known: list[list[int]] = []
        self.prefills: list[tuple[int, int]] = []
        self.decodes: list[tuple[int, ...]] = []

    def hit(self, prompt: list[int]) -> int:
        return max((len(known) for known in self.known if prompt[:len(known)] == known), default=0)

    def warm(self, prompt: list[int]) -> None:
        self.known.append(prompt)

    def prefill(self, prompt: list[int]) -> None:
        self.prefills.append((len(prompt) - self.hit(prompt), self.hit(prompt)))
        self.known.append(prompt)

    def decode(self, prompts: list[list[int]], steps: int) -> None:
        assert all(self.hit(prompt) == 0 for prompt in prompts)
        self.known += prompts
        self.decodes.append(tuple(map(len, prompts)))

    def flush(self) -> None:
        self.known.clear()


def test_every_point_of_the_grid_is_measured_as_often_as_asked_with_the_prefix_it_names():
    server = Recorder()
    drive(server, Grid((10, 2048, 4000), (0, 50, 8000), (1, 3), (20, 7000), repeats=2, decode_steps=4))
    assert server.prefills == [(10, 0)] * 2 + [(2048, 0)] * 2 + [(10, 50)] * 2 + [(2048, 50)] * 2 + [(10, 8000)] * 2
    assert server.decodes == [(20,)] * 2 + [(20,) * 3] * 2 + [(7000,)] * 2


def test_a_grid_of_which_nothing_fits_is_refused():
    with pytest.raises(ValueError, match="No point of the grid fits.*Choose smaller"):
        drive(Recorder(), Grid(new=(5000,)))


# -- steps of a scheduler ---------------------------------------------------------------------------------------


def steps(*rows: dict) -> list[dict]:
    return [{"phase": "decode", "entered": 10.0 * i, "left": 10.0 * i + 9.0, "seconds": 1.0, **row}
            for i, row in enumerate(rows)]


def test_a_prefill_met_once_is_no_point_and_the_order_of_its_requests_does_not_matter():
    found = prefill_points(steps({"chunks": [[5, 0], [3, 1]], "seconds": 4.0}, {"chunks": [[3, 1], [5, 0]]},
                                 {"chunks": [[9, 0]]}, {"chunks": [[9, 0]], "phase": "rest"}))
    assert found == [PrefillPoint(((3, 1), (5, 0)), 1.0)]


def test_repeated_rows_of_decode_steps_are_one_point_and_a_changed_batch_ends_a_row():
    row = [{"batch": 2, "context": 10 + 2 * i} for i in range(3)]
    other = [{"batch": 1, "context": 5}, {"batch": 1, "context": 6}]
    found = decode_points(steps(*row, *other, {"chunks": [[4, 0]]}, *row))
    assert found == [DecodePoint(2, 12.0, 1.0)]


def test_the_overhead_of_the_host_is_the_gap_between_steps_of_one_batch():
    assert host_overhead_s(steps(*[{"batch": 1, "context": 1}] * 5, {"batch": 9, "context": 1})) == 1.0
    assert host_overhead_s(steps({"chunks": [[1, 0]]})) == 0.0


# -- the command ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("argv", "words"), [
    (["--out", "x"], "url"), (["http://h", "--out", "x", "--model-path", "m"], "unrecognized arguments"),
    (["--in-process", "--out", "x"], "--in-process needs --model-path"),
    (["http://h", "--out", "x", "--new", "a"], "whole numbers such as 16,64,256")])
def test_wrong_flags_are_refused(argv, words, capsys):
    with pytest.raises(SystemExit) as ended:
        calibrate.main(argv)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_server_that_is_not_there_ends_with_one_line(tmp_path, capsys):
    assert calibrate.main(["http://127.0.0.1:9", "--out", str(tmp_path / "p.json")]) == 2
    assert capsys.readouterr().err.startswith("tokencake: http://127.0.0.1:9/server_info cannot be reached")
    assert not (tmp_path / "p.json").exists()


def test_a_scheduler_that_says_it_is_ready_before_it_writes_its_facts_is_waited_for(monkeypatch):
    facts = {name: value for name, value in asdict(FACTS).items() if name != "model"}

    def write(path: str) -> None:
        with open(path, "a", encoding="utf-8") as log:
            log.write(json.dumps({"kind": "facts", **facts}) + "\n")

    def start(given: dict) -> SimpleNamespace:
        threading.Timer(0.2, write, [os.environ[step_log.ENV_PATH]]).start()
        return SimpleNamespace(shutdown=lambda: None)

    monkeypatch.setattr(calibration_engine, "start_engine", start)
    with calibration_engine.EngineServer({"model_path": "m"}) as server:
        assert server.facts == FACTS


def test_a_scheduler_that_never_writes_its_facts_is_not_waited_for_without_end(monkeypatch):
    monkeypatch.setattr(calibration_engine, "FACTS_WITHIN_S", 0.1)
    monkeypatch.setattr(calibration_engine, "start_engine", lambda given: SimpleNamespace(shutdown=lambda: None))
    with pytest.raises(TokenCakeError, match="wrote no facts"), calibration_engine.EngineServer({"model_path": "m"}):
        pass
