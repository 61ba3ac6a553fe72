"""Graphs derived from programs by a dry run: nodes, edges and names, and the errors where a program needs real text."""

from __future__ import annotations

import json
import re
import threading

import pytest
import sglang as sgl

import tokencake_sglang as tc

RAN: list[str] = []


@tc.tool(kind="search", stages=[tc.Stage("ask", 0.5), tc.Stage("read", 0.25)])
def search(query):
    RAN.append(query)
    return [query]


@pytest.fixture(autouse=True)
def no_tool_runs_and_no_thread_is_left(eventually):
    RAN.clear()
    before = threading.active_count()
    yield
    assert RAN == []
    eventually(lambda: threading.active_count() <= before)


@tc.agent(type="researcher")
def research(s, topic):
    s += sgl.user(f"Write one search query about {topic}.")
    s += sgl.assistant(sgl.gen("query", max_tokens=16))
    s += tc.call(search, lambda state: {"query": state["query"]}, name="hits")
    s += sgl.user(f"Summarise: {s['hits']}") + sgl.assistant(sgl.gen("summary", max_tokens=64))
    return s["summary"]


@tc.agent(type="writer")
def write(s, notes):
    s += f"Write about {notes}" + sgl.gen("report")


def edges(graph):
    return [f"{a} > {b}" for a, b in graph.value().edges]


def names(graph):
    return [node.name for node in graph.value().nodes]


def test_an_agent_becomes_its_model_calls_and_tool_calls_in_order():
    graph = tc.AgentGraph()
    ask = graph.add_node(research, "research.query", tokens=16)
    hits = graph.add_node(search, "research.hits", agent=research)
    ask >> hits >> graph.add_node(research, "research.summary", tokens=64)
    assert tc.derive(research, topic="caches") == graph
    compiled = graph.compile()
    assert compiled.critical_path == ("research.query", "research.hits", "research.summary")
    assert compiled.expected_s == pytest.approx(80 * 0.025 + 0.75)


def test_a_function_that_runs_agents_one_after_the_other_and_many_at_once():
    def application(topics):
        found = research.run_batch([{"topic": topic} for topic in topics], backend=None)
        return write.run(notes="; ".join(f"{state.ret_value}" for state in found), max_new_tokens=300)

    graph = tc.AgentGraph()
    steps = graph.chain(
        graph.add_node(research, "research.query", tokens=16), graph.add_node(search, "research.hits", agent=research),
        graph.add_node(research, "research.summary", tokens=64))
    graph.chain(graph.map(steps, 3), graph.add_node(write, "write.report", tokens=300))
    assert tc.derive(application, topics="abc") == graph


def test_a_batch_of_tuples_a_batch_of_one_and_an_agent_that_runs_again_have_names_of_their_own():
    def application():
        assert len(list(write.run_batch([("a",), ("b",)], generator_style=True))) == 2
        write.run_batch([{"notes": "c"}])
        write.run("d")
        assert write.run_batch([]) == []

    assert names(tc.derive(application)) == ["write[1].report", "write[2].report", "write#2.report", "write#3.report"]


def test_an_agent_that_is_run_inside_another_lies_between_the_steps_around_it():
    @tc.agent
    def boss(s):
        s += "x" + sgl.gen("order")
        state = write.run(notes=s["order"])
        s += state["report"] + sgl.gen("verdict")

    assert edges(tc.derive(boss)) == ["boss.order > write.report", "write.report > boss.verdict"]


def test_what_follows_a_run_waits_for_it_even_if_it_uses_nothing_of_it():
    def application():
        write.run(notes="a")
        write.run(notes="b")

    assert edges(tc.derive(application)) == ["write.report > write#2.report"]


def test_forks_start_together_and_a_join_waits_for_all_of_them():
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("start")
        forks = s.fork(2)
        forks += tc.call(search, {"query": "q"}, name="hits")
        forks += lambda number: sgl.gen("part", max_tokens=number + 1)
        forks.join()
        assert len(s["part"]) == 2
        s += sgl.gen("end")

    graph = tc.derive(prog)
    assert edges(graph) == [
        "prog.start > prog.0.hits", "prog.start > prog.1.hits", "prog.0.hits > prog.0.part",
        "prog.1.hits > prog.1.part", "prog.0.part > prog.end", "prog.1.part > prog.end"]
    assert [node.tokens for node in graph.value().nodes if node.name.endswith("part")] == [1, 2]


def test_reading_a_fork_makes_the_state_above_it_wait_but_not_its_sister():
    @tc.agent
    def prog(s):
        forks = s.fork(2)
        for fork in forks.states:
            fork += "x" + sgl.gen("a")
            fork += f"{fork['a']}" + sgl.gen("b")
        s += "y" + sgl.gen("end")

    assert edges(tc.derive(prog)) == [
        "prog.0.a > prog.0.b", "prog.1.a > prog.1.b", "prog.0.a > prog.end", "prog.1.a > prog.end"]


@pytest.mark.parametrize(
    "carry",
    [lambda v: v, lambda v: f"<{v}>", lambda v: "a " + v, lambda v: str(v) + " b", lambda v: ", ".join([str(v)])],
    ids=["itself", "f-string", "sum", "str", "join"],
)
def test_text_of_one_fork_in_another_is_an_edge_however_it_gets_there(carry):
    @tc.agent
    def prog(s):
        forks = s.fork(2)
        forks[0] += "x" + sgl.gen("a")
        forks[1] += carry(forks[0]["a"]) + sgl.gen("b")

    assert edges(tc.derive(prog)) == ["prog.0.a > prog.1.b"]


def test_what_a_call_is_given_is_an_edge_too():
    @tc.agent
    def prog(s):
        forks = s.fork(2)
        forks[0] += "x" + sgl.gen("a")
        forks[1] += tc.call(search, {"query": [forks[0]["a"]]}, name="hits")

    assert edges(tc.derive(prog)) == ["prog.0.a > prog.1.hits"]


def test_all_of_a_states_methods_are_there():
    @tc.agent
    def prog(s):
        with s.user():
            s += "question"
        with s.var_scope("whole"):
            s += sgl.gen("a") + sgl.gen("pick", choices=["x", "y"])
        s += sgl.gen("a") + s["whole"] + sgl.gen()
        with s.copy() as other:
            other += sgl.gen("inner")
        s["mine"] = 1
        s.sync()
        assert s.error() is None and s.get_meta_info("a") == {} and "mine" in s and "yours" not in s
        s += s.text()
        assert "".join(f"{part}" for part in s.text_iter("a"))

    assert names(tc.derive(prog)) == ["prog.a", "prog.pick", "prog.a#2", "prog.gen", "prog.0.inner"]


@tc.agent
def decider(s):
    s += "x" + sgl.gen("verdict")
    if s["verdict"].startswith("again"):
        s += sgl.gen("more")
    s += sgl.gen("end")


@pytest.mark.parametrize("key", ["verdict", "decider.verdict"])
def test_a_sample_answer_decides_for_the_program(key):
    assert names(tc.derive(decider, {key: "enough"})) == ["decider.verdict", "decider.end"]
    assert names(tc.derive(decider, {key: "again!"})) == ["decider.verdict", "decider.more", "decider.end"]


def test_an_answer_may_name_one_step_of_several():
    def application():
        decider.run_batch([{}, {}])

    graph = tc.derive(application, {"verdict": "enough", "decider[2].verdict": "again"})
    assert names(graph) == ["decider[1].verdict", "decider[1].end", "decider[2].verdict", "decider[2].more",
                            "decider[2].end"]


def test_an_answer_for_no_step_is_an_error_that_lists_the_steps():
    with pytest.raises(tc.GraphError, match=r"no step has the name verdit; the steps are decider\.verdict, decider"):
        tc.derive(decider, {"verdict": "enough", "verdit": "x"})


def asks(question):
    @tc.agent
    def asker(s):
        s += "x" + sgl.gen("verdict") + tc.call(search, {"query": "q"}, name="hits")
        question(s["verdict"])
        s += sgl.gen("end")

    return asker


@pytest.mark.parametrize(
    "question",
    [bool, len, list, lambda v: v == "yes", lambda v: v != "yes", lambda v: "yes" in v, lambda v: v[0], int, float,
     lambda v: v.strip().lower().startswith("y"), lambda v: str(v).startswith("y"), lambda v: str(v) == "yes",
     lambda v: str(v).strip().split()[0], lambda v: {"yes": 1}[v], lambda v: str(v) in {"yes"},
     lambda v: json.loads(str(v)),
     lambda v: v.replace("a", "b") == "b", lambda v: v > "a"],
)
def test_a_program_that_asks_what_the_model_wrote_is_told_what_to_declare(question):
    sentence = (r"decides by what the model writes into 'verdict' \(step asker\.verdict\) "
                r"at test_frontend_derive\.py:\d+, with \w+;"
                r".*answers=\{'asker\.verdict': \.\.\.\}.*graph\.branch\(.*graph\.loop\(")
    with pytest.raises(tc.GraphError, match=sentence):
        tc.derive(asks(question))


def test_no_except_of_the_program_hides_that_it_has_asked():
    def careful(verdict):
        try:
            return verdict == "yes"
        except Exception:
            return False

    with pytest.raises(tc.GraphError, match="decides by"):
        tc.derive(asks(careful))


@pytest.mark.parametrize("question", [json.loads, lambda v: re.search("yes", v), lambda v: "".join([v])])
def test_a_function_that_needs_real_text_is_an_error_that_names_the_missing_answers(question):
    with pytest.raises(tc.GraphError, match=r"stopped at \S+:\d+: TypeError.*asker\.verdict, asker\.hits\..*answers="):
        tc.derive(asks(question))


def test_a_tool_called_directly_does_not_run():
    @tc.agent
    def prog(s):
        s += "x" + sgl.gen("a") + str(search("q"))

    with pytest.raises(tc.GraphError, match="TracedToolCall.*write `s \\+= call"):
        tc.derive(prog)


def test_a_program_that_fails_for_its_own_reasons_says_where():
    def application():
        raise LookupError("no such table")

    with pytest.raises(tc.GraphError, match=r"'application' stopped at test_frontend_derive\.py:\d+: LookupError: no"):
        tc.derive(application)


def test_what_is_no_program_of_agents_is_refused(peer, endpoint):
    plain = sgl.function(lambda s: None)
    with pytest.raises(tc.GraphError, match="allowed are a function decorated with @agent"):
        tc.derive(plain)
    with pytest.raises(tc.GraphError, match="found int"):
        tc.derive(7)
    with pytest.raises(tc.GraphError, match="made no model call"):
        tc.derive(lambda: None)


def test_nothing_is_sent_not_even_by_a_prefix_cache(peer, endpoint):
    def application():
        write.cache(backend=endpoint)
        write.run(notes="n", backend=endpoint)

    sent = len(peer.requests)
    tc.derive(application)
    assert len(peer.requests) == sent


@pytest.mark.filterwarnings("ignore:Error in stream_executor")
def test_a_plain_function_inside_is_refused_before_it_sends_anything(peer, endpoint):
    @sgl.function
    def plain(s):
        s += "x" + sgl.gen("a")
        s["a"]

    sent = len(peer.requests)
    with pytest.raises(tc.GraphError, match="plain sgl.function was run; decorate it"):
        tc.derive(lambda: plain.run(backend=endpoint))
    assert len(peer.requests) == sent


def test_after_a_dry_run_programs_run_for_real_again(peer, endpoint):
    with pytest.raises(tc.GraphError):
        tc.derive(decider)
    assert write.run(notes="n", backend=endpoint)["report"].startswith("word")
    assert len(peer.generates) == 1
