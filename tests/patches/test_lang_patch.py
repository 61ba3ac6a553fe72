"""The frontend patches (0010 to 0014): each test fails on the unpatched release because of the hunk that it names.

They use SGLang's own classes and a backend in this process, and nothing of this package.
"""

from __future__ import annotations

import sys
import threading

import pytest
from sglang.lang.backend.base_backend import BaseBackend
from sglang.lang.interpreter import StreamExecutor
from sglang.lang.ir import SglConstantText, SglExpr, SglExprList, SglFunction, SglGen, SglRoleBegin, SglRoleEnd

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
    assert within(20, lambda: executor.fork(2)) == ("raised", error)
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


def test_the_error_is_known_before_the_first_waiter_is_released():
    error = ValueError("broken")
    executor = executor_on(EchoBackend(error))
    known = []
    release = executor._discard_queue
    executor._discard_queue = lambda: (known.append(executor.error_), release())
    executor.submit(SglGen("g"))
    executor.worker.join(20)
    assert known == [error]
    executor.end()


def test_an_end_that_finds_the_worker_alive_just_before_it_fails_leaves_nothing_to_wait_for():
    gate = threading.Event()

    class SlowFailure(EchoBackend):
        def generate(self, s, sampling_params):
            gate.wait(20)
            raise ValueError("broken")

    class WorkerThatStopsWhenAsked:
        def __init__(self, worker):
            self.worker = worker

        def is_alive(self):
            gate.set()
            self.worker.join(20)
            return True

    executor = executor_on(SlowFailure())
    executor.submit(SglGen("g"))
    executor.worker = WorkerThatStopsWhenAsked(executor.worker)
    executor.end()
    assert within(20, executor.text) == ("returned", "")


class FailsIn(EchoBackend):
    """Fails the generations of states whose text contains this word."""

    def __init__(self, word):
        super().__init__()
        self.word = word

    def generate(self, s, sampling_params):
        if self.word in s.text_:
            raise ValueError(f"broken by {self.word}")
        return "ok", {}


def forked_program(mode):
    def program(s):
        s += "start"
        forks = s.fork(3)
        for number, fork in enumerate(forks.states):
            fork += SglExprList([SglConstantText(f" [{number}]"), SglGen("g")])
        program.forks = forks
        forks.join(mode)
        program.went_on = True

    program.went_on = False
    return program


@pytest.mark.parametrize("mode", ["gather_variable", "concate_and_append"])
def test_join_raises_the_error_of_a_failed_fork_after_all_forks_have_ended(mode):
    program = forked_program(mode)
    outcome, error = within(20, lambda: SglFunction(program).run(backend=FailsIn("[1]")))
    assert (outcome, str(error), program.went_on) == ("raised", "broken by [1]", False)
    for fork in program.forks.states:
        fork.stream_executor.worker.join(20)
        assert not fork.stream_executor.worker.is_alive()


def test_join_of_forks_that_all_went_well_raises_nothing_also_when_a_step_has_noted_an_error():
    class Noted(Step):
        def execute_on(self, executor):
            executor.error_ = LookupError("kept for its reader")
            super().execute_on(executor)

    def program(s):
        forks = s.fork(2)
        for fork in forks.states:
            fork += Noted("out", 7)
        forks.join()
        return s["out"]

    for _ in range(20):  # the forks' workers end while join() returns
        assert SglFunction(program).run(backend=EchoBackend()).ret_value == [7, 7]


def test_a_state_whose_work_has_failed_cannot_be_forked():
    executor = executor_on(EchoBackend(ValueError("broken")))
    executor.submit(SglGen("g"))
    outcome, error = within(20, lambda: executor.fork(2))
    assert (outcome, str(error)) == ("raised", "broken")


def test_what_a_streamed_program_raises_is_its_states_error(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _arguments: ended.set())

    def program(s):
        s += SglExprList([SglConstantText("text "), SglGen("g")])
        raise LookupError("the program itself is wrong")

    state = SglFunction(program).run(backend=EchoBackend(), stream=True)
    assert within(20, lambda: "".join(state.text_iter())) == ("returned", "text ok")
    assert isinstance(state.error(), LookupError)
    assert ended.wait(20)


def test_a_fork_keeps_the_meta_information_and_the_images_of_an_open_message():
    class Meta(EchoBackend):
        def generate(self, s, sampling_params):
            return "ok", {"prompt_tokens": 3}

    executor = executor_on(Meta())
    executor.submit(SglExprList([SglGen("g"), SglRoleBegin("user")]))
    executor.sync()
    executor.cur_images.append(("path", "data"))
    child = executor.fork(1)[0]
    assert child.get_meta_info("g") == {"prompt_tokens": 3}
    child.submit(SglExprList([SglConstantText("look"), SglRoleEnd("user")]))
    content = child.messages()[-1]["content"]
    assert content[1] == {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,data"}}
    assert executor.cur_images == [("path", "data")]
    for each in (executor, child):
        each.end()


def test_a_server_is_asked_for_no_route_that_it_has_dropped(monkeypatch):
    from types import SimpleNamespace

    from sglang.lang.backend import runtime_endpoint

    asked = []

    def answer(url, **_):
        asked.append(url.rsplit("/", 1)[1])
        return SimpleNamespace(status_code=200, json=lambda: {"model_path": "m", "text": "ok", "meta_info": {}})

    monkeypatch.setattr(runtime_endpoint, "http_request", answer)
    program = forked_program("concate_and_append")
    state = SglFunction(program).run(backend=runtime_endpoint.RuntimeEndpoint("http://server"))
    assert state.text() == "start [0]ok [1]ok [2]ok"
    assert set(asked) == {"get_model_info", "generate"}
