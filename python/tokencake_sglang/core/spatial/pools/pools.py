"""The state of all pools on one rank: requests by account, sizes, and who is passed over. Equal on every rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tokencake_sglang.core.config import TokenCakeConfig
from tokencake_sglang.core.spatial.pools.account import NOBODY, UNTYPED, Account, Pool, Tokens, account_of
from tokencake_sglang.core.spatial.pools.gate import CEILING, Claim, Gate
from tokencake_sglang.core.spatial.pools.recall import recalled
from tokencake_sglang.core.spatial.pools.score import LiveRequest, TypeFacts
from tokencake_sglang.core.spatial.pools.sizes import SIZES, DemandSizes, Sizes
from tokencake_sglang.core.spatial.views import Place, Structure, Waiting
from tokencake_sglang.core.tenant_shares import parse_shares

LOOK_EVERY_S = 0.1  # at who uses how much
RECALL_EVERY_S = 1.0  # at most: it looks at the whole tree
PASSED_OVER_S = 60.0  # at most, for the sake of a reserve or a floor; for its ceiling, before its tenant makes room
SOON_S = 1.0  # a stalled agent that is expected within this counts as critical work that comes next
CRITICAL_IMPORTANCE = 9.0  # of 10: its path is at least 0.9 of the longest of its run


@dataclass(frozen=True)
class Device:
    """`used`: tokens by running request; together all that is in use."""

    total: int
    used: Mapping[str, int]


@dataclass
class _Request:
    waiting: Waiting
    account: Account
    need: int  # tokens: the prompt, and the output that is expected
    joined_at: float
    runs: bool = False
    ran: bool = False
    denial: str | None = None  # why it was passed over in the last step in which it was asked for
    denied_since: float | None = None


class Pools:
    """`place` of a request, `importance` and `order_of` an agent, and `returning(by)`, the stalled agents that are
    expected by then with the tokens that they will need, come from the rest of the system."""

    def __init__(self, config: TokenCakeConfig) -> None:
        self.shares = parse_shares(config.tenant_shares)
        self._has_ceilings = any(share.ceiling < 1.0 for share in self.shares.values())
        self._sizes: Sizes | None = SIZES[config.pools]() if config.pools in SIZES else None
        self.is_on = bool(self.shares) or self._sizes is not None
        self.gate = Gate(shares=self.shares)
        self.gate.claims = {} if isinstance(self._sizes, DemandSizes) else None
        self.account_of: dict[str, Account] = {}  # agent -> its account
        self.on_denied: Callable[[str], None] = lambda reason: None  # a request is passed over for the first time
        self.place: Callable[[str], Place | None] = lambda rid: None
        self.importance: Callable[[str], float] = lambda agent: 0.0
        self.order_of: Callable[[str], int] = lambda agent: 0  # of its program's arrival
        self.returning: Callable[[float], Iterable[tuple[str, int]]] = lambda by: ()
        self.agents_at_it: Callable[[], Iterable[str]] = lambda: ()  # of programs with requests, or only away
        self._requests: dict[str, _Request] = {}
        self._denials_of: dict[Pool, int] = {}
        self._retractions_of: dict[Pool, int] = {}
        self._passed: dict[str, _Request] = {}  # of this step, not admitted yet
        self._lets_one_in = False  # nothing runs
        self._makes_room: dict[str, str] = {}  # tenant -> its request for which those behind wait in this step
        self._look_at = self._size_at = self._recall_at = -math.inf

    # -- events ---------------------------------------------------------------------------------------------

    def request_added(self, now: float, waiting: Waiting, expected_tokens: float) -> None:
        """It has joined the queue, or joined it again after a retraction."""
        account = account_of(waiting)
        if waiting.agent:
            self.account_of[waiting.agent] = account
            if self.gate.claims:
                self.gate.claims.pop(waiting.agent, None)
        if not self.is_on:
            return
        known = self._requests.get(waiting.rid)
        if known is not None:
            if known.runs:
                known.runs = False
                self._retractions_of[account.pool] = self._retractions_of.get(account.pool, 0) + 1
                self.gate.joined(known.account)
            return
        need = waiting.prompt_tokens + math.ceil(expected_tokens)
        self._requests[waiting.rid] = _Request(waiting, account, need, now)
        self.gate.joined(account)

    def request_admitted(self, rid: str) -> None:
        request = self._requests.get(rid)
        if request is None or request.runs:
            return
        if self._passed.pop(rid, None) is None:
            self.gate.take(request.account, request.need)
        request.runs = request.ran = True
        request.denial = None

    def request_ended(self, rid: str) -> None:
        """It finished, or went away. What it used is known at the next look."""
        request = self._requests.pop(rid, None)
        if request is None or request.runs:
            return
        if self._passed.pop(rid, None) is not None:
            self.gate.give_back(request.account, request.need)
        self.gate.joined(request.account, -1)

    def agent_ended(self, agent: str) -> None:
        self.account_of.pop(agent, None)
        if self.gate.claims:
            self.gate.claims.pop(agent, None)

    # -- the step -------------------------------------------------------------------------------------------

    def is_due(self, now: float) -> bool:
        """Whether it wants to look at the device."""
        return self.is_on and now >= self._look_at

    def look(self, now: float, device: Device, is_at_the_door: Callable[[str], bool]) -> None:
        """At what runs and what waits; from time to time at the sizes. Who waits at the door does not count."""
        self._look_at = now + LOOK_EVERY_S
        self._passed.clear()
        used: dict[Account, int] = {}
        for rid, tokens in device.used.items():
            account = self._requests[rid].account if rid in self._requests else NOBODY
            used[account] = used.get(account, 0) + tokens
        waiting: dict[Account, int] = {}
        for rid, request in self._requests.items():
            if not request.runs and not is_at_the_door(rid):
                waiting[request.account] = waiting.get(request.account, 0) + 1
        self.gate.total = device.total
        self.gate.see(used, waiting, self._tenants_at_it() if self._has_ceilings else ())
        if self._sizes is not None and now >= self._size_at:
            self._size_at = now + self._sizes.interval_s
            usage = sum(used.values()) / max(1, device.total)
            self.gate.reserved = self._sizes.update(device.total, usage, self._facts(now))

    def _tenants_at_it(self) -> set[str]:
        found = {request.account.tenant for request in self._requests.values()}
        return found | {self.account_of[agent].tenant for agent in self.agents_at_it() if agent in self.account_of}

    def begin_step(self, runs_any: bool) -> None:
        """The queue is gone through from its head."""
        for request in self._passed.values():
            self.gate.give_back(request.account, request.need)
        self._passed.clear()
        self._makes_room.clear()
        self._lets_one_in = not runs_any
        self.gate.begin_step()

    def passes_over(self, now: float, rid: str) -> bool:
        """Whether this waiting request is not tried in this step. Counts those that are not for the first time."""
        request = self._requests.get(rid)
        if request is None or not self.is_on:
            return False
        if rid in self._passed:
            return False
        request.denial = self._denial(now, request, self.gate.denial)
        if request.denial is None:
            self._lets_one_in = False
            self._passed[rid] = request
            self.gate.take(request.account, request.need)
            return False
        if request.denial == CEILING and self._has_waited(now, request):
            self._makes_room.setdefault(request.account.tenant, rid)
        if request.denied_since is None:
            request.denied_since = now
            self.on_denied(request.denial)
            self._denials_of[request.account.pool] = self._denials_of.get(request.account.pool, 0) + 1
        return True

    def would_pass_over(self, now: float, rid: str) -> bool:
        """The same as a question about this request alone: nothing is taken or counted."""
        request = self._requests.get(rid)
        if request is None or not self.is_on or rid in self._passed:
            return False
        return self._denial(now, request, self.gate.would_deny) is not None

    def _denial(self, now: float, request: _Request, ask: Callable[[Account, int, int], str | None]) -> str | None:
        """What ran before, and the first one on a device on which nothing runs, may always go. A request that its own
        tenant's smaller ones would keep beyond the ceiling for ever goes before them: they wait until it fits."""
        if request.ran or self._lets_one_in:
            return None
        if self._makes_room.get(request.account.tenant, request.waiting.rid) != request.waiting.rid:
            return CEILING
        reason = ask(request.account, request.need, self.order_of(request.waiting.agent))
        return None if reason != CEILING and self._has_waited(now, request) else reason

    @staticmethod
    def _has_waited(now: float, request: _Request) -> bool:
        return request.denied_since is not None and now - request.denied_since >= PASSED_OVER_S

    # -- what is lent ---------------------------------------------------------------------------------------

    @property
    def wants_back(self) -> bool:
        """Whether somebody waits whose reserve or floor others may have."""
        return any(
            self.gate.idle(account.pool) or (self.shares and self.gate.missing_floor(account.tenant))
            for account in self.gate.waiting)

    def recall_is_due(self, now: float) -> bool:
        return now >= self._recall_at

    def recall(self, now: float, held: Mapping[Account, Tokens]) -> dict[Account, int]:
        """Tokens that each account's resting KV is to give back, before other KV leaves the device."""
        self._recall_at = now + RECALL_EVERY_S
        needs: dict[Account, int] = {}
        for request in self._requests.values():
            if not request.runs and request.account in self.gate.waiting:
                needs[request.account] = needs.get(request.account, 0) + request.need
        return recalled(self.gate, needs, held)

    # -- for the live state ---------------------------------------------------------------------------------

    def denial(self, rid: str) -> str | None:
        request = self._requests.get(rid)
        return None if request is None else request.denial

    # -- inside ---------------------------------------------------------------------------------------------

    def _facts(self, now: float) -> dict[Pool, TypeFacts]:
        """Of the types that have requests, or critical work that comes next."""
        requests: dict[Pool, list[LiveRequest]] = {}
        needed: dict[Pool, int] = {}
        for rid, request in self._requests.items():
            pool = request.account.pool
            if pool == UNTYPED:
                continue
            requests.setdefault(pool, []).append(self._live(now, rid, request))
            if not request.runs and self.importance(request.waiting.agent) >= CRITICAL_IMPORTANCE:
                needed[pool] = needed.get(pool, 0) + request.need
        claims: dict[str, Claim] = {}
        for agent, tokens in self.returning(now + SOON_S):
            pool = self.account_of.get(agent, NOBODY).pool
            if pool != UNTYPED and self.importance(agent) >= CRITICAL_IMPORTANCE:
                needed[pool] = needed.get(pool, 0) + tokens
                claims[agent] = Claim(self.order_of(agent), pool, tokens)
        if self.gate.claims is not None:
            self.gate.claims = claims
        for counts in (self._denials_of, self._retractions_of):
            for pool in [pool for pool in counts if pool not in requests]:
                del counts[pool]
        return {
            pool: TypeFacts(
                requests.get(pool, ()), self.gate.used.get(pool, 0), needed.get(pool, 0),
                self._denials_of.get(pool, 0), self._retractions_of.get(pool, 0))
            for pool in sorted({*requests, *needed})}

    def _live(self, now: float, rid: str, request: _Request) -> LiveRequest:
        place, waiting = self.place(rid), request.waiting
        elapsed_s = 0.0 if place is None else max(0.0, now - place.run_began_at)
        structure = Structure() if place is None else place.structure
        return LiveRequest(
            waiting.prompt_tokens + waiting.max_new_tokens, max(0.0, now - request.joined_at), elapsed_s,
            not request.runs, structure)
