"""The recorder on SGLang's own requests: which it follows, how it learns of their end, and what stops it."""

from __future__ import annotations

import json
from array import array
from types import SimpleNamespace

import pytest

from tests.support.scenario import tokens
from tokencake_sglang.engine import recorder as module
from tokencake_sglang.engine.ipc import TokenCakeControlReq


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path / "t.jsonl")


class Watched:
    """A recorder and the parts of a scheduler that it looks at."""

    def __init__(self, path) -> None:
        self.path = path
        self.waiting_queue, self.chunked_req, self.last_batch = [], None, None
        self.running_batch = SimpleNamespace(reqs=[])
        self.recorder = module.Recorder(self, str(path))
        self.count, self.purpose = 0, None

    def add(self, prompt=None, agent=None, rid=None, refused=False, **fields):
        from sglang.srt.managers.schedule_batch import FINISH_ABORT, Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        self.count += 1
        metadata = {"agent_id": agent} | ({"purpose": self.purpose} if self.purpose else {}) if agent else None
        prompt = tokens(self.count, 30) if prompt is None else prompt
        req = Req(rid or f"r{self.count}", "", array("q", prompt), SamplingParams(max_new_tokens=4),
                  agent_metadata=metadata, **fields)
        if refused:
            req.to_finish = FINISH_ABORT("too long")
        self.waiting_queue.append(req)
        self.recorder.on_request_added(req)
        return req

    def end(self, *reqs, output=3):
        from sglang.srt.managers.schedule_batch import FINISH_LENGTH

        for req in reqs:
            self.waiting_queue.remove(req)
            req.output_ids.extend(range(output))
            req.finished_reason = FINISH_LENGTH(length=output)

    def step(self, *messages):
        assert self.recorder.extend_received(list(messages)) == list(messages)

    def rows(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def test_a_request_is_recorded_in_the_step_after_its_end_once(watched):
    req = watched.add()
    watched.step()
    assert watched.rows() == []
    watched.end(req)
    watched.step()
    watched.step()
    assert [(row["input_length"], row["output_length"]) for row in watched.rows()] == [(30, 3)]


def test_what_comes_after_a_stop_is_not_counted(watched):
    req = watched.add()
    watched.end(req, output=5)
    req.finished_len = 2
    watched.step()
    assert watched.rows()[0]["output_length"] == 2


def test_health_checks_refused_requests_and_embedded_prompts_are_not_recorded(watched):
    health = watched.add(rid="HEALTH_CHECK_1")
    embedded = watched.add(input_embeds=[[0.0]] * 30)
    refused = watched.add(refused=True)
    watched.end(health, embedded, refused)
    watched.step()
    assert watched.rows() == [] and not watched.recorder._live


def test_a_retracted_request_is_followed_once_and_a_name_used_again_is_another_request(watched):
    req = watched.add(rid="x")
    watched.recorder.on_request_added(req)
    watched.end(req)
    again = watched.add(rid="x")
    watched.end(again)
    watched.step()
    assert [row["session_id"] for row in watched.rows()] == [0, 1]


def test_more_requests_than_one_step_looks_at_are_all_recorded_after_a_few(watched, monkeypatch):
    monkeypatch.setattr(module, "POLLED_PER_STEP", 4)
    reqs = [watched.add() for _ in range(11)]
    watched.end(*reqs[5:])
    for steps in range(1, 5):
        watched.step()
        assert len(watched.rows()) <= 4 * steps
    assert len(watched.rows()) == 6
    watched.end(*reqs[:5])
    for _ in range(3):
        watched.step()
    assert len(watched.rows()) == 11 and not watched.recorder._live


def test_a_request_aborted_in_the_queue_is_forgotten_and_others_are_not(watched, monkeypatch):
    monkeypatch.setattr(module, "SWEEP_INTERVAL_S", 0.0)
    gone, waits, runs, ran, chunked = (watched.add() for _ in range(5))
    watched.waiting_queue[:] = [waits]
    watched.running_batch.reqs.append(runs)
    watched.last_batch, watched.chunked_req = SimpleNamespace(reqs=[ran]), chunked
    watched.step()
    assert gone.rid in watched.recorder._live
    watched.step()
    assert set(watched.recorder._live) == {waits.rid, runs.rid, ran.rid, chunked.rid}
    assert watched.recorder.recording.dropped == 1


def test_prompts_of_different_adapters_share_no_block(watched):
    reqs = [watched.add(tokens("p", 600), lora_id=lora) for lora in ("a", "b", "a")]
    watched.end(*reqs)
    watched.step()
    first, second, third = (row["hash_ids"] for row in watched.rows())
    assert first == third and not set(first) & set(second)


def test_the_start_of_a_prompt_that_is_still_to_come_is_no_request_of_a_trace(watched):
    watched.purpose = "prefill"
    watched.end(watched.add(agent="a"))
    watched.purpose = None
    watched.end(watched.add(agent="a"))
    watched.step()
    assert [(row["round_idx"], row["output_length"]) for row in watched.rows()] == [(0, 3)]


def test_events_are_read_as_they_pass_and_state_calls_are_not(watched):
    watched.end(watched.add(agent="a"))
    watched.step()
    watched.step(TokenCakeControlReq(control_id="1", op="state", payload=json.dumps(
        {"event": "agent_finished", "agent_id": "a"})))
    watched.step(TokenCakeControlReq(control_id="2", op="event", payload=json.dumps(
        {"event": "stall_started", "agent_id": "a", "kind": "search", "estimated_duration_s": 2.5, "call_id": "c"})))
    watched.step(TokenCakeControlReq(control_id="3", op="event", payload=json.dumps(
        {"event": "stage_finished", "agent_id": "a", "stage": "network", "call_id": "c"})))
    stall = next(iter(watched.recorder.recording._named.values())).stall
    assert stall.ended_at is None and list(stall.open) == ["c"]
    watched.end(watched.add(agent="a"))
    watched.step()
    first, second = watched.rows()
    assert (first["tool_kind"], first["tool_forecast_ms"]) == ("search", 2500)
    assert (second["session_id"], second["round_idx"]) == (0, 1)


@pytest.mark.parametrize("failing", ["added", "finished"])
def test_an_error_of_its_own_ends_the_recording_and_not_the_server(watched, monkeypatch, caplog, failing):
    def broken(*_args, **_kwargs):
        raise RuntimeError("broken")

    monkeypatch.setattr(watched.recorder.recording, failing, broken)
    watched.end(watched.add())
    watched.step()
    watched.end(watched.add())
    watched.step()
    assert watched.rows() == [] and caplog.text.count("The recording has ended") == 1
