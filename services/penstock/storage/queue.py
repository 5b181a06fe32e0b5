"""The queue: one entry per live run, which is also that run's lock.

Entries are locked in a statement of their own, with fence and phase in its WHERE and in the order of their runs; runs
are read in the next statement, because one that is joined into the locking statement can be stale.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import Any, Final, TypeAlias, TypeVar
from uuid import UUID

from pendulum import DateTime
from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    literal_column,
    select,
    tuple_,
    update,
)

from penstock.domain.flow import ChildPolicy
from penstock.domain.ids import FlowRunId, LaneId, ProcessId, TenantId
from penstock.domain.lanes import AGENTLESS, Lane
from penstock.domain.lease import Change, Entry, Lease, Phase
from penstock.domain.limits import LEASES_PER_CALL_MAX
from penstock.domain.state import State
from penstock.storage import dialect, flow_runs, lanes
from penstock.storage.database import Transaction
from penstock.storage.schema import flow_runs as runs_table
from penstock.storage.schema import lane_labels, queue_entries
from penstock.storage.schema import lanes as lanes_table

entry = queue_entries.c
T = TypeVar("T")

# Literals, because the planner uses a partial index only where it can see that the condition implies the index's own.
IS_WAITING: Final[ColumnElement[bool]] = entry.phase == literal_column("'waiting'")
IS_LEASED: Final[ColumnElement[bool]] = entry.phase != literal_column("'waiting'")
IS_STOPPING: Final[ColumnElement[bool]] = entry.phase == literal_column("'stopping'")
HOLDING: Final = (Phase.HELD, Phase.STOPPING)

CHANGEABLE: Final = (
    "rank_time",
    "due_time",
    "phase",
    "fence",
    "holder",
    "grant_time",
    "lease_expire_time",
    "releases",
    "losses",
)
AS_LOCKED: Final = and_(
    entry.tenant_id == bindparam("of_tenant"),
    entry.flow_run_id == bindparam("of_run"),
    entry.fence == bindparam("of_fence"),
    entry.phase == bindparam("of_phase"),
)
CHANGE: Final = update(queue_entries).where(AS_LOCKED).values({name: bindparam(f"new_{name}") for name in CHANGEABLE})
REMOVE: Final = delete(queue_entries).where(AS_LOCKED)


class Among(Enum):
    """Which parents to look at for children that go with them, if not at some that are named."""

    STOPPING = auto()  # those that are asked to stop: few, and found at once
    ALL = auto()  # all that have live children, which costs the more the more there are


Parents: TypeAlias = Among | Collection[FlowRunId]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a live run stands: its entry, the lane it is in, and whether it may be taken by its time."""

    entry: Entry
    lane: Lane
    due: bool


@dataclass(frozen=True, slots=True)
class Glimpse:
    """As much of an entry as says whether it may be offered, and whether a lease on it still holds."""

    flow_run_id: FlowRunId
    phase: Phase
    fence: int
    due_time: DateTime
    lease_expire_time: DateTime | None


def insert(tx: Transaction, tenant: TenantId, entries: Sequence[Entry]) -> None:
    """Let new runs wait, and tell the dispatchers."""
    rows = [{"tenant_id": tenant, **{name: getattr(each, name) for name in Entry.__slots__}} for each in entries]
    dialect.insert_many(tx.conn, queue_entries, rows)
    tx.hint.due = tx.hint.due or bool(entries)


def waiting_lanes(tx: Transaction, tenant: TenantId) -> list[Lane]:
    """The lanes in which a run is due, found by hopping from lane to lane through the index of the take."""

    def next_lane(beyond: ColumnElement[Any] | None) -> Select[Any]:
        hop = select(entry.lane_id).where(entry.tenant_id == tenant, IS_WAITING)
        hop = hop if beyond is None else hop.where(entry.lane_id > beyond)
        return hop.order_by(entry.lane_id).limit(1)

    first = next_lane(None).subquery()
    hops = select(first.c.lane_id).cte("hops", recursive=True)
    onward = next_lane(hops.c.lane_id).scalar_subquery()
    hops = hops.union_all(select(onward).where(hops.c.lane_id.is_not(None)))
    due = exists().where(entry.tenant_id == tenant, entry.lane_id == lanes_table.c.lane_id, IS_WAITING, *_is_due(tx))
    found = (
        select(lanes_table)
        .join(hops, and_(lanes_table.c.tenant_id == tenant, lanes_table.c.lane_id == hops.c.lane_id))
        .where(due)
        .order_by(lanes_table.c.lane_id)
    )
    return list(map(lanes.from_row, tx.conn.execute(found)))


def standing_of(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> Standing | None:
    """Where a live run stands, by the conditions of the take itself; None when it is not live."""
    due = and_(*_is_due(tx)).label("is_due")
    lane = and_(lanes_table.c.tenant_id == tenant, lanes_table.c.lane_id == entry.lane_id)
    found = (
        select(queue_entries, due, lanes_table.c.labels, lanes_table.c.flow_group_id)
        .join(lanes_table, lane)
        .where(entry.tenant_id == tenant, entry.flow_run_id == flow_run_id)
    )
    row = tx.conn.execute(found).one_or_none()
    return None if row is None else Standing(_from_row(row), lanes.from_row(row), bool(row.is_due))


def next_due_time(tx: Transaction, tenant: TenantId) -> DateTime | None:
    """When the next run that is not due yet becomes due; None when no run waits for a later time."""
    later = select(func.min(entry.due_time)).where(entry.tenant_id == tenant, IS_WAITING, entry.due_time > tx.now)
    due: DateTime | None = tx.conn.execute(later).scalar_one()
    return due


def take(
    tx: Transaction, tenant: TenantId, rooms: Mapping[LaneId, int], *, holder: ProcessId, ttl: timedelta
) -> list[Entry]:
    """Offer up to `rooms[lane]` due entries of each lane, best rank first within a lane.

    SKIP LOCKED lets replicas drain one queue without waiting; the fence rises with every grant, so a former holder's
    writes no longer match.
    """

    def best(lane: Any, room: Any) -> Select[Any]:
        return (
            select(entry.flow_run_id)
            .where(entry.tenant_id == tenant, entry.lane_id == lane, IS_WAITING)
            .where(*_is_due(tx))
            .order_by(entry.rank_time, entry.flow_run_id)
            .limit(room)
            .with_for_update(skip_locked=True)
        )

    if not rooms:
        return []
    grant = (
        update(queue_entries)
        .where(entry.tenant_id == tenant, entry.flow_run_id.in_(dialect.best_of_lanes(tx.conn, rooms, best)))
        .values(
            phase=Phase.OFFERED,
            fence=entry.fence + 1,
            holder=holder,
            grant_time=tx.now,
            lease_expire_time=tx.now + ttl,
        )
        .returning(queue_entries)
    )
    granted = map(_from_row, tx.conn.execute(grant))
    return sorted(granted, key=lambda each: (each.rank_time, each.flow_run_id))


def hold(
    tx: Transaction, tenant: TenantId, leases: Iterable[Lease], phases: Sequence[Phase] = HOLDING
) -> dict[Lease, Entry]:
    """Lock the entries that these leases still hold, in the order of their runs. A lease not among them is over."""
    asked = list(leases)
    if not asked:
        return {}
    held = select(queue_entries).where(entry.tenant_id == tenant, _any_of(asked), entry.phase.in_(phases))
    rows = tx.conn.execute(held.order_by(entry.flow_run_id).with_for_update())
    return {Lease(each.flow_run_id, each.fence): each for each in map(_from_row, rows)}


def hold_runs(tx: Transaction, tenant: TenantId, runs: Iterable[FlowRunId]) -> dict[FlowRunId, Entry]:
    """Lock the entries of these runs, whoever holds them, in the order of the runs. A run left out is not live."""
    asked = list(runs)
    if not asked:
        return {}
    live = select(queue_entries).where(entry.tenant_id == tenant, entry.flow_run_id.in_(asked))
    rows = tx.conn.execute(live.order_by(entry.flow_run_id).with_for_update())
    return {each.flow_run_id: each for each in map(_from_row, rows)}


def glimpses(tx: Transaction, tenant: TenantId, runs: Iterable[FlowRunId]) -> Mapping[FlowRunId, Glimpse]:
    """What the entries of these runs are like now, not locked. A run left out is not live."""
    columns = [entry[name] for name in Glimpse.__slots__]
    found: dict[FlowRunId, Glimpse] = {}
    for part in _parts(sorted(set(runs))):
        live = select(*columns).where(entry.tenant_id == tenant, entry.flow_run_id.in_(part))
        found |= {row.flow_run_id: Glimpse(*row) for row in tx.conn.execute(live)}
    return found


def stopping(tx: Transaction, tenant: TenantId, holders: Iterable[UUID]) -> Mapping[UUID, list[Lease]]:
    """The leases of these holders whose work shall stop; holders with none are left out."""
    found: dict[UUID, list[Lease]] = {}
    for part in _parts(sorted(set(holders))):
        shall_stop = select(entry.holder, entry.flow_run_id, entry.fence).where(
            entry.tenant_id == tenant, IS_STOPPING, entry.holder.in_(part)
        )
        for row in tx.conn.execute(shall_stop.order_by(entry.flow_run_id)):
            found.setdefault(row.holder, []).append(Lease(row.flow_run_id, row.fence))
    return found


def orphans_exist(tx: Transaction, tenant: TenantId, parents: Parents) -> bool:
    """Whether `hold_orphans` would find any."""
    return tx.conn.execute(_orphans(tenant, parents).limit(1)).first() is not None


def has_followers(tx: Transaction, tenant: TenantId, parent_id: FlowRunId) -> bool:
    """Whether live children of this run, which are cancelled with it, have not been asked to stop yet."""
    children = select(entry.flow_run_id).where(
        entry.tenant_id == tenant, entry.parent_id == parent_id, entry.phase != Phase.STOPPING
    )
    return tx.conn.execute(children.limit(1)).first() is not None


def hold_cut_off(tx: Transaction, tenant: TenantId, parent_id: FlowRunId) -> list[FlowRunId]:
    """Lock the entries of live children that should be cancelled with this run and are cut off from it: they were
    restarted after it was cancelled. In the order of their runs."""
    cut_off = _cut_off(tenant, parent_id).order_by(entry.flow_run_id)
    return list(tx.conn.scalars(cut_off.with_for_update(of=queue_entries)))


def any_cut_off(tx: Transaction, tenant: TenantId, parent_id: FlowRunId) -> bool:
    """Whether `hold_cut_off` would find any."""
    return tx.conn.execute(_cut_off(tenant, parent_id).limit(1)).first() is not None


def rejoin_parent(tx: Transaction, tenant: TenantId, children: Sequence[FlowRunId], parent_id: FlowRunId) -> None:
    """Let these children, whose entries are locked, go with their parent again."""
    for part in _parts(children):
        cut_off = update(queue_entries).where(entry.tenant_id == tenant, entry.flow_run_id.in_(part))
        tx.conn.execute(cut_off.values(parent_id=parent_id))


def hold_orphans(tx: Transaction, tenant: TenantId, parents: Parents, limit: int) -> dict[Lease, Entry]:
    """Lock up to `limit` entries, not asked to stop yet, whose parent is CANCELLING or CANCELLED and one of `parents`.

    The state of the parent is judged in the locking statement, so that of a parent which was restarted meanwhile no
    child of its next attempt is found.
    """
    orphans = _orphans(tenant, parents).order_by(entry.flow_run_id).limit(limit)
    rows = tx.conn.execute(orphans.with_for_update(skip_locked=True, of=queue_entries))
    return {Lease(each.flow_run_id, each.fence): each for each in map(_from_row, rows)}


def hold_expired(tx: Transaction, tenant: TenantId, phases: Sequence[Phase], limit: int) -> dict[Lease, Entry]:
    """Lock up to `limit` entries whose lease has expired. The condition stands in the locking statement itself, so a
    lease that was renewed meanwhile lives."""
    expired = (
        select(queue_entries)
        .where(entry.tenant_id == tenant, IS_LEASED, entry.phase.in_(phases), entry.lease_expire_time <= tx.now)
        .order_by(entry.flow_run_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return {Lease(each.flow_run_id, each.fence): each for each in map(_from_row, tx.conn.execute(expired))}


def hold_deserted(tx: Transaction, tenant: TenantId, due_by: DateTime, limit: int) -> list[Entry]:
    """Lock up to `limit` entries that are executed without an agent, were due by then, and still wait."""
    deserted = _deserted(tenant, due_by).order_by(entry.flow_run_id).limit(limit).with_for_update(skip_locked=True)
    return list(map(_from_row, tx.conn.execute(deserted)))


def deserted_exist(tx: Transaction, tenant: TenantId, due_by: DateTime) -> bool:
    """Whether `hold_deserted` would find any."""
    return tx.conn.execute(_deserted(tenant, due_by).limit(1)).first() is not None


def expired_offers_exist(tx: Transaction, tenant: TenantId) -> bool:
    """Whether `give_back_expired` would find any."""
    expired = select(entry.flow_run_id).where(
        entry.tenant_id == tenant, IS_LEASED, entry.phase == Phase.OFFERED, entry.lease_expire_time <= tx.now
    )
    return tx.conn.execute(expired.limit(1)).first() is not None


def give_back(tx: Transaction, tenant: TenantId, leases: Iterable[Lease], *, holder: ProcessId) -> int:
    """Let offers of this process that were not accepted wait again at once; they count nothing."""
    count = 0
    for part in _parts(sorted(leases, key=lambda lease: lease.flow_run_id)):
        offered = hold(tx, tenant, part, (Phase.OFFERED,))
        count += _give_back(tx, tenant, [lease for lease, each in offered.items() if each.holder == holder])
    return count


def give_back_strays(tx: Transaction, tenant: TenantId, in_hand: Iterable[Lease], *, holder: ProcessId) -> int:
    """Let every offer of this process wait again that it does not know of: a take whose commit was not answered."""
    mine = select(entry.flow_run_id, entry.fence).where(
        entry.tenant_id == tenant, IS_LEASED, entry.phase == Phase.OFFERED, entry.holder == holder
    )
    offered = {Lease(each.flow_run_id, each.fence) for each in tx.conn.execute(mine)}
    return give_back(tx, tenant, offered - set(in_hand), holder=holder)


def give_back_expired(tx: Transaction, tenant: TenantId, limit: int) -> int:
    """Let offers wait again whose time has run out, whoever made them."""
    return _give_back(tx, tenant, hold_expired(tx, tenant, (Phase.OFFERED,), limit))


def cut_expiries(tx: Transaction, tenant: TenantId, ttl: timedelta, limit: int) -> int:
    """Cut up to `limit` expiries that lie further ahead than any lease lasts: the clock was set back meanwhile."""
    latest = tx.now + ttl
    beyond = (
        select(entry.flow_run_id)
        .where(entry.tenant_id == tenant, IS_LEASED, entry.lease_expire_time > latest)
        .order_by(entry.flow_run_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    runs = list(tx.conn.scalars(beyond))
    if runs:
        cut = update(queue_entries).where(entry.tenant_id == tenant, entry.flow_run_id.in_(runs), IS_LEASED)
        tx.conn.execute(cut.values(lease_expire_time=latest))
    return len(runs)


def rejoin(tx: Transaction, tenant: TenantId, leases: Iterable[Lease], *, holder: UUID) -> Mapping[Lease, Entry]:
    """Write the holder of leases that an agent says it holds; return the entries of those that are indeed held."""
    held = hold(tx, tenant, leases)
    if held:
        mine = (entry.tenant_id == tenant, _any_of(held), entry.phase.in_(HOLDING))
        tx.conn.execute(update(queue_entries).where(*mine).values(holder=holder))
    return held


def offer(tx: Transaction, tenant: TenantId, held: Entry, offered: Entry) -> None:
    """Write that one locked entry is offered."""
    _change(tx, tenant, [(held, offered)])


def renew(tx: Transaction, tenant: TenantId, held: Iterable[Entry], renewed: Iterable[Entry]) -> None:
    """Write entries whose lease was prolonged."""
    _change(tx, tenant, list(zip(held, renewed, strict=True)))


def save(tx: Transaction, tenant: TenantId, changes: Sequence[Change]) -> None:
    """Write what was decided about locked entries and their runs: entries, then runs, then the steps they made."""
    _change(tx, tenant, [(each.held, each.entry) for each in changes if each.entry])
    _remove(tx, tenant, [each.held for each in changes if not each.entry])
    moved = [each for each in changes if each.transition]
    flow_runs.save_moves(tx, tenant, [(each.before, each.run) for each in moved])
    flow_runs.insert_transitions(tx, tenant, [each.transition for each in moved if each.transition])
    phases = {each.entry.phase for each in changes if each.entry}
    tx.hint.due = tx.hint.due or Phase.WAITING in phases
    tx.hint.stop = tx.hint.stop or Phase.STOPPING in phases


def _is_due(tx: Transaction) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """When an entry may be taken; the first condition bounds the scan."""
    return entry.rank_time <= tx.now, entry.due_time <= tx.now


def _deserted(tenant: TenantId, due_by: DateTime) -> Select[Any]:
    """The rank is never later than the time when a run is due, so it bounds the scan."""
    lane = lane_labels.c
    agentless = select(lane.lane_id).where(lane.tenant_id == tenant, lane.label == AGENTLESS)
    return select(queue_entries).where(
        entry.tenant_id == tenant,
        entry.lane_id.in_(agentless),
        IS_WAITING,
        entry.rank_time <= due_by,
        entry.due_time <= due_by,
    )


def _orphans(tenant: TenantId, parents: Parents) -> Select[Any]:
    parent = runs_table.c
    cancelled = select(parent.flow_run_id).where(
        parent.tenant_id == tenant,
        parent.flow_run_id.in_(_candidates(tenant, parents)),
        parent.state.in_((State.CANCELLING, State.CANCELLED)),
    )
    return select(queue_entries).where(
        entry.tenant_id == tenant, entry.parent_id.in_(cancelled), entry.phase != Phase.STOPPING
    )


def _candidates(tenant: TenantId, parents: Parents) -> Select[Any] | Sequence[FlowRunId]:
    match parents:
        case Among.STOPPING:
            return select(entry.flow_run_id).where(entry.tenant_id == tenant, IS_STOPPING)
        case Among.ALL:
            return _live_parents(tenant)
        case _:
            return list(parents)


def _live_parents(tenant: TenantId) -> Select[Any]:
    """Runs with live children, found by hopping from parent to parent, however many children each has."""

    def next_parent(beyond: ColumnElement[Any] | None) -> Select[Any]:
        hop = select(entry.parent_id).where(entry.tenant_id == tenant, entry.parent_id.is_not(None))
        hop = hop if beyond is None else hop.where(entry.parent_id > beyond)
        return hop.order_by(entry.parent_id).limit(1)

    first = next_parent(None).subquery()
    hops = select(first.c.parent_id).cte("parents", recursive=True)
    onward = next_parent(hops.c.parent_id).scalar_subquery()
    hops = hops.union_all(select(onward).where(hops.c.parent_id.is_not(None)))
    return select(hops.c.parent_id)


def _cut_off(tenant: TenantId, parent_id: FlowRunId) -> Select[Any]:
    child = runs_table.c
    of_parent = (child.tenant_id == tenant, child.parent_id == parent_id, child.finish_time.is_(None))
    return (
        select(entry.flow_run_id)
        .join(runs_table, and_(child.tenant_id == tenant, child.flow_run_id == entry.flow_run_id))
        .where(entry.tenant_id == tenant, entry.parent_id.is_(None))
        .where(*of_parent, child.child_policy == ChildPolicy.CANCEL)
    )


def _give_back(tx: Transaction, tenant: TenantId, locked: Collection[Lease]) -> int:
    if not locked:
        return 0
    given = (
        update(queue_entries)
        .where(entry.tenant_id == tenant, _any_of(locked), entry.phase == Phase.OFFERED)
        .values(phase=Phase.WAITING, fence=entry.fence + 1, holder=None, grant_time=None, lease_expire_time=None)
    )
    count = tx.conn.execute(given).rowcount
    assert count == len(locked), f"{count} of {len(locked)} offers were as locked"
    tx.hint.due = True
    return count


def _parts(asked: Sequence[T]) -> Iterator[Sequence[T]]:
    """What is asked, in parts, because a statement takes only so many parameters."""
    for start in range(0, len(asked), LEASES_PER_CALL_MAX):
        yield asked[start : start + LEASES_PER_CALL_MAX]


def _any_of(leases: Iterable[Lease]) -> ColumnElement[bool]:
    return tuple_(entry.flow_run_id, entry.fence).in_([(lease.flow_run_id, lease.fence) for lease in leases])


def _change(tx: Transaction, tenant: TenantId, changed: Sequence[tuple[Entry, Entry]]) -> None:
    if not changed:
        return
    rows = [
        _as_locked(tenant, held) | {f"new_{name}": getattr(after, name) for name in CHANGEABLE}
        for held, after in changed
    ]
    written = tx.conn.execute(CHANGE, rows).rowcount
    assert written == len(rows), f"{written} of {len(rows)} entries were as locked"


def _remove(tx: Transaction, tenant: TenantId, held: Sequence[Entry]) -> None:
    if not held:
        return
    removed = tx.conn.execute(REMOVE, [_as_locked(tenant, each) for each in held]).rowcount
    assert removed == len(held), f"{removed} of {len(held)} entries were as locked"


def _as_locked(tenant: TenantId, held: Entry) -> dict[str, Any]:
    return {"of_tenant": tenant, "of_run": held.flow_run_id, "of_fence": held.fence, "of_phase": held.phase}


def _from_row(row: Row[Any]) -> Entry:
    return Entry(**{name: getattr(row, name) for name in Entry.__slots__})
