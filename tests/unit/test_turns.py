"""What requests and answers say of a conversation, and which conversation a request goes on with."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencake_sglang.server.turns import offers_tools
from tokencake_sglang.server.turns.answer import MAX_EVENT_BYTES, Answer, AnswerReader, ToolCall
from tokencake_sglang.server.turns.conversations import OF_ONE_AGENT, Conversation, ConversationTable
from tokencake_sglang.server.turns.request import CHAT, MESSAGES, RESPONSES, ROUTES, Reply, read_turn

USER = {"role": "user", "content": "Which city?"}
UNIQUE = "call_0123456789abcdef01234567"
CALL = ToolCall(UNIQUE, "look")


def chat_call(call_id: str) -> dict:
    return {"role": "assistant", "content": None, "tool_calls": [
        {"id": call_id, "type": "function", "function": {"name": "look", "arguments": "{}"}}]}


def chat_result(call_id: str) -> dict:
    return {"role": "tool", "tool_call_id": call_id, "content": "Rome"}


# -- requests -----------------------------------------------------------------------------------------------

RESULTS = [
    (CHAT, {"messages": [USER, chat_call("a"), chat_result("a")]}, ("a",)),
    (CHAT, {"messages": [USER, chat_call("a"), chat_result("a"), chat_call("b"), chat_result("b")]}, ("b",)),
    (CHAT, {"messages": [USER, chat_call("a"), chat_result("a"), chat_result("c")]}, ("a", "c")),
    (CHAT, {"messages": [USER, chat_call("a"), USER]}, ()),
    (MESSAGES, {"messages": [USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "look"}]},
                             {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"},
                                                          {"type": "text", "text": "and"}]}]}, ("a",)),
    (RESPONSES, {"input": [USER, {"type": "function_call", "call_id": "a", "name": "look"},
                           {"type": "function_call_output", "call_id": "a", "output": "Rome"}]}, ("a",)),
    (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "a"}], "previous_response_id": "r"}, ("a",)),
]


@pytest.mark.parametrize(("path", "body", "results"), RESULTS)
def test_the_results_after_the_models_last_word_are_those_that_come_back(path, body, results):
    assert read_turn(path, body).results == results


REPLIES = [
    (CHAT, {"messages": [USER, {"role": "assistant", "content": " Rome. "}, USER]}, Reply("Rome.")),
    (CHAT, {"messages": [USER, chat_call("a"), chat_result("a")]}, Reply("", ("a",))),
    (MESSAGES, {"messages": [USER, {"role": "assistant", "content": [
        {"type": "text", "text": "Let"}, {"type": "tool_use", "id": "a"}]}, USER]}, Reply("Let", ("a",))),
    (RESPONSES, {"input": [USER, {"type": "reasoning", "content": [{"text": "hm"}]}, {
        "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rome."}]},
        {"type": "function_call", "call_id": "a"}, USER]}, Reply("Rome.", ("a",))),
]


@pytest.mark.parametrize(("path", "body", "reply"), REPLIES)
def test_what_the_model_said_is_read_from_the_history(path, body, reply):
    assert read_turn(path, body).replies == {0: reply}


def test_an_equal_beginning_gives_equal_digests_whatever_the_order_of_keys():
    short = read_turn(CHAT, {"messages": [USER]})
    long = read_turn(CHAT, {"messages": [dict(reversed(USER.items())), chat_call("a"), chat_result("a")]})
    assert long.digests[0] == short.digest and len(set(long.digests)) == 3
    assert read_turn(CHAT, {"messages": [{**USER, "content": "Which river?"}]}).digest != short.digest


def test_marks_that_move_from_turn_to_turn_do_not_count():
    part = {"type": "text", "text": "Which city?"}
    marked = {"role": "user", "content": [{**part, "cache_control": {"type": "ephemeral"}}]}
    plain = {"role": "user", "content": [part]}
    assert read_turn(MESSAGES, {"messages": [marked]}).digest == read_turn(MESSAGES, {"messages": [plain]}).digest


def test_system_text_and_the_response_before_tell_conversations_apart():
    bodies = [(MESSAGES, {"messages": [USER]}), (MESSAGES, {"messages": [USER], "system": "Be brief."}),
              (RESPONSES, {"input": "go"}), (RESPONSES, {"input": "go", "instructions": "Be brief."}),
              (RESPONSES, {"input": "go", "previous_response_id": "r1"})]
    digests = [read_turn(path, body).digest for path, body in bodies]
    assert len(set(digests)) == len(digests)


def test_tools_are_found_in_the_text_of_a_body_alone():
    assert offers_tools(json.dumps({"tools": [{"type": "function"}]}).encode())
    for body in ({"tools": []}, {"tools": None}, {"messages": ['"tools": [1]']}, {}):
        assert not offers_tools(json.dumps(body).encode())


KEYS = ("role", "content", "type", "tool_calls", "id", "tool_use_id", "text", "function", "call_id")
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12)
ROLES = ("assistant", "tool", "user", "function_call")


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(ROUTES), items=ANY_JSON, role=st.sampled_from(ROLES))
def test_no_shape_of_a_history_makes_the_reader_raise(path, items, role):
    shaped = [{"role": role, "type": role, "content": items, "tool_calls": items, "call_id": items}, items]
    for value in (items, shaped):
        read_turn(path, {"messages": value, "input": value, "system": items, "previous_response_id": items})


# -- answers ------------------------------------------------------------------------------------------------

def sse(*events: dict) -> bytes:
    said = b"".join(b"event: x\ndata: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return said + b"data: [DONE]\n\n"


CHAT_CALL = {"id": UNIQUE, "index": 0, "type": "function", "function": {"name": "look", "arguments": "{}"}}
ANSWERS = {
    "chat": (CHAT, False, json.dumps({"choices": [{"index": 0, "finish_reason": "tool_calls", "message": {
        "content": " So. ", "tool_calls": [CHAT_CALL]}}]}).encode()),
    "chat stream": (CHAT, True, sse(
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "So"}}]},
        {"choices": [{"index": 1, "delta": {"content": "no"}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "delta": {"content": ".", "tool_calls": [CHAT_CALL]}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}, {"choices": [], "usage": {}})),
    "messages": (MESSAGES, False, json.dumps({"stop_reason": "tool_use", "content": [
        {"type": "text", "text": "So."}, {"type": "tool_use", "id": UNIQUE, "name": "look"}]}).encode()),
    "messages stream": (MESSAGES, True, sse(
        {"type": "message_start", "message": {"content": []}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "So."}},
        {"type": "content_block_start", "content_block": {"type": "tool_use", "id": UNIQUE, "name": "look"}},
        {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}})),
}
RESPONSE = {"id": "r1", "status": "completed", "output": [
    {"type": "reasoning", "content": [{"text": "hm"}]},
    {"type": "message", "content": [{"type": "output_text", "text": "So."}]},
    {"type": "function_call", "call_id": UNIQUE, "name": "look"}]}
ANSWERS["responses"] = (RESPONSES, False, json.dumps(RESPONSE).encode())
ANSWERS["responses stream"] = (RESPONSES, True, sse(
    {"type": "response.created", "response": {"id": "r1", "status": "in_progress"}},
    {"type": "response.completed", "response": RESPONSE}))


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_answer_is_understood_once_however_it_is_cut(name, size):
    path, streamed, raw = ANSWERS[name]
    reader, heard = AnswerReader(path, streamed), []
    for start in range(0, len(raw), size):
        heard.append(reader.feed(raw[start:start + size], last=start + size >= len(raw)))
    heard.append(reader.feed(b"", last=True))
    (answer,) = [one for one in heard if one is not None]
    assert (answer.calls, answer.text) == ((CALL,), "So.")
    assert answer.response_id == ("r1" if path == RESPONSES else None)


def test_a_stream_is_complete_before_its_last_chunk_has_passed():
    _, _, raw = ANSWERS["chat stream"]
    reader = AnswerReader(CHAT, True)
    end = raw.index(b'"finish_reason": "tool_calls"') + 40
    assert reader.feed(raw[:end], last=False) is not None


INCOMPLETE = [
    (CHAT, True, sse({"choices": [{"index": 0, "delta": {"tool_calls": [CHAT_CALL]}}]})),
    (CHAT, False, b'{"choices": [{"index": 0, "message": {"content": "So."}, "finish_reason": "abort"}]}'),
    (CHAT, False, b"not json"), (CHAT, False, b"[]"), (CHAT, False, b'{"choices": [3]}'), (CHAT, True, b"data: {\n\n"),
    (MESSAGES, True, sse({"type": "error", "error": {}}, {"type": "message_stop"})),
    (MESSAGES, False, b'{"content": [7], "stop_reason": "tool_use"}'),
    (RESPONSES, False, b'{"status": "failed", "output": []}'), (RESPONSES, True, sse({"type": "response.completed"})),
]


@pytest.mark.parametrize(("path", "streamed", "raw"), INCOMPLETE)
def test_what_is_no_complete_answer_says_nothing(path, streamed, raw):
    assert AnswerReader(path, streamed).feed(raw, last=True) is None


def test_an_event_without_end_is_not_kept():
    reader = AnswerReader(CHAT, True)
    assert reader.feed(b"data: " + b"x" * MAX_EVENT_BYTES, last=False) is None
    assert reader.feed(b"\n\n" + ANSWERS["chat stream"][2], last=True) is None and not reader._buffer


@settings(max_examples=200, deadline=None)
@given(path=st.sampled_from(ROUTES), value=ANY_JSON, streamed=st.booleans())
def test_no_shape_of_an_answer_makes_the_reader_raise(path, value, streamed):
    body = {"choices": [{"index": 0, "message": value, "delta": value, "finish_reason": value}], "content": value,
            "type": "content_block_start", "content_block": value, "output": value, "status": "completed", "id": value}
    AnswerReader(path, streamed).feed(sse(body) if streamed else json.dumps(body).encode(), last=True)


# -- conversations ------------------------------------------------------------------------------------------

def chat(*messages: dict):
    return read_turn(CHAT, {"messages": list(messages)})


def told(table: ConversationTable, agent: str, turn, *calls: ToolCall, text: str = "", named: bool = False,
         response_id: str | None = None) -> Conversation:
    conversation = table.add(agent, named)
    table.answered(conversation, turn, Answer(calls, text, response_id))
    return conversation


def test_the_request_with_the_results_goes_on_with_the_conversation_even_with_another_beginning():
    table = ConversationTable()
    mine = told(table, "a", chat(USER), CALL)
    assert table.find(chat(USER, chat_call(UNIQUE), chat_result(UNIQUE)), None) is mine
    summary = {"role": "user", "content": "So far nothing."}
    assert table.find(chat(summary, chat_call(UNIQUE), chat_result(UNIQUE)), None) is mine


def test_ids_that_a_model_just_counts_need_the_same_beginning():
    table, counted = ConversationTable(), ToolCall("functions.look:0", "look")
    mine = told(table, "a", chat(USER), counted)
    tail = (chat_call(counted.call_id), chat_result(counted.call_id))
    assert table.find(chat({"role": "user", "content": "Another's."}, *tail), None) is None
    assert table.find(chat(USER, *tail), None) is mine
    told(table, "b", chat(USER), counted)
    assert table.find(chat(USER, *tail), None) is None, "two fit alike"


def test_results_of_an_earlier_turn_are_a_branch():
    table = ConversationTable()
    mine, first = told(table, "a", chat(USER), CALL), (USER, chat_call(UNIQUE), chat_result(UNIQUE))
    table.answered(mine, chat(*first), Answer((ToolCall("call_ffffffffffffffffffffffff", "look"),)))
    assert table.find(chat(*first), None) is None


def test_nobody_goes_on_with_a_turn_that_is_still_being_answered():
    table = ConversationTable()
    mine = told(table, "a", chat(USER), CALL)
    mine.running = 1
    assert table.find(chat(USER, chat_call(UNIQUE), chat_result(UNIQUE)), None) is None


def test_a_name_on_one_side_only_does_not_fit():
    turn = chat(USER, chat_call(UNIQUE), chat_result(UNIQUE))
    for named, asked, fits in ((True, None, False), (True, "a", True), (True, "b", False), (False, "a", False)):
        table = ConversationTable()
        told(table, "a", chat(USER), CALL, named=named)
        assert (table.find(turn, asked) is not None) is fits, (named, asked)


def test_the_persons_next_turn_is_known_by_what_the_model_had_said():
    table = ConversationTable()
    mine = told(table, "a", chat(USER), text="Rome.")
    for said, fits in (("Rome.", True), (" Rome.\n", True), ("Oslo.", False)):
        found = table.find(chat(USER, {"role": "assistant", "content": said}, USER), None)
        assert (found is mine) is fits, said


def test_a_response_is_gone_on_with_by_its_id_once():
    table = ConversationTable()
    mine = told(table, "a", read_turn(RESPONSES, {"input": "go"}), response_id="r1")
    after = read_turn(RESPONSES, {"input": "and", "previous_response_id": "r1"})
    assert table.find(after, None) is mine
    table.answered(mine, after, Answer((), "So.", "r2"))
    assert table.find(after, None) is None and table.find(
        read_turn(RESPONSES, {"input": "and", "previous_response_id": "r2"}), None) is mine


def test_of_too_many_conversations_of_one_agent_the_one_whose_turn_was_longest_ago_goes():
    table = ConversationTable()
    first = told(table, "a", chat({"role": "user", "content": "0"}), text="Yes.")
    for number in range(1, OF_ONE_AGENT):
        told(table, "a", chat({"role": "user", "content": f"{number}"}), text="Yes.")
    second = table.of_agent("a")[1]
    table.answered(first, chat({"role": "user", "content": "again"}), Answer((), "Yes."))
    told(table, "a", chat({"role": "user", "content": "one more"}), text="Yes.")
    told(table, "b", chat({"role": "user", "content": "another"}), text="Yes.")
    assert len(table.of_agent("a")) == OF_ONE_AGENT and first in table.of_agent("a")
    assert second not in table.of_agent("a") and len(table.of_agent("b")) == 1


def test_the_table_forgets_the_oldest_conversation_with_all_that_leads_to_it():
    table = ConversationTable(most=2)
    for name in ("a", "b", "c"):
        turn = chat({"role": "user", "content": name})
        told(table, name, turn, ToolCall(f"call_{name * 16}", "look"), response_id=name)
    assert len(table) == 2 and not table.of_agent("a") and len(table._by_call) == len(table._by_digest) == 2
    assert len(table._by_response) == 2


def test_a_place_where_another_has_been_is_nobodys_because_he_may_be_sending_his_request_again():
    table, said = ConversationTable(), {"role": "assistant", "content": "Rome."}
    again = chat(USER, said, USER)
    first = told(table, "a", chat(USER), text="Rome.")
    table.answered(first, again, Answer((), "And Oslo."))
    told(table, "b", chat(USER), text="Rome.")
    assert table.find(again, None) is None


def test_ids_that_a_model_just_counts_need_the_same_calls():
    table, first = ConversationTable(), "functions.look:0"
    told(table, "a", chat(USER), ToolCall(first, "look"))
    both = chat_call(first)["tool_calls"] + chat_call("functions.look:1")["tool_calls"]
    asked = {"role": "assistant", "content": None, "tool_calls": both}
    assert table.find(chat(USER, asked, chat_result(first), chat_result("functions.look:1")), None) is None
