"""The torch CPU platform: when it is chosen, what it allocates, what it copies, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.platforms.device_mixin import CpuArchEnum

from tokencake_sglang import platforms
from tokencake_sglang.platforms import environment, shims
from tokencake_sglang.platforms.allocator import TorchPagedTokenToKVPoolAllocator
from tokencake_sglang.platforms.cpu import TorchCpuPlatform, UnsupportedOnCpuError, refuse_unsupported


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def test_platform_is_chosen_without_an_accelerator_and_is_the_class_it_names(no_accelerator):
    module, name = platforms.activate().rsplit(".", 1)
    assert getattr(sys.modules[module], name) is TorchCpuPlatform


def test_platform_is_inactive_when_cuda_is_reported(no_accelerator, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert platforms.activate() is None


def test_platform_is_inactive_when_another_accelerator_is_reported(no_accelerator, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert platforms.activate() is None


def test_platform_is_inactive_when_the_user_chose_sglangs_cpu_engine(no_accelerator, monkeypatch):
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert platforms.activate() is None


def test_asking_whether_to_activate_imports_neither_sglang_nor_the_platform_class():
    code = "import sys; from tokencake_sglang.platforms import activate; activate(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name.split(".")[0] == "sglang" or name.endswith("platforms.cpu")] == []


def new_allocator(num_pages: int, page_size: int, need_sort: bool = False) -> TorchPagedTokenToKVPoolAllocator:
    return TorchPagedTokenToKVPoolAllocator(
        num_pages * page_size, page_size, torch.float32, "cpu", kvcache=None, need_sort=need_sort
    )


class ModelAllocator:
    """What a paged allocator must do, said in lists: first free pages first, a page belongs to one request."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.page_size, self.free = page_size, list(range(1, num_pages + 1))

    def extend(self, slots_of: list[list[int]], num_new: list[int]) -> list[list[int]] | None:
        size = self.page_size
        pages_needed = [-(-(len(s) + n) // size) - -(-len(s) // size) for s, n in zip(slots_of, num_new, strict=True)]
        if sum(pages_needed) > len(self.free):
            return None
        result = []
        for slots, count in zip(slots_of, num_new, strict=True):
            new: list[int] = []
            while len(new) < count:
                position = len(slots) + len(new)
                last = (slots + new)[-1] if position else -1
                new.append(last + 1 if position % size else self.free.pop(0) * size)
            result.append(new)
        return result

    def release(self, slots: list[int]) -> None:
        self.free[:0] = sorted({slot // self.page_size for slot in slots})


def extend(allocator, slots_of: list[list[int]], num_new: list[int]) -> list[list[int]] | None:
    before = torch.tensor([len(slots) for slots in slots_of])
    after = before + torch.tensor(num_new)
    last = torch.tensor([slots[-1] if slots else -1 for slots in slots_of])
    out = allocator.alloc_extend(before, before, after, after, last, sum(num_new))
    return None if out is None else [part.tolist() for part in out.split(num_new)]


def decode(allocator, slots_of: list[list[int]]) -> list[list[int]] | None:
    after = torch.tensor([len(slots) + 1 for slots in slots_of])
    out = allocator.alloc_decode(after, after, torch.tensor([slots[-1] for slots in slots_of]))
    return None if out is None else [[slot] for slot in out.tolist()]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("extend"), st.lists(st.integers(1, 40), min_size=1, max_size=4)),
        st.tuples(st.just("grow"), st.lists(st.integers(1, 40), min_size=1, max_size=3)),
        st.tuples(st.just("decode"), st.just([])),
        st.tuples(st.just("free"), st.lists(st.integers(0, 100), min_size=1, max_size=1)),
    ),
    max_size=25,
)


@settings(max_examples=80, deadline=None)
@given(page_size=st.sampled_from([1, 4, 16]), num_pages=st.integers(4, 24), operations=OPERATIONS)
def test_allocator_gives_what_the_plain_model_gives_and_no_slot_twice(page_size, num_pages, operations):
    allocator, model = new_allocator(num_pages, page_size), ModelAllocator(num_pages, page_size)
    live: list[list[int]] = []
    for name, numbers in operations:
        if name == "free" and live:
            slots = live.pop(numbers[0] % len(live))
            allocator.free(torch.tensor(slots))
            model.release(slots)
            continue
        if name == "extend":
            rows, num_new = [[] for _ in numbers], numbers
        elif name == "grow":
            rows = live[: len(numbers)]
            num_new = numbers[: len(rows)]
        else:
            rows, num_new = list(live), [1] * len(live)
        if name == "free" or not rows:
            continue
        got = decode(allocator, rows) if name == "decode" else extend(allocator, rows, num_new)
        assert got == model.extend(rows, num_new)
        if got is not None:
            live.extend(rows if name == "extend" else [])
            for row, new in zip(rows, got, strict=True):
                row.extend(new)
        check_books(allocator, live, num_pages, page_size)


def check_books(allocator, live: list[list[int]], num_pages: int, page_size: int) -> None:
    used = [slot for slots in live for slot in slots]
    assert len(used) == len(set(used)), "a slot was handed out twice"
    assert all(slot // page_size not in (0, *allocator.free_pages.tolist()) for slot in used)
    for slots in live:
        assert all(slot % page_size == position % page_size for position, slot in enumerate(slots))
    pages = sum(len({slot // page_size for slot in slots}) for slots in live)
    assert allocator.available_size() == (num_pages - pages) * page_size


def test_extend_continues_the_last_partial_page_before_taking_a_new_one():
    allocator = new_allocator(8, 16)
    (first,) = extend(allocator, [[]], [20])
    assert first == list(range(16, 36))
    extend(allocator, [[]], [1])
    (more,) = extend(allocator, [first], [14])
    assert more == [*range(36, 48), 64, 65]


def test_too_few_pages_give_none_and_take_nothing():
    allocator = new_allocator(2, 16)
    assert extend(allocator, [[]], [33]) is None
    assert allocator.available_size() == 32
    (slots,) = extend(allocator, [[]], [32])
    assert decode(allocator, [slots]) is None


def test_released_pages_are_sorted_in_where_disaggregation_wants_it():
    allocator = new_allocator(4, 4, need_sort=True)
    rows = extend(allocator, [[], [], []], [4, 4, 4])
    for row in (rows[2], rows[0]):
        allocator.free(torch.tensor(row))
    assert extend(allocator, [[]], [12]) == [[*range(4, 8), *range(12, 20)]]


@pytest.mark.parametrize("page_size", [1, 16])
def test_transfer_copies_exactly_the_given_slots_of_every_layer(page_size):
    torch.manual_seed(0)
    pages_src, pages_dst = torch.randperm(9)[:5], torch.randperm(12)[:5]
    offsets = torch.arange(page_size)
    src_indices, dst_indices = ((pages[:, None] * page_size + offsets).flatten() for pages in (pages_src, pages_dst))
    sources = [torch.randn(9 * page_size + 3, 2, 8) for _ in range(4)]
    targets = [torch.randn(12 * page_size, 2, 8) for _ in range(4)]
    expected = [target.clone() for target in targets]
    for source, target in zip(sources, expected, strict=True):
        for src, dst in zip(src_indices.tolist(), dst_indices.tolist(), strict=True):
            target[dst] = source[src]

    shims.transfer_kv_direct(sources, targets, src_indices, dst_indices, page_size)

    assert all(torch.equal(target, wanted) for target, wanted in zip(targets, expected, strict=True))


def test_transfer_refuses_lists_that_do_not_match():
    pool = [torch.zeros(32, 1, 1)]
    for source, target in ((torch.arange(16), torch.arange(32)), (torch.arange(8), torch.arange(8))):
        with pytest.raises(ValueError, match="whole pages of 16"):
            shims.transfer_kv_direct(pool, pool, source, target, 16)


def test_grammar_bitmask_forbids_exactly_the_cleared_tokens():
    mask = shims.allocate_vocab_mask(70, 2, "cpu")
    mask[1, 2] = 0b10  # of tokens 64 to 69 only 65 stays
    logits = torch.zeros(2, 70)
    shims.apply_vocab_mask(logits, mask)
    assert torch.isfinite(logits[0]).all()
    assert torch.isfinite(logits[1]).nonzero().flatten().tolist() == [*range(64), 65]


ALLOWED = {
    "device": "cpu",
    "attention_backend": "intel_amx",
    "prefill_attention_backend": None,
    "decode_attention_backend": None,
    "speculative_algorithm": None,
    "quantization": None,
    "kv_cache_dtype": "auto",
    "disaggregation_mode": "null",
    "enable_lora": None,
    "lora_paths": None,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "cuda"),
        ("attention_backend", "triton"),
        ("decode_attention_backend", "flashinfer"),
        ("speculative_algorithm", "EAGLE"),
        ("quantization", "fp8"),
        ("kv_cache_dtype", "fp8_e4m3"),
        ("disaggregation_mode", "prefill"),
    ],
)
def test_what_needs_a_gpu_is_refused_by_the_name_of_its_flag(name, value):
    refuse_unsupported(SimpleNamespace(**ALLOWED), CpuArchEnum.X86)
    with pytest.raises(UnsupportedOnCpuError, match=f"--{name.replace('_', '-')} {value} cannot run"):
        refuse_unsupported(SimpleNamespace(**{**ALLOWED, name: value}), CpuArchEnum.X86)


def test_adapters_are_refused():
    with pytest.raises(UnsupportedOnCpuError, match="--enable-lora cannot run"):
        refuse_unsupported(SimpleNamespace(**{**ALLOWED, "lora_paths": ["some/adapter"]}), CpuArchEnum.X86)


def test_another_machine_than_x86_is_refused():
    with pytest.raises(UnsupportedOnCpuError, match="x86-64"):
        refuse_unsupported(SimpleNamespace(**ALLOWED), CpuArchEnum.ARM)


def test_models_with_latent_attention_are_refused():
    with pytest.raises(UnsupportedOnCpuError, match="MLA"):
        TorchCpuPlatform().get_mla_kv_pool_cls()


@pytest.fixture
def clean_environment(monkeypatch):
    for name in ("OMP_NUM_THREADS", "SGLANG_CPU_OMP_THREADS_BIND", "SGLANG_NCCL_SO_PATH"):
        monkeypatch.setenv(name, "")  # so that it is taken back even where it was missing before
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "_set_here", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 4, 5})


def test_each_rank_gets_its_share_of_the_cores(clean_environment):
    environment.cpu_environment(2)
    assert os.environ["SGLANG_CPU_OMP_THREADS_BIND"] == "0,1|4,5"
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert not os.path.exists(os.environ["SGLANG_NCCL_SO_PATH"])


def test_more_ranks_than_cores_share_them(clean_environment):
    environment.cpu_environment(6)
    assert os.environ["SGLANG_CPU_OMP_THREADS_BIND"] == "0|1|4|5|0|1"
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_one_rank_needs_no_binding_and_what_was_set_for_two_is_taken_back(clean_environment):
    environment.cpu_environment(2)
    assert environment.cpu_environment(1) == {"OMP_NUM_THREADS": "4"}
    assert "SGLANG_CPU_OMP_THREADS_BIND" not in os.environ and "SGLANG_NCCL_SO_PATH" not in os.environ


def test_what_the_user_set_stays(clean_environment, monkeypatch):
    monkeypatch.setenv("SGLANG_CPU_OMP_THREADS_BIND", "0|1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert list(environment.cpu_environment(2)) == ["SGLANG_NCCL_SO_PATH"]
    environment.cpu_environment(1)
    assert os.environ["SGLANG_CPU_OMP_THREADS_BIND"] == "0|1" and os.environ["OMP_NUM_THREADS"] == "3"
