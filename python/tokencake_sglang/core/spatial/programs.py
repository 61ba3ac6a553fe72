"""Programs: the applications, sessions and single requests that share the server, and since when each is at it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter

from tokencake_sglang.core.spatial.views import Waiting

EPISODE_GAP_S = 10.0  # a program that did nothing for this long begins anew
AGENTS_KEPT = 256  # of one program, in order to know whether it is at something
OVER_KEPT = 4096  # programs whose agents have all ended, while another may follow

#: Of an agent: whether it waits for a call (of no person), and when it was last heard of. None: unknown.
AgentState = Callable[[str], tuple[bool, float] | None]


@dataclass
class Program:
    name: str
    arrived_at: float
    order: int  # of arrival; unique
    application: str = ""  # what kind of program it is
    agents: dict[str, None] = field(default_factory=dict)
    rids: dict[str, None] = field(default_factory=dict)  # its requests, waiting or running
    quiet_since: float = 0.0
    is_plain: bool = False  # a single request without an agent
    has_many: bool = False  # agents: it had more than one, at a time or one after another
    first_agent: str = ""

    def remember(self, agent: str) -> None:
        self.has_many = self.has_many or agent != (self.first_agent or agent)
        self.first_agent = self.first_agent or agent
        self.agents.pop(agent, None)
        self.agents[agent] = None
        if len(self.agents) > AGENTS_KEPT:
            del self.agents[next(iter(self.agents))]


class ProgramTable:
    """Live programs by name. One without requests is kept as long as it may be between two of them. One whose agents
    have all ended is no longer live, but has its age back when another of its agents comes within EPISODE_GAP_S."""

    def __init__(self, most: int = 65536) -> None:
        self._most = most
        self._programs: OrderedDict[str, Program] = OrderedDict()
        self._over: OrderedDict[str, Program] = OrderedDict()  # the one that ended first, first
        self._at_it: dict[str, Program] = {}  # of agents; those that were at it when last looked at
        self.arrivals = 0

    def __iter__(self) -> Iterator[Program]:
        return iter(self._programs.values())

    def __len__(self) -> int:
        return len(self._programs)

    def get(self, name: str) -> Program | None:
        return self._programs.get(name)

    def request_added(self, now: float, name: str, waiting: Waiting, state: AgentState) -> Program:
        """`name` has one request more; a program that was away for long, or is new, arrives now."""
        self._forget_over(now)
        program = self._programs.get(name) or self._over.pop(name, None)
        if program is None or not self.is_at_it(now, program, state):
            self.arrivals += 1
            before = program or Program(name, now, 0, is_plain=not waiting.program)
            program = replace(
                before, arrived_at=now, order=self.arrivals, application=waiting.application, rids={}, quiet_since=0.0)
        self._programs[name] = program
        self._programs.move_to_end(name)
        if waiting.agent:
            program.remember(waiting.agent)
            self._at_it[name] = program
        program.rids[waiting.rid] = None
        self._forget_oldest()
        return program

    def request_ended(self, now: float, name: str, rid: str) -> None:
        program = self._programs.get(name)
        if program is None:
            return
        program.rids.pop(rid, None)
        program.quiet_since = now
        self._drop_if_over(now, program)

    def agent_ended(self, now: float, name: str, agent: str) -> None:
        program = self._programs.get(name)
        if program is None:
            return
        program.agents.pop(agent, None)
        self._drop_if_over(now, program)

    def at_it(self, now: float, state: AgentState) -> list[Program]:
        """Programs of agents that are at it, the oldest first. Does not look at those that were not the last time and
        had no request since."""
        over = [name for name, program in self._at_it.items()
                if not program.rids and not self.is_at_it(now, program, state)]
        for name in over:
            del self._at_it[name]
        return sorted(self._at_it.values(), key=attrgetter("order"))

    def is_at_it(self, now: float, program: Program, state: AgentState) -> bool:
        """Whether it has requests, or has only been away: for a call, or for a moment."""
        if program.rids or now - program.quiet_since <= EPISODE_GAP_S:
            return True
        known = [found for found in map(state, program.agents) if found is not None]
        return any(calls or now - seen <= EPISODE_GAP_S for calls, seen in known)

    def _drop_if_over(self, now: float, program: Program) -> None:
        """A plain request is over with its end, a program with its last agent and request."""
        if program.rids or program.agents:
            return
        self._programs.pop(program.name, None)
        self._at_it.pop(program.name, None)
        if not program.is_plain:
            program.quiet_since = now
            self._over[program.name] = program
            if len(self._over) > OVER_KEPT:
                self._over.popitem(last=False)

    def _forget_over(self, now: float) -> None:
        while self._over:
            name, program = next(iter(self._over.items()))
            if now - program.quiet_since <= EPISODE_GAP_S:
                return
            del self._over[name]

    def _forget_oldest(self) -> None:
        while len(self._programs) > self._most:
            name, program = next(iter(self._programs.items()))
            if program.rids:
                return
            del self._programs[name]
            self._at_it.pop(name, None)
