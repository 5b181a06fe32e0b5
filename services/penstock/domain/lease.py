"""Queue entries, leases and executions: who holds a run, and how each report of a holder moves it.

The pair (run, fence) is the lease. The fence rises at every grant, in the take itself, and here whenever a lease or
an offer ends, so no pair ever comes back. Every function takes the locked entry and the run read after it, and returns
the `Change` to be written; none writes.
"""

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum, auto
from typing import Protocol
from uuid import UUID

from pendulum import DateTime

from penstock.domain.errors import ExecutionRefused
from penstock.domain.flow import ChildPolicy
from penstock.domain.flow_run import (
    Failure,
    Finishing,
    FlowRun,
    Outcome,
    Stopped,
    Succeeded,
    Transition,
    move,
)
from penstock.domain.ids import AgentId, ExecutionId, FlowRunId, LaneId, ProcessId
from penstock.domain.limits import (
    DECLINED_DELAY,
    PRIORITY_WORTH,
    RELEASE_DELAY_FIRST,
    RELEASE_DELAY_MAX,
    RELEASES_MAX,
)
from penstock.domain.state import Cause, State


class Phase(StrEnum):
    """What holds an entry. The values are what rows hold."""

    WAITING = auto()  # nobody; its run is SCHEDULED
    OFFERED = auto()  # a queue process, for one agent to accept; its run is SCHEDULED
    HELD = auto()  # an agent; its run is SUBMITTED or RUNNING
    STOPPING = auto()  # an agent, asked to stop; its run is CANCELLING


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a run for a while."""

    flow_run_id: FlowRunId
    fence: int


@dataclass(frozen=True, slots=True)
class HeldLease:
    """A lease with how long it lasts: `ttl` for its holder's own clock, `expire_time` by the database's."""

    lease: Lease
    ttl: timedelta
    expire_time: DateTime


@dataclass(frozen=True, slots=True)
class Entry:
    """The queue entry of a live run: the lock of that run. Deleted in the transaction that makes the run final."""

    flow_run_id: FlowRunId
    lane_id: LaneId
    rank_time: DateTime
    due_time: DateTime
    phase: Phase
    fence: int
    holder: UUID | None = None
    grant_time: DateTime | None = None
    lease_expire_time: DateTime | None = None
    releases: int = 0
    losses: int = 0
    parent_id: FlowRunId | None = None


class EndedBy(StrEnum):
    """Whose word ended an execution. The values are what rows hold."""

    FINISH = auto()
    RELEASE = auto()
    EXPIRY = auto()


@dataclass(frozen=True, slots=True)
class Execution:
    """What was done under one lease: what repeated calls and late log lines are judged against."""

    flow_run_id: FlowRunId
    fence: int
    attempt: int
    agent_id: AgentId
    grant_time: DateTime
    accept_time: DateTime
    execution_id: ExecutionId | None = None
    start_time: DateTime | None = None
    end_time: DateTime | None = None
    outcome: State | None = None
    ended_by: EndedBy | None = None


class LeaseOutcome(StrEnum):
    """What became of one lease in a call about many."""

    HELD = auto()
    STOPPING = auto()
    RELEASED = auto()
    ENDED = auto()
    LOST = auto()
    STARTED = auto()


@dataclass(frozen=True, slots=True)
class LeaseResult:
    """One lease and what became of it; `held` is set when it is held."""

    lease: Lease
    outcome: LeaseOutcome
    held: HeldLease | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What one decision does to a run: how the run, its entry and its execution were, and how they shall be.

    `entry` is None once the run is final. `transition` is None when the run itself stays as it was.
    """

    before: FlowRun
    held: Entry
    run: FlowRun
    entry: Entry | None
    transition: Transition | None = None
    execution: Execution | None = None


def first_entry(run: FlowRun, lane_id: LaneId, fence: int = 0) -> Entry:
    """The entry of a run that begins to wait."""
    cancelled_with_parent = run.policy.child_policy is ChildPolicy.CANCEL
    return Entry(
        flow_run_id=run.id,
        lane_id=lane_id,
        rank_time=rank_time(run.scheduled_start_time, run.policy.priority),
        due_time=run.scheduled_start_time,
        phase=Phase.WAITING,
        fence=fence,
        parent_id=run.parent_id if cancelled_with_parent else None,
    )


def rank_time(due_time: DateTime, priority: int) -> DateTime:
    """What a lane is ordered by: priority is worth a head start, so a low one is overtaken for a bounded time only."""
    return due_time - priority * PRIORITY_WORTH


def offered(entry: Entry, *, holder: ProcessId, now: DateTime, ttl: timedelta) -> Entry:
    """The entry of a run that is leased to a queue process, for one agent to accept."""
    return replace(
        entry,
        phase=Phase.OFFERED,
        fence=entry.fence + 1,
        holder=holder,
        grant_time=now,
        lease_expire_time=now + ttl,
    )


class Held(Protocol):
    """What says whether an entry may be offered."""

    @property
    def phase(self) -> Phase: ...

    @property
    def due_time(self) -> DateTime: ...

    @property
    def lease_expire_time(self) -> DateTime | None: ...


def may_be_offered(entry: Held, *, now: DateTime) -> bool:
    """Whether a run is due, and waits or was offered to somebody whose time to accept ran out."""
    return entry.due_time <= now and waits(entry, now=now)


def waits(entry: Held, *, now: DateTime) -> bool:
    """Whether nobody holds an entry, nor an offer of it that could still be accepted."""
    expired = entry.lease_expire_time is not None and entry.lease_expire_time <= now
    return entry.phase is Phase.WAITING or (entry.phase is Phase.OFFERED and expired)


def accepted(entry: Entry, run: FlowRun, agent_id: AgentId, *, now: DateTime, ttl: timedelta) -> Change:
    """An agent takes an offer: the run becomes SUBMITTED, and an execution begins."""
    assert entry.phase is Phase.OFFERED
    assert entry.grant_time is not None
    moved, transition = move(replace(run, fence=entry.fence), State.SUBMITTED, at=now, cause=Cause.ACCEPTED)
    return Change(
        before=run,
        held=entry,
        run=moved,
        entry=replace(entry, phase=Phase.HELD, holder=agent_id, lease_expire_time=now + ttl),
        transition=replace(transition, agent_id=agent_id, lease_grant_time=entry.grant_time),
        execution=Execution(
            flow_run_id=run.id,
            fence=entry.fence,
            attempt=run.attempt,
            agent_id=agent_id,
            grant_time=entry.grant_time,
            accept_time=now,
        ),
    )


def started(
    entry: Entry, run: FlowRun, execution: Execution, execution_id: ExecutionId, *, now: DateTime, ttl: timedelta
) -> Change:
    """A supervisor is about to begin. The run comes back RUNNING if it may; a CANCELLING one comes back as it is.

    Refuses a second execution under one lease.
    """
    if execution.execution_id not in (None, execution_id):
        raise ExecutionRefused(flow_run_id=str(run.id), fence=entry.fence)
    renewed = renew(entry, now=now, ttl=ttl)
    if execution.execution_id is not None or run.state is State.CANCELLING:
        return Change(before=run, held=entry, run=run, entry=renewed)
    moved, transition = move(replace(run, start_time=now), State.RUNNING, at=now, cause=Cause.STARTED)
    return Change(
        before=run,
        held=entry,
        run=moved,
        entry=renewed,
        transition=replace(transition, agent_id=execution.agent_id),
        execution=replace(execution, execution_id=execution_id, start_time=now),
    )


def renew(entry: Entry, *, now: DateTime, ttl: timedelta) -> Entry:
    """The entry with its lease prolonged; an expiry is never moved nearer."""
    return replace(entry, lease_expire_time=max(entry.lease_expire_time or now, now + ttl))


def finished(entry: Entry, run: FlowRun, execution: Execution, finishing: Finishing, *, now: DateTime) -> Change:
    """An attempt ended. With retries left, a failure makes the run wait for its next attempt.

    Refuses the report of an execution that is not the one that was started, and an end that the state does not allow.
    """
    if execution.execution_id is not None and execution.execution_id != finishing.execution_id:
        raise ExecutionRefused(flow_run_id=str(run.id), fence=entry.fence)
    ended = replace(
        execution,
        execution_id=finishing.execution_id,
        end_time=now,
        outcome=_end_of(finishing.outcome),
        ended_by=EndedBy.FINISH,
    )
    match finishing.outcome:
        case Succeeded(result_json):
            marked = replace(run, result_json=result_json, failure=None)
            return _final(entry, run, marked, State.SUCCEEDED, Cause.FINISHED, now, ended)
        case Stopped(message):
            return _final(entry, run, run, State.CANCELLED, Cause.FINISHED, now, ended, message)
        case Failure() as failure:
            marked = replace(run, failure=failure)
            if run.retries_left > 0 and run.state is not State.CANCELLING:
                return _retried(entry, run, marked, ended, now)
            return _final(entry, run, marked, State.FAILED, Cause.FINISHED, now, ended, failure.message)


def cancelled(
    entry: Entry, run: FlowRun, execution: Execution | None, *, now: DateTime, cause: Cause, reason: str
) -> Change | None:
    """Somebody asks for a live run to stop: final at once unless an agent holds it; None when it stops already."""
    match entry.phase:
        case Phase.STOPPING:
            return None
        case Phase.HELD:
            assert execution is not None, "a held lease without an execution"
            moved, transition = move(run, State.CANCELLING, at=now, cause=cause, message=reason)
            stopping = replace(entry, phase=Phase.STOPPING)
            transition = replace(transition, agent_id=execution.agent_id)
            return Change(before=run, held=entry, run=moved, entry=stopping, transition=transition)
        case Phase.WAITING | Phase.OFFERED:
            # An offer that is still to be accepted dies with the entry: the run is final, and says so.
            marked = replace(run, fence=entry.fence)
            moved, transition = move(marked, State.CANCELLED, at=now, cause=cause, message=reason)
            return Change(before=run, held=entry, run=moved, entry=None, transition=transition)


def deserted(entry: Entry, run: FlowRun, *, now: DateTime) -> Change:
    """The one process that would execute a run without an agent has not come for it: the run ends."""
    assert entry.phase is Phase.WAITING
    failure = Failure(type="Deserted", message="No process asked to execute it.")
    marked = replace(run, fence=entry.fence, failure=failure)
    moved, transition = move(marked, State.FAILED, at=now, cause=Cause.LOST, message=failure.message)
    return Change(before=run, held=entry, run=moved, entry=None, transition=transition)


def declined(entry: Entry, run: FlowRun, *, now: DateTime) -> Change:
    """An agent does not take an offer: it counts nothing, and the run is offered again a little later."""
    assert entry.phase is Phase.OFFERED
    return Change(before=run, held=entry, run=run, entry=wait_again(entry, run, due=now + DECLINED_DELAY))


def released(
    entry: Entry, run: FlowRun, execution: Execution, *, now: DateTime, delay: timedelta, reason: str
) -> Change:
    """An agent gives back a lease under which nothing was started."""
    ended = replace(execution, end_time=now, outcome=State.SCHEDULED, ended_by=EndedBy.RELEASE)
    if entry.phase is Phase.STOPPING:
        return _final(entry, run, run, State.CANCELLED, Cause.RELEASED, now, ended, reason)
    return _undeployed(entry, run, ended, Cause.RELEASED, now=now, delay=delay, message=reason)


def expired(entry: Entry, run: FlowRun, execution: Execution, *, now: DateTime) -> Change:
    """The holder of a lease fell silent: the run waits again, or ends where its policy or its state says so."""
    ended = replace(execution, end_time=now, outcome=State.SCHEDULED, ended_by=EndedBy.EXPIRY)
    silence = "The holder of the lease fell silent."
    if entry.phase is Phase.STOPPING:
        return _final(entry, run, run, State.CANCELLED, Cause.UNCONFIRMED, now, ended, silence)
    if execution.start_time is None:
        return _undeployed(entry, run, ended, Cause.LOST, now=now, delay=timedelta(0), message=silence)
    losses = entry.losses + 1
    if losses > run.policy.max_lost_restarts:
        failure = Failure(type="Lost", message=f"{silence} It happened {losses} times.")
        return _final(entry, run, replace(run, failure=failure), State.FAILED, Cause.LOST, now, ended, failure.message)
    return _waiting(replace(entry, losses=losses), run, run, ended, Cause.LOST, now=now, due=now, message=silence)


def wait_again(entry: Entry, run: FlowRun, *, due: DateTime) -> Entry:
    """The entry without holder, one fence later, so that nothing of the lease that ended matches any more."""
    return replace(
        entry,
        phase=Phase.WAITING,
        fence=entry.fence + 1,
        due_time=due,
        rank_time=rank_time(due, run.policy.priority),
        holder=None,
        grant_time=None,
        lease_expire_time=None,
    )


def release_delay(releases: int, asked: timedelta) -> timedelta:
    """How long a run waits after its `releases`-th release: a second, doubling to a minute, or longer if asked."""
    doublings = min(releases - 1, 30)
    return max(asked, min(RELEASE_DELAY_FIRST * (1 << doublings), RELEASE_DELAY_MAX))


def _undeployed(
    entry: Entry, run: FlowRun, ended: Execution, cause: Cause, *, now: DateTime, delay: timedelta, message: str
) -> Change:
    releases = entry.releases + 1
    if releases > RELEASES_MAX:
        failure = Failure(
            type="Undeployable", message=f"It was given back {releases} times without starting. {message}"
        )
        marked = replace(run, failure=failure)
        return _final(entry, run, marked, State.FAILED, Cause.UNDEPLOYABLE, now, ended, failure.message)
    due = now + release_delay(releases, delay)
    return _waiting(replace(entry, releases=releases), run, run, ended, cause, now=now, due=due, message=message)


def _retried(entry: Entry, before: FlowRun, marked: FlowRun, ended: Execution, now: DateTime) -> Change:
    """The next attempt's number stands on the step that begins its waiting."""
    run = replace(marked, attempt=marked.attempt + 1, retries_left=marked.retries_left - 1, start_time=None)
    message = run.failure.message if run.failure else ""
    due = now + run.policy.retry_delay
    fresh = replace(entry, releases=0)
    return _waiting(fresh, before, run, ended, Cause.RETRIED, now=now, due=due, message=message)


def _waiting(
    entry: Entry,
    before: FlowRun,
    marked: FlowRun,
    ended: Execution,
    cause: Cause,
    *,
    now: DateTime,
    due: DateTime,
    message: str,
) -> Change:
    waiting = replace(marked, scheduled_start_time=due, start_time=None)
    moved, transition = move(waiting, State.SCHEDULED, at=now, cause=cause, message=message)
    return Change(
        before=before,
        held=entry,
        run=moved,
        entry=wait_again(entry, moved, due=due),
        transition=replace(transition, agent_id=ended.agent_id, due_time=due),
        execution=ended,
    )


def _final(
    entry: Entry,
    before: FlowRun,
    marked: FlowRun,
    to: State,
    cause: Cause,
    now: DateTime,
    ended: Execution,
    message: str = "",
) -> Change:
    moved, transition = move(replace(marked, fence=entry.fence), to, at=now, cause=cause, message=message)
    return Change(
        before=before,
        held=entry,
        run=moved,
        entry=None,
        transition=replace(transition, agent_id=ended.agent_id),
        execution=replace(ended, outcome=to),
    )


def _end_of(outcome: Outcome) -> State:
    match outcome:
        case Succeeded():
            return State.SUCCEEDED
        case Stopped():
            return State.CANCELLED
        case Failure():
            return State.FAILED
