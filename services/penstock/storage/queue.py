"""The queue: one entry per live run, which is also that run's lock.

Entries are locked in a statement of their own, with fence and phase in its WHERE and in the order of their runs; runs
are read in the next statement, because one that is joined into the locking statement can be stale.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final
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

from penstock.domain.ids import LaneId, ProcessId, TenantId
from penstock.domain.lanes import Lane
from penstock.domain.lease import Change, Entry, Lease, Phase
from penstock.domain.limits import LEASES_PER_CALL_MAX
from penstock.storage import dialect, flow_runs, lanes
from penstock.storage.database import Transaction
from penstock.storage.schema import lanes as lanes_table
from penstock.storage.schema import queue_entries

entry = queue_entries.c

# Literals, because the planner uses a partial index only where it can see that the condition implies the index's own.
IS_WAITING: Final[ColumnElement[bool]] = entry.phase == literal_column("'waiting'")
IS_LEASED: Final[ColumnElement[bool]] = entry.phase != literal_column("'waiting'")
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
    due = exists().where(
        entry.tenant_id == tenant,
        entry.lane_id == lanes_table.c.lane_id,
        IS_WAITING,
        entry.rank_time <= tx.now,
        entry.due_time <= tx.now,
    )
    found = (
        select(lanes_table)
        .join(hops, and_(lanes_table.c.tenant_id == tenant, lanes_table.c.lane_id == hops.c.lane_id))
        .where(due)
        .order_by(lanes_table.c.lane_id)
    )
    return list(map(lanes.from_row, tx.conn.execute(found)))


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
            .where(entry.rank_time <= tx.now, entry.due_time <= tx.now)  # the first bounds the scan
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


def give_back(tx: Transaction, tenant: TenantId, leases: Iterable[Lease], *, holder: ProcessId) -> int:
    """Let offers of this process that were not accepted wait again at once; they count nothing."""
    ordered = sorted(leases, key=lambda lease: lease.flow_run_id)
    count = 0
    # In parts, because a statement takes only so many parameters.
    for start in range(0, len(ordered), LEASES_PER_CALL_MAX):
        offered = hold(tx, tenant, ordered[start : start + LEASES_PER_CALL_MAX], (Phase.OFFERED,))
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


def rejoin(tx: Transaction, tenant: TenantId, leases: Iterable[Lease], *, holder: UUID) -> set[Lease]:
    """Write the holder of leases that an agent says it holds; return those that are indeed held."""
    held = hold(tx, tenant, leases)
    if held:
        mine = (entry.tenant_id == tenant, _any_of(held), entry.phase.in_(HOLDING))
        tx.conn.execute(update(queue_entries).where(*mine).values(holder=holder))
    return set(held)


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
    tx.hint.due = tx.hint.due or any(each.entry and each.entry.phase is Phase.WAITING for each in changes)


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
