"""Cancelling the children of runs that were cancelled, on both databases."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from penstock.domain.errors import Unavailable
from penstock.domain.flow import ChildPolicy, Flow, PolicyAsked
from penstock.domain.flow_run import Created, Creation, Failure, FlowRun, FlowTarget, ParentLease
from penstock.domain.ids import FlowRunId, LaneId, TenantId
from penstock.domain.lease import Lease, Phase, cancelled
from penstock.domain.limits import KEEPER_BATCH_MAX
from penstock.domain.state import Cause, State
from penstock.keeper.orphans import REASON, Orphans, cancel_orphans, cancel_some_orphans
from penstock.storage import executions, flow_runs, queue
from penstock.storage.database import Database, Transaction
from penstock.storage.queue import Among, Parents
from penstock.storage.schema import queue_entries
from penstock.storage.wakeups import Hint
from tests.queue.scenes import (
    STOPPED,
    TENANT,
    AtWork,
    accept,
    at_work,
    attempt,
    create,
    entry_of,
    everything,
    finish,
    offer,
    register,
    run_of,
    steps_of,
    take,
    until_someone_waits,
)
from tests.storage.gate import Gate
from tests.support.builders import a_creation, a_flow_run, an_entry, an_id

on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
ABANDON = PolicyAsked(child_policy=ChildPolicy.ABANDON)


async def child_of(database: Database, flow: Flow, parent: AtWork, **fields: Any) -> FlowRun:
    under = ParentLease(parent.lease.flow_run_id, parent.lease.fence)
    return await create(database, flow, parent=under, **fields)


async def cancel(database: Database, flow_run_id: FlowRunId) -> None:
    """What a request to cancel one run does."""

    def work(tx: Transaction) -> None:
        entry = queue.hold_runs(tx, TENANT, [flow_run_id])[flow_run_id]
        run = flow_runs.get(tx, TENANT, flow_run_id)
        lease = Lease(entry.flow_run_id, entry.fence)
        execution = executions.by_lease(tx, TENANT, [lease]).get(lease)
        change = cancelled(entry, run, execution, now=tx.now, cause=Cause.CANCEL_ASKED, reason="")
        queue.save(tx, TENANT, [change] if change else [])

    await database.run(work)


async def states_of(database: Database, runs: Sequence[FlowRun]) -> list[State]:
    return [(await run_of(database, run.id)).state for run in runs]


async def a_tree(database: Database, flow: Flow, widths: Sequence[int]) -> FlowRun:
    """A tree whose first run is RUNNING, as those that create others must have been; each generation spreads evenly
    under the one before."""
    root = a_flow_run(State.RUNNING, flow_id=flow.id, group_id=flow.group_id)
    generations, runs = [[root]], [root]
    for width in widths:
        parents = generations[-1]
        born = [
            a_flow_run(flow_id=flow.id, group_id=flow.group_id, parent_id=parents[number % len(parents)].id)
            for number in range(width)
        ]
        generations.append(born)
        runs += born

    def insert(tx: Transaction) -> None:
        flow_runs.insert(tx, TENANT, runs)
        queue.insert(tx, TENANT, [an_entry(run, lane_id=LaneId(an_id()), parent_id=run.parent_id) for run in runs])

    await database.run(insert)

    def cancel_the_root(tx: Transaction) -> None:
        held = queue.hold_runs(tx, TENANT, [root.id])[root.id]
        stopping = replace(root, state=State.CANCELLING, version=root.version + 1)
        flow_runs.save_moves(tx, TENANT, [(root, stopping)])
        queue.renew(tx, TENANT, [held], [replace(held, phase=Phase.STOPPING)])

    await database.run(cancel_the_root)
    return root


async def phases(database: Database) -> Counter[Phase]:
    return Counter(row[5] for row in (await everything(database))["queue_entries"])


async def test_children_go_with_their_parent(database: Database) -> None:
    """Those that wait or were offered are CANCELLED at once; one that is held becomes CANCELLING; each says why."""
    flow = await register(database)
    parent = await at_work(database, (await create(database, flow)).id)
    held = await child_of(database, flow, parent)
    working = await at_work(database, held.id)
    waiting, other = [await child_of(database, flow, parent, labels=labels) for labels in ((), ("x",))]
    (taken,) = [grant for grant in await take(database) if grant.run.id == other.id]
    await cancel(database, parent.lease.flow_run_id)

    assert 3 == await cancel_orphans(database, TENANT)

    assert [State.CANCELLING, State.CANCELLED, State.CANCELLED] == await states_of(database, [held, waiting, other])
    steps = [(await steps_of(database, each.id))[-1] for each in (held, waiting, other)]
    assert {(Cause.PARENT_CANCELLED, REASON)} == {(each.cause, each.message) for each in steps}
    entry = await entry_of(database, held.id)
    assert entry is not None
    assert (Phase.STOPPING, working.lease.fence) == (entry.phase, entry.fence)
    (result,) = await accept(database, taken.held.lease)
    assert "ENDED" == result.outcome.name
    assert not await database.read(queue.orphans_exist, TENANT, Among.ALL)
    assert 0 == await cancel_orphans(database, TENANT)


async def test_children_of_others_go_on(database: Database) -> None:
    """Those that are to be abandoned, and those whose parent runs on, has succeeded or has failed."""
    flow = await register(database)
    cancelled_one, succeeded, running = [await at_work(database, (await create(database, flow)).id) for _ in range(3)]
    abandoned = await child_of(database, flow, cancelled_one, policy=ABANDON)
    children = [await child_of(database, flow, each) for each in (succeeded, running)]
    await cancel(database, cancelled_one.lease.flow_run_id)
    await finish(database, succeeded.lease, succeeded.execution_id)
    before = await everything(database)

    assert 0 == await cancel_orphans(database, TENANT)

    assert before == await everything(database)
    assert [State.SCHEDULED] * 3 == await states_of(database, [abandoned, *children])


async def test_a_parent_that_is_cancelled_already_takes_its_children_too(database: Database) -> None:
    """However long ago it ended."""
    flow = await register(database)
    parent = await at_work(database, (await create(database, flow)).id)
    child = await child_of(database, flow, parent)
    await cancel(database, parent.lease.flow_run_id)
    await finish(database, parent.lease, parent.execution_id, STOPPED)

    assert 1 == await cancel_orphans(database, TENANT)
    assert [State.CANCELLED] == await states_of(database, [child])


async def test_a_large_tree_goes_whole(database: Database) -> None:
    """A thousand in four generations, at most 500 in a transaction: one run of the keeper ends them all."""
    await a_tree(database, await register(database), (5, 50, 345, 600))
    assert 1_001 == (await phases(database)).total()

    assert 1_000 == await cancel_orphans(database, TENANT)

    assert {Phase.STOPPING: 1} == await phases(database)
    steps = (await everything(database))["transitions"]
    assert 1_000 == len(steps)


async def test_two_keepers_cancel_each_child_once(database: Database) -> None:
    """They share the work; together they do it all, and nothing twice."""
    await a_tree(database, await register(database), (4, 40, 400))

    counts = await asyncio.gather(*(cancel_orphans(database, TENANT) for _ in range(4)))
    counts.append(await cancel_orphans(database, TENANT))

    assert 444 == sum(counts)
    assert 444 == len((await everything(database))["transitions"])
    assert {Phase.STOPPING: 1} == await phases(database)


async def test_what_a_keeper_left_undone_another_does(database: Database) -> None:
    """One that dies between two transactions, or in the middle of one, leaves a tree that is cancelled to the end."""
    await a_tree(database, await register(database), (600, 300))
    assert KEEPER_BATCH_MAX == len(await database.run(cancel_some_orphans, TENANT))

    def die(tx: Transaction) -> None:
        cancel_some_orphans(tx, TENANT)
        raise RuntimeError("the keeper was killed")

    with pytest.raises(RuntimeError):
        await database.run(die)

    assert 900 - KEEPER_BATCH_MAX == await cancel_orphans(database, TENANT)
    assert {Phase.STOPPING: 1} == await phases(database)


class Noting:
    """A database that notes of which parents it is asked, and can be away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked: list[Parents] = []
        self.away = False

    async def read(self, work: Callable[..., Any], tenant: TenantId, parents: Parents) -> Any:
        if self.away:
            raise Unavailable(detail="the database is away")
        self.asked.append(parents)
        return await self._database.read(work, tenant, parents)

    async def run(self, work: Callable[..., Any], tenant: TenantId, parents: Parents) -> Any:
        return await self._database.run(work, tenant, parents)


async def a_keeper(database: Any) -> Orphans:
    """One that has looked thoroughly just now."""
    orphans = Orphans(database, TENANT)
    assert 0 == await orphans.look_once()
    return orphans


async def a_family_without_lease(database: Database, flow: Flow) -> tuple[FlowRun, FlowRun]:
    """A run that waits for its next attempt, and the child of the one before."""
    policy = PolicyAsked(max_retries=1)
    parent = await at_work(database, (await create(database, flow, policy=policy)).id)
    child = await child_of(database, flow, parent)
    await finish(database, parent.lease, parent.execution_id, Failure(message="no"))
    return await run_of(database, parent.lease.flow_run_id), child


async def test_children_of_a_run_that_is_stopping_need_no_hint(database: Database) -> None:
    """They are found by every sweep, in however many generations, whether they wait or are at work."""
    noting: Any = Noting(database)
    orphans = await a_keeper(noting)
    noting.asked.clear()
    flow = await register(database)
    parent = await at_work(database, (await create(database, flow)).id)
    child = await child_of(database, flow, parent)
    under = await at_work(database, child.id)
    grandchild = await child_of(database, flow, under)
    await cancel(database, parent.lease.flow_run_id)

    assert 2 == await orphans.look_once()

    assert [State.CANCELLING, State.CANCELLED] == await states_of(database, [child, grandchild])
    assert Among.ALL not in noting.asked


async def test_children_of_a_run_that_moved_are_found_by_the_hint(database: Database) -> None:
    """It was cancelled while it waited, so nothing but its own state says so; and so on under its children."""
    noting: Any = Noting(database)
    orphans = await a_keeper(noting)
    noting.asked.clear()
    parent, child = await a_family_without_lease(database, await register(database))
    policy = PolicyAsked(max_retries=1)
    flow = await register(database, name="another")
    work = await at_work(database, (await create(database, flow, policy=policy)).id)
    grandchild = await child_of(database, flow, work)
    await finish(database, work.lease, work.execution_id, Failure(message="no"))
    await database.run(adopt, work.lease.flow_run_id, child.id)
    await cancel(database, parent.id)
    orphans.hear(Hint(moved={parent.id}))

    assert 3 == await orphans.look_once()

    adopted = await run_of(database, work.lease.flow_run_id)
    assert [State.CANCELLED] * 3 == await states_of(database, [child, adopted, grandchild])
    assert Among.ALL not in noting.asked


def adopt(tx: Transaction, child_id: FlowRunId, parent_id: FlowRunId) -> None:
    """Let a run that waits be the child of another."""
    of_entry = (queue_entries.c.tenant_id == TENANT, queue_entries.c.flow_run_id == child_id)
    tx.conn.execute(queue_entries.update().where(*of_entry).values(parent_id=parent_id))


@pytest.mark.parametrize("missed", ["a hint", "a look"])
async def test_what_was_missed_is_looked_for(database: Database, missed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a hint that anything may have changed, and after a look that failed: soon, and among all."""
    noting: Any = Noting(database)
    orphans = await a_keeper(noting)
    parent, child = await a_family_without_lease(database, await register(database))
    await cancel(database, parent.id)
    assert 0 == await orphans.look_once()
    monkeypatch.setattr("penstock.keeper.orphans.THOROUGH_INTERVAL_MIN", timedelta(0))
    if missed == "a hint":
        orphans.hear(Hint(anything=True))
    else:
        orphans.hear(Hint(moved={parent.id}))
        noting.away = True
        with pytest.raises(Unavailable):
            await orphans.look_once()
        noting.away = False

    assert 1 == await orphans.look_once()
    assert [State.CANCELLED] == await states_of(database, [child])
    noting.asked.clear()
    await orphans.look_once()
    assert [Among.STOPPING] == noting.asked


async def test_all_are_looked_at_every_now_and_then(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hint may be lost without a trace; but an idle sweep asks for those that are stopping, and for no others."""
    noting: Any = Noting(database)
    orphans = await a_keeper(noting)
    parent, child = await a_family_without_lease(database, await register(database))
    await cancel(database, parent.id)
    noting.asked.clear()
    assert [0, 0, 0] == [await orphans.look_once() for _ in range(3)]
    assert [Among.STOPPING] * 3 == noting.asked

    monkeypatch.setattr("penstock.keeper.orphans.THOROUGH_INTERVAL", timedelta(0))

    assert 1 == await orphans.look_once()
    assert [State.CANCELLED] == await states_of(database, [child])


async def test_very_many_runs_that_moved_are_one_thorough_look(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what the keeper remembers has a bound; those below it are asked for in parts."""
    monkeypatch.setattr("penstock.keeper.orphans.MOVED_MAX", 2_500)
    monkeypatch.setattr("penstock.keeper.orphans.THOROUGH_INTERVAL_MIN", timedelta(0))
    noting: Any = Noting(database)
    orphans = await a_keeper(noting)
    noting.asked.clear()
    moved = {FlowRunId(an_id()) for _ in range(2_501)}

    orphans.hear(Hint(moved=set(sorted(moved)[1:])))
    await orphans.look_once()
    orphans.hear(Hint(moved=moved))
    await orphans.look_once()

    assert Among.STOPPING is noting.asked[0]
    assert [1_000, 1_000, 500] == [len(each) for each in noting.asked[1:4]]
    assert [Among.ALL] == noting.asked[4:]


@on_postgres
async def test_what_others_hold_is_not_waited_for(database: Database) -> None:
    """A child that is just being accepted is left to the next time, and is then asked to stop."""
    flow = await register(database)
    parent = await at_work(database, (await create(database, flow)).id)
    child = await child_of(database, flow, parent)
    lease = await offer(database, child.id)
    await cancel(database, parent.lease.flow_run_id)
    gate = Gate()

    def hold(tx: Transaction) -> None:
        queue.hold_runs(tx, TENANT, [child.id])
        gate.stop_here()

    holding = asyncio.create_task(database.run(hold))
    await gate.reached()
    assert 0 == await cancel_orphans(database, TENANT)
    accepting = asyncio.create_task(accept(database, lease))
    await until_someone_waits(database)
    gate.open()
    await holding
    await accepting

    assert 1 == await cancel_orphans(database, TENANT)
    assert [State.CANCELLING] == await states_of(database, [child])


async def test_children_of_a_family_are_born_under_the_right_parent(database: Database) -> None:
    """What `create` writes is what the keeper reads: the entry names the parent only where the policy says CANCEL."""
    flow = await register(database)
    parent = await at_work(database, (await create(database, flow)).id)
    under = ParentLease(parent.lease.flow_run_id, parent.lease.fence)
    creations: list[Creation] = [
        a_creation(target=FlowTarget(flow.id), parent=under, policy=policy) for policy in (PolicyAsked(), ABANDON)
    ]
    made = await attempt(database, *creations)
    entries = [await entry_of(database, each.flow_run_id) for each in made if isinstance(each, Created)]

    assert [parent.lease.flow_run_id, None] == [entry.parent_id for entry in entries if entry]
