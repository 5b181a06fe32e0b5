"""Removing the lines of deleted logs, on both databases."""

import asyncio

import pytest

from penstock.domain.flow_run import FlowRun
from penstock.domain.limits import KEEPER_BATCH_MAX
from penstock.keeper.deleted_logs import remove_deleted_logs
from penstock.storage import logs
from penstock.storage.database import Database, Transaction
from tests.log.scenes import TENANT, a_started_run, key_of, some_lines, stored, write

MANY = 2 * KEEPER_BATCH_MAX + 1


async def a_deleted_log(database: Database, count: int) -> FlowRun:
    """Lines that nobody can read any more."""
    run = await a_started_run(database)
    await write(database, key_of(run), some_lines(count))
    await database.run(logs.remove, TENANT, run.id)
    return run


async def test_deleted_logs_go_whole(database: Database) -> None:
    """However many lines they have, and no line of any other."""
    kept = await a_started_run(database)
    await write(database, key_of(kept), some_lines(3))
    deleted = [await a_deleted_log(database, count) for count in (MANY, 0, 7)]

    assert MANY + 7 == await remove_deleted_logs(database, TENANT)

    assert [[], [], []] == [await stored(database, each.id) for each in deleted]
    assert 3 == len(await stored(database, kept.id))
    assert 0 == await remove_deleted_logs(database, TENANT)


async def test_no_transaction_removes_many(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes meanwhile waits for a batch at most; where nothing was deleted nobody waits at all."""
    removed: list[int] = []
    remove = logs.remove_deleted

    def counting(tx: Transaction, *args: int) -> int:
        removed.append(remove(tx, *args))
        return removed[-1]

    monkeypatch.setattr(logs, "remove_deleted", counting)
    await remove_deleted_logs(database, TENANT)
    assert [] == removed
    await a_deleted_log(database, MANY)

    await remove_deleted_logs(database, TENANT)

    assert [KEEPER_BATCH_MAX, KEEPER_BATCH_MAX, 1] == removed


async def test_what_a_keeper_left_undone_another_does(database: Database) -> None:
    """One that dies in the middle of a transaction leaves lines and note as they were."""
    run = await a_deleted_log(database, MANY)

    def die(tx: Transaction) -> None:
        logs.remove_deleted(tx, TENANT, KEEPER_BATCH_MAX)
        raise RuntimeError("the keeper was killed")

    with pytest.raises(RuntimeError):
        await database.run(die)

    assert MANY == await remove_deleted_logs(database, TENANT)
    assert [] == await stored(database, run.id)


async def test_keepers_share_the_work(database: Database) -> None:
    """Together they do it all, and nothing twice."""
    runs = [await a_deleted_log(database, MANY) for _ in range(3)]

    counts = await asyncio.gather(*(remove_deleted_logs(database, TENANT) for _ in range(3)))
    counts.append(await remove_deleted_logs(database, TENANT))

    assert 3 * MANY == sum(counts)
    assert [[]] * 3 == [await stored(database, each.id) for each in runs]
