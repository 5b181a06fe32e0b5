"""What the queue does, inside one transaction: taking due runs, and judging every report of a lease."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from pendulum import DateTime

from penstock.domain.agent import Agent, AgentHello, Joined, Releasing
from penstock.domain.errors import FlowRunFinal, LabelsMissing
from penstock.domain.flow import Flow
from penstock.domain.flow_run import FlowRun
from penstock.domain.ids import AgentId, FlowId, FlowRunId, LaneId, ProcessId, StreamId, TenantId
from penstock.domain.lanes import Lane, missing_labels
from penstock.domain.lease import (
    Change,
    EndedBy,
    Entry,
    Execution,
    HeldLease,
    Lease,
    LeaseOutcome,
    LeaseResult,
    Phase,
    accepted,
    declined,
    may_be_offered,
    offered,
    released,
    renew,
)
from penstock.domain.limits import KEEPER_BATCH_MAX
from penstock.domain.queries import Page
from penstock.storage import agents, executions, flow_runs, flows, logs, queue
from penstock.storage.database import Transaction
from penstock.storage.queue import Glimpse


@dataclass(frozen=True, slots=True)
class Grant:
    """A due run with the lease that was just granted on it."""

    entry: Entry
    run: FlowRun
    flow: Flow
    held: HeldLease


@dataclass(frozen=True, slots=True)
class Taken:
    """What one take found, and how long it is until the next run becomes due; None when none waits for a later time."""

    grants: Sequence[Grant]
    next_due_in: timedelta | None


@dataclass(frozen=True, slots=True)
class Accepting:
    """One offer that an agent takes."""

    lease: Lease
    agent_id: AgentId


def take(
    tx: Transaction,
    tenant: TenantId,
    rooms_of: Callable[[Sequence[Lane]], Mapping[LaneId, int]],
    *,
    holder: ProcessId,
    ttl: timedelta,
) -> Taken:
    """Lease due runs to this process, of each lane no more than `rooms_of` finds room for, best rank first.

    Offers whose time ran out wait again first, whoever made them, so that a process that died delays nothing for long.
    """
    queue.give_back_expired(tx, tenant, KEEPER_BATCH_MAX)
    rooms = rooms_of(queue.waiting_lanes(tx, tenant))
    entries = queue.take(tx, tenant, rooms, holder=holder, ttl=ttl)
    runs = flow_runs.by_id(tx, tenant, [entry.flow_run_id for entry in entries]) if entries else {}
    used = flows.by_id(tx, tenant, {run.flow_id for run in runs.values()}) if runs else {}
    grants = [_grant(entry, runs[entry.flow_run_id], used, ttl) for entry in entries]
    next_due_time = queue.next_due_time(tx, tenant)
    return Taken(grants, None if next_due_time is None else next_due_time - tx.now)


@dataclass(frozen=True, slots=True)
class Watch:
    """What a long poll waits for: a run to lease, and the end of what its agent holds."""

    flow_run_id: FlowRunId | None
    held: tuple[Lease, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is for a long poll now, and how long it is until there may be more; None when nobody can tell.

    `gone` says that the run it waits for is live no more, `ready` that it may be offered, `on_offer` that somebody
    else may accept it, or not.
    """

    judged: Joined
    gone: bool = False
    ready: bool = False
    on_offer: bool = False
    more_in: timedelta | None = None


def look(tx: Transaction, tenant: TenantId, watches: Sequence[Watch]) -> list[Seen]:
    """What there is for each of these long polls, asked for all of them at once."""
    asked = {lease.flow_run_id for watch in watches for lease in watch.held}
    asked.update(watch.flow_run_id for watch in watches if watch.flow_run_id is not None)
    entries = queue.glimpses(tx, tenant, asked)
    return [_seen(watch, entries, tx.now) for watch in watches]


def check_named(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId, labels: frozenset[str]) -> None:
    """Refuse a run that there is not or that is final, and one that is not for an agent with these labels."""
    run = flow_runs.get(tx, tenant, flow_run_id)
    if missing := missing_labels(labels, run.labels):
        raise LabelsMissing(flow_run_id=str(run.id), missing=missing)
    if run.final:
        raise FlowRunFinal(flow_run_id=str(run.id), present=run.state.name)


def offer_flow_run(
    tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId, *, holder: ProcessId, ttl: timedelta
) -> Grant | None:
    """Lease this one run, whoever else waits in its lane; None unless it is due and waits."""
    entry = queue.hold_runs(tx, tenant, [flow_run_id]).get(flow_run_id)
    if entry is None or not may_be_offered(entry, now=tx.now):
        return None
    taken = offered(entry, holder=holder, now=tx.now, ttl=ttl)
    queue.offer(tx, tenant, entry, taken)
    run = flow_runs.get(tx, tenant, flow_run_id)
    return _grant(taken, run, flows.by_id(tx, tenant, [run.flow_id]), ttl)


def give_back(tx: Transaction, tenant: TenantId, leases: Iterable[Lease], *, holder: ProcessId) -> int:
    """Let offers of this process that nobody accepted wait again at once."""
    return queue.give_back(tx, tenant, leases, holder=holder)


def give_back_strays(tx: Transaction, tenant: TenantId, in_hand: Iterable[Lease], *, holder: ProcessId) -> int:
    """Let offers of this process wait again that it does not know of: a take whose commit was not answered."""
    return queue.give_back_strays(tx, tenant, in_hand, holder=holder)


def accept_flow_runs(
    tx: Transaction, tenant: TenantId, acceptings: Sequence[Accepting], *, ttl: timedelta
) -> list[LeaseResult]:
    """Make each run SUBMITTED whose offer still stands, and begin its execution."""
    leases = [each.lease for each in acceptings]
    entries = queue.hold(tx, tenant, leases, (Phase.OFFERED, *queue.HOLDING))
    runs = flow_runs.by_id(tx, tenant, {lease.flow_run_id for lease in leases})

    def decide(accepting: Accepting) -> Change | LeaseResult:
        entry = entries.get(accepting.lease)
        if entry is None:
            return LeaseResult(accepting.lease, _over(runs.get(accepting.lease.flow_run_id)))
        if entry.phase is Phase.OFFERED:
            return accepted(entry, runs[entry.flow_run_id], accepting.agent_id, now=tx.now, ttl=ttl)
        if entry.holder != accepting.agent_id:
            return LeaseResult(accepting.lease, LeaseOutcome.LOST)
        return _held_result(entry, tx.now)

    decisions = [decide(each) for each in acceptings]
    changes = [each for each in decisions if isinstance(each, Change)]
    queue.save(tx, tenant, changes)
    executions.begin(tx, tenant, [each.execution for each in changes if each.execution])
    logs.open_heads(tx, tenant, [each.run.id for each in changes])
    return [_held_result(_kept(each), tx.now) if isinstance(each, Change) else each for each in decisions]


def renew_leases(tx: Transaction, tenant: TenantId, leases: Sequence[Lease], *, ttl: timedelta) -> list[LeaseResult]:
    """Prolong each lease that is held; say of each other one that it is over, and how."""
    held = queue.hold(tx, tenant, leases)
    renewed = {lease: renew(entry, now=tx.now, ttl=ttl) for lease, entry in held.items()}
    queue.renew(tx, tenant, held.values(), renewed.values())
    over = {lease.flow_run_id for lease in leases if lease not in held}
    runs = flow_runs.by_id(tx, tenant, over) if over else {}
    return [
        _held_result(renewed[lease], tx.now)
        if lease in renewed
        else LeaseResult(lease, _over(runs.get(lease.flow_run_id)))
        for lease in leases
    ]


def release_flow_runs(tx: Transaction, tenant: TenantId, releasings: Sequence[Releasing]) -> list[LeaseResult]:
    """Let each run wait again whose holder gives it back before anything was started."""
    leases = [each.lease for each in releasings]
    entries = queue.hold(tx, tenant, leases, (Phase.OFFERED, *queue.HOLDING))
    runs = flow_runs.by_id(tx, tenant, {lease.flow_run_id for lease in leases})
    done = executions.by_lease(tx, tenant, leases)

    def decide(releasing: Releasing) -> Change | LeaseOutcome:
        entry, execution = entries.get(releasing.lease), done.get(releasing.lease)
        if entry is None:
            return _released_before(execution, runs.get(releasing.lease.flow_run_id))
        run = runs[entry.flow_run_id]
        if entry.phase is Phase.OFFERED:
            return declined(entry, run, now=tx.now)
        assert execution is not None, "a held lease without an execution"
        if execution.start_time is not None:
            return LeaseOutcome.STARTED
        return released(entry, run, execution, now=tx.now, delay=releasing.delay, reason=releasing.reason)

    # A lease may be named twice: its first mention decides.
    decisions = {each.lease: decide(each) for each in reversed(releasings)}
    changes = [each for each in decisions.values() if isinstance(each, Change)]
    queue.save(tx, tenant, changes)
    executions.advance(tx, tenant, [each.execution for each in changes if each.execution])
    outcomes = {lease: LeaseOutcome.RELEASED if isinstance(each, Change) else each for lease, each in decisions.items()}
    return [LeaseResult(lease, outcomes[lease]) for lease in leases]


def join(tx: Transaction, tenant: TenantId, hello: AgentHello, stream_id: StreamId) -> Joined:
    """Write the agent and its stream; return what became of the leases that it says it holds."""
    agents.connect(tx, tenant, hello, stream_id)
    held = queue.rejoin(tx, tenant, hello.held, holder=hello.agent_id)
    return _judged(hello.held, {lease: entry.phase for lease, entry in held.items()})


def stopping(tx: Transaction, tenant: TenantId, agent_ids: Iterable[AgentId]) -> Mapping[UUID, Sequence[Lease]]:
    """Of these agents, the leases whose work shall stop."""
    return queue.stopping(tx, tenant, agent_ids)


def leave(tx: Transaction, tenant: TenantId, agent_id: AgentId, stream_id: StreamId) -> None:
    """Write that a stream ended."""
    agents.disconnect(tx, tenant, agent_id, stream_id)


def replaced(tx: Transaction, tenant: TenantId, streams: Mapping[StreamId, AgentId]) -> list[StreamId]:
    """Write that the agents of these streams live; return the streams whose agent has opened another since.

    An agent without a present stream gets its newest one back: an older one, whose opening was committed late, took its
    place and has ended.
    """
    present = agents.seen(tx, tenant, streams.values())
    forgotten = {agent: stream for stream, agent in sorted(streams.items()) if present.get(agent) is None}
    for agent, stream in forgotten.items():
        agents.reconnect(tx, tenant, agent, stream)
    return [stream for stream, agent in streams.items() if present.get(agent) not in (None, stream)]


def list_agents(tx: Transaction, tenant: TenantId, page: Page, *, proven_within: timedelta) -> list[Agent]:
    """A page of agents, the last seen first."""
    return agents.list_agents(tx, tenant, page, proven_within=proven_within)


def _seen(watch: Watch, entries: Mapping[FlowRunId, Glimpse], now: DateTime) -> Seen:
    # Its own leases are looked up: those who ask together are many, and so are the entries that they ask for.
    held = {lease: entries[lease.flow_run_id].phase for lease in watch.held if _holds(lease, entries)}
    judged = _judged(watch.held, held)
    if watch.flow_run_id is None:
        return Seen(judged)
    entry = entries.get(watch.flow_run_id)
    if entry is None:
        return Seen(judged, gone=True)
    if may_be_offered(entry, now=now):
        return Seen(judged, ready=True)
    match entry.phase:
        case Phase.WAITING:
            return Seen(judged, more_in=entry.due_time - now)
        case Phase.OFFERED if entry.lease_expire_time is not None:
            return Seen(judged, on_offer=True, more_in=max(entry.due_time, entry.lease_expire_time) - now)
        case _:
            return Seen(judged)


def _holds(lease: Lease, entries: Mapping[FlowRunId, Glimpse]) -> bool:
    entry = entries.get(lease.flow_run_id)
    return entry is not None and entry.fence == lease.fence and entry.phase in queue.HOLDING


def _judged(said: Iterable[Lease], held: Mapping[Lease, Phase]) -> Joined:
    leases = tuple(said)
    return Joined(
        lost=tuple(lease for lease in leases if lease not in held),
        stopping=tuple(lease for lease in leases if held.get(lease) is Phase.STOPPING),
    )


def _grant(entry: Entry, run: FlowRun, used: Mapping[FlowId, Flow], ttl: timedelta) -> Grant:
    assert entry.lease_expire_time is not None
    held = HeldLease(Lease(entry.flow_run_id, entry.fence), ttl, entry.lease_expire_time)
    return Grant(entry, run, used[run.flow_id], held)


def _held_result(entry: Entry, now: DateTime) -> LeaseResult:
    assert entry.lease_expire_time is not None
    lease = Lease(entry.flow_run_id, entry.fence)
    outcome = LeaseOutcome.STOPPING if entry.phase is Phase.STOPPING else LeaseOutcome.HELD
    return LeaseResult(lease, outcome, HeldLease(lease, entry.lease_expire_time - now, entry.lease_expire_time))


def _kept(change: Change) -> Entry:
    assert change.entry is not None
    return change.entry


def _over(run: FlowRun | None) -> LeaseOutcome:
    return LeaseOutcome.ENDED if run is not None and run.final else LeaseOutcome.LOST


def _released_before(execution: Execution | None, run: FlowRun | None) -> LeaseOutcome:
    if execution is not None and execution.ended_by is EndedBy.RELEASE:
        return LeaseOutcome.RELEASED
    return _over(run)
