"""The server's /openapi.json has our routes, with what they take and answer, as the checks and the pages have it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
from fastapi import FastAPI

from tests.server.test_action_routes import Scheduler, post
from tests.server.test_routes import MemoryGateway, ask
from tokencake_sglang.core.graph_json import parse_graph
from tokencake_sglang.server import openapi
from tokencake_sglang.server.actions import parse_envelope
from tokencake_sglang.server.gateway import mount
from tokencake_sglang.server.routes import error_body
from tokencake_sglang.server.schema import parse_event

API = (Path(__file__).resolve().parents[2] / "docs/control-api.md").read_text(encoding="utf-8")
EVENTS, STATE, ACTIONS = "/v1/tokencake/events", "/v1/tokencake/state", "/v1/tokencake/actions"


@pytest.fixture(scope="module")
def described() -> dict:
    app = FastAPI()
    mount(app, None)
    return app.openapi()["paths"]


def body_of(described: dict, path: str) -> dict:
    return described[path]["post"]["requestBody"]["content"]["application/json"]


def test_the_page_and_the_description_have_the_same_routes(described):
    routes = {(method.upper(), path) for path, methods in described.items() for method in methods}
    named = {(method, path.replace("/ID", "/{graph_id}"))
             for method, path in re.findall(r"`(GET|POST) (/v1/tokencake/[\w/]+)`", API)}
    assert routes == named and len(routes) == 5


def test_every_route_says_what_it_answers_and_each_code_with_its_reason(described):
    for path, methods in described.items():
        for method in methods.values():
            assert method["tags"] == ["tokencake"] and method["description"]
            assert {"200", "401", "429", "503", "504"} <= set(method["responses"]), path
            for code, answer in method["responses"].items():
                content = answer["content"]["application/json"]
                jsonschema.Draft202012Validator.check_schema(content["schema"])
                if code != "200":
                    jsonschema.validate(content["example"], content["schema"])
                    assert f"`{content['example']['error']['reason']}`" in API.replace("`reason: ", "`")


@pytest.mark.parametrize(("path", "parse"), [
    (EVENTS, parse_event), (ACTIONS, parse_envelope), ("/v1/tokencake/graphs", parse_graph)])
def test_the_examples_fit_the_schemas_and_pass_the_checks(described, path, parse):
    body = body_of(described, path)
    for example in body["examples"].values():
        jsonschema.validate(example["value"], body["schema"])
        parse(example["value"])


def test_every_event_has_an_example_and_every_example_of_an_action_can_be_carried_out(described):
    shown = {example["value"]["event"] for example in body_of(described, EVENTS)["examples"].values()}
    assert shown == set(openapi.EVENT_KEYS)
    for example in body_of(described, ACTIONS)["examples"].values():
        assert all(one.action is not None for one in parse_envelope(example["value"])[1])


@pytest.mark.parametrize("event", [
    {"event": "stall"}, {"event": "stall_started"}, {"event": "stall_started", "agent_id": "a", "surprise": 1},
    {"event": "stall_started", "agent_id": "a", "estimated_duration_s": -1},
    {"event": "agent_finished", "agent_id": ""},
    {"event": "stall_finished", "agent_id": "a", "outcome": "fine"}, {"event": "stage_finished", "agent_id": "a"},
    {"event": "agent_finished", "agent_id": "a" * 257}, []])
def test_what_the_checks_refuse_does_not_fit_the_schema_either(described, event):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(event, body_of(described, EVENTS)["schema"])
    with pytest.raises(ValueError):
        parse_event(event)


def test_real_answers_fit_the_described_ones(described):
    def check(path: str, method: str, answer) -> None:
        schema = described[path][method]["responses"][str(answer.status_code)]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.json(), schema)

    stall = {"event": "stall_started", "agent_id": "a"}
    check(EVENTS, "post", ask(MemoryGateway(), "POST", EVENTS, json=stall))
    check(EVENTS, "post", ask(MemoryGateway(409, error_body(409, "conflict", "No.")), "POST", EVENTS, json=stall))
    check(EVENTS, "post", ask(None, "POST", EVENTS, json=stall))
    check(STATE, "get", ask(MemoryGateway(), "GET", STATE + "?agents=x"))
    two = [{"action_type": "kv.no"}, {"action_type": "kv.demote", "payload": {"agent_id": "a"}}]
    check(ACTIONS, "post", post(Scheduler(), json={"actions": two}))
    check(ACTIONS, "post", post(Scheduler(), content=b"{"))


def test_the_limits_of_the_state_are_parameters(described):
    limits = {one["name"]: one["schema"] for one in described[STATE]["get"]["parameters"]}
    assert (limits["agents"]["default"], limits["agents"]["maximum"]) == (100, 10_000)
    assert (limits["stalls"]["default"], limits["stalls"]["maximum"]) == (0, 1_024)
    (graph,) = described["/v1/tokencake/graphs/{graph_id}"]["get"]["parameters"]
    assert graph["in"] == "path" and json.dumps(described)
