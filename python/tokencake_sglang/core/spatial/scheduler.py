"""Order and admission: what the engine asks about its waiting queue, answered from values alone.

Order: pools by fair share (`shares`), in a pool the request of the oldest program, in a program the one of the highest
priority that its client gives, of those the one with the longest path to the end of its run (`core/runs`), of equal
ones and without a graph the one that has waited longest. A session whose KV was given up, which is a program of one
agent, is behind the others of its pool for a while (`affinity`). A program's seniority ends after `seniority_s`: beyond
it requests go by their own age, so a request has only older requests before it once it has waited that long, whatever
arrives. That is the bound on waiting.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.spatial.affinity import affinity, ends_at
from tokencake_sglang.core.spatial.inversions import Inversion, inversion
from tokencake_sglang.core.spatial.load_control import Claim, Peaks, is_open, let_in
from tokencake_sglang.core.spatial.output_lengths import OutputLengths
from tokencake_sglang.core.spatial.pace import Pace
from tokencake_sglang.core.spatial.programs import AgentState, Program, ProgramTable
from tokencake_sglang.core.spatial.shares import FairShares, cost
from tokencake_sglang.core.spatial.urgency import may_change, urgency
from tokencake_sglang.core.spatial.views import Demand, Place, Waiting
from tokencake_sglang.core.spatial.waiting_order import Entry, Pool, Ranked, WaitingOrder

INTERLEAVED = 64  # places of the queue that are shared out between pools; behind them pools follow one another
PRESSED = 0.5  # of the capacity held: below it nobody waits at the door
LOOK_EVERY_S = 0.1  # the door is looked at again after this long,
LOOK_FOR_EACH_S = 0.001  # or after this long for each program that was looked at, if that is longer,
LOOK_AT_MOST_S = 10.0  # or at last after this long
LONGEST_WAIT_S = 600.0  # that is told; a pace of a slow moment is no forecast for an hour
RANKS_LAST_S = 1.0  # seniority and ranks that may change are looked at again after this long


class SpatialScheduler:
    """State of the spatial half on one rank; equal on every rank, since all it is told is."""

    def __init__(self, config: TokenCakeConfig) -> None:
        self.config = config
        self.programs = ProgramTable(config.max_agents)
        self.lengths = OutputLengths()
        self.shares = FairShares()
        self.peaks = Peaks()
        self.held_back: frozenset[str] = frozenset()
        self.place: Callable[[str], Place | None] = lambda rid: None  # of a request in the run of its graph
        self.lost: Callable[[str], int] = lambda agent: 0  # tokens of KV that were given up since it last ran
        self._entries: dict[str, Entry] = {}
        self._order = WaitingOrder(self._rank)
        self._number = 0
        self._changed = True  # the order may have
        self._turns = False  # several pools take turns, so that each admission changes the order
        self._ranked_at = self._placed_at = -math.inf
        self.pace = Pace()
        self._look_at = -math.inf
        self._newest = 0  # number of the program that had come last when the door was looked at
        self._let_in = ""  # the program that may pass in this step, since nothing runs
        self._inside: dict[str, int] = {}  # programs that were let in -> the most that each has held

    # -- events ---------------------------------------------------------------------------------------------

    def request_added(self, now: float, waiting: Waiting, state: AgentState) -> None:
        """It has joined the queue, or joined it again after a retraction."""
        entry = self._entries.get(waiting.rid)
        if entry is None:
            self._number += 1
            name = waiting.program or waiting.rid
            known = self.programs.get(name)
            was_one = known is not None and not known.has_many
            program = self.programs.request_added(now, name, waiting, state)
            entry = self._entries[waiting.rid] = Entry(waiting, self._number, program, now, waiting.pool)
            if was_one and program.has_many:
                self._look_again(program)  # its other requests: affinity is for sessions
        entry.runs = False
        self._order.add(entry)
        self.pace.joined(now)
        self._changed = True

    def request_admitted(self, now: float, rid: str, new_tokens: int) -> None:
        """It goes into a prefill batch with `new_tokens` to compute; the first time its pool is charged for it."""
        entry = self._entries.get(rid)
        if entry is None or entry.runs:
            return
        entry.runs = True
        self._order.remove(entry)
        self.pace.left(now, len(self._order), admitted=True)
        if entry.charged is None:
            entry.charged = self._cost(entry.waiting, new_tokens)
            entry.new_tokens = new_tokens
            self.shares.admit(entry.pool, entry.charged)
        self._changed = self._changed or self._turns

    def critical_inversions(self, rids: Sequence[str]) -> list[Inversion]:
        """Of these, which were admitted together: those that went before a request of their program with a longer path
        that still waits."""
        found = (inversion(self._entries[rid], self._entries, self.place) for rid in rids if rid in self._entries)
        return [one for one in found if one is not None]

    def request_ended(self, now: float, rid: str, output_tokens: int | None = None) -> None:
        """It finished after `output_tokens`, or went away (None)."""
        entry = self._entries.pop(rid, None)
        if entry is None:
            return
        self._order.remove(entry)
        if not entry.runs:
            self.pace.left(now, len(self._order), admitted=False)
        waiting = entry.waiting
        if output_tokens is not None:
            self.lengths.observe(waiting.kind, output_tokens)
            if entry.charged is not None:
                real = cost(entry.new_tokens, waiting.prompt_tokens, output_tokens)
                self.shares.correct(entry.pool, real - entry.charged)
        self.programs.request_ended(now, entry.program.name, rid)
        self._learn_from_ended(entry.program)
        self._changed = self._changed or self._turns

    def kv_lost_changed(self, program: str) -> None:
        """What `lost` says of an agent of the program is another than before."""
        known = self.programs.get(program)
        if known is not None and not known.has_many:
            self._look_again(known)

    def _look_again(self, program: Program) -> None:
        for rid in program.rids:
            self._order.look_again(self._entries[rid])

    def agent_ended(self, now: float, program: str, agent: str) -> None:
        known = self.programs.get(program)
        self.programs.agent_ended(now, program, agent)
        if known is not None:
            self._learn_from_ended(known)

    def _learn_from_ended(self, program: Program) -> None:
        if self.programs.get(program.name) is None:
            peak = self._inside.pop(program.name, 0)
            if peak:
                self.peaks.observe(program.application, peak)

    def rids(self) -> list[str]:
        """Of all requests that it knows, waiting or running."""
        return list(self._entries)

    @property
    def num_requests(self) -> int:
        return len(self._entries)

    # -- questions ------------------------------------------------------------------------------------------

    def order_may_have_changed(self, now: float) -> bool:
        """Whether `follow` has anything to do."""
        return self._changed or self._order.is_renewing or now - self._ranked_at >= RANKS_LAST_S

    def follow(self, now: float) -> bool:
        """Put those that have come, and those whose rank has changed, into their places. Whether the order may be
        another than at the last call."""
        if not self.order_may_have_changed(now):
            return False
        is_due = self._changed or now - self._ranked_at >= RANKS_LAST_S
        if is_due and now - self._placed_at >= RANKS_LAST_S:
            self._placed_at = now
            self._order.renew()
        if not self._order.place(now, now - self.config.seniority_s) and not is_due:
            return False
        self._changed, self._ranked_at = False, now if is_due else self._ranked_at
        return True

    @property
    def num_placed(self) -> int:
        """Requests that wait, as far as it was told."""
        return self._order.num_placed

    def arrivals(self) -> list[tuple[int, str]] | None:
        """After `follow`, for a queue of all that wait which was in order before: where those that have come have to
        stand, the first first, if that is all. None: ask `order_of_all`."""
        found = self._order.arrivals()
        if found is not None:
            self._look_at_pools(self._order.lines())
        return found

    def order_of_all(self) -> list[str]:
        """The order in which to try them, after `follow`, for a queue of all that wait."""
        return self._whole_order(self._order.lines(), [])

    def order_of(self, rids: Sequence[str]) -> list[str]:
        """The order in which to try these, after `follow`. Requests that were never added keep their places behind all
        others."""
        return self._whole_order(*self._order.of(rids))

    def _whole_order(self, pools: dict[Pool, list[str]], unknown: list[str]) -> list[str]:
        self._look_at_pools(pools)
        return self._interleaved(pools) + unknown

    def _look_at_pools(self, pools: dict[Pool, list[str]]) -> None:
        self.shares.update(pools)
        self._turns = len(pools) > 1

    def waits(self, rids: Iterable[str]) -> int:
        """How many of these wait."""
        return sum([not self._entries[rid].runs for rid in rids if rid in self._entries])

    def waiting(self, most: int) -> list[tuple[str, str, float | None]]:
        """Waiting requests in the order of their arrival, each with its program ("" for a plain one) and its path."""
        waiting = (entry.waiting for entry in self._entries.values() if not entry.runs)
        found = ((one.rid, one.program, self.place(one.rid)) for one in islice(waiting, most))
        return [(rid, program, None if place is None else place.path_s) for rid, program, place in found]

    def wait_s(self, program: str) -> float:
        """Seconds that a request of `program` would wait behind those of older ones that wait now, at the pace at which
        waiting ones were admitted last."""
        known = self.programs.get(program)
        if known is None:
            return 0.0
        return min(LONGEST_WAIT_S, self._order.before(known.order) / self.pace.per_s)

    def admit(self, now: float, demand: Demand, state: AgentState) -> None:
        """Decide which programs wait at the door in this step (`held_back`)."""
        self._let_in = ""
        if is_open(demand, self.config.chunks == "balanced") or demand.total_held < PRESSED * demand.capacity:
            self.held_back = frozenset()
            return
        if now >= self._look_at:
            self._look(now, demand, state)
        if self.held_back and not demand.running:
            waiting = [entry for entry in self._entries.values() if not entry.runs and entry.waiting.program]
            first = min(waiting, key=lambda entry: (entry.program.order, entry.number), default=None)
            if first is not None:
                self._let_in = first.program.name
                self._inside.setdefault(self._let_in, 0)

    def _look(self, now: float, demand: Demand, state: AgentState) -> None:
        """At the programs that are at it: the more there are, the less often."""
        programs = self.programs.at_it(now, state)
        holding, peak_of, known = demand.held, self.peaks.of, self._inside
        claims = (Claim(p, holding.get(p.name, 0), peak_of(p.application) or 0.0, p.name in known) for p in programs)
        inside = let_in(claims, demand.capacity, now)
        for program, held, *_ in inside:
            known[program.name] = max(known.get(program.name, 0), held)
        self.held_back = frozenset([program.name for program in programs[len(inside):]])
        self._newest = self.programs.arrivals
        self._look_at = now + min(LOOK_AT_MOST_S, max(LOOK_EVERY_S, LOOK_FOR_EACH_S * len(programs)))

    def holds_back(self, rid: str) -> bool:
        """Those that waited when it was last looked, and if any did, those that have come since."""
        if not self.held_back:
            return False
        entry = self._entries.get(rid)
        if entry is None or not entry.waiting.program or entry.program.name == self._let_in:
            return False
        return entry.program.name in self.held_back or entry.program.order > self._newest

    def most_expected(self, rid: str) -> float:
        """Tokens that the request will hardly exceed: as its client says, else by its kind; infinity: nothing is known,
        or admission goes by what was asked for."""
        entry = self._entries.get(rid) if self.config.admission == "forecast" else None
        if entry is None:
            return math.inf
        told = entry.waiting.expected_tokens
        return self.lengths.bound(entry.waiting.kind) if told is None else told

    # -- inside ---------------------------------------------------------------------------------------------

    def _rank(self, now: float, entry: Entry) -> Ranked:
        waiting, priority = entry.waiting, self.config.priority
        place = self.place(waiting.rid)
        slow, path = urgency(priority, now, waiting, entry.joined_at, place)
        has_affinity = bool(waiting.agent) and place is None and not entry.program.has_many
        far = affinity(self.lost(waiting.agent), now, entry.joined_at) if has_affinity else 0
        rank = 1, far, entry.program.order, -waiting.priority, slow, path, entry.number, waiting.rid
        if may_change(priority, place):
            return Ranked(rank, may_change=True)
        return Ranked(rank, changes_at=ends_at(entry.joined_at) if has_affinity else math.inf)

    def _interleaved(self, pools: dict[Pool, list[str]]) -> list[str]:
        """The pool that has been served least takes the next place. Behind INTERLEAVED places one pool follows the
        other, that which would be next first."""
        if len(pools) == 1:
            return next(iter(pools.values())).copy()
        times = self.shares.times()
        turns = [(times.get(pool, 0.0), pool) for pool in pools]
        heapq.heapify(turns)
        taken, order = dict.fromkeys(pools, 0), []
        while turns and len(order) < INTERLEAVED:
            at, pool = turns[0]
            rid = pools[pool][taken[pool]]
            taken[pool] += 1
            order.append(rid)
            if taken[pool] == len(pools[pool]):
                heapq.heappop(turns)
                continue
            waiting = self._entries[rid].waiting
            heapq.heapreplace(turns, (at + self._cost(waiting, waiting.prompt_tokens), pool))
        for _, pool in sorted(turns):
            order += pools[pool][taken[pool]:]
        return order

    def _cost(self, waiting: Waiting, new_tokens: int) -> float:
        expected: float | None = waiting.expected_tokens
        if expected is None:
            expected = self.lengths.expected(waiting.kind, waiting.max_new_tokens)
        expected = min(expected, waiting.max_new_tokens)
        return cost(new_tokens, waiting.prompt_tokens, expected)
