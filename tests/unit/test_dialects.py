"""What each stack of clients sends, and what is understood from it."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from tokencake_sglang.core.hints import RequestHints
from tokencake_sglang.core.types import IDENTITY_FIELDS, AgentIdentity
from tokencake_sglang.server.dialects import HEADER_NAMES, NEEDLES, Resolved, resolve
from tokencake_sglang.server.dialects.resolver import DIALECTS
from tokencake_sglang.server.infer import may_speak

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
UUID, OTHER = "0f0a2cc3-d5f1-4200-b9c8-f56a081194ce", "5c1b7e0a-93d4-4c1e-8f0b-2f6f5d1f7a11"
HASH = "9b" * 32
OTHER_FIELDS = [field.name for field in fields(Resolved) if field.name not in ("identity", "sources")]
HINT = {"schema_version": 1, "trajectory_id": "t9", "kv_priority": 65, "lease_until": 1790000000, "tools_available": 3}


def said(headers=None, body=None, path=CHAT) -> dict:
    """The fields that were given, without their sources."""
    found = resolve(path, headers or {}, body if body is not None else {})
    values = {name: getattr(found, name) for name in OTHER_FIELDS}
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    assert {*given, *found.identity} <= set(found.sources) <= {*values, *IDENTITY_FIELDS}
    return {**found.identity, **given}


HEADERS = {
    "Dynamo": (
        {"x-dynamo-session-id": "run-42:researcher", "x-dynamo-parent-session-id": "run-42:lead",
         "x-dynamo-session-final": "true"},
        {"agent_id": "run-42:researcher", "parent_agent_id": "run-42:lead", "final": True}),
    "Dynamo, not the last request": (
        {"x-dynamo-session-id": "s", "x-dynamo-session-final": "false"}, {"agent_id": "s"}),
    "Dynamo's trajectories within one session": (
        {"x-dynamo-session-id": "run", "x-dynamo-trajectory-id": "t1", "x-dynamo-parent-trajectory-id": "t0",
         "x-dynamo-trajectory-final": "1"},
        {"agent_id": "run/t1", "parent_agent_id": "run/t0", "graph_id": "run", "final": True}),
    "Claude Code": ({"x-claude-code-session-id": UUID}, {"agent_id": UUID, "graph_id": UUID}),
    "Claude Code's sub-agent": (
        {"x-claude-code-session-id": UUID, "x-claude-code-agent-id": "a7a11c2e22e29e67a",
         "x-claude-code-agent-type": "Explore"},
        {"agent_id": f"{UUID}/a7a11c2e22e29e67a", "parent_agent_id": UUID, "graph_id": UUID, "agent_type": "Explore"}),
    "a sub-agent of Claude Code's sub-agent": (
        {"x-claude-code-session-id": UUID, "x-claude-code-agent-id": "b", "x-claude-code-parent-agent-id": "a"},
        {"agent_id": f"{UUID}/b", "parent_agent_id": f"{UUID}/a", "graph_id": UUID}),
    "Codex": ({"session-id": UUID, "thread-id": UUID}, {"agent_id": UUID, "graph_id": UUID}),
    "Codex's sub-agent": (
        {"session-id": UUID, "thread-id": OTHER, "x-codex-parent-thread-id": UUID, "x-openai-subagent": "review"},
        {"agent_id": OTHER, "parent_agent_id": UUID, "graph_id": UUID, "agent_type": "review"}),
    "Codex of before": ({"session_id": UUID}, {"agent_id": UUID, "graph_id": UUID}),
    "OpenCode": (
        {"x-session-id": "ses_2", "x-parent-session-id": "ses_1", "x-session-affinity": "ses_2"},
        {"agent_id": "ses_2", "parent_agent_id": "ses_1"}),
    "LiteLLM": ({"x-litellm-session-id": "chat-9"}, {"agent_id": "chat-9"}),
    "a session that asks for the same replica": ({"x-session-affinity": "aff-1"}, {"agent_id": "aff-1"}),
    "a flow that is to be treated fairly": ({"x-gateway-inference-fairness-id": "team"}, {"app_id": "team"}),
    "a replica's name or a credential": ({"x-session-token": "cG9kLTE="}, {}),
    "no name at all": ({"x-session-id": " undefined ", "x-litellm-session-id": "", "session-id": "null"}, {}),
}

BODIES = {
    "TokenCake": (
        {"tokencake": {"app_id": "app", "graph_id": "g", "node_id": "n", "agent_type": "planner", "agent_id": "a",
                       "lifecycle_id": "l"}},
        {"app_id": "app", "graph_id": "g", "node_id": "n", "agent_type": "planner", "agent_id": "a",
         "lifecycle_id": "l"}),
    "SGLang's proposal": (
        {"agent_hints": {
            "workflow_id": "wf-123", "agent_id": "agent-A", "step_id": "step-3", "step_index": 2, "total_steps": 5,
            "parent_step_id": "step-2", "children_step_ids": ["step-4"], "tool_name": "web_search",
            "expected_tool_duration_ms": 5000, "cache_ttl_ms": 30000, "shared_prefix_hash": "abc",
            "reuse_hint": "keep"}},
        {"agent_id": "wf-123/agent-A", "graph_id": "wf-123", "node_id": "step-3", "tool_kind": "web_search",
         "expected_tool_s": 5.0, "cache_ttl_s": 30.0}),
    "SGLang's proposal without a workflow": ({"agent_hints": {"agent_id": "a"}}, {"agent_id": "a"}),
    "Dynamo's hints": (
        {"nvext": {"agent_hints": {"priority": 7, "strict_priority": 1, "osl": 256, "speculative_prefill": True},
                   "cache_control": {"type": "ephemeral", "ttl": "1h"}}},
        {"priority": 7, "expected_output_tokens": 256, "cache_ttl_s": 3600.0}),
    "NeMo Agent Toolkit": (
        {"nvext": {"agent_hints": {"prefix_id": "react-d0", "total_requests": 10, "osl": 512, "iat": 250,
                                   "latency_sensitivity": 2.0}}},
        {"app_id": "react-d0", "priority": 2, "expected_output_tokens": 512}),
    "Dynamo's context": (
        {"nvext": {"agent_context": {"session_id": "s", "parent_session_id": "p", "session_final": True}}},
        {"agent_id": "s", "parent_agent_id": "p", "final": True}),
    "Dynamo's context with trajectories": (
        {"nvext": {"agent_context": {"session_type_id": "research", "session_id": "run", "trajectory_id": "t1",
                                     "parent_trajectory_id": "t0", "trajectory_final": False}}},
        {"app_id": "research", "graph_id": "run", "agent_id": "run/t1", "parent_agent_id": "run/t0"}),
    "Dynamo's context in its first words": (
        {"nvext": {"agent_context": {"workflow_type_id": "research", "workflow_id": "run", "program_id": "p1",
                                     "parent_program_id": "p0"}}},
        {"app_id": "research", "graph_id": "run", "agent_id": "run/p1", "parent_agent_id": "run/p0"}),
    "Dynamo's session that closes": (
        {"nvext": {"session_control": {"session_id": "sub", "action": "close", "timeout": 300}}},
        {"agent_id": "sub", "cache_ttl_s": 300.0, "final": True}),
    "Dynamo's session that opens": (
        {"nvext": {"session_control": {"session_id": "sub", "action": "open"}}}, {"agent_id": "sub"}),
    "vLLM's router": (
        {"vllm_xargs": {"agentic_context": {
            "program_id": "p1", "parent_program_id": "p0", "agent_role": "critic", "priority": 3,
            "expected_resume": "2s", "blocks_parent": True}}},
        {"agent_id": "p1", "parent_agent_id": "p0", "agent_type": "critic", "priority": 96, "expected_tool_s": 2.0}),
    "vLLM's router as JSON text": (
        {"vllm_xargs": {"agentic_context": '{"program_id": "p1", "parent_agent_id": "p0", "expected_resume": 2}'}},
        {"agent_id": "p1", "parent_agent_id": "p0"}),
    "Continuum": (
        {"vllm_xargs": {"job_id": 17, "this_func_call": "open_file", "last_func_call": "ls", "is_last_step": True}},
        {"agent_id": "17", "tool_kind": "open_file", "last_step": True, "final": True}),
    "a hint for vLLM's connector": ({"kv_transfer_params": {"agent_hint": HINT}}, {"agent_id": "t9"}),
    "SGLang's session": ({"session_id": "s1"}, {"agent_id": "s1"}),
    "a conversation of an end user": ({"conversation_id": "1", "user": "alice"}, {"agent_id": "alice/1"}),
    "OpenAI's cache key": (
        {"prompt_cache_key": "support-bot", "prompt_cache_retention": "24h"},
        {"app_id": "support-bot", "cache_ttl_s": 86400.0}),
    "OpenAI's cache key, kept in memory": (
        {"prompt_cache_key": "support-bot", "prompt_cache_retention": "in_memory"}, {"app_id": "support-bot"}),
    "OpenAI's metadata": (
        {"metadata": {"workflow_id": "wf", "agent_id": "planner", "tool_name": "search",
                      "expected_tool_duration_ms": "1500"}, "safety_identifier": "u1"},
        {"graph_id": "wf", "agent_id": "u1/wf/planner", "tool_kind": "search", "expected_tool_s": 1.5}),
    "an end user alone": ({"user": "alice", "metadata": {"user_id": "alice"}}, {}),
}

MESSAGE_BODIES = {
    "Claude Code's user id": (
        {"metadata": {"user_id": f"user_{HASH}_account_{OTHER}_session_{UUID}"}}, {"agent_id": UUID}),
    "OpenCode's user id": ({"metadata": {"user_id": "user_proj_account__session_ses_1"}}, {"agent_id": "ses_1"}),
    "Claude Code's user id since 2.1.78": (
        {"metadata": {"user_id": json.dumps({"device_id": HASH, "account_uuid": "", "session_id": UUID})}},
        {"agent_id": UUID}),
    "a breakpoint": ({"system": [{"type": "text", "cache_control": {"type": "ephemeral"}}]}, {"cache_ttl_s": 300.0}),
    "the longest of several breakpoints": (
        {"tools": [{"name": "ls", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
         "messages": [{"role": "user", "content": [{"type": "text", "cache_control": {"type": "ephemeral"}}]},
                      {"role": "user", "content": "no block"}]},
        {"cache_ttl_s": 3600.0}),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_understood(name):
    headers, expected = HEADERS[name]
    assert said(headers) == expected


@pytest.mark.parametrize("name", BODIES)
def test_bodies_are_understood(name):
    body, expected = BODIES[name]
    assert said(body=body) == expected


@pytest.mark.parametrize("name", MESSAGE_BODIES)
def test_bodies_of_the_messages_route_are_understood(name):
    body, expected = MESSAGE_BODIES[name]
    assert said(body=body, path=MESSAGES) == expected


def test_cache_breakpoints_count_on_the_messages_route_only():
    assert said(body=MESSAGE_BODIES["a breakpoint"][0]) == {}


@pytest.mark.parametrize("body", [body for body, expected in (*BODIES.values(), *MESSAGE_BODIES.values())
                                  if {"agent_id", "lifecycle_id", "app_id", "final"} & set(expected)])
def test_a_body_that_names_anything_is_found_without_parsing(body):
    text = json.dumps({"messages": [], **body})
    assert may_speak(text.encode()) and may_speak(text.replace('": ', '" : ').encode())


@pytest.mark.parametrize("body", [
    {"messages": [{"role": "user", "content": json.dumps({needle: 1 for needle in NEEDLES})}], "user": "u"},
    {"tools": [{"function": {"parameters": {"required": list(NEEDLES)}}}]},
    {"sampling_params": {}, "text": " ".join(NEEDLES)}, {"priority": 3, "metadata": {}, "kv_transfer_params": {}},
    {f"my_{needle}": 1 for needle in NEEDLES}])
def test_a_prompt_that_only_quotes_keys_is_not_parsed(body):
    assert not may_speak(json.dumps(body).encode())


@pytest.mark.parametrize("text", ["{", "", "[" * 10_000, "[" * 100_000, '["program_id"]', "NaN", "5"])
def test_a_text_that_holds_no_object_is_passed_over(text):
    assert said(body={"vllm_xargs": {"agentic_context": text, "job_id": "j"}}) == {"agent_id": "j"}
    assert said(body={"metadata": {"user_id": text}, "kv_transfer_params": {"agent_hint": text}}) == {}


# -- precedence ---------------------------------------------------------------------------------------------------

RANKED = [
    ("tokencake", None, {"tokencake": {"agent_id": "1"}}),
    ("agent_hints", None, {"agent_hints": {"agent_id": "2"}}),
    ("nvext", None, {"nvext": {"agent_context": {"session_id": "3"}}}),
    ("vllm", None, {"vllm_xargs": {"job_id": "4"}}),
    ("dynamo", {"x-dynamo-session-id": "5"}, {}),
    ("claude-code", {"x-claude-code-session-id": "6"}, {}),
    ("codex", {"thread-id": "7"}, {}),
    ("opencode", {"x-session-id": "8"}, {}),
    ("gateway", {"x-litellm-session-id": "9"}, {}),
    ("session", None, {"session_id": "10"}),
    ("metadata", None, {"metadata": {"agent_id": "11"}}),
    ("anthropic_user", None, {"metadata": {"user_id": '{"session_id": "12"}'}}),
]


@pytest.mark.parametrize("first", range(len(RANKED)), ids=[name for name, _, _ in RANKED])
def test_the_dialect_that_comes_first_names_the_agent(first):
    headers, body = {}, {}
    for _, more_headers, more_body in reversed(RANKED[first:]):
        headers.update(more_headers or {})
        for key, value in more_body.items():
            body[key] = {**body.get(key, {}), **value} if isinstance(value, dict) else value
    found = resolve(CHAT, headers, body)
    assert found.sources["agent_id"] == RANKED[first][0]
    assert found.agent_id.split("/")[-1] == str(first + 1)


def test_every_dialect_is_ranked_and_every_field_comes_from_a_table():
    assert [d.name for d in DIALECTS if any(r.field == "agent_id" for r in d.rules)] == [name for name, _, _ in RANKED]
    assert {rule.field for dialect in DIALECTS for rule in dialect.rules} == {*IDENTITY_FIELDS, *OTHER_FIELDS}


def test_each_field_is_taken_from_the_first_that_has_it():
    found = resolve(CHAT, {"x-claude-code-session-id": "c", "x-dynamo-session-final": "true"}, {
        "nvext": {"agent_hints": {"osl": 9}}, "prompt_cache_key": "k", "session_id": "s"})
    assert (found.agent_id, found.final, found.expected_output_tokens, found.identity["app_id"]) == ("c", True, 9, "k")
    assert found.sources == {"agent_id": "claude-code", "graph_id": "claude-code", "final": "dynamo",
                             "expected_output_tokens": "nvext", "app_id": "prompt_cache"}


def test_a_value_that_does_not_fit_leaves_the_field_to_the_next():
    found = resolve(CHAT, {"x-session-id": "s"}, {"nvext": {"agent_context": {"session_id": ["no"]}}})
    assert (found.agent_id, found.sources["agent_id"]) == ("s", "opencode")


def test_a_parent_is_named_in_the_words_of_its_child_or_not_at_all():
    headers = {"x-dynamo-session-id": "d", "x-claude-code-session-id": "s", "x-claude-code-agent-id": "a"}
    assert resolve(CHAT, headers, {}).parent_agent_id is None
    assert resolve(CHAT, {"x-session-id": "s", "x-parent-session-id": "s"}, {}).parent_agent_id is None


def test_the_rule_for_an_agent_stands_before_those_for_its_parent():
    for dialect in DIALECTS:
        order = [rule.field for rule in dialect.rules if rule.field in ("agent_id", "parent_agent_id")]
        assert order == sorted(order), dialect.name


def test_header_names_are_in_lower_case():
    assert HEADER_NAMES and all(name == name.lower() for name in HEADER_NAMES)


# -- who is one agent ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [{"prompt_cache_key": "k"}, {"user": "u"}, {"metadata": {"workflow_id": "w"}}])
def test_what_many_agents_share_names_none(body):
    assert resolve(RESPONSES, {}, body).metadata() is None


@pytest.mark.parametrize("make", [
    lambda user: {"session_id": "main", "user": user}, lambda user: {"conversation_id": "1", "safety_identifier": user},
    lambda user: {"metadata": {"agent_id": "planner", "user_id": user}},
    lambda user: {"agent_hints": {"workflow_id": "w", "agent_id": "a"}, "user": user}])
def test_two_end_users_are_two_agents_though_they_use_the_same_names(make):
    keys = {resolve(CHAT, {}, make(user)).metadata()["agent_id"] for user in ("alice", "bob", "x" * 300, "x" * 301)}
    assert len(keys) == 4


@pytest.mark.parametrize(("headers", "body", "program"), [
    ({}, {"tokencake": {"agent_id": "a", "app_id": "run-7", "graph_id": "g"}}, "run-7"),
    ({}, {"tokencake": {"agent_id": "a"}}, "a"),
    ({"x-session-id": "s"}, {"prompt_cache_key": "shared by all"}, "s"),
    ({"x-session-id": "s", "x-parent-session-id": "p"}, {}, "p"),
    ({"x-claude-code-session-id": "c", "x-claude-code-agent-id": "sub"}, {}, "c"),
    ({}, {"session_id": "s"}, "s"),
])
def test_the_program_is_one_run_and_never_what_other_stacks_call_an_app(headers, body, program):
    identity = AgentIdentity.from_metadata(resolve(CHAT, headers, body).metadata())
    assert identity.program == program


def test_what_else_is_said_goes_along_as_texts():
    found = resolve(CHAT, {"x-session-id": "s"}, {"nvext": {
        "agent_hints": {"priority": 7, "osl": 256}, "cache_control": {"type": "ephemeral", "ttl": "5m"}}})
    metadata = found.metadata()
    assert metadata == {"agent_id": "s", "priority": "7", "expected_output_tokens": "256", "cache_ttl_s": "300.0"}
    assert RequestHints.from_metadata(metadata) == RequestHints(7, 256, 300.0)


def test_the_metadata_are_the_identity_fields_that_were_given():
    found = resolve(CHAT, {"x-session-id": "s", "x-parent-session-id": "p"}, {"prompt_cache_key": "k"})
    assert found.metadata() == {"agent_id": "s", "app_id": "k", "parent_agent_id": "p", "program_id": "p"}
    assert set(resolve(CHAT, {}, BODIES["TokenCake"][0]).metadata()) == set(IDENTITY_FIELDS)
