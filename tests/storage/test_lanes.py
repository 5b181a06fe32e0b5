"""Lanes, interned, on both databases."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from penstock.domain.flow import Labels
from penstock.domain.ids import FlowGroupId, TenantId
from penstock.domain.lanes import LaneKey
from penstock.storage import lanes
from penstock.storage.database import Database, Transaction
from tests.queue.scenes import TENANT, everything
from tests.support.builders import an_id

GROUP = FlowGroupId(an_id())


async def test_a_lane_is_interned_once(database: Database) -> None:
    """With its labels beside it; the same key has the same identity for ever, on either database."""
    keys = [LaneKey(labels, GROUP) for labels in ((), ("a",), ("a", "b"))]

    first = await database.run(lanes.intern, TENANT, keys)
    again = await database.run(lanes.intern, TENANT, [*reversed(keys), keys[0]])

    assert first == again
    assert {key: lanes.lane_id(key.digest()) for key in keys} == first
    assert {each.version for each in first.values()} == {8}
    rows = await everything(database)
    assert len(rows["lanes"]) == 3
    assert sorted(row[1] for row in rows["lane_labels"]) == ["a", "a", "b"]


async def test_labels_and_group_make_a_lane(database: Database) -> None:
    """Runs that differ in either stand in different ones."""
    keys = [
        LaneKey(labels, group)
        for labels in ((), ("ab",), ("a", "b"), ("a",), ("b",))
        for group in (GROUP, FlowGroupId(UUID(int=0)))
    ]

    assert len(set((await database.run(lanes.intern, TENANT, keys)).values())) == 10


async def test_tenants_have_their_own(database: Database) -> None:
    """The same key is interned for each."""
    key = LaneKey(("a",), GROUP)
    for tenant in (TENANT, TenantId(UUID(int=7))):
        await database.run(lanes.intern, tenant, [key])

    rows = await everything(database)
    assert (len(rows["lanes"]), len(rows["lane_labels"])) == (2, 2)


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
async def test_one_new_lane_interned_at_once_is_interned_once(database: Database) -> None:
    """By as many as want it, in one step: whichever of its keys they meet first, none of them fails."""
    workers, turns = 8, 400
    together = threading.Barrier(workers, timeout=60)

    def work() -> None:
        for turn in range(turns):
            together.wait()
            database.run_here(lanes.intern, TENANT, [LaneKey((f"{turn}",), GROUP)])

    with ThreadPoolExecutor(workers) as threads:
        try:
            await asyncio.gather(*(asyncio.wrap_future(threads.submit(work)) for _ in range(workers)))
        finally:
            together.abort()

    rows = await everything(database)
    assert [turns, turns] == [len(rows["lanes"]), len(rows["lane_labels"])]


async def test_interning_at_once_never_waits_in_a_circle(database: Database) -> None:
    """Whatever order the lanes are named in."""
    calls: list[int] = []

    def work(tx: Transaction, turn: int, order: int) -> None:
        calls.append(order)
        labels: list[Labels] = [(f"{turn} {number}", "shared") for number in range(2_000)]
        lanes.intern(tx, TENANT, [LaneKey(each, GROUP) for each in labels[::order]])

    for turn in range(3):
        await asyncio.gather(*(database.run(work, turn, order) for order in (1, -1)))

    assert len(calls) == 6, "a transaction was repeated after a deadlock"
    rows = await everything(database)
    assert (len(rows["lanes"]), len(rows["lane_labels"])) == (6_000, 12_000)
