"""What the two databases do alike, each in its own words."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Select, func, select, text, update

from penstock.domain.errors import Refusal
from penstock.domain.ids import DEFAULT_TENANT, FlowRunId, LaneId
from penstock.domain.lease import Entry
from penstock.storage import queue
from penstock.storage.database import Database, Transaction
from penstock.storage.dialect import Row, best_of_lanes, insert_many, insert_unless_present
from penstock.storage.schema import concurrency_limits, lanes, log_heads, queue_entries
from tests.storage.gate import Gate
from tests.support.builders import RANDOM, a_flow_run, an_entry, an_id
from tests.support.fake_clock import NOON

on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)


async def test_many_rows_are_inserted_at_once(database: Database) -> None:
    """As many rows as one call may bring go in; none is no rows and no statement."""
    rows = [a_head() for _ in range(1_000)]

    await database.run(lambda tx: insert_many(tx.conn, log_heads, rows))
    await database.run(lambda tx: insert_many(tx.conn, log_heads, []))

    assert await database.read(lambda tx: tx.conn.execute(COUNT_HEADS).scalar_one()) == 1_000


async def test_only_absent_rows_are_inserted(database: Database) -> None:
    """The keys of the rows that were not there yet come back; the others stay as they were."""
    first, second = a_head(), a_head()
    asked = sorted([first | {"last_position": 9}, second], key=key_of)

    alone = await database.run(lambda tx: insert_unless_present(tx.conn, log_heads, [first]))
    both = await database.run(lambda tx: insert_unless_present(tx.conn, log_heads, asked))
    none = await database.run(lambda tx: insert_unless_present(tx.conn, log_heads, []))

    assert alone == {key_of(first)}
    assert both == {key_of(second)}
    assert none == set()
    assert await database.read(lambda tx: tx.conn.execute(SUM_OF_POSITIONS).scalar_one()) == 0


async def test_another_key_than_the_primary_one_may_decide(database: Database) -> None:
    """Rows are absent by whichever unique key is named, and values of every type come back as keys."""
    lane = a_lane(b"digest one")
    twin, other = lane | {"lane_id": an_id()}, a_lane(b"digest two")
    key = (lanes.c.tenant_id, lanes.c.digest)

    await database.run(lambda tx: insert_unless_present(tx.conn, lanes, [lane], key=key))
    inserted = await database.run(lambda tx: insert_unless_present(tx.conn, lanes, [twin, other], key=key))

    assert inserted == {(DEFAULT_TENANT, b"digest two")}


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
async def test_of_two_that_insert_one_key_one_wins(database: Database, commits: bool) -> None:
    """A transaction that meets a key which another is inserting waits for it, and wins only if that one fails."""
    row, gate = a_head(), Gate()

    def insert_first(tx: Transaction) -> bool:
        fresh = insert_unless_present(tx.conn, log_heads, [row])
        gate.stop_here()
        if not commits:
            raise Refusal
        return bool(fresh)

    def insert_second(tx: Transaction) -> bool:
        return bool(insert_unless_present(tx.conn, log_heads, [row]))

    first = asyncio.create_task(database.run(insert_first))
    await gate.reached()
    second = asyncio.create_task(database.run(insert_second))
    await somebody_waits(database)
    gate.open()
    outcomes = await asyncio.gather(first, second, return_exceptions=True)

    assert [outcome is True for outcome in outcomes] == [commits, not commits]


async def test_sorted_keys_never_deadlock(database: Database) -> None:
    """Transactions that insert overlapping keys in one order wait for each other but are never tried again."""
    rows = sorted((a_head() for _ in range(30)), key=key_of)
    tries: list[int] = []

    def insert_some(tx: Transaction, chosen: Sequence[Row]) -> int:
        tries.append(1)
        return len(insert_unless_present(tx.conn, log_heads, chosen))

    batches = [sorted(RANDOM.sample(rows, 20), key=key_of) for _ in range(40)]
    counts = await asyncio.gather(*(database.run(insert_some, batch) for batch in batches))

    assert sum(counts) == len({key_of(row) for batch in batches for row in batch})
    assert len(tries) == len(batches)


async def test_the_best_of_each_lane_are_chosen(database: Database) -> None:
    """Each lane gives as many as it has room, in the order that is asked for; other lanes give none."""
    first, second, third = (LaneId(an_id()) for _ in range(3))
    entries = {lane: some_entries(lane, 5) for lane in (first, second, third)}
    await database.run(queue.insert, DEFAULT_TENANT, [each for lane in entries.values() for each in lane])

    chosen = await database.run(lambda tx: set(tx.conn.scalars(chosen_runs(tx, {first: 2, second: 9}))))

    wanted = [*by_rank(entries[first])[:2], *entries[second]]
    assert chosen == {each.flow_run_id for each in wanted}


@on_postgres
async def test_two_that_choose_at_once_choose_differently(database: Database) -> None:
    """Rows that another transaction has locked are passed over, not waited for."""
    lane = LaneId(an_id())
    entries = some_entries(lane, 4)
    gate = Gate()
    await database.run(queue.insert, DEFAULT_TENANT, entries)

    def take(tx: Transaction, stop: bool) -> list[FlowRunId]:
        # One statement finds and takes, as the queue does: the lock and the change are one.
        taken = update(queue_entries).where(queue_entries.c.flow_run_id.in_(best_of_lanes(tx.conn, {lane: 2}, best)))
        runs = list(tx.conn.scalars(taken.values(releases=1).returning(queue_entries.c.flow_run_id)))
        if stop:
            gate.stop_here()
        return runs

    first = asyncio.create_task(database.run(take, stop=True))
    await gate.reached()
    second = await database.run(take, stop=False)
    gate.open()

    ranked = [each.flow_run_id for each in by_rank(entries)]
    assert set(await first) == set(ranked[:2])
    assert set(second) == set(ranked[2:])


async def test_labels_are_written_as_one_value(database: Database) -> None:
    """A batch of rows with labels keeps each row's labels together, however many there are."""
    rows = [a_lane(bytes([count])) | {"labels": tuple("abc"[:count])} for count in range(4)]

    await database.run(lambda tx: insert_many(tx.conn, lanes, rows))

    kept = await database.read(lambda tx: list(tx.conn.scalars(select(lanes.c.labels).order_by(lanes.c.digest))))
    assert kept == [(), ("a",), ("a", "b"), ("a", "b", "c")]


async def test_texts_are_kept_as_they_are(database: Database) -> None:
    """Whatever means something in an array or in a string: many rows are written as one array of each column."""
    texts = (
        "",
        "NULL",
        "null",
        '"',
        "\\",
        '\\"',
        "{}",
        "{a,b}",
        ",",
        " ",
        "\n",
        "'",
        "$1",
        "%s",
        "ķ",
        "\N{OTTER}",
        '{"a":"b\\\\"}',
    )
    rows = [a_limit(each) for each in texts]

    await database.run(lambda tx: insert_many(tx.conn, concurrency_limits, rows))

    kept = await database.read(lambda tx: set(tx.conn.scalars(select(concurrency_limits.c.label))))
    assert set(texts) == kept


async def test_a_text_is_not_written_quote_by_quote(database: Database) -> None:
    """However many quotes it holds, as JSON does, it is handed over with few calls."""
    calls = 0

    def counting(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    def work(tx: Transaction) -> None:
        insert_many(tx.conn, lanes, [a_lane(b"warm")])
        sys.setprofile(counting)
        try:
            insert_many(tx.conn, lanes, [a_lane(b"digest") | {"labels": ('"' * 100_000,)}])
        finally:
            sys.setprofile(None)

    await database.run(work)

    assert 0 < calls < 10_000


async def test_tables_have_statements_of_their_own(database: Database) -> None:
    """What is prepared for one table and its columns is not used for another."""
    limit = a_limit("gpu")

    await database.run(lambda tx: insert_many(tx.conn, log_heads, [a_head()]))
    fresh = await database.run(lambda tx: insert_unless_present(tx.conn, concurrency_limits, [limit]))

    assert fresh == {(DEFAULT_TENANT, "gpu")}


COUNT_HEADS = select(func.count()).select_from(log_heads)
SUM_OF_POSITIONS = select(func.sum(log_heads.c.last_position))


def a_head() -> dict[str, Any]:
    return {"tenant_id": DEFAULT_TENANT, "flow_run_id": an_id(), "first_position": 1, "last_position": 0}


def a_limit(label: str) -> dict[str, Any]:
    return {"tenant_id": DEFAULT_TENANT, "label": label, "slots": 3}


def a_lane(digest: bytes) -> dict[str, Any]:
    return {
        "tenant_id": DEFAULT_TENANT,
        "lane_id": an_id(),
        "digest": digest,
        "labels": ("linux",),
        "flow_group_id": an_id(),
    }


def key_of(row: Row) -> tuple[Any, ...]:
    return row["tenant_id"], row["flow_run_id"]


def some_entries(lane: LaneId, count: int) -> list[Entry]:
    """Entries of one lane whose rank says another order than their ids."""
    times = [NOON - timedelta(seconds=number) for number in range(count)]
    return [an_entry(a_flow_run(), lane_id=lane, rank_time=time) for time in times]


def by_rank(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda each: each.rank_time)


def best(lane: Any, room: Any) -> Select[Any]:
    """The first of a lane, by rank, locked where that is possible."""
    entry = queue_entries.c
    return (
        select(entry.flow_run_id)
        .where(entry.tenant_id == DEFAULT_TENANT, entry.lane_id == lane)
        .order_by(entry.rank_time)
        .limit(room)
        .with_for_update(skip_locked=True)
    )


def chosen_runs(tx: Transaction, rooms: dict[LaneId, int]) -> Select[Any]:
    run = queue_entries.c.flow_run_id
    return select(run).where(run.in_(best_of_lanes(tx.conn, rooms, best)))


async def somebody_waits(database: Database) -> None:
    """Return once a transaction waits for a lock. On SQLite, where it waits outside the database, at once."""
    if database.engine.dialect.name == "sqlite":
        return
    until_one_waits = "WHILE NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted) LOOP PERFORM pg_sleep(0.01); END LOOP;"
    async with asyncio.timeout(20):
        await database.read(lambda tx: tx.conn.execute(text(f"DO $$ BEGIN {until_one_waits} END $$")))
