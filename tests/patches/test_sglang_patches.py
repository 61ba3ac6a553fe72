"""The serving patches (0001 to 0004): each test fails on the unpatched release because of the patch it names."""

from __future__ import annotations

from array import array
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.managers import io_struct
from sglang.srt.managers.io_struct import GenerateReqInput, TokenizedGenerateReqInput
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from tests.support.cache_fixture import CacheHarness
from tests.support.transfer_clock import TransferClock

WHO = {"agent_id": "a", "app_id": "shop"}
OTHER = {"agent_id": "b"}


class Told:
    """Collects what a cache tells, in order."""

    def __init__(self, cache):
        self.calls = []
        for name in ("inserted", "split", "removed"):
            setattr(cache, f"on_node_{name}", lambda *nodes, name=name: self.calls.append((name, *nodes)))

    def take(self):
        calls, self.calls = self.calls, []
        return [(name, *(list(n.key) for n in nodes)) for name, *nodes in calls]


def key(*tokens):
    return RadixKey(array("q", tokens))


@pytest.fixture
def plain():
    """SGLang's own RadixCache on a real allocator."""
    from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator

    allocator = TokenToKVPoolAllocator(64, torch.float32, "cpu", None, False)
    cache = RadixCache(CacheInitParams(
        disable=False, req_to_token_pool=None, token_to_kv_pool_allocator=allocator, page_size=1))
    return SimpleNamespace(cache=cache, told=Told(cache),
                           insert=lambda *t: cache.insert(InsertParams(key=key(*t), value=allocator.alloc(len(t)))))


@pytest.fixture
def tiered(monkeypatch):
    """A HiRadixCache whose copies land at once, with its notifications collected."""
    clock = TransferClock()
    clock.install(monkeypatch)
    h = CacheHarness(clock)
    h.told = Told(h.cache)
    return h


class TestRadixCacheNotifications:
    def test_the_plain_cache_tells_of_insertion_split_and_removal(self, plain):
        """0001-radix-cache-notifications.patch"""
        plain.insert(1, 2, 3, 4)
        assert plain.told.take() == [("inserted", [1, 2, 3, 4])]
        plain.insert(1, 2, 9)
        assert plain.told.take() == [("split", [1, 2], [3, 4]), ("inserted", [9])]
        plain.cache.match_prefix(MatchPrefixParams(key=key(1, 7)))
        assert plain.told.take() == [("split", [1], [2])]
        plain.cache.evict(EvictParams(num_tokens=100))
        told = plain.told.take()
        assert {name for name, _ in told} == {"removed"} and [k for _, k in told][-2:] == [[2], [1]]

    def test_the_methods_do_nothing_by_themselves(self, plain):
        """0001-radix-cache-notifications.patch"""
        for name in ("on_node_inserted", "on_node_removed"):
            assert getattr(RadixCache, name)(plain.cache, object()) is None
        assert RadixCache.on_node_split(plain.cache, object(), object()) is None

    def test_an_insertion_that_adds_nothing_still_tells_where_its_path_ends(self, plain, tiered):
        """0001-radix-cache-notifications.patch"""
        plain.insert(1, 2, 3)
        plain.insert(1, 2)
        assert plain.told.take()[-1] == ("inserted", [1, 2])
        tiered.serve([1, 2, 3])
        tiered.told.take()
        tiered.cache.insert(InsertParams(key=key(1, 2), value=torch.tensor([0, 0])))
        assert tiered.told.take() == [("split", [1, 2], [3]), ("inserted", [1, 2])]

    def test_the_tiered_cache_tells_of_splits_before_the_new_node_and_of_regular_eviction(self, tiered):
        """0001-radix-cache-notifications.patch"""
        tiered.serve([1, 2, 3, 4])
        tiered.told.take()
        tiered.serve([1, 2, 9])
        told = tiered.told.take()
        assert told[:2] == [("split", [1, 2], [3, 4]), ("inserted", [9])]
        tiered.evict(100)
        assert [("removed", [1, 2])] == tiered.told.take()[-1:]

    def test_the_tiered_cache_tells_when_the_host_copy_goes(self, tiered):
        """0001-radix-cache-notifications.patch"""
        tiered.serve([1, 2, 3, 4])
        tiered.back_up_all()
        tiered.evict(100)
        tiered.told.take()
        tiered.cache.evict_host(4)
        assert tiered.told.take() == [("removed", [1, 2, 3, 4])]

    def test_the_tiered_cache_tells_of_every_node_of_a_subtree_that_it_drops(self, tiered):
        """0001-radix-cache-notifications.patch"""
        tiered.serve([1, 2, 3, 4])
        tiered.serve([1, 2, 9])
        tiered.told.take()
        tiered.cache._drop_subtree_no_host(tiered.peek([1, 2]))
        told = tiered.told.take()
        assert told[0] == ("removed", [1, 2]) and sorted(told[1:]) == [("removed", [3, 4]), ("removed", [9])]


class TestAgentMetadata:
    def test_one_description_goes_to_every_prompt_of_a_batch(self):
        """0002-request-agent-metadata.patch"""
        batch = GenerateReqInput(text=["x", "y"], agent_metadata=WHO)
        batch.normalize_batch_and_arguments()
        assert [batch[i].agent_metadata for i in range(2)] == [WHO, WHO]

    def test_a_list_gives_each_prompt_its_own_also_with_several_samples(self):
        """0002-request-agent-metadata.patch"""
        batch = GenerateReqInput(
            text=["x", "y"], agent_metadata=[WHO, OTHER], sampling_params=[{"n": 2}, {"n": 2}])
        batch.normalize_batch_and_arguments()
        found = {}
        for i in range(4):
            found.setdefault(batch[i].text, []).append(batch[i].agent_metadata)
        assert found == {"x": [WHO, WHO], "y": [OTHER, OTHER]}

    @pytest.mark.parametrize("text,metadata", [("x", [WHO]), (["x", "y"], [WHO])])
    def test_a_list_of_the_wrong_length_is_refused(self, text, metadata):
        """0002-request-agent-metadata.patch"""
        with pytest.raises(ValueError, match="agent_metadata needs one item per prompt"):
            GenerateReqInput(text=text, agent_metadata=metadata).normalize_batch_and_arguments()

    def test_the_tokenizer_manager_puts_it_on_the_message_and_the_wire_keeps_it(self):
        """0002-request-agent-metadata.patch"""
        from sglang.srt.managers.tokenizer_manager import TokenizerManager
        from sglang.srt.observability.req_time_stats import APIServerReqTimeStats
        from sglang.srt.sampling.sampling_params import SamplingParams

        manager = SimpleNamespace(
            preferred_sampling_params=None, sampling_params_class=SamplingParams, tokenizer=None,
            rid_to_state=defaultdict(lambda: SimpleNamespace(time_stats=APIServerReqTimeStats())),
            model_config=SimpleNamespace(vocab_size=100), server_args=SimpleNamespace(
                disaggregation_transfer_backend="mooncake"))
        request = GenerateReqInput(text="x", agent_metadata=WHO)
        request.normalize_batch_and_arguments()
        message = TokenizerManager._create_tokenized_object(manager, request, "x", [1, 2])
        assert message.agent_metadata == WHO
        arrived = io_struct.msgpack_decode(io_struct.msgpack_encode(message))
        assert isinstance(arrived, TokenizedGenerateReqInput)
        assert arrived.agent_metadata == WHO and list(arrived.input_ids) == [1, 2]

    def test_the_scheduler_gives_it_to_the_request(self, monkeypatch):
        """0002-request-agent-metadata.patch"""
        from sglang.srt.managers import scheduler
        from sglang.srt.managers.schedule_batch import Req
        from sglang.srt.sampling.sampling_params import SamplingParams

        class Made(Exception):
            pass

        def make(*args, **kwargs):
            raise Made(kwargs)

        monkeypatch.setattr(scheduler, "Req", make)
        fields = dict.fromkeys(TokenizedGenerateReqInput.__struct_fields__)
        message = SimpleNamespace(**fields | {"agent_metadata": WHO, "bootstrap_port": 1, "input_ids": array("q", [1])})
        stand_in = SimpleNamespace(
            enable_session_radix_cache=False, disaggregation_mode=None, metrics_collector=None, dllm_config=None,
            metrics_reporter=SimpleNamespace(metrics_collector=None, enable_metrics=False), enable_metrics=False,
            model_config=SimpleNamespace(hf_eos_token_id=None, vocab_size=9))
        with pytest.raises(Made) as made:
            scheduler.Scheduler.handle_generate_request(stand_in, message)
        assert made.value.args[0]["agent_metadata"] == WHO
        req = Req("r", "", array("q", [1]), SamplingParams(), agent_metadata=WHO)
        assert req.agent_metadata == WHO
        assert Req("r", "", array("q", [1]), SamplingParams()).agent_metadata is None


class TestOpenAI:
    def test_a_completion_carries_it(self):
        """0003-openai-agent-metadata.patch"""
        from sglang.srt.entrypoints.openai.protocol import CompletionRequest
        from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion

        serving = self.serving(OpenAIServingCompletion)
        request = CompletionRequest(model="m", prompt="x", agent_metadata=WHO)
        adapted, _ = OpenAIServingCompletion._convert_to_internal_request(serving, request)
        assert adapted.agent_metadata == WHO

    def test_a_chat_completion_carries_it(self, monkeypatch):
        """0003-openai-agent-metadata.patch"""
        from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
        from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat

        serving = self.serving(OpenAIServingChat)
        serving.is_gpt_oss, serving.chat_encoding_spec, serving.default_sampling_params = False, None, {}
        serving.tokenizer_manager = SimpleNamespace(model_config=SimpleNamespace(is_multimodal=False))
        serving._process_messages = lambda request, multimodal: SimpleNamespace(
            stop=None, tool_call_constraint=None, prompt="x", prompt_ids=[1], image_data=None, video_data=None,
            audio_data=None, modalities=None, require_reasoning=False)
        request = ChatCompletionRequest(
            model="m", messages=[{"role": "user", "content": "x"}], agent_metadata=WHO)
        adapted, _ = OpenAIServingChat._convert_to_internal_request(serving, request)
        assert adapted.agent_metadata == WHO

    def serving(self, kind):
        serving = object.__new__(kind)
        serving.template_manager = SimpleNamespace(completion_template_name=None)
        for name in ("extract_custom_labels", "extract_routing_key", "_compute_extra_key"):
            setattr(serving, name, lambda *args: None)
        serving.extract_routed_dp_rank_from_header = serving._resolve_lora_path = lambda *args: None
        return serving

    def test_the_offline_engine_carries_it(self):
        """0003-openai-agent-metadata.patch"""
        import asyncio

        from sglang.srt.entrypoints.engine import Engine

        seen = []

        async def answers(request, _):
            seen.append(request.agent_metadata)
            yield {"text": "ok"}

        engine = object.__new__(Engine)
        engine.server_args = SimpleNamespace(enable_dp_attention=False, dp_size=1)
        engine.tokenizer_manager = SimpleNamespace(generate_request=answers)
        engine.loop = asyncio.new_event_loop()
        try:
            engine.generate(prompt="x", agent_metadata=WHO)
            engine.loop.run_until_complete(engine.async_generate(prompt="x", agent_metadata=OTHER))
        finally:
            engine.loop.close()
        assert seen == [WHO, OTHER]


class TestSchedulerExtension:
    def receiver(self, pulled, pp_rank=0, **kwargs):
        from sglang.srt.managers.scheduler_components.request_receiver import SchedulerRequestReceiver

        order = []

        class Receiver(SchedulerRequestReceiver):
            def _pull_raw_reqs(self):
                return pulled

            def _broadcast_reqs_across_ranks(self, reqs):
                order.append(reqs)
                return reqs if reqs is not None else ["from rank 0"]

            def unwrap_pickle_wrapper(self, reqs):
                pass

            def _apply_mm_receiver(self, reqs):
                return reqs

            def _finalize_shm_features(self, reqs):
                pass

        none = dict.fromkeys(name for name, field in SchedulerRequestReceiver.__dataclass_fields__.items()
                             if name not in ("extensions", "scripted_scheduler_hook"))
        return Receiver(**none | {"ps": SimpleNamespace(pp_rank=pp_rank)} | kwargs), order

    def extension(self):
        from sglang.srt.managers.scheduler_extension import SchedulerExtension

        class Tick(SchedulerExtension):
            def extend_received(self, recv_reqs):
                return ["tick", *recv_reqs]

        return Tick()

    def test_messages_are_extended_where_they_enter_and_before_they_are_broadcast(self):
        """0004-scheduler-extensions.patch"""
        receiver, broadcast = self.receiver(["request"], extensions=(self.extension(),))
        assert receiver.recv_requests() == ["tick", "request"]
        assert broadcast == [["tick", "request"]]

    @pytest.mark.parametrize("pulled,pp_rank", [(None, 0), (["forwarded"], 1)])
    def test_other_ranks_get_them_with_the_broadcast_and_add_nothing(self, pulled, pp_rank):
        """0004-scheduler-extensions.patch"""
        receiver, broadcast = self.receiver(pulled, pp_rank, extensions=(self.extension(),))
        assert "tick" not in receiver.recv_requests()
        assert broadcast == [pulled]

    def test_without_an_extension_messages_pass_unchanged(self):
        """0004-scheduler-extensions.patch"""
        receiver, _ = self.receiver(["request"])
        assert receiver.extensions == () and receiver.recv_requests() == ["request"]

    def test_an_extension_is_told_when_a_request_joins_the_waiting_queue(self):
        """0004-scheduler-extensions.patch"""
        from sglang.srt.managers.scheduler import DisaggregationMode, Scheduler

        told, queue = [], []
        stand_in = SimpleNamespace(
            _set_or_validate_priority=lambda req: True, disaggregation_mode=DisaggregationMode.NULL,
            _abort_on_queued_limit=lambda req: req.refused, _prefetch_kvcache=lambda req: None, waiting_queue=queue,
            extensions=(SimpleNamespace(on_request_added=lambda req: told.append((req, list(queue)))),))
        stats = SimpleNamespace(set_wait_queue_entry_time=lambda: None)
        taken, refused = (SimpleNamespace(refused=r, time_stats=stats) for r in (False, True))
        Scheduler._add_request_to_queue(stand_in, taken)
        Scheduler._add_request_to_queue(stand_in, refused)
        assert told == [(taken, [taken])]

    def test_extensions_are_built_from_registered_factories_and_there_are_none_by_default(self, monkeypatch):
        """0004-scheduler-extensions.patch"""
        from sglang.srt.managers import scheduler_extension
        from sglang.srt.managers.scheduler import Scheduler

        assert Scheduler.extensions == ()
        monkeypatch.setattr(scheduler_extension, "_factories", [])
        assert scheduler_extension.build_scheduler_extensions("scheduler") == ()
        scheduler_extension.register_scheduler_extension(lambda scheduler: ("built for", scheduler))
        assert scheduler_extension.build_scheduler_extensions("scheduler") == (("built for", "scheduler"),)

    def test_the_base_extension_changes_nothing(self):
        """0004-scheduler-extensions.patch"""
        from sglang.srt.managers.scheduler_extension import SchedulerExtension

        messages = [1, 2]
        assert SchedulerExtension().extend_received(messages) is messages
        assert SchedulerExtension().on_request_added(object()) is None
