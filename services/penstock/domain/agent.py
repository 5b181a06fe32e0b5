"""Agents: who takes runs, what one says when it connects, and what passes between it and the queue."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from pendulum import DateTime

from penstock.domain.flow import Flow, Labels
from penstock.domain.flow_run import FlowRun
from penstock.domain.ids import AgentId, FlowRunId
from penstock.domain.lease import HeldLease, Lease


@dataclass(frozen=True, slots=True)
class AgentHello:
    """What an agent says first on a stream: who it is, and which leases it believes to hold."""

    agent_id: AgentId
    name: str
    labels: Labels
    slots: int
    version: str
    held: tuple[Lease, ...] = ()


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of the leases that an agent said it holds: those that are over, and those whose work shall stop."""

    lost: tuple[Lease, ...] = ()
    stopping: tuple[Lease, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lost or self.stopping)


@dataclass(frozen=True, slots=True)
class Polling:
    """A long poll: who asks, how many offers it would take, how long it waits, and whether for one run alone."""

    hello: AgentHello
    offers_max: int
    wait: timedelta
    flow_run_id: FlowRunId | None = None


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent as the database knows it."""

    agent_id: AgentId
    name: str
    labels: Labels
    slots: int
    slots_used: int
    version: str
    healthy: bool
    connect_time: DateTime
    last_seen_time: DateTime


@dataclass(frozen=True, slots=True)
class Offered:
    """A due run, leased for a short while so that one agent may accept it."""

    run: FlowRun
    flow: Flow
    held: HeldLease
    trace_context: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Releasing:
    """A lease that its holder gives back, with the least delay before the run is offered again."""

    lease: Lease
    delay: timedelta = timedelta(0)
    reason: str = ""
