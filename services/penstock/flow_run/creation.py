"""Creating runs, and finding them by the key that created them, inside one transaction."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from uuid import UUID

from pendulum import DateTime

from penstock.domain.errors import (
    FlowGroupNotFound,
    FlowNotFound,
    KeyNotFound,
    LeaseLost,
    NoLiveFlow,
    Refusal,
)
from penstock.domain.flow import Flow, FlowGroup
from penstock.domain.flow_run import (
    Created,
    Creation,
    FlowRun,
    FlowTarget,
    Target,
    birth,
    fingerprint_of,
    plan,
    repeated,
)
from penstock.domain.ids import FlowGroupId, FlowId, FlowRunId, LaneId, TenantId
from penstock.domain.lanes import LaneKey
from penstock.domain.lease import Lease, Phase, first_entry
from penstock.storage import flow_runs, flows, keys, lanes, queue
from penstock.storage.database import Transaction
from penstock.storage.keys import Claim, Key, TargetKind

NO_TARGET: Final = UUID(int=0)

# How many flows a refusal names that could be unarchived.
ARCHIVED_NAMED_MAX: Final = 3


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
        return _repeat(creation, claim, known.get(claim.flow_run_id), tx.now)

    return [outcome(creation) for creation in creations]


def get_flow_run_by_key(tx: Transaction, tenant: TenantId, target: Target, idempotency_key: str) -> Created:
    """The run that was created under this key of this target, as its creator named the target."""
    key = _key(target, idempotency_key)
    claim = keys.find(tx, tenant, [key]).get(key)
    if claim is None:
        kind = "flow" if isinstance(target, FlowTarget) else "flow group"
        raise KeyNotFound(idempotency_key=idempotency_key, target=f"{kind} {key.target_id}")
    run = flow_runs.by_id(tx, tenant, [claim.flow_run_id]).get(claim.flow_run_id)
    return Created(claim.flow_run_id, run, fresh=False, delete_time=_delete_time(claim, run, tx.now))


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

    plans = {creation.flow_run_id: planned(creation) for creation in creations}
    return {**plans, **_naming_archived(tx, tenant, plans)}


def _naming_archived(tx: Transaction, tenant: TenantId, plans: Planned) -> Planned:
    """The refusals for want of a live flow, which name flows that could be unarchived."""
    refused = {flow_run_id: each for flow_run_id, each in plans.items() if isinstance(each, NoLiveFlow)}
    latest = {
        group: flows.latest_archived(tx, tenant, FlowGroupId(UUID(group)), ARCHIVED_NAMED_MAX)
        for group in {each.flow_group_id for each in refused.values()}
    }
    return {
        flow_run_id: NoLiveFlow(each.flow_group_id, tuple(map(str, latest[each.flow_group_id])))
        for flow_run_id, each in refused.items()
    }


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
        yield _key(creation.target, creation.idempotency_key)
    if creation.request_id is not None:
        yield Key(TargetKind.REQUEST, NO_TARGET, creation.request_id)


def _key(target: Target, idempotency_key: str) -> Key:
    if isinstance(target, FlowTarget):
        return Key(TargetKind.FLOW, target.flow_id, idempotency_key)
    return Key(TargetKind.FLOW_GROUP, target.flow_group_id, idempotency_key)


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


def _repeat(creation: Creation, claim: Claim, first: FlowRun | None, now: DateTime) -> Created | Refusal:
    try:
        differing = repeated(creation, claim.fingerprint, claim.flow_run_id)
    except Refusal as refusal:
        return refusal
    delete_time = _delete_time(claim, first, now)
    return Created(claim.flow_run_id, first, fresh=False, differing_fields=differing, delete_time=delete_time)


def _delete_time(claim: Claim, run: FlowRun | None, now: DateTime) -> DateTime | None:
    """When the run of a key was deleted. One that went between the look at its key and this one was deleted now."""
    return claim.delete_time or (now if run is None else None)


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
