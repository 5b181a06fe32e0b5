"""What each rpc of FlowRunService does with runs that exist, inside one transaction: moving, deleting and reading them.

Hot operations take a list, with one outcome each.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from penstock.domain.errors import ChildrenLive, FlowRunLive, FlowRunNotFound, LeaseLost, Refusal
from penstock.domain.flow_run import (
    Cancelling,
    Finishing,
    FlowRun,
    Restarting,
    Starting,
    Transition,
    restarted,
)
from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.lanes import LaneKey
from penstock.domain.lease import (
    Change,
    EndedBy,
    Entry,
    Execution,
    HeldLease,
    Lease,
    cancelled,
    finished,
    first_entry,
    started,
)
from penstock.domain.limits import PAGE_SIZE_MAX
from penstock.domain.log import ProducerKey
from penstock.domain.queries import Page, PositionPage, RunFilter
from penstock.domain.state import Cause, State
from penstock.storage import executions, flow_runs, keys, lanes, logs, queue
from penstock.storage.database import Overtaken, Transaction

# Who writes the log of a run: the process that stands over its body. Opened when the run starts, so that "every
# producer has closed" is never true of nobody.
SUPERVISOR: Final = "supervisor"


@dataclass(frozen=True, slots=True)
class Started:
    """A run that a supervisor asked to begin, with its lease renewed."""

    run: FlowRun
    held: HeldLease


def start_flow_runs(
    tx: Transaction, tenant: TenantId, startings: Sequence[Starting], *, ttl: timedelta
) -> list[Started | Refusal]:
    """Let each supervisor that shows the current lease begin, at most one execution per lease."""
    at_work = _at_work(tx, tenant, [Lease(each.flow_run_id, each.fence) for each in startings])

    def decide(starting: Starting) -> Change | Refusal:
        found = at_work.get(Lease(starting.flow_run_id, starting.fence))
        if found is None:
            return LeaseLost(flow_run_id=str(starting.flow_run_id), fence=starting.fence)
        entry, run, execution = found
        return _or_refusal(lambda: started(entry, run, execution, starting.execution_id, now=tx.now, ttl=ttl))

    decisions = [decide(starting) for starting in startings]
    changes = [each for each in decisions if isinstance(each, Change)]
    _save(tx, tenant, changes)
    producers = [ProducerKey(each.run.id, each.held.fence, SUPERVISOR) for each in changes if each.execution]
    logs.open_producers(tx, tenant, producers)
    absent = _absent(tx, tenant, [each.flow_run_id for each in startings], at_work)
    return [
        Started(decision.run, _held_lease(decision, tx, ttl))
        if isinstance(decision, Change)
        else absent.get(starting.flow_run_id, decision)
        for starting, decision in zip(startings, decisions, strict=True)
    ]


def finish_flow_runs(tx: Transaction, tenant: TenantId, finishings: Sequence[Finishing]) -> list[FlowRun | Refusal]:
    """End each attempt whose supervisor shows the current lease. The first answer is given again to its repeat."""
    leases = [Lease(each.flow_run_id, each.fence) for each in finishings]
    at_work = _at_work(tx, tenant, leases)
    former = [lease for lease in leases if lease not in at_work]
    ended = executions.by_lease(tx, tenant, former)
    runs = flow_runs.by_id(tx, tenant, {lease.flow_run_id for lease in former}) if former else {}

    def decide(finishing: Finishing) -> Change | FlowRun | Refusal:
        lease = Lease(finishing.flow_run_id, finishing.fence)
        if lease in at_work:
            entry, run, execution = at_work[lease]
            return _or_refusal(lambda: finished(entry, run, execution, finishing, now=tx.now))
        if finishing.flow_run_id not in runs:
            return FlowRunNotFound(flow_run_id=str(finishing.flow_run_id))
        if _ended_by(ended.get(lease), finishing):
            return runs[finishing.flow_run_id]
        return LeaseLost(flow_run_id=str(finishing.flow_run_id), fence=finishing.fence)

    decisions = [decide(finishing) for finishing in finishings]
    _save(tx, tenant, [each for each in decisions if isinstance(each, Change)])
    return [each.run if isinstance(each, Change) else each for each in decisions]


def cancel_flow_runs(tx: Transaction, tenant: TenantId, cancellings: Sequence[Cancelling]) -> list[FlowRun | Refusal]:
    """Ask each run to stop: final at once unless an agent holds it. One that stops already, or is final, is answered
    as it is."""
    asked = [each.flow_run_id for each in cancellings]
    entries = queue.hold_runs(tx, tenant, asked)
    runs = flow_runs.hold(tx, tenant, asked)
    if not all(run.final for run in runs.values() if run.id not in entries):
        # It was restarted since its entry was looked for, and an entry is locked before its run.
        raise Overtaken
    at_work = executions.by_lease(tx, tenant, map(_lease_of, entries.values()))

    def decide(cancelling: Cancelling) -> Change | FlowRun | Refusal:
        run, entry = runs.get(cancelling.flow_run_id), entries.get(cancelling.flow_run_id)
        if run is None:
            return FlowRunNotFound(flow_run_id=str(cancelling.flow_run_id))
        if entry is None:
            return run
        execution = at_work.get(_lease_of(entry))
        change = cancelled(entry, run, execution, now=tx.now, cause=Cause.CANCEL_ASKED, reason=cancelling.reason)
        return change or run

    decisions = [decide(each) for each in cancellings]
    _save(tx, tenant, [each for each in decisions if isinstance(each, Change)])
    return [each.run if isinstance(each, Change) else each for each in decisions]


def restart_flow_run(tx: Transaction, tenant: TenantId, restarting: Restarting) -> FlowRun:
    """Let a finished run wait for another attempt, under fences that rise on. A repeat is answered with the run as it
    is now."""
    known = flow_runs.get(tx, tenant, restarting.flow_run_id)
    lane = LaneKey(known.labels, known.group_id)  # fixed when the run was created, so it may be read before the lock
    lane_id = lanes.intern(tx, tenant, [lane])[lane]
    children = queue.hold_cut_off(tx, tenant, known.id)
    run, parent = _hold_with_parent(tx, tenant, known)
    if _was_restarted(tx, tenant, run, restarting):
        return run
    again, transition = restarted(run, restarting, at=tx.now)
    _check_followers(tx, tenant, run)
    queue.rejoin_parent(tx, tenant, children, run.id)
    if queue.any_cut_off(tx, tenant, run.id):
        # A child was restarted since its entry was looked for, and an entry is locked before its parent's run.
        raise Overtaken
    entry = first_entry(again, lane_id, fence=run.fence + 1)
    flow_runs.save_moves(tx, tenant, [(run, again)])
    flow_runs.insert_transitions(tx, tenant, [transition])
    queue.insert(tx, tenant, [entry if _may_go_on(parent) else replace(entry, parent_id=None)])
    return again


def delete_flow_run(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> bool:
    """Delete a finished run with all that was kept of it but its idempotency key; False if there is none."""
    keys.retire(tx, tenant, flow_run_id)  # first, as keys are locked before runs; a refusal takes it back
    run = flow_runs.hold_one(tx, tenant, flow_run_id)
    if run is None:
        return False
    if not run.final:
        raise FlowRunLive(flow_run_id=str(run.id), present=run.state.name)
    _check_followers(tx, tenant, run)
    flow_runs.remove(tx, tenant, run.id)
    executions.remove(tx, tenant, run.id)
    logs.remove(tx, tenant, run.id)
    return True


def check_flow_run(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> None:
    """Refuse a run that does not exist."""
    flow_runs.check(tx, tenant, flow_run_id)


def get_flow_run(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> FlowRun:
    """The run, whole."""
    return flow_runs.get(tx, tenant, flow_run_id)


def list_flow_runs(tx: Transaction, tenant: TenantId, wanted: RunFilter, page: Page) -> list[FlowRun]:
    """A page of runs, newest first, and one more where there is more."""
    return flow_runs.list_runs(tx, tenant, wanted, page)


def list_transitions(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId, page: PositionPage) -> list[Transition]:
    """A page of a run's steps, oldest first."""
    check_flow_run(tx, tenant, flow_run_id)
    return flow_runs.list_transitions(tx, tenant, flow_run_id, page)


@dataclass(frozen=True, slots=True)
class Sight:
    """What a watch is shown next: the steps it has not seen, and the run once these show it final."""

    steps: Sequence[Transition]
    ended: FlowRun | None = None


def look_at_flow_runs(
    tx: Transaction, tenant: TenantId, seen: Mapping[FlowRunId, int]
) -> Mapping[FlowRunId, Sight | FlowRunNotFound]:
    """What lies behind the version that was seen of every watched run, or that there is no such run any more.

    Only a final run of which all steps are shown is read whole, and last: one that is restarted in between shows its
    later steps at the next look.
    """
    now = flow_runs.standings(tx, tenant, seen)
    steps = flow_runs.steps_at(tx, tenant, _unseen(seen, {each: standing.version for each, standing in now.items()}))
    shown = {each: steps[each][-1].version if each in steps else seen[each] for each in now}
    ended = [each for each, standing in now.items() if standing.final and shown[each] >= standing.version]
    final = flow_runs.final_by_id(tx, tenant, ended) if ended else {}

    def sight_of(flow_run_id: FlowRunId) -> Sight | FlowRunNotFound:
        if flow_run_id not in now:
            return FlowRunNotFound(flow_run_id=str(flow_run_id))
        run = final.get(flow_run_id)
        return Sight(steps.get(flow_run_id, ()), run if run and run.version <= shown[flow_run_id] else None)

    return {flow_run_id: sight_of(flow_run_id) for flow_run_id in seen}


def _unseen(seen: Mapping[FlowRunId, int], present: Mapping[FlowRunId, int]) -> Mapping[FlowRunId, range]:
    """The versions to show next of runs that moved: together no more than make a page, shared out evenly, though at
    least one of each: a run with a long history keeps nobody waiting. Every version has its step."""
    moved = [each for each, version in present.items() if version > seen[each]]
    share = max(1, PAGE_SIZE_MAX // max(1, len(moved)))
    return {each: range(seen[each] + 1, min(present[each], seen[each] + share) + 1) for each in moved}


AtWork = Mapping[Lease, tuple[Entry, FlowRun, Execution]]


def _at_work(tx: Transaction, tenant: TenantId, leases: Iterable[Lease]) -> AtWork:
    """The leases that are held or stopping, locked, each with its run and execution as they are under that lock."""
    held = queue.hold(tx, tenant, leases)
    if not held:
        return {}
    runs = flow_runs.by_id(tx, tenant, [lease.flow_run_id for lease in held])
    begun = executions.by_lease(tx, tenant, held)
    return {lease: (entry, runs[lease.flow_run_id], begun[lease]) for lease, entry in held.items()}


def _was_restarted(tx: Transaction, tenant: TenantId, run: FlowRun, restarting: Restarting) -> bool:
    """Whether this very restart was done before: the step after the version that it names says so."""
    if restarting.version >= run.version:
        return False
    step = flow_runs.step_at(tx, tenant, run.id, restarting.version + 1)
    return step is not None and step.cause is Cause.RESTARTED


def _hold_with_parent(tx: Transaction, tenant: TenantId, known: FlowRun) -> tuple[FlowRun, FlowRun | None]:
    """Lock a run and the one that created it, so that of the two neither is restarted unseen by the other."""
    held = flow_runs.hold(tx, tenant, filter(None, (known.id, known.parent_id)))
    if known.id not in held:
        raise FlowRunNotFound(flow_run_id=str(known.id))
    return held[known.id], held.get(known.parent_id) if known.parent_id else None


def _may_go_on(parent: FlowRun | None) -> bool:
    """Whether there is a parent to be cancelled with: one that was cancelled has no say until it is restarted."""
    return parent is not None and parent.state not in (State.CANCELLING, State.CANCELLED)


def _check_followers(tx: Transaction, tenant: TenantId, run: FlowRun) -> None:
    """Refuse to move a cancelled run while children are still to follow it, which is found out by its state."""
    if run.state is State.CANCELLED and queue.has_followers(tx, tenant, run.id):
        raise ChildrenLive(flow_run_id=str(run.id))


def _lease_of(entry: Entry) -> Lease:
    return Lease(entry.flow_run_id, entry.fence)


def _save(tx: Transaction, tenant: TenantId, changes: Sequence[Change]) -> None:
    queue.save(tx, tenant, changes)
    executions.advance(tx, tenant, [each.execution for each in changes if each.execution])


def _held_lease(change: Change, tx: Transaction, ttl: timedelta) -> HeldLease:
    assert change.entry is not None
    assert change.entry.lease_expire_time is not None
    return HeldLease(Lease(change.run.id, change.entry.fence), ttl, change.entry.lease_expire_time)


def _absent(
    tx: Transaction, tenant: TenantId, asked: Iterable[FlowRunId], at_work: AtWork
) -> Mapping[FlowRunId, Refusal]:
    """A refusal for every run that does not exist, rather than one about a lease on it."""
    doubtful = set(asked) - {lease.flow_run_id for lease in at_work}
    if not doubtful:
        return {}
    unknown = doubtful - flow_runs.existing(tx, tenant, doubtful)
    return {each: FlowRunNotFound(flow_run_id=str(each)) for each in unknown}


def _ended_by(execution: Execution | None, finishing: Finishing) -> bool:
    return (
        execution is not None
        and execution.ended_by is EndedBy.FINISH
        and execution.execution_id == finishing.execution_id
    )


def _or_refusal(decide: Callable[[], Change]) -> Change | Refusal:
    """A refusal is the outcome of its own item; the rest of the flush goes on."""
    try:
        return decide()
    except Refusal as refusal:
        return refusal
