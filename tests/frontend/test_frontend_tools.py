"""Tools, identities and what importing the package costs: no server and no sglang needed."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

import tokencake_sglang as tc
from tokencake_sglang.core.errors import MetadataError
from tokencake_sglang.frontend.identity import AgentContext, current_app


def test_importing_the_package_and_declaring_a_tool_loads_neither_sglang_nor_torch():
    code = (
        "import sys, tokencake_sglang as tc\n"
        "tc.tool(lambda: 1, name='t', stages=[tc.Stage('a', 1)]); tc.app('x')\n"
        "print([m for m in ('sglang', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_of_the_package_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'agnet'.*'agent'"):
        tc.agnet  # noqa: B018


def test_predict_time_is_as_given_else_the_sum_of_the_stages_else_unknown():
    stages = [tc.Stage("queue", 0.5), tc.Stage("fetch", 1.25)]
    assert tc.tool(lambda: 0, name="a", predict_time=3, stages=stages).predict_time == 3.0
    assert tc.tool(lambda: 0, name="b", stages=stages).predict_time == 1.75
    assert tc.tool(lambda: 0, name="c").predict_time is None


def test_a_tool_is_named_after_its_function_and_is_its_own_kind_unless_told():
    @tc.tool
    def search(query):
        """Find things."""
        return query.upper()

    @tc.tool(name="web", kind="network")
    def fetch():
        return None

    assert (search.name, search.kind, search.__doc__) == ("search", "search", "Find things.")
    assert (fetch.name, fetch.kind) == ("web", "network")
    assert search("a") == "A"


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 86401, "2", True])
def test_a_duration_that_the_server_would_refuse_is_refused_where_it_is_declared(seconds):
    with pytest.raises(ValueError, match="allowed are seconds"):
        tc.tool(lambda: 0, name="t", predict_time=seconds)
    with pytest.raises(ValueError, match="allowed are seconds"):
        tc.Stage("s", seconds)


def test_a_tool_of_something_that_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="needs a callable"):
        tc.Tool(42)
    with pytest.raises(TypeError, match="allowed are Stage"):
        tc.tool(lambda: 0, name="t", stages=[1.0])


def test_apps_nest_and_end_and_are_not_seen_by_other_threads():
    seen = []
    with tc.app("outer"):
        with tc.app("inner"):
            assert current_app() == "inner"
        assert current_app() == "outer"
        thread = threading.Thread(target=lambda: seen.append(current_app()))
        thread.start()
        thread.join()
    assert current_app() is None
    assert seen == [None]


@pytest.mark.parametrize("app_id", ["", "x" * 257, "tab\there", 7, None])
def test_an_app_id_that_the_server_would_refuse_is_refused(app_id):
    with pytest.raises(MetadataError, match="1 to 256 printable"):
        with tc.app(app_id):
            pass


def test_forked_contexts_have_ids_of_their_own_under_the_parents_and_never_twice_the_same():
    parent = AgentContext("searcher", "node", "app", agent_id="a1")
    ids = [parent.fork().agent_id for _ in range(3)]
    assert ids == ["a1.0", "a1.1", "a1.2"]
    assert parent.fork().fork().agent_id == "a1.3.0"
    assert parent.fork().identity() == {
        "app_id": "app",
        "node_id": "node",
        "agent_type": "searcher",
        "agent_id": "a1.4",
    }


def test_ids_stay_within_the_servers_limit_however_deep_the_forks():
    context = AgentContext("t" * 256)
    for _ in range(300):
        context = context.fork()
        assert len(context.agent_id) <= 256
