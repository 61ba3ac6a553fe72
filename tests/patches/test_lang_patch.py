"""The frontend patches (0010, 0011): each test fails on the unpatched release because of the hunk that it names.

They use SGLang's own classes and a backend in this process, and nothing of this package.
"""

from __future__ import annotations

import sys
import threading

import pytest
from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.interpreter import StreamExecutor
from sglang.lang.ir import SglExpr, SglExprList, SglFunction, SglGen

pytestmark = pytest.mark.filterwarnings("ignore:Error in stream_executor")


class EchoBackend(BaseBackend):
    """Answers every generation with "ok", or raises what it was told to."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error
        self.finished = []
        self.forked = []

    def generate(self, s, sampling_params):
        if self.error:
            raise self.error
        return "ok", {}

    def generate_stream(self, s, sampling_params):
        yield self.generate(s, sampling_params)

    def fork_program(self, src, dst, position_ids_offset=None):
        self.forked.append((src, list(dst)))

    def finish_program(self, s):
        self.finished.append((s, s.is_finished, s.text_))


class Step(SglExpr):
    """An extension node that binds the length of the text so far, or what it was given."""

    def __init__(self, name="out", value=None):
        super().__init__()
        self.name = name
        self.defines_vars = (name,)
        self.value = value

    def execute_on(self, executor):
        executor.variables[self.name] = len(executor.text_) if self.value is None else self.value
        executor.variable_event[self.name].set()


def executor_on(backend, stream=False):
    from sglang.lang.ir import SglSamplingParams

    return StreamExecutor(backend, {}, SglSamplingParams(), None, stream)


def within(seconds, function):
    """The outcome of `function`, which must return or raise within `seconds` (a hang is a failure, not a hang)."""
    outcome = []

    def run():
        try:
            outcome.append(("returned", function()))
        except Exception as error:
            outcome.append(("raised", error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert outcome, f"still waiting after {seconds} s"
    return outcome[0]


def test_an_expression_with_execute_on_is_executed_in_order_also_inside_a_list():
    executor = executor_on(EchoBackend())
    executor.submit(SglExprList([SglGen("g"), Step("one")]))
    executor.submit("four")
    executor.submit(Step("two"))
    executor.sync()
    executor.end()
    assert executor.error() is None
    assert (executor.variables["one"], executor.variables["two"]) == (2, 6)


@pytest.mark.parametrize("stream", [False, True])
def test_reading_a_variable_that_an_extension_node_defines_waits_for_it(stream):
    gate = threading.Event()

    class Slow(Step):
        def execute_on(self, executor):
            gate.wait(20)
            super().execute_on(executor)

    executor = executor_on(EchoBackend(), stream)
    executor.submit(Slow("late"))
    executor.submit(SglExprList([Slow("nested")]))
    assert not executor.variable_event["late"].is_set()
    assert not executor.variable_event["nested"].is_set()
    assert not stream or {"late", "nested"} <= set(executor.stream_var_event)
    gate.set()
    assert within(20, lambda: executor.get_var("nested")) == ("returned", 0)
    executor.end()


def test_a_value_with_read_on_decides_what_its_reader_gets_also_in_a_fork():
    class Failed:
        def read_on(self, executor):
            raise LookupError("decided when read")

    executor = executor_on(EchoBackend())
    executor.submit(Step("out", Failed()))
    child = executor.fork(1)[0]
    for reader in (executor, child):
        with pytest.raises(LookupError, match="decided when read"):
            reader.get_var("out")
        reader.end()


def test_the_backend_hears_of_a_fork_with_its_source_and_children():
    backend = EchoBackend()
    executor = executor_on(backend)
    children = executor.fork(2)
    assert backend.forked == [(executor, children)]
    for each in (executor, *children):
        each.end()


@pytest.mark.parametrize("error", [None, ValueError("broken")])
def test_the_backend_hears_once_of_a_workers_end_after_all_its_expressions(error):
    backend = EchoBackend(error)
    executor = executor_on(backend)
    executor.submit("text ")
    executor.submit(SglGen("g"))
    executor.end()
    executor.worker.join(20)
    executor.end()
    assert backend.finished == [(executor, True, "text " if error else "text ok")]


def test_a_backend_that_overrides_nothing_is_not_disturbed_by_the_new_calls():
    executor = executor_on(BaseBackend())
    child = executor.fork(1)[0]
    for each in (child, executor):
        each.submit("text")
        each.end()
        each.worker.join(20)
        assert (each.text(), each.error(), each.is_finished) == ("text", None, True)
    assert BaseBackend().finish_program(executor) is None


def test_a_trace_knows_the_variables_of_an_extension_node_and_does_not_execute_it():
    class Never(Step):
        def execute_on(self, executor):
            raise AssertionError("executed while tracing")

    def program(s, topic):
        s += "begin " + Never("out")
        s += s["out"]

    trace = SglFunction(program).trace(backend=EchoBackend())
    assert trace.variables["out"].name == "out"
    assert [type(node).__name__ for node in trace.flatten_nodes()] == ["SglConstantText", "Never", "SglVariable"]


def failed_executor(error, stream=False):
    """An executor whose worker has just ended with `error`; `end` was not called."""
    executor = executor_on(EchoBackend(error), stream)
    executor.submit("before ")
    executor.submit(SglGen("g"))
    executor.worker.join(20)
    assert not executor.worker.is_alive()
    return executor


@pytest.mark.parametrize("stream", [False, True])
def test_after_a_worker_error_nothing_waits_for_ever(stream):
    error = ValueError("broken")
    executor = failed_executor(error, stream)
    executor.submit("after")
    executor.submit(SglGen("later"))
    assert within(20, executor.sync) == ("returned", None)
    assert within(20, executor.text) == ("returned", "before ")
    assert within(20, executor.error) == ("returned", error)
    assert within(20, lambda: executor.get_var("later")) == ("raised", error)
    if stream:
        assert executor.stream_var_event["later"].is_set()
    assert within(20, lambda: executor.fork(2))[0] == "returned"
    executor.end()


def test_reading_what_the_failed_worker_never_set_raises_its_error_and_no_earlier_value():
    backend = EchoBackend()
    executor = executor_on(backend)
    executor.submit(SglGen("thought"))
    assert executor.get_var("thought") == "ok"
    backend.error = ValueError("broken")
    executor.submit(SglGen("thought"))
    assert within(20, lambda: executor.get_var("thought")) == ("raised", backend.error)
    with pytest.raises(ValueError, match="broken"):
        executor.get_var("never mentioned")
    executor.end()


def test_a_variable_that_does_not_exist_is_a_key_error_as_before_when_nothing_failed():
    executor = executor_on(EchoBackend())
    with pytest.raises(KeyError):
        executor.get_var("missing")
    executor.end()


def test_the_error_is_there_as_soon_as_sync_returns():
    for _ in range(50):
        error = ValueError("broken")
        executor = executor_on(EchoBackend(error))
        executor.submit(SglGen("g"))
        executor.sync()
        assert executor.error_ is error
        executor.end()


def test_ends_and_submits_that_race_with_a_failing_worker_leave_nothing_to_wait_for():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(300):
            executor = executor_on(EchoBackend(ValueError("broken")))
            executor.submit(SglGen("g"))
            for number in range(5):
                executor.submit(SglGen(f"v{number}"))
            executor.end()
            executor.end()
            executor.submit("late")
            assert within(20, executor.text)[0] == "returned"
            assert within(20, lambda e=executor: e.get_var("v4"))[0] == "raised"
    finally:
        sys.setswitchinterval(interval)


def test_a_submit_after_the_end_of_a_good_program_is_no_trap_either():
    executor = executor_on(EchoBackend())
    executor.submit(SglGen("g"))
    executor.end()
    executor.worker.join(20)
    executor.submit(SglGen("late"))
    assert within(20, executor.text) == ("returned", "ok")
    assert within(20, lambda: executor.get_var("late"))[0] == "raised"
    assert executor.error() is None


@pytest.mark.parametrize("error", [None, ValueError("broken")])
def test_ending_a_stopped_executor_takes_no_lock_since_the_garbage_collector_may_do_it(error):
    executor = executor_on(EchoBackend(error))
    executor.submit(SglGen("g"))
    executor.end()
    executor.worker.join(20)
    executor.worker = None  # is_alive() takes a lock of the threading module
    assert executor.end() is None
