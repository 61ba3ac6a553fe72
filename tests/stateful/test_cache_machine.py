"""The real cache under random lives of agents, against a plain model.

The model knows, for each agent, the token sequences whose KV its requests have cached; everything else is
compared with that. Copies land when the machine says so. `TOKENCAKE_STATEFUL=long` runs far more lives.

What was broken, and which check then failed within the ordinary number of lives:
- an offload that does not wait for the acknowledgement of its copies, or takes nodes that requests use: a slot
  is free twice (`the_books_agree`) or a request reads foreign KV (`decode`);
- an offload that does not look at owners again when it ends: `on_step`, KV of a second owner moved;
- a split that does not pass on the owners, a path whose ancestors are not tagged: `agrees_with_the_model`;
- removal or reset that leaves the index as it was, an ended agent whose KV is not dead: `the_books_agree`;
- an upload that locks what has landed: `only_requests_and_copies_under_way_hold_kv`;
- an upload that takes room beyond free and dead KV: `upload`, KV of a live agent evicted;
- a batch that does not wait for KV on its way, an upload that counts as landed too early: `forward`, the slots
  hold what was there before;
- a dead node that is not counted again when it is locked, split or leaves the device: `dead_kv_is_counted_right`;
- accounts that leave out KV which nobody owns, what a request has beyond the tree or the rest of its last page, all
  but the end of a load: `every_token_is_in_one_account`;
- a cancel, or the end of an agent, that leaves the offload under way: `cancel`, `agent_ends`.
It does not see the order inside an eviction class, nor which host copies make room (tests/engine does).
"""

from __future__ import annotations

import os
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.cache_fixture import CacheHarness
from tests.support.transfer_clock import TransferClock
from tokencake_sglang.core.plan import CancelOffload, Offload, Release, Upload
from tokencake_sglang.core.types import Footprint
from tokencake_sglang.engine.moves import KvMover
from tokencake_sglang.engine.owners import ANONYMOUS, owners_of
from tokencake_sglang.engine.pools import PoolMeter

LONG = os.environ.get("TOKENCAKE_STATEFUL") == "long"
AGENTS = ("a", "b", "c")
BLOCK = 16
RUNNING_MAX = 4

agents = st.sampled_from(AGENTS)
prompts = st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=4), st.integers(0, BLOCK - 1)).map(
    lambda drawn: [b * 100 + d * 20 + i for d, b in enumerate(drawn[0]) for i in range(BLOCK)][: -drawn[1] or None])


class CacheMachine(RuleBasedStateMachine):
    page_size = 1
    write_through = False

    def __init__(self) -> None:
        super().__init__()
        self.patches = pytest.MonkeyPatch()
        clock = TransferClock()
        clock.install(self.patches)
        self.h = CacheHarness(clock, page_size=self.page_size, device_tokens=160, host_tokens=128,
                              load_slots=6, write_through=self.write_through)
        self.mover = KvMover(self.h.cache, self.h)
        self.h.cache.on_step = self.on_step
        self.h.cache.on_reset = self.mover.reset
        self.admitted: list[Any] = []  # their prefill passes have not run
        self.computed: list[Any] = []  # their results have not been processed
        self.waiting: list[Any] = []  # retracted
        self.cached: dict[str, set[tuple[int, ...]]] = {key: set() for key in (ANONYMOUS, *AGENTS)}
        self.started = self.finished = 0

    def teardown(self) -> None:
        try:
            self.drain()
        finally:
            self.patches.undo()

    def drain(self) -> None:
        """In the end everything lands, every request finishes, every agent ends, and nothing is held any more."""
        while self.admitted:
            self.forward()
        while self.computed:
            self.result()
        for req in list(self.h.running_batch.reqs):
            self.end(req, "finish")
        for key in AGENTS:
            self.agent_ends(key)
        self.h.settle()
        self.h.step()
        self.agrees_with_the_model()
        cache = self.h.cache
        assert cache.protected_size() == 0 and cache.uploading == {} and self.mover.moves_in_flight() == []
        assert self.started == self.finished, "a move was started and never reported"
        assert self.h.evict(10**6) + self.h.allocator.available_size() >= 160
        cache.evict_host(10**6)
        self.h.audit()
        assert self.h.host.available_size() == 128 and self.h.nodes() == []

    # -- the model ------------------------------------------------------------------------------------------

    def owners(self, tokens: list[int]) -> set[str]:
        end = tuple(tokens)
        return {key for key, seqs in self.cached.items() if any(seq[: len(end)] == end for seq in seqs)}

    def note_cached(self, req: Any, tokens: list[int]) -> None:
        aligned = tuple(tokens[: len(tokens) // self.page_size * self.page_size])
        if aligned:
            self.cached[req.agent_metadata["agent_id"] if req.agent_metadata else ANONYMOUS].add(aligned)

    def forget_what_has_left(self) -> None:
        """KV that is in the tree no more has no owners, also when somebody caches it again later."""
        for key, seqs in self.cached.items():
            self.cached[key] = {seq[:n] for seq in seqs if (n := self.present(seq)) > 0}

    def present(self, seq: tuple[int, ...]) -> int:
        return len(self.h.tokens_of(self.h.peek(seq)))

    def used_by_requests(self) -> set[int]:
        return {n.id for req in self.h.running_batch.reqs for n in self.h.path(req.last_node)}

    def on_device(self) -> dict[int, tuple[Any, set[str]]]:
        return {n.id: (n, self.owners(self.h.tokens_of(n))) for n in self.h.nodes() if n.value is not None}

    # -- requests -------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.h.running_batch.reqs) < RUNNING_MAX)
    @rule(agent=st.one_of(agents, agents, st.none()), prompt=prompts)
    def admit(self, agent: str | None, prompt: list[int]) -> None:
        self.admit_request(self.h.request(prompt, agent))

    @precondition(lambda self: self.waiting and len(self.h.running_batch.reqs) < RUNNING_MAX)
    @rule()
    def admit_retracted(self) -> None:
        req = self.waiting.pop(0)
        if not self.admit_request(req):
            self.waiting.append(req)

    def admit_request(self, req: Any) -> bool:
        admitted = self.h.admit(req)
        if admitted:
            self.admitted.append(req)
        self.forget_what_has_left()
        return admitted

    def forward(self) -> None:
        req = self.admitted.pop(0)
        self.h.forward(req)
        self.computed.append(req)

    def result(self) -> None:
        req = self.computed.pop(0)
        self.cache_kv(req, req.origin_input_ids + req.output_ids, lambda: self.h.result(req))

    @precondition(lambda self: self.admitted or self.computed)
    @rule(passes=st.integers(0, 4), results=st.integers(0, 4))
    def progress(self, passes: int, results: int) -> None:
        """Prefill passes run, and their results are processed, in the order in which they were started."""
        for _ in range(min(passes, len(self.admitted))):
            self.forward()
        for _ in range(min(results, len(self.computed))):
            self.result()

    @initialize(served=st.lists(st.tuples(agents, prompts), min_size=2, max_size=4))
    def some_agents_have_kv(self, served: list[tuple[str, list[int]]]) -> None:
        for agent, prompt in served:
            self.serve(agent, prompt, 0)

    @precondition(lambda self: len(self.h.running_batch.reqs) < RUNNING_MAX)
    @rule(agent=st.one_of(agents, agents, st.none()), prompt=prompts, steps=st.integers(0, 20))
    def serve(self, agent: str | None, prompt: list[int], steps: int) -> None:
        """The whole life of a request."""
        req = self.h.request(prompt, agent)
        if not self.admit_request(req):
            return
        while self.admitted:
            self.forward()
        while self.computed:
            self.result()
        self.decode_steps(req, steps)
        self.end(req, "finish")

    def cache_kv(self, req: Any, tokens: Any, act: Any) -> None:
        """Run `act`, which caches the KV of `tokens`. A copy it starts may push other KV off the host first."""
        before = {n.id for n in self.h.nodes()}
        aligned = list(tokens)[: len(tokens) // self.page_size * self.page_size]
        act()
        if before - {n.id for n in self.h.nodes()}:  # gone and, it may be, cached again in one: follow the tags
            path = self.h.path(self.h.peek(aligned))
            for key, seqs in self.cached.items():
                own = sum(len(n.key) for n in path if key in owners_of(n))
                self.cached[key] = {s[:own] if own < self.shared(s, aligned) else s for s in seqs} - {()}
        self.note_cached(req, list(tokens))
        self.forget_what_has_left()

    def shared(self, seq: tuple[int, ...], tokens: list[int]) -> int:
        """Tokens in whole pages that both begin with."""
        pairs = enumerate(zip(seq, tokens, strict=False))
        same = next((i for i, (x, y) in pairs if x != y), min(len(seq), len(tokens)))
        return same // self.page_size * self.page_size

    def decoding(self) -> list[Any]:
        return [r for r in self.h.running_batch.reqs if r not in self.admitted and r not in self.computed]

    @precondition(lambda self: self.decoding())
    @rule(data=st.data(), steps=st.integers(1, 20))
    def decode(self, data: Any, steps: int) -> None:
        req = data.draw(st.sampled_from(self.decoding()))
        while self.admitted:  # passes run in the order in which they were started
            self.forward()
        self.decode_steps(req, steps)

    @precondition(lambda self: any(self.cached.values()) and len(self.h.running_batch.reqs) < RUNNING_MAX)
    @rule(agent=st.one_of(agents, agents, st.none()), data=st.data(), more=st.integers(1, 20), finish=st.booleans())
    def go_on(self, agent: str | None, data: Any, more: int, finish: bool) -> None:
        """A request whose prompt begins with KV that is cached, to its end or only admitted."""
        seq = data.draw(st.sampled_from(sorted({seq for seqs in self.cached.values() for seq in seqs})))
        prompt = [*seq[:80], *[7 + more] * more]
        if finish:
            self.serve(agent, prompt, 0)
        else:
            self.admit_request(self.h.request(prompt, agent))

    def decode_steps(self, req: Any, steps: int) -> None:
        for _ in range(steps):
            if self.h.allocator.available_size() + self.h.cache.evictable_size() < 2 * self.page_size:
                break
            self.h.decode(req)
        self.forget_what_has_left()

    @precondition(lambda self: self.decoding())
    @rule(data=st.data(), how=st.sampled_from(["finish", "finish", "abort", "drop", "retract"]))
    def end_one(self, data: Any, how: str) -> None:
        self.end(data.draw(st.sampled_from(self.decoding())), how)

    def end(self, req: Any, how: str) -> None:
        if how == "drop":
            self.h.abort(req, is_insert=False)
        elif how == "retract":
            self.h.retract(req)
            self.waiting.append(req)
        else:
            self.cache_kv(req, self.h.ids(req), lambda: getattr(self.h, how)(req))

    @rule(prompt=prompts)
    def match(self, prompt: list[int]) -> None:
        found = self.h.match(prompt)
        _, landing = self.h.clock.pending_slots(self.h.loads)
        if landing.isdisjoint(found.device_indices.tolist()):
            self.h.expect_slots(found.device_indices, prompt[: len(found.device_indices)])

    # -- moves ----------------------------------------------------------------------------------------------

    def may_go(self) -> list[str]:
        return [key for key in AGENTS if self.h.cache.owners.footprint(key).unshared_device_tokens > 0]

    def may_come(self) -> list[str]:
        return [key for key in AGENTS if self.h.cache.owners.footprint(key).restore_tokens >= 10]

    @precondition(lambda self: self.may_go())
    @rule(data=st.data())
    def start_offload(self, data: Any) -> None:
        self.offload(data.draw(st.sampled_from(self.may_go())))

    def offload(self, agent: str) -> None:
        before = self.on_device()
        self.started += self.mover.execute(agent, Offload(1e9)).accepted
        self.forget_what_has_left()
        assert self.on_device().keys() == before.keys(), "an offload took KV off the device before its copies landed"

    @precondition(lambda self: self.mover.offloads.under_way)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        agent = data.draw(st.sampled_from(sorted(self.mover.offloads.under_way)))
        self.mover.execute(agent, CancelOffload())
        assert agent not in self.mover.offloads.under_way

    @precondition(lambda self: self.h.cache.owners.protected)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        agent = data.draw(st.sampled_from(sorted(self.h.cache.owners.protected)))
        self.mover.execute(agent, Release())
        assert agent not in self.h.cache.owners.protected

    @precondition(lambda self: self.may_come())
    @rule(data=st.data(), quota=st.sampled_from([1000, 64, 32, 20, 10, 0]), least=st.sampled_from([None, 10, 20]))
    def start_upload(self, data: Any, quota: int, least: int | None) -> None:
        self.upload(data.draw(st.sampled_from(self.may_come())), quota, least)

    def upload(self, agent: str, quota: int, least: int | None = None) -> None:
        """`least`: a node may be cut for it."""
        before, missing = self.on_device(), self.h.cache.owners.footprint(agent).restore_tokens
        outcome = self.mover.execute(agent, Upload(quota, 1e9, min_tokens=least))
        assert outcome.tokens <= quota
        if outcome.accepted and least is not None:
            assert outcome.tokens >= min(least, missing) // self.page_size * self.page_size
        self.started += outcome.accepted
        after = self.on_device()
        for node_id in before.keys() - after.keys():
            assert before[node_id][1] == set(), f"an upload evicted KV of {before[node_id][1]}"
        self.forget_what_has_left()

    @precondition(lambda self: self.may_go())
    @rule(data=st.data(), back=st.booleans())
    def stall(self, data: Any, back: bool) -> None:
        """An agent's KV is sent away to the end and, it may be, starts to come back."""
        agent = data.draw(st.sampled_from(self.may_go()))
        for req in self.decoding():
            if req.agent_metadata == {"agent_id": agent}:
                self.end(req, "finish")
        self.offload(agent)
        self.land(9, 0)
        self.h.step()
        if back:
            self.upload(agent, 1000)

    @rule(writes=st.integers(0, 3), loads=st.integers(0, 3))
    def land(self, writes: int, loads: int) -> None:
        for stream, count in ((self.h.writes, writes), (self.h.loads, loads)):
            for _ in range(count):
                self.h.clock.complete_one(stream)

    def on_step(self) -> None:
        offloading = set(self.mover.offloads.under_way)
        before, in_use = self.on_device(), self.used_by_requests()
        done = self.mover.take_completions()
        self.finished += len(done)
        after = self.on_device()
        moved = 0
        for node_id in before.keys() - after.keys():
            node, who = before[node_id]
            assert node_id not in in_use, "an offload moved KV that a running request uses"
            if who:  # dead KV below the path may go along
                moved += len(node.key)
                assert len(who) == 1 and who <= offloading, f"an offload of {offloading} moved KV of {who}"
        assert moved == sum(d.tokens for d in done if d.kind == "offload")

    @rule(writes=st.integers(0, 3), loads=st.integers(0, 3))
    def step(self, writes: int, loads: int) -> None:
        self.land(writes, loads)
        self.h.step()

    # -- pressure, ends, flush ------------------------------------------------------------------------------

    @rule(recalled=st.sets(st.sampled_from((ANONYMOUS, *AGENTS))))
    def pools_want_something_back(self, recalled: set[str]) -> None:
        """Nobody tells the queue of victims."""
        self.h.cache.worth.is_recalled = lambda node: owners_of(node).keys() <= recalled

    @rule(tokens=st.integers(1, 64))
    def evict(self, tokens: int) -> None:
        dead = {i for i, (n, who) in self.on_device().items() if not who and n.lock_ref == 0}
        self.h.evict(tokens)
        left = self.on_device()
        gone_alive = [n for n in dead if n in left]
        if gone_alive:
            assert self.h.cache.owners.dead_evictable_tokens(10**6) > 0
        self.forget_what_has_left()

    @rule(tokens=st.integers(1, 64))
    def evict_host(self, tokens: int) -> None:
        self.h.cache.evict_host(tokens)
        self.forget_what_has_left()

    @rule(agent=agents)
    def agent_ends(self, agent: str) -> None:
        self.mover.forget(agent)
        assert agent not in self.mover.offloads.under_way
        self.cached[agent] = set()

    @precondition(lambda self: not self.h.running_batch.reqs)
    @rule()
    def flush(self) -> None:
        """SGLang flushes only when it is idle: no request and no copy that is not acknowledged."""
        self.h.clock.complete_all(self.h.writes, self.h.loads)
        self.h.cache.writing_check()
        self.h.cache.loading_check()
        self.h.flush()
        self.cached = {key: set() for key in self.cached}

    # -- what holds after each step -------------------------------------------------------------------------

    @invariant()
    def the_books_agree(self) -> None:
        self.h.audit()

    @invariant()
    def only_requests_and_copies_under_way_hold_kv(self) -> None:
        """What has been loaded is evictable again: nobody that waits for memory waits for it."""
        cache = self.h.cache
        copying = [*cache.ongoing_load_back.values(), *(ends[0] for ends in cache.ongoing_write_through.values())]
        held = self.used_by_requests() | {n.id for end in copying for n in self.h.path(end)}
        assert {n.id for n in self.h.nodes() if n.lock_ref > 0} <= held

    @invariant()
    def every_token_is_in_one_account(self) -> None:
        meter, free = PoolMeter(self.h.cache, self.h), self.h.allocator.available_size()
        books, used = meter.books(), sum(meter.used().values())
        assert books.total + free == self.h.max_total_num_tokens, f"{books.accounts} and {free} free"
        assert books.accounts.keys() <= {ANONYMOUS, *AGENTS} and min([0, *map(min, books.accounts.values())]) == 0
        in_use = self.h.max_total_num_tokens - free - self.h.cache.evictable_size()
        moving = sum(tokens.in_transfer for tokens in books.accounts.values())
        assert used <= in_use, f"{used} used by requests, {in_use} not evictable"
        assert moving or used == in_use, f"{used} used by requests, {in_use} not evictable, and nothing is copied"
        landing = self.h.clock.pending_slots(self.h.loads)[1] | self.h.clock.pending_slots(self.h.writes)[0]
        assert len(landing) <= moving, f"{len(landing)} slots are being copied, {moving} tokens in transfer"

    @invariant()
    def agrees_with_the_model(self) -> None:
        for node in self.h.nodes():
            tokens = self.h.tokens_of(node)
            assert set(owners_of(node)) == self.owners(tokens), (
                f"node of {len(tokens)} tokens: tags {set(owners_of(node))}, model {self.owners(tokens)}")

    @invariant()
    def dead_kv_is_counted_right(self) -> None:
        owners = self.h.cache.owners
        free = [n for n in self.h.nodes() if n.id in owners.dead and n.value is not None and n.lock_ref == 0]
        assert owners.dead_evictable_tokens(10**6) == sum(len(n.key) for n in free)

    @invariant()
    def footprints_are_what_the_tree_holds(self) -> None:
        owners = self.h.cache.owners
        for key in AGENTS:
            mine = [n for n in self.h.nodes() if key in owners_of(n)]
            alone = [n for n in mine if n.value is not None and len(owners_of(n)) == 1]
            path = self.h.path(owners.leaf[key]) if key in owners.leaf else []
            expected = Footprint(
                device_tokens=sum(len(n.key) for n in mine if n.value is not None),
                host_tokens=sum(len(n.key) for n in mine if n.host_value is not None),
                unshared_device_tokens=sum(len(n.key) for n in alone),
                restore_tokens=sum(len(n.key) for n in path if n.value is None),
                path_tokens=sum(len(n.key) for n in path),
                backed_up_tokens=sum(len(n.key) for n in alone if n.host_value is not None))
            assert owners.footprint(key) == expected
            assert owners.device_tokens(key) == expected.device_tokens

    @invariant()
    def offloads_and_uploads_exclude_each_other(self) -> None:
        assert not self.mover.offloads.under_way.keys() & self.mover.uploads.under_way.keys()
        assert self.h.cache.loads_in_flight() <= 6


class PagedCacheMachine(CacheMachine):
    page_size = 16


class WriteThroughMachine(CacheMachine):
    write_through = True


class PagedWriteThroughMachine(PagedCacheMachine):
    write_through = True


@pytest.mark.parametrize("machine", [CacheMachine, PagedCacheMachine, WriteThroughMachine, PagedWriteThroughMachine])
def test_random_lives_of_agents_keep_the_cache_and_the_model_in_agreement(machine):
    profile = settings(
        max_examples=2000 if LONG else 150, stateful_step_count=100 if LONG else 60, deadline=None,
        derandomize=not LONG, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink))
    run_state_machine_as_test(machine, settings=profile)
