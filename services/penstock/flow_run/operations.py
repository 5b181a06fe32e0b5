"""What each rpc of FlowRunService does, inside one transaction. Hot operations take a list, with one outcome each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from penstock.domain.errors import FlowGroupNotFound, FlowNotFound, FlowRunNotFound, LeaseLost, NoLiveFlow, Refusal
from penstock.domain.flow import Flow, FlowGroup
from penstock.domain.flow_run import (
    Created,
    Creation,
    Finishing,
    FlowRun,
    FlowTarget,
    Starting,
    Transition,
    birth,
    fingerprint_of,
    plan,
    repeated,
)
from penstock.domain.ids import FlowGroupId, FlowId, FlowRunId, LaneId, TenantId
from penstock.domain.lanes import LaneKey
from penstock.domain.lease import (
    Change,
    EndedBy,
    Entry,
    Execution,
    HeldLease,
    Lease,
    Phase,
    finished,
    first_entry,
    started,
)
from penstock.domain.log import ProducerKey
from penstock.domain.queries import Page, PositionPage, RunFilter
from penstock.storage import executions, flow_runs, flows, keys, lanes, logs, queue
from penstock.storage.database import Transaction
from penstock.storage.keys import Claim, Key, TargetKind

# Who writes the log of a run: the process that stands over its body. Opened when the run starts, so that "every
# producer has closed" is never true of nobody.
SUPERVISOR: Final = "supervisor"
NO_TARGET: Final = UUID(int=0)


def create_flow_runs(tx: Transaction, tenant: TenantId, creations: Sequence[Creation]) -> list[Created | Refusal]:
    """Create runs whole: keys first, then lanes, then run, first transition and queue entry of the fresh ones.

    What is refused claims no key, and a key that was used before answers even where its flow could no longer be run.
    A lane is a name that runs share; it stays where it was interned for a run that is then refused for its parent.
    """
    planned = _plan(tx, tenant, creations)
    keys.claim(tx, tenant, (each for creation in creations if _goes(planned, creation) for each in _claims(creation)))
    owners = keys.find(tx, tenant, (key for creation in creations for key in _keys(creation)))
    repeats = _repeats(creations, owners)
    fresh = [each for each in creations if _goes(planned, each) and each.flow_run_id not in repeats]
    runs = {each.flow_run_id: _run(planned[each.flow_run_id]) for each in fresh}
    lane_ids = lanes.intern(tx, tenant, map(_lane_of, runs.values()))
    orphaned = _without_parent(tx, tenant, fresh)
    # A repeat that brought one known key and one new one has claimed the new one for a run that is never made.
    claimants = {claim.flow_run_id for claim in owners.values()}
    keys.forget(tx, tenant, [*orphaned, *(claimants & repeats.keys())])
    _insert(tx, tenant, [run for run in runs.values() if run.id not in orphaned], lane_ids)

    known = flow_runs.by_id(tx, tenant, {claim.flow_run_id for claim in repeats.values()}) if repeats else {}

    def outcome(creation: Creation) -> Created | Refusal:
        claim = repeats.get(creation.flow_run_id)
        if claim is None:
            answer = orphaned.get(creation.flow_run_id) or planned[creation.flow_run_id]
            return answer if isinstance(answer, Refusal) else Created(answer.id, answer, fresh=True)
        if claim.flow_run_id in orphaned:
            return orphaned[claim.flow_run_id]
        return _repeat(creation, claim, known.get(claim.flow_run_id))

    return [outcome(creation) for creation in creations]


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
    over = executions.by_lease(tx, tenant, [lease for lease in leases if lease not in at_work])
    now_known = flow_runs.by_id(tx, tenant, {lease.flow_run_id for lease in leases if lease not in at_work})

    def decide(finishing: Finishing) -> Change | FlowRun | Refusal:
        lease = Lease(finishing.flow_run_id, finishing.fence)
        if lease in at_work:
            entry, run, execution = at_work[lease]
            return _or_refusal(lambda: finished(entry, run, execution, finishing, now=tx.now))
        if finishing.flow_run_id not in now_known:
            return FlowRunNotFound(flow_run_id=str(finishing.flow_run_id))
        if _ended_by(over.get(lease), finishing):
            return now_known[finishing.flow_run_id]
        return LeaseLost(flow_run_id=str(finishing.flow_run_id), fence=finishing.fence)

    decisions = [decide(finishing) for finishing in finishings]
    _save(tx, tenant, [each for each in decisions if isinstance(each, Change)])
    return [each.run if isinstance(each, Change) else each for each in decisions]


def get_flow_run(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> FlowRun:
    """The run, whole."""
    return flow_runs.get(tx, tenant, flow_run_id)


def list_flow_runs(tx: Transaction, tenant: TenantId, wanted: RunFilter, page: Page) -> list[FlowRun]:
    """A page of runs, newest first, and one more where there is more."""
    return flow_runs.list_runs(tx, tenant, wanted, page)


def list_transitions(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId, page: PositionPage) -> list[Transition]:
    """A page of a run's steps, oldest first."""
    flow_runs.get(tx, tenant, flow_run_id)
    return flow_runs.list_transitions(tx, tenant, flow_run_id, page)


def look_at_flow_runs(
    tx: Transaction, tenant: TenantId, versions: Mapping[FlowRunId, int]
) -> Mapping[FlowRunId, tuple[list[Transition], FlowRun | None]]:
    """For every watched run: its steps after the version seen, and the run itself once these show it final.

    Steps are read before runs, so a run that moves in between shows its later steps at the next look.
    """
    steps = flow_runs.transitions_after(tx, tenant, versions)
    final = flow_runs.final_by_id(tx, tenant, versions)

    def shown_final(flow_run_id: FlowRunId) -> FlowRun | None:
        run = final.get(flow_run_id)
        seen = steps[flow_run_id][-1].version if steps[flow_run_id] else versions[flow_run_id]
        return run if run and run.version <= seen else None

    return {flow_run_id: (steps[flow_run_id], shown_final(flow_run_id)) for flow_run_id in versions}


AtWork = Mapping[Lease, tuple[Entry, FlowRun, Execution]]


def _at_work(tx: Transaction, tenant: TenantId, leases: Iterable[Lease]) -> AtWork:
    """The leases that are held or stopping, locked, each with its run and execution as they are under that lock."""
    held = queue.hold(tx, tenant, leases)
    if not held:
        return {}
    runs = flow_runs.by_id(tx, tenant, [lease.flow_run_id for lease in held])
    done = executions.by_lease(tx, tenant, held)
    return {lease: (entry, runs[lease.flow_run_id], done[lease]) for lease, entry in held.items()}


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
    return {
        each: FlowRunNotFound(flow_run_id=str(each)) for each in doubtful - flow_runs.by_id(tx, tenant, doubtful).keys()
    }


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


Planned = Mapping[FlowRunId, FlowRun | Refusal]


def _plan(tx: Transaction, tenant: TenantId, creations: Sequence[Creation]) -> Planned:
    by_flow = {each.target.flow_id for each in creations if isinstance(each.target, FlowTarget)}
    named = flows.by_id(tx, tenant, by_flow) if by_flow else {}
    by_group = {each.target.flow_group_id for each in creations if not isinstance(each.target, FlowTarget)}
    groups = flows.groups_by_id(tx, tenant, by_group | {flow.group_id for flow in named.values()})
    live_ids = {groups[each].live_flow_id for each in by_group if each in groups} - named.keys() - {None}
    found = {**named, **(flows.by_id(tx, tenant, [each for each in live_ids if each]) if live_ids else {})}

    def planned(creation: Creation) -> FlowRun | Refusal:
        try:
            return plan(creation, *_flow_of(creation, found, groups), tx.now)
        except Refusal as refusal:
            return refusal

    return {creation.flow_run_id: planned(creation) for creation in creations}


def _flow_of(
    creation: Creation, found: Mapping[FlowId, Flow], groups: Mapping[FlowGroupId, FlowGroup]
) -> tuple[Flow, FlowGroup]:
    if isinstance(creation.target, FlowTarget):
        flow = found.get(creation.target.flow_id)
        if flow is None:
            raise FlowNotFound(flow=str(creation.target.flow_id))
        return flow, groups[flow.group_id]
    group = groups.get(creation.target.flow_group_id)
    if group is None:
        raise FlowGroupNotFound(flow_group=str(creation.target.flow_group_id))
    if group.live_flow_id is None:
        raise NoLiveFlow(flow_group_id=str(group.id))
    return found[group.live_flow_id], group


def _goes(planned: Planned, creation: Creation) -> bool:
    return isinstance(planned[creation.flow_run_id], FlowRun)


def _run(planned: FlowRun | Refusal) -> FlowRun:
    assert isinstance(planned, FlowRun)
    return planned


def _keys(creation: Creation) -> Iterable[Key]:
    if creation.idempotency_key is not None:
        if isinstance(creation.target, FlowTarget):
            yield Key(TargetKind.FLOW, creation.target.flow_id, creation.idempotency_key)
        else:
            yield Key(TargetKind.FLOW_GROUP, creation.target.flow_group_id, creation.idempotency_key)
    if creation.request_id is not None:
        yield Key(TargetKind.REQUEST, NO_TARGET, creation.request_id)


def _claims(creation: Creation) -> Iterable[Claim]:
    fingerprint = fingerprint_of(creation)
    return (Claim(key, creation.flow_run_id, fingerprint) for key in _keys(creation))


def _repeats(creations: Sequence[Creation], owners: Mapping[Key, Claim]) -> Mapping[FlowRunId, Claim]:
    """The creations that have been made before, and by which claim: one of their keys belongs to another run.

    That run may itself be a repeat in this flush, of one before it.
    """
    repeats: dict[FlowRunId, Claim] = {}
    for creation in creations:
        found = filter(None, map(owners.get, _keys(creation)))
        claim = next((each for each in found if each.flow_run_id != creation.flow_run_id), None)
        if claim is not None:
            repeats[creation.flow_run_id] = repeats.get(claim.flow_run_id, claim)
    return repeats


def _repeat(creation: Creation, claim: Claim, first: FlowRun | None) -> Created | Refusal:
    try:
        differing = repeated(creation, claim.fingerprint, claim.flow_run_id)
    except Refusal as refusal:
        return refusal
    return Created(claim.flow_run_id, first, fresh=False, differing_fields=differing, delete_time=claim.delete_time)


def _without_parent(tx: Transaction, tenant: TenantId, creations: Sequence[Creation]) -> Mapping[FlowRunId, LeaseLost]:
    """Lock the parents' entries; refuse the creations whose parent no longer holds its lease."""
    parents = {each.flow_run_id: each.parent for each in creations if each.parent}
    held = queue.hold(
        tx, tenant, {Lease(parent.flow_run_id, parent.fence) for parent in parents.values()}, (Phase.HELD,)
    )
    return {
        child: LeaseLost(flow_run_id=str(parent.flow_run_id), fence=parent.fence)
        for child, parent in parents.items()
        if Lease(parent.flow_run_id, parent.fence) not in held
    }


def _lane_of(run: FlowRun) -> LaneKey:
    return LaneKey(run.labels, run.group_id)


def _insert(tx: Transaction, tenant: TenantId, runs: Sequence[FlowRun], lane_ids: Mapping[LaneKey, LaneId]) -> None:
    flow_runs.insert(tx, tenant, runs)
    flow_runs.insert_transitions(tx, tenant, [birth(run) for run in runs])
    queue.insert(tx, tenant, [first_entry(run, lane_ids[_lane_of(run)]) for run in runs])
