"""Queue entries as rows, on both databases. What is done with them is in `tests/queue/test_operations.py`."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from penstock.domain.ids import AgentId, FlowGroupId, FlowRunId, LaneId, TenantId
from penstock.domain.lanes import LaneKey
from penstock.domain.lease import Change, Entry, Lease, Phase
from penstock.domain.limits import HELD_LEASE, OFFER_LEASE
from penstock.domain.state import State
from penstock.storage import flow_runs, lanes, queue
from penstock.storage.database import Database, Transaction
from penstock.storage.queue import Glimpse
from penstock.storage.schema import queue_entries
from tests.queue.scenes import HOLDER, SECOND, TENANT, everything
from tests.support.builders import a_flow_run, an_entry, an_id
from tests.support.fake_clock import NOON, FakeClock

OTHER_TENANT = TenantId(UUID(int=7))
HOLDING = (Phase.HELD, Phase.STOPPING)


async def insert(database: Database, *entries: Entry, tenant: TenantId = TENANT) -> None:
    await database.run(queue.insert, tenant, entries)


async def lane_of(database: Database, *labels: str, tenant: TenantId = TENANT) -> LaneId:
    key = LaneKey(labels, FlowGroupId(an_id()))
    return (await database.run(lanes.intern, tenant, [key]))[key]


def lease_of(entry: Entry) -> Lease:
    return Lease(entry.flow_run_id, entry.fence)


async def test_entries_are_held_by_lease_and_phase(database: Database) -> None:
    """Each comes back whole; another fence, phase or tenant finds nothing."""
    offered = an_entry(
        a_flow_run(), phase=Phase.OFFERED, fence=3, holder=HOLDER, grant_time=NOON, lease_expire_time=NOON, releases=2
    )
    held, stopping = (an_entry(a_flow_run(state), losses=1) for state in (State.RUNNING, State.CANCELLING))
    await insert(database, offered, held, stopping)
    all_three = [lease_of(each) for each in (offered, held, stopping)]

    async def found(phases: tuple[Phase, ...], *leases: Lease, tenant: TenantId = TENANT) -> list[Entry]:
        return list((await database.run(queue.hold, tenant, leases, phases)).values())

    assert await found((Phase.OFFERED,), *all_three) == [offered]
    assert await found(HOLDING, *all_three) == sorted([held, stopping], key=lambda each: each.flow_run_id)
    assert await found(tuple(Phase), *(replace(each, fence=each.fence + 1) for each in all_three)) == []
    assert await found(tuple(Phase), *all_three, tenant=OTHER_TENANT) == []
    assert await found(tuple(Phase)) == []


async def test_only_lanes_with_something_due_are_shown(database: Database, clock: FakeClock) -> None:
    """Not those whose runs wait for later, are leased, or are another tenant's."""
    due, later, leased = [await lane_of(database, label) for label in ("due", "later", "leased")]
    foreign = await lane_of(database, "foreign", tenant=OTHER_TENANT)
    await insert(
        database,
        an_entry(a_flow_run(), lane_id=due),
        an_entry(a_flow_run(), lane_id=due),
        an_entry(a_flow_run(scheduled_start_time=NOON + SECOND), lane_id=later),
        an_entry(a_flow_run(State.RUNNING), lane_id=leased),
    )
    await insert(database, an_entry(a_flow_run(), lane_id=foreign), tenant=OTHER_TENANT)

    async def labels(tenant: TenantId = TENANT) -> set[str]:
        return {each.key.labels[0] for each in await database.run(queue.waiting_lanes, tenant)}

    assert await labels() == {"due"}
    assert await labels(OTHER_TENANT) == {"foreign"}
    assert await database.run(queue.next_due_time, TENANT) == NOON + SECOND
    clock.advance(SECOND)
    assert await labels() == {"due", "later"}
    assert await database.run(queue.next_due_time, TENANT) is None


async def test_a_take_stays_with_its_tenant(database: Database) -> None:
    """Also where two tenants share the identity of a lane."""
    lane = LaneId(an_id())
    own, foreign = an_entry(a_flow_run(), lane_id=lane), an_entry(a_flow_run(), lane_id=lane)
    await insert(database, own)
    await insert(database, foreign, tenant=OTHER_TENANT)

    taken = await database.run(queue.take, TENANT, {lane: 10}, holder=HOLDER, ttl=OFFER_LEASE)

    assert [own.flow_run_id] == [each.flow_run_id for each in taken]
    assert await database.run(queue.take, TENANT, {}, holder=HOLDER, ttl=OFFER_LEASE) == []


async def test_a_change_of_another_entry_is_our_mistake(database: Database) -> None:
    """An entry that is not as it was locked is neither changed nor removed, and nothing else stays."""
    runs = [a_flow_run(State.RUNNING) for _ in range(2)]
    entries = [an_entry(each) for each in runs]
    await database.run(flow_runs.insert, TENANT, runs)
    await insert(database, *entries)
    before = await everything(database)
    for seen in (replace(entries[1], fence=99), replace(entries[1], phase=Phase.OFFERED)):
        for after in (entries[1], None):
            changes = [
                Change(runs[0], entries[0], runs[0], replace(entries[0], losses=5)),
                Change(runs[1], seen, runs[1], after),
            ]
            with pytest.raises(AssertionError):
                await database.run(queue.save, TENANT, changes)

    assert before == await everything(database)


async def test_waiting_is_unheld(database: Database) -> None:
    """The schema itself refuses a waiting entry with a holder, and a held one without."""
    waiting, held = an_entry(a_flow_run()), an_entry(a_flow_run(State.RUNNING))
    for wrong in (replace(waiting, holder=AgentId(an_id())), replace(held, holder=None)):
        with pytest.raises(IntegrityError):
            await insert(database, wrong)


async def test_expired_leases_are_found_by_phase(database: Database, clock: FakeClock) -> None:
    """At the moment of their expiry, not before, and no more than asked for, in the order of their runs."""
    entries = [an_entry(a_flow_run(State.RUNNING), lease_expire_time=NOON + HELD_LEASE) for _ in range(5)]
    offered = an_entry(
        a_flow_run(), phase=Phase.OFFERED, holder=HOLDER, grant_time=NOON, lease_expire_time=NOON + HELD_LEASE
    )
    await insert(database, *entries, offered)

    async def expired(*phases: Phase, limit: int = 10) -> list[Lease]:
        return list(await database.run(queue.hold_expired, TENANT, phases, limit))

    clock.advance(HELD_LEASE - timedelta(microseconds=1))
    assert await expired(*Phase) == []
    clock.advance(timedelta(microseconds=1))
    in_order = sorted(map(lease_of, entries), key=lambda each: each.flow_run_id)
    assert await expired(*HOLDING) == in_order
    assert await expired(*HOLDING, limit=2) == in_order[:2]
    assert await expired(Phase.OFFERED) == [lease_of(offered)]


async def test_expiries_are_cut(database: Database) -> None:
    """Those beyond what a lease lasts, and no others; waiting entries have none."""
    far, near = (an_entry(a_flow_run(State.RUNNING), lease_expire_time=NOON + span * SECOND) for span in (3_600, 60))
    await insert(database, far, near, an_entry(a_flow_run()))

    assert await database.run(queue.cut_expiries, TENANT, HELD_LEASE, 10) == 1
    assert await database.run(queue.cut_expiries, TENANT, HELD_LEASE, 10) == 0

    held = await database.run(queue.hold, TENANT, [lease_of(far), lease_of(near)])
    assert {each.lease_expire_time for each in held.values()} == {NOON + HELD_LEASE}


async def test_rejoining_writes_the_holder(database: Database) -> None:
    """Of what is held by these very leases."""
    held, offered = (
        an_entry(a_flow_run(State.RUNNING)),
        an_entry(a_flow_run(), phase=Phase.OFFERED, holder=HOLDER, grant_time=NOON, lease_expire_time=NOON),
    )
    await insert(database, held, offered)
    agent = AgentId(an_id())
    said = [lease_of(held), lease_of(offered), replace(lease_of(held), fence=99)]

    assert await database.run(queue.rejoin, TENANT, said, holder=agent) == {lease_of(held): held}
    assert await database.run(queue.rejoin, TENANT, [], holder=agent) == {}

    found = await database.run(queue.hold, TENANT, said, tuple(Phase))
    assert {each.holder for each in found.values()} == {agent, HOLDER}


async def test_entries_are_found_by_their_runs(database: Database) -> None:
    """Whoever holds them, in parts if there are very many; a run that is not live is left out."""
    waiting, held = an_entry(a_flow_run()), an_entry(a_flow_run(State.RUNNING), fence=7)
    await insert(database, waiting, held)
    await insert(database, an_entry(a_flow_run()), tenant=OTHER_TENANT)
    asked = [FlowRunId(an_id()) for _ in range(2_500)]

    found = await database.read(queue.glimpses, TENANT, [waiting.flow_run_id, *asked, held.flow_run_id])

    assert found == {
        each.flow_run_id: Glimpse(each.flow_run_id, each.phase, each.fence, each.due_time, each.lease_expire_time)
        for each in (waiting, held)
    }
    assert await database.read(queue.glimpses, TENANT, []) == {}
    assert await database.run(queue.hold_runs, TENANT, [held.flow_run_id, asked[0]]) == {held.flow_run_id: held}


async def test_what_shall_stop_is_found_by_holder(database: Database) -> None:
    """In the order of the runs; for very many holders in parts."""
    mine, theirs = AgentId(an_id()), AgentId(an_id())
    stopping = sorted(
        (an_entry(a_flow_run(State.CANCELLING), holder=mine) for _ in range(3)), key=lambda each: each.flow_run_id
    )
    other = an_entry(a_flow_run(State.CANCELLING), holder=theirs)
    await insert(database, *stopping, other, an_entry(a_flow_run(State.RUNNING), holder=mine))
    await insert(database, an_entry(a_flow_run(State.CANCELLING), holder=mine), tenant=OTHER_TENANT)
    holders = [mine, *(AgentId(an_id()) for _ in range(2_500)), theirs]

    found = await database.read(queue.stopping, TENANT, holders)

    assert found == {mine: [lease_of(each) for each in stopping], theirs: [lease_of(other)]}
    assert await database.read(queue.stopping, TENANT, [AgentId(an_id())]) == {}


async def test_where_a_run_stands(database: Database, clock: FakeClock) -> None:
    """Its entry, its lane, and whether it is due by the conditions of the take; nothing of one that is not live."""
    lane = await lane_of(database, "a", "b")
    later = an_entry(a_flow_run(scheduled_start_time=NOON + SECOND), lane_id=lane)
    await insert(database, later)

    standing = await database.read(queue.standing_of, TENANT, later.flow_run_id)
    clock.advance(SECOND)
    due = await database.read(queue.standing_of, TENANT, later.flow_run_id)

    assert standing is not None
    assert due is not None
    assert (standing.entry, standing.lane.id, standing.lane.key.labels, False) == (
        later,
        lane,
        ("a", "b"),
        standing.due,
    )
    assert due.due
    assert await database.read(queue.standing_of, OTHER_TENANT, later.flow_run_id) is None


async def test_hints_say_what_shall_stop(database: Database) -> None:
    """A lease that becomes STOPPING is told of, and is not taken for something due."""
    run = a_flow_run(State.RUNNING)
    entry = an_entry(run)
    hints: list[tuple[bool, bool]] = []
    await database.run(flow_runs.insert, TENANT, [run])
    await insert(database, entry)

    def note(tx: Transaction) -> None:
        queue.save(tx, TENANT, [Change(run, entry, run, replace(entry, phase=Phase.STOPPING))])
        hints.append((tx.hint.stop, tx.hint.due))

    await database.run(note)

    assert hints == [(True, False)]


async def test_hints_say_what_is_due(database: Database) -> None:
    """A new entry and one that waits again do; one that goes on being held does not."""
    run = a_flow_run(State.RUNNING)
    entry = an_entry(run)
    await database.run(flow_runs.insert, TENANT, [run])
    hints = []

    def note(tx: Transaction, *changes: Change) -> None:
        queue.save(tx, TENANT, changes)
        hints.append(tx.hint.due)

    def begin(tx: Transaction) -> None:
        queue.insert(tx, TENANT, [entry])
        hints.append(tx.hint.due)

    await database.run(begin)
    await database.run(note, Change(run, entry, run, replace(entry, losses=1)))
    waiting = replace(
        entry, phase=Phase.WAITING, fence=9, losses=1, holder=None, grant_time=None, lease_expire_time=None
    )
    await database.run(note, Change(run, replace(entry, losses=1), run, waiting))

    assert hints == [True, False, True]


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
async def test_the_take_finds_its_rows_by_its_index(database: Database) -> None:
    """However many are held or wait for later: the planner sees that the partial index fits."""
    lane = await lane_of(database)
    held = [an_entry(a_flow_run(State.RUNNING), lane_id=lane) for _ in range(1_000)]
    future = [an_entry(a_flow_run(scheduled_start_time=NOON + timedelta(days=1)), lane_id=lane) for _ in range(1_000)]
    await insert(database, *held, *future)
    plans: list[str] = []

    def explain(tx: Transaction) -> None:
        tx.conn.execute(text("ANALYZE queue_entries"))
        for asked in (
            select(queue.entry.flow_run_id)
            .where(queue.entry.tenant_id == TENANT, queue.entry.lane_id == lane, queue.IS_WAITING)
            .where(queue.entry.rank_time <= tx.now)
            .order_by(queue.entry.rank_time)
            .limit(10),
            select(queue_entries).where(
                queue.entry.tenant_id == TENANT, queue.IS_LEASED, queue.entry.lease_expire_time <= tx.now
            ),
            select(queue.entry.fence).where(
                queue.entry.tenant_id == TENANT, queue.IS_STOPPING, queue.entry.holder.in_([AgentId(an_id())])
            ),
        ):
            compiled = asked.compile(tx.conn, compile_kwargs={"render_postcompile": True})
            rows = tx.conn.exec_driver_sql(f"EXPLAIN {compiled}", compiled.construct_params())
            plans.append("\n".join(row[0] for row in rows))

    await database.run(explain)

    assert "queue_entries_take_index" in plans[0]
    assert "queue_entries_expiry_index" in plans[1]
    assert "queue_entries_stopping_index" in plans[2]
