"""Creating runs, and finding them by the key that created them, inside one transaction."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Final, TypeAlias
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
from penstock.domain.flow import Flow, FlowGroup, Template
from penstock.domain.flow_run import (
    Created,
    Creation,
    FlowRun,
    FlowTarget,
    Target,
    birth,
    plan,
    repeated,
)
from penstock.domain.ids import FlowGroupId, FlowId, FlowRunId, LaneId, TenantId
from penstock.domain.lanes import LaneKey
from penstock.domain.lease import Lease, Phase, first_entry
from penstock.storage import flow_runs, flows, keys, lanes, queue
from penstock.storage.database import Overtaken, Transaction
from penstock.storage.keys import Claim, Key, TargetKind

NO_TARGET: Final = UUID(int=0)

# How many flows a refusal names that could be unarchived.
ARCHIVED_NAMED_MAX: Final = 3


def create_flow_runs(tx: Transaction, tenant: TenantId, creations: Sequence[Creation]) -> list[Created | Refusal]:
    """Create runs whole: keys first, then lanes, then run, first transition and queue entry of the fresh ones.

    What is refused claims no key, and a key that was used before answers even where its flow could no longer be run.
    A lane is a name that runs share; it stays where it was interned for a run that is then not made.
    """
    runs, refused = _plan(tx, tenant, creations)
    owners = _claim(tx, tenant, creations, runs)
    earlier = {key: claim for key, claim in owners.items() if claim.flow_run_id not in runs}
    unknown = [each for each in creations if each.flow_run_id in runs and earlier.keys().isdisjoint(_keys(each))]
    lane_ids = lanes.intern(tx, tenant, [_lane_of(runs[each.flow_run_id]) for each in unknown])
    refused = {**refused, **_without_parent(tx, tenant, unknown)}
    repeats = _settle(tx, tenant, creations, owners, earlier, refused)
    _insert(tx, tenant, [run for run in runs.values() if run.id not in refused and run.id not in repeats], lane_ids)
    known = flow_runs.by_id(tx, tenant, {claim.flow_run_id for claim in repeats.values()}) if repeats else {}

    def outcome(creation: Creation) -> Created | Refusal:
        claim = repeats.get(creation.flow_run_id)
        if claim is not None:
            return _repeat(creation, claim, known.get(claim.flow_run_id), tx.now)
        refusal = refused.get(creation.flow_run_id)
        return refusal or Created(creation.flow_run_id, runs[creation.flow_run_id], fresh=True)

    return [outcome(creation) for creation in creations]


def create_flow_runs_again(tx: Transaction, tenant: TenantId, creations: Sequence[Creation]) -> list[Created | Refusal]:
    """The same after a try that may have been committed although it failed: a run that is there was made by it."""
    made = flow_runs.by_id(tx, tenant, [each.flow_run_id for each in creations])
    missing = iter(create_flow_runs(tx, tenant, [each for each in creations if each.flow_run_id not in made]))
    return [
        Created(each.flow_run_id, made[each.flow_run_id], fresh=True) if each.flow_run_id in made else next(missing)
        for each in creations
    ]


def get_flow_run_by_key(tx: Transaction, tenant: TenantId, target: Target, idempotency_key: str) -> Created:
    """The run that was created under this key of this target, as its creator named the target."""
    key = _key(target, idempotency_key)
    claim = keys.find(tx, tenant, [key]).get(key)
    if claim is None:
        kind = "flow" if isinstance(target, FlowTarget) else "flow group"
        raise KeyNotFound(idempotency_key=idempotency_key, target=f"{kind} {key.target_id}")
    run = flow_runs.by_id(tx, tenant, [claim.flow_run_id]).get(claim.flow_run_id)
    return Created(claim.flow_run_id, run, fresh=False, delete_time=_delete_time(claim, run, tx.now))


Runs: TypeAlias = Mapping[FlowRunId, FlowRun]
Refused: TypeAlias = Mapping[FlowRunId, Refusal]


def _plan(tx: Transaction, tenant: TenantId, creations: Sequence[Creation]) -> tuple[Runs, Refused]:
    """The runs that are asked for, as they would be, and the refusals of what cannot be run."""
    template_of = _templates(tx, tenant, creations)
    runs: dict[FlowRunId, FlowRun] = {}
    refused: dict[FlowRunId, Refusal] = {}
    for creation in creations:
        try:
            runs[creation.flow_run_id] = plan(creation, template_of(creation.target), tx.now)
        except Refusal as refusal:
            refused[creation.flow_run_id] = refusal
    return runs, {**refused, **_naming_archived(tx, tenant, refused)}


def _templates(tx: Transaction, tenant: TenantId, creations: Sequence[Creation]) -> Callable[[Target], Template]:
    """What runs of these targets are made of, each flow read once; a refusal where there is nothing to run."""
    by_flow = {each.target.flow_id for each in creations if isinstance(each.target, FlowTarget)}
    named = flows.by_id(tx, tenant, by_flow) if by_flow else {}
    by_group = {each.target.flow_group_id for each in creations if not isinstance(each.target, FlowTarget)}
    groups = flows.groups_by_id(tx, tenant, by_group | {flow.group_id for flow in named.values()})
    live_ids = {groups[each].live_flow_id for each in by_group if each in groups} - named.keys() - {None}
    found = {**named, **(flows.by_id(tx, tenant, [each for each in live_ids if each]) if live_ids else {})}

    @cache
    def template(flow_id: FlowId) -> Template:
        return Template.of(found[flow_id], groups[found[flow_id].group_id])

    return lambda target: template(_flow_of(target, found, groups))


def _flow_of(target: Target, found: Mapping[FlowId, Flow], groups: Mapping[FlowGroupId, FlowGroup]) -> FlowId:
    if isinstance(target, FlowTarget):
        if target.flow_id not in found:
            raise FlowNotFound(flow=str(target.flow_id))
        return target.flow_id
    group = groups.get(target.flow_group_id)
    if group is None:
        raise FlowGroupNotFound(flow_group=str(target.flow_group_id))
    if group.live_flow_id is None:
        raise NoLiveFlow(flow_group_id=str(group.id))
    return group.live_flow_id


def _naming_archived(tx: Transaction, tenant: TenantId, refused: Refused) -> Refused:
    """The refusals for want of a live flow, which name flows that could be unarchived."""
    archived = {flow_run_id: each for flow_run_id, each in refused.items() if isinstance(each, NoLiveFlow)}
    latest = {
        group: flows.latest_archived(tx, tenant, FlowGroupId(UUID(group)), ARCHIVED_NAMED_MAX)
        for group in {each.flow_group_id for each in archived.values()}
    }
    return {
        flow_run_id: NoLiveFlow(each.flow_group_id, tuple(map(str, latest[each.flow_group_id])))
        for flow_run_id, each in archived.items()
    }


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
    return (Claim(key, creation.flow_run_id, creation.written.fingerprint) for key in _keys(creation))


def _claim(tx: Transaction, tenant: TenantId, creations: Sequence[Creation], runs: Runs) -> Mapping[Key, Claim]:
    """Claim the keys of the planned runs; who has the keys of all creations, which may be a run made before."""
    claims = [claim for each in creations if each.flow_run_id in runs for claim in _claims(each)]
    keys.claim(tx, tenant, claims)
    owners = keys.find(tx, tenant, [key for each in creations for key in _keys(each)])
    if any(claim.key not in owners for claim in claims):
        raise Overtaken("a key was taken, and its run has been deleted since")
    return owners


def _settle(
    tx: Transaction,
    tenant: TenantId,
    creations: Sequence[Creation],
    owners: Mapping[Key, Claim],
    earlier: Mapping[Key, Claim],
    refused: Refused,
) -> Mapping[FlowRunId, Claim]:
    """Which creations have been made before, and by which claim: one of their keys belongs to a run that is there.

    That run may be one of this flush. In order of arrival, what is neither refused nor a repeat takes its keys; those
    that were claimed for a run that is not made after all go to whoever takes them so.
    """
    taken = dict(earlier)
    repeats: dict[FlowRunId, Claim] = {}
    for creation in creations:
        claim = next(filter(None, map(taken.get, _keys(creation))), None)
        if claim is not None:
            repeats[creation.flow_run_id] = claim
        elif creation.flow_run_id not in refused:
            taken.update((each.key, each) for each in _claims(creation))
    unmade = {claim.flow_run_id for key, claim in owners.items() if taken.get(key) != claim}
    if unmade:
        keys.forget(tx, tenant, list(unmade))
        keys.claim(tx, tenant, [claim for key, claim in taken.items() if owners[key].flow_run_id in unmade])
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
