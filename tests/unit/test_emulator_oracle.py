"""Token ids, fingerprints of token sequences, and the contents of KV slots."""

from __future__ import annotations

import subprocess
import sys
from array import array

import numpy as np
import pytest

from tokencake_sglang.emulator.oracle import Copy, KvOracle, TokenChain
from tokencake_sglang.emulator.tokens import EOS, FIRST, VOCABULARY, OutputPlan, text_tokens

# -- tokens -----------------------------------------------------------------------------------------------------


def test_a_longer_text_starts_with_the_shorter_one_of_its_key():
    assert text_tokens("a", 1000)[:100] == text_tokens("a", 100)
    assert len(text_tokens("a", 0)) == 0


def test_texts_of_other_keys_differ_from_the_start_on():
    starts = {tuple(text_tokens(f"key {i}", 4)) for i in range(2000)}
    assert len(starts) == 2000


def test_token_ids_are_ordinary_ones_and_use_the_whole_vocabulary():
    tokens = text_tokens("a", 200_000)
    assert min(tokens) == FIRST and max(tokens) == VOCABULARY - 1
    assert tokens.typecode == "q"


def test_tokens_are_equal_in_every_process():
    code = "from tokencake_sglang.emulator.tokens import text_tokens; print(list(text_tokens('a', 5)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(list(text_tokens("a", 5)))


def test_an_output_ends_by_eos_or_by_its_length():
    by_eos, by_length = OutputPlan("r", 5, ends_by_eos=True), OutputPlan("r", 5, ends_by_eos=False)
    assert [by_eos.token(i) for i in range(7)] == [*by_length.tokens[:4], EOS, EOS, EOS]
    assert EOS not in by_length.tokens and len(by_length.tokens) == len(by_eos.tokens) == 5
    assert OutputPlan("s", 5, ends_by_eos=False).tokens != by_length.tokens


# -- fingerprints -----------------------------------------------------------------------------------------------


def prints(*tokens: int) -> list[int]:
    return TokenChain(array("q", tokens)).prints.tolist()


def test_a_fingerprint_covers_the_token_its_position_and_all_before_it():
    assert prints(5, 6, 7)[:2] == prints(5, 6)
    assert prints(5, 6)[1] != prints(4, 6)[1]  # an earlier token differs
    assert prints(5, 6)[1] != prints(6, 5)[1]  # the same tokens in another order
    assert prints(6)[0] != prints(5, 6)[1]  # another position
    assert prints(0)[0] != prints(0, 0)[1]  # a token of id 0 counts
    assert 0 not in prints(0, 0, 0)  # 0 stands for a slot that was never written


def test_a_chain_that_grew_equals_one_made_at_once():
    tokens = text_tokens("a", 9000)
    whole, grown = TokenChain(tokens), TokenChain(tokens[:10])
    for start, end in ((10, 11), (11, 5000), (5000, 9000)):
        grown.grow(tokens[start:end])
    assert (whole.prints == grown.prints).all()
    empty = TokenChain(array("q"))
    empty.grow(tokens)
    assert (empty.prints == whole.prints).all()


def test_fingerprints_of_many_sequences_do_not_collide():
    chains = [TokenChain(text_tokens(f"k{i}", 500)).prints for i in range(200)]
    assert len(np.unique(np.concatenate(chains))) == 200 * 500


# -- contents ---------------------------------------------------------------------------------------------------

SEQUENCE = TokenChain(text_tokens("a", 8)).prints
SLOTS = np.arange(2, 10)
HOST = np.arange(8)


@pytest.fixture
def oracle() -> KvOracle:
    oracle = KvOracle(layers=2, device_slots=32, host_slots=32)
    oracle.write(SLOTS, SEQUENCE)
    return oracle


def copy(oracle: KvOracle, direction: str, source: np.ndarray, target: np.ndarray, layers=range(2)) -> Copy:
    return Copy(oracle, direction, layers, source, target)


def bad_reads(oracle: KvOracle, slots: np.ndarray, layer: int = 0) -> int:
    before = oracle.bad
    oracle.check(layer, slots, SEQUENCE[:len(slots)], "reader")
    return oracle.bad - before


def test_what_was_written_is_read_and_anything_else_is_counted(oracle):
    assert bad_reads(oracle, SLOTS) == 0 and oracle.first_bad == ""
    assert bad_reads(oracle, SLOTS[::-1]) == 8
    assert bad_reads(oracle, np.array([2, 3, 20])) == 1
    assert oracle.checked == 19 and oracle.bad == 9
    assert oracle.first_bad == "reader: 8 of 8 slots, layer 0"


def test_a_round_trip_over_the_host_brings_the_contents_back(oracle):
    out, back = copy(oracle, "d2h", SLOTS, HOST), copy(oracle, "h2d", HOST, SLOTS + 10)
    out.begin()
    out.end()
    oracle.write(SLOTS, SEQUENCE + np.uint64(1))  # the slots are another request's now
    back.begin()
    assert bad_reads(oracle, SLOTS + 10) == 8  # not there before the end
    back.end()
    assert bad_reads(oracle, SLOTS + 10) == 0


def test_a_load_of_one_layer_brings_only_that_layer(oracle):
    copy(oracle, "d2h", SLOTS, HOST).end()
    copy(oracle, "h2d", HOST, SLOTS + 10, range(1, 2)).end()
    assert bad_reads(oracle, SLOTS + 10, layer=1) == 0
    assert bad_reads(oracle, SLOTS + 10, layer=0) == 8


def test_a_source_that_changes_on_the_way_arrives_as_nothing(oracle):
    """Also where it changes into what the reader wants: a copy may have read it before."""
    oracle.write(SLOTS[:3], SEQUENCE[:3] + np.uint64(1))
    out = copy(oracle, "d2h", SLOTS, HOST)
    out.begin()
    oracle.write(SLOTS[:3], SEQUENCE[:3])
    out.end()
    copy(oracle, "h2d", HOST, SLOTS).end()
    assert bad_reads(oracle, SLOTS) == 3


def test_a_source_that_was_written_before_the_copy_began_arrives_as_it_was_then(oracle):
    out = copy(oracle, "d2h", SLOTS + 10, HOST)  # queued before its slots were written
    oracle.write(SLOTS + 10, SEQUENCE)
    out.begin()
    out.end()
    copy(oracle, "h2d", HOST, SLOTS).end()
    assert bad_reads(oracle, SLOTS) == 0
