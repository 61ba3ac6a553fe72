"""Records of stalls: what each field says after a life by hand, with figures that are exact in binary."""

from __future__ import annotations

import pytest

from tests.support.mechanism import MemoryMechanism
from tests.unit.test_controller import Server
from tokencake_sglang.core.costs import Costs
from tokencake_sglang.core.forecast import LEVELS, Forecast
from tokencake_sglang.core.plan import Decision, Offload, Outcome, Release, Upload
from tokencake_sglang.core.records import HISTOGRAMS, OBSERVATIONS_KEPT, TOTALS, StallRecords
from tokencake_sglang.core.types import AgentView, Footprint, PoolView, StallView

COSTS = Costs(upload_base_s=0.0, upload_token_s=0.25, offload_base_s=0.0, offload_token_s=0.125, run_s=0.0,
              prefill_base_s=1.0, prefill_token_s=0.5, prefill_pair_s=0.0)
THERE = Footprint(device_tokens=8, unshared_device_tokens=8, path_tokens=16)
ACCEPTED = Outcome(True, 8)
OFFLOAD = Decision(Offload(200.0), "it waits", figures=(("score", 2.0),))


def pool(waiting=1):
    return PoolView(100, 10, 0, 0, 100, 100, waiting, 0, 0, 0, 13, costs=COSTS)


def view(stall=None, footprint=THERE):
    return AgentView("a", "coder", False, stall, None, None, None, footprint)


def opened(kept=8):
    records = StallRecords(kept)
    records.opened(100.0, "a", "coder", "search", 120.0)
    return records


def decided(records, at=100.0, decision=OFFLOAD, outcome=ACCEPTED, waiting=1, agent=None):
    records.decided(at, agent or view(), pool(waiting), decision, outcome)


def returned(records, at=110.0, there=THERE, outcome="ok"):
    records.returned(at, "a", outcome, there)
    return records[-1]


def test_a_record_names_the_agent_and_what_was_expected_without_a_forecaster():
    record = returned(opened())
    assert (record.agent, record.agent_type, record.kind, record.started_at) == ("a", "coder", "search", 100.0)
    assert (record.forecast_median_s, record.forecast_low_s, record.forecast_high_s) == (20.0, None, None)
    assert (record.forecast_source, record.outcome, record.returned_at) == ("point", "ok", 110.0)
    assert record.first is record.last is None


def test_the_forecast_at_the_start_is_the_first_one_counted_from_the_start():
    records = opened()
    for at, base in ((101.0, 10.0), (105.0, 50.0)):
        forecast = Forecast(tuple(base + i for i in range(len(LEVELS))), 9.0, "history")
        stall = StallView("search", 100.0, 120.0, 1, forecast)
        decided(records, at, agent=view(stall))
    record = returned(records)
    assert (record.forecast_low_s, record.forecast_median_s, record.forecast_high_s) == (13.0, 15.0, 17.0)
    assert record.forecast_source == "history"


def test_the_first_and_the_last_decision_are_kept_with_figures_and_outcome():
    records = opened()
    decided(records, 100.0)
    decided(records, 104.0, Decision(Release(), "over"))
    decided(records, 105.0, Decision(None, "ready"), None)
    report = returned(records).report()
    assert report["first"] == {
        "at": 100.0, "action": "Offload", "reason": "it waits", "accepted": True, "figures": {"score": 2.0}}
    assert report["last"] == {"at": 105.0, "action": None, "reason": "ready", "accepted": None, "figures": {}}
    assert (report["unshared_tokens"], report["path_tokens"]) == (8, 16)


def test_tokens_are_those_at_the_first_decision():
    records = opened()
    decided(records)
    decided(records, 101.0, agent=view(footprint=Footprint(unshared_device_tokens=1, path_tokens=99)))
    record = returned(records)
    assert (record.unshared_tokens, record.path_tokens) == (8, 16)


@pytest.mark.parametrize(
    ("action", "accepted", "count"),
    [(Offload(1.0), False, 1), (Upload(1, 1.0), False, 1), (Offload(1.0), True, 0), (Release(), False, 0)])
def test_declined_moves_are_counted(action, accepted, count):
    records = opened()
    decided(records, decision=Decision(action, "r"), outcome=Outcome(accepted))
    assert returned(records).declined == count


def test_moves_count_and_kv_that_came_back_early_lies_idle_until_the_return():
    records = opened()
    decided(records)
    records.moved(102.0, "a", "offload", 8)
    records.moved(106.0, "a", "upload", 4)
    records.moved(108.0, "a", "upload", 4)
    record = returned(records)
    assert (record.offloaded_tokens, record.uploaded_tokens) == (8, 8)
    assert record.idle_token_s == 4 * 2.0 + 8 * 2.0
    assert (record.ready_at, record.missing_tokens, record.restore_s, record.late_s) == (108.0, 0, 0.0, 0.0)


def test_kv_that_was_taken_off_again_lies_idle_no_longer():
    records = opened()
    decided(records)
    for at, kind in ((102.0, "offload"), (104.0, "upload"), (105.0, "offload")):
        records.moved(at, "a", kind, 8)
    assert returned(records).idle_token_s == 8.0


def test_when_nothing_moved_and_nothing_is_missing_it_was_ready_at_the_return():
    record = returned(opened())
    assert (record.ready_at, record.late_s, record.idle_token_s) == (110.0, 0.0, 0.0)


def test_what_is_on_the_host_is_copied_and_what_is_lost_is_computed():
    records = opened()
    decided(records)
    record = returned(records, there=Footprint(restore_tokens=4, path_tokens=14))
    assert (record.missing_tokens, record.ready_at, record.late_s) == (6, None, None)
    assert record.restore_s == 4 * 0.25 + (1.0 + 2 * 0.5) == record.regret_s


def test_an_upload_after_the_return_says_how_late_it_was():
    records = opened()
    decided(records)
    record = returned(records, there=Footprint(restore_tokens=8, path_tokens=16))
    records.moved(110.5, "a", "offload", 8)
    records.moved(110.5, "a", "upload", 0)
    assert record.late_s is None
    records.moved(111.5, "a", "upload", 8)
    records.moved(112.5, "a", "upload", 8)
    assert (record.late_s, record.ready_at) == (1.5, None)
    assert [seconds for name, seconds in records.observations if name == "late_s"] == [1.5]


def test_an_upload_in_pieces_is_late_until_the_last_of_them_has_landed():
    records = opened()
    decided(records)
    record = returned(records, there=Footprint(restore_tokens=8, path_tokens=16))
    records.moved(111.0, "a", "upload", 5)
    assert record.late_s is None and not any(name == "late_s" for name, _ in records.observations)
    records.moved(112.0, "a", "upload", 3)
    assert record.late_s == 2.0


def test_kv_that_is_still_on_its_way_at_the_return_is_missing():
    records = opened()
    decided(records)
    record = returned(records, there=Footprint(device_tokens=8, landing_tokens=4, path_tokens=16))
    assert (record.ready_at, record.missing_tokens, record.restore_s) == (None, 4, 1.0)
    records.moved(110.5, "a", "upload", 4)
    assert record.late_s == 0.5


def test_an_upload_of_the_next_stall_is_not_the_last_ones():
    records = opened()
    decided(records)
    record = returned(records, there=Footprint(restore_tokens=8, path_tokens=16))
    records.opened(120.0, "a", "coder", "search", 130.0)
    records.moved(125.0, "a", "upload", 8)
    assert record.late_s is None
    returned(records, 128.0)
    records.moved(129.0, "a", "upload", 8)
    assert record.late_s is None and records[-1].late_s == 0.0


# -- regret -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waiting", "length", "away", "regret"),
    [
        (1, 10.0, None, 8 * (10.0 - 3.0)),  # kept: 8 tokens could have gone for the stall less 1 s and 2 s of copies
        (0, 10.0, None, 0.0),  # nobody waited
        (1, 3.0, None, 0.0), (1, 3.5, None, 4.0),  # the copies take the whole stall, or nearly
        (1, 10.0, (1.0, 8.0), 0.0), (1, 10.0, (4.0, 8.0), 56.0 - 32.0), (1, 10.0, (2.0, None), 0.0),
    ])
def test_regret_in_memory_is_what_a_move_back_in_time_would_have_given_others_beyond_what_was_given(
        waiting, length, away, regret):
    records = opened()
    decided(records, waiting=waiting)
    for at, kind in zip(away or (), ("offload", "upload"), strict=False):
        if at is not None:
            records.moved(100.0 + at, "a", kind, 8)
    assert returned(records, 100.0 + length).regret_token_s == regret


def test_somebody_who_waited_at_any_decision_waited():
    records = opened()
    decided(records, waiting=0)
    decided(records, 101.0, waiting=1)
    decided(records, 102.0, waiting=0)
    assert returned(records).others_waited


# -- the collection ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", ["agent_finished", "forgotten"])
def test_an_agent_that_never_returned_has_a_record_without_a_return(outcome):
    records = opened()
    decided(records)
    records.gone(115.0, "a", outcome)
    record = records[0]
    assert (record.outcome, record.ended_at, record.returned_at, record.ready_at) == (outcome, 115.0, None, None)
    assert record.regret_token_s == record.restore_s == 0.0 and record.late_s is None
    assert not records.observations and records.totals["returned"] == 0


def test_a_second_call_of_a_stall_opens_no_second_record():
    records = opened()
    records.opened(105.0, "a", "coder", "other", 106.0)
    assert (returned(records).kind, len(records)) == ("search", 1)
    assert not records.is_open("a")


def test_events_about_an_agent_without_an_open_record_change_nothing():
    records = StallRecords(8)
    decided(records)
    records.moved(1.0, "a", "upload", 8)
    records.returned(2.0, "a", "ok", THERE)
    records.gone(3.0, "a", "forgotten")
    assert len(records) == 0 and not records.observations


def test_only_the_last_records_are_kept_and_read_like_a_list():
    records = StallRecords(2)
    for start in (100.0, 200.0, 300.0):
        records.opened(start, "a", None, "tool", start + 1.0)
        returned(records, start + 1.0)
    assert [r.started_at for r in records] == [200.0, 300.0] == [r.started_at for r in records[0:2]]
    assert [r.started_at for r in records.newest(9)] == [300.0, 200.0] and len(records.newest(1)) == 1
    assert records.newest(0) == [] and records.totals["returned"] == 3


def test_no_records_may_be_kept_and_the_sums_go_on():
    records = opened(kept=0)
    decided(records)
    records.returned(110.0, "a", "ok", Footprint(restore_tokens=4, path_tokens=16))
    assert len(records) == 0
    assert records.totals == {
        "returned": 1, "missing_tokens": 4, "restore_s": 1.0, "idle_token_s": 0.0, "regret_s": 1.0,
        "regret_token_s": 56.0} and tuple(records.totals) == TOTALS


def test_each_return_is_observed_once_and_boundedly_many_are_kept():
    records = opened()
    returned(records, 130.0)
    assert dict(records.observations) == {"late_s": 0.0, "restore_s": 0.0, "forecast_ratio": 1.5}
    assert set(dict(records.observations)) == set(HISTOGRAMS)
    assert records.observations.maxlen == OBSERVATIONS_KEPT


def test_a_stall_that_was_expected_to_take_no_time_has_no_ratio():
    records = StallRecords(8)
    records.opened(100.0, "a", None, "tool", 100.0)
    returned(records)
    assert "forecast_ratio" not in dict(records.observations)


# -- from the controller ----------------------------------------------------------------------------------------


def test_the_controller_records_a_stall_from_the_call_to_the_finish():
    server = Server()
    server.stalled()
    server.mechanism.land("a")
    server.at(101.0)
    server.at(119.75)
    server.mechanism.land("a")
    server.at(119.875)
    server.controller.tick(120.5)
    assert not server.controller.records
    server.finish()
    record = server.controller.records[0]
    assert (record.started_at, record.returned_at, record.outcome) == (100.0, 120.5, "ok")
    assert record.forecast_median_s == 20.0
    assert (record.offloaded_tokens, record.uploaded_tokens, record.ready_at) == (200, 200, 119.875)
    assert record.idle_token_s == 200 * 0.625
    assert record.report()["first"]["action"] == "Offload" and record.last.decision.reason == "ready for the return"


def test_the_controller_records_the_next_request_the_end_and_forgetting_as_ends():
    server = Server(agent_idle_s=10.0, forecast="paper")
    server.stalled()
    server.controller.tick(105.0)
    server.ask()
    server.stalled("b", 1.0)
    server.send("agent_finished", "b")
    server.stalled("c", 1.0)
    server.mechanism.land("c")
    server.at(150.0)
    server.at(200.0)
    assert [(r.agent, r.outcome) for r in server.controller.records] == [
        ("a", "request"), ("b", "agent_finished"), ("c", "forgotten")]


def test_a_late_upload_and_a_decline_reach_the_record():
    server = Server()
    server.stalled()
    server.mechanism.land("a")
    server.at(101.0)
    server.mechanism.declines["upload"] = "no_room"
    server.at(119.75)
    server.controller.tick(120.0)
    server.finish()
    record = server.controller.records[0]
    assert (record.declined, record.missing_tokens, record.late_s) == (1, 200, None)
    assert record.restore_s == pytest.approx(Costs().upload_s(200))
    server.mechanism.declines.clear()
    server.at(121.0)
    server.mechanism.land("a")
    server.at(122.0)
    assert record.late_s == 2.0


def test_a_step_without_events_asks_the_mechanism_for_no_footprint():
    class Counting(MemoryMechanism):
        asked = 0

        def footprint(self, key):
            self.asked += 1
            return super().footprint(key)

    server = Server()
    server.mechanism = server.controller.mechanism = Counting()
    server.stalled()
    asked = server.mechanism.asked
    server.at(100.5)
    assert server.mechanism.asked == asked
