"""Heads, producers and lines of logs, on both databases."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID

import pendulum
import pytest
from sqlalchemy import select, text

from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.limits import LOG_LINE_BYTES_MAX, PAGE_BYTES_MAX
from penstock.domain.log import Dropped, LogLevel, LogLine, LogStream, ProducerEnd, ProducerKey, StoredLine
from penstock.domain.queries import LogFilter
from penstock.storage import logs
from penstock.storage.database import Database, Transaction
from penstock.storage.logs import Addition
from penstock.storage.schema import log_heads
from tests.log.scenes import (
    ANY,
    TENANT,
    a_line,
    a_scheduled_run,
    a_started_run,
    an_accepted_run,
    contents,
    finish,
    key_of,
    rescue,
    some_lines,
    stored,
    write,
)
from tests.storage.gate import Gate
from tests.support.databases import Kind
from tests.support.fake_clock import NOON, FakeClock

OTHER_TENANT = TenantId(UUID(int=7))
BIG = "x" * LOG_LINE_BYTES_MAX
WAIT_SECONDS = 20


def append(tx: Transaction, key: ProducerKey, lines: Sequence[LogLine]) -> None:
    """Lock the log and add lines to it, as an operation does."""
    last_positions = logs.lock_heads(tx, TENANT, [key.flow_run_id])
    logs.append(tx, TENANT, last_positions, [Addition(key, lines, lines[-1].last_sequence, closed=False)])


async def test_lines_come_back_as_they_were_sent(database: Database) -> None:
    """Every content, level, name, time and trace survives storing, NUL characters and bytes that are no text too."""
    run = await a_started_run(database)
    sent = [
        a_line(1, "plain"),
        a_line(2, "NUL \0, ünïcode, 🜁, \\x00 and\nanother line"),
        a_line(3, b"\xff\x00\\ not text", stream=LogStream.STDERR),
        a_line(4, Dropped(3, "the spool was full: 🜁")),
        a_line(7, "", level=LogLevel.WARNING, level_name="NOTICE", logger="a.b", stream=LogStream.LOGGER),
        a_line(8, b"", trace_id="0af7651916cd43dd8448eb211c80319c", span_id="b7ad6b7169203331"),
        a_line(9, time=pendulum.datetime(9999, 12, 31, 23, 59, 59, 999_999, tz="UTC")),
        a_line(10, time=pendulum.datetime(1, 1, 1, tz="UTC")),
    ]

    await database.run(append, key_of(run), sent)

    assert sent == [each.line for each in await stored(database, run.id)]


async def test_one_call_stores_for_many_runs(database: Database) -> None:
    """Positions go up by one within each run, behind those it has, in the order of the additions."""
    one, other = [await a_started_run(database) for _ in range(2)]
    await write(database, key_of(one), [a_line(1, "older")])

    def add(tx: Transaction) -> None:
        last_positions = logs.lock_heads(tx, TENANT, [one.id, other.id])
        additions = [
            Addition(key_of(other), some_lines(2), 2, closed=False),
            Addition(key_of(one), [a_line(2, "newer")], 2, closed=False),
            Addition(key_of(other, producer="body"), [a_line(1, "of the body")], 1, closed=True),
        ]
        logs.append(tx, TENANT, last_positions, additions)

    await database.run(add)

    assert places(await stored(database, one.id)) == [(1, "older"), (2, "newer")]
    assert places(await stored(database, other.id)) == [(1, "line 1"), (2, "line 2"), (3, "of the body")]
    ends = await database.read(logs.producer_ends, TENANT, other.id)
    assert (ProducerEnd(1, "body", 1, closed=True), ProducerEnd(1, "supervisor", 2, closed=False)) == ends


async def test_opening_again_changes_nothing(database: Database) -> None:
    """A log and a producer that are there already keep how far they came."""
    run = await a_started_run(database)
    await write(database, key_of(run), some_lines(3), closed=True)

    await database.run(logs.open_heads, TENANT, [run.id, run.id])
    await database.run(logs.open_producers, TENANT, [key_of(run), key_of(run)])

    assert {run.id: 3} == await database.run(logs.lock_heads, TENANT, [run.id])
    assert (ProducerEnd(1, "supervisor", 3, closed=True),) == await database.read(logs.producer_ends, TENANT, run.id)


async def test_unknown_runs_and_producers_are_left_out(database: Database) -> None:
    """Locking and looking up answer with what exists."""
    run = await a_started_run(database)
    nobody = FlowRunId(UUID(int=1))

    assert {run.id: 0} == await database.run(logs.lock_heads, TENANT, [nobody, run.id])
    asked = [key_of(run, producer="body"), key_of(run), key_of(run, fence=9)]
    assert {key_of(run)} == (await database.read(logs.producers, TENANT, asked)).keys()
    assert await database.read(logs.producers, TENANT, []) == {}


async def test_a_log_is_removed_but_for_its_lines(database: Database) -> None:
    """Head and producers, of that run alone; the lines are noted, and whoever tails it is told."""
    run, other = [await a_started_run(database) for _ in range(2)]
    for each in (run, other):
        await write(database, key_of(each), some_lines(3))

    def removing(tx: Transaction, tenant: TenantId) -> set[FlowRunId]:
        logs.remove(tx, tenant, run.id)
        return tx.hint.written

    await database.run(removing, OTHER_TENANT)
    assert {run.id: 3} == await database.run(logs.lock_heads, TENANT, [run.id])
    assert not await database.read(logs.deleted_exist, TENANT)
    assert {run.id} == await database.run(removing, TENANT)

    assert () == await database.read(logs.producer_ends, TENANT, run.id)
    assert {other.id: 3} == await database.run(logs.lock_heads, TENANT, [run.id, other.id])
    assert [3, 3] == [len(await stored(database, each.id)) for each in (run, other)]
    assert await database.read(logs.deleted_exist, TENANT)
    assert not await database.read(logs.deleted_exist, OTHER_TENANT)
    assert 0 == await database.run(logs.remove_deleted, OTHER_TENANT, 10)
    assert 3 == await database.run(logs.remove_deleted, TENANT, 10)
    assert [0, 3] == [len(await stored(database, each.id)) for each in (run, other)]
    assert not await database.read(logs.deleted_exist, TENANT)


async def test_lines_of_deleted_logs_are_removed_bit_by_bit(database: Database) -> None:
    """From each log its first ones, never more at a time than is said, until nothing is left of any."""
    runs = sorted([await a_started_run(database) for _ in range(4)], key=lambda run: run.id)
    for run, count in zip(runs, (2, 5, 0, 1), strict=True):
        await write(database, key_of(run), some_lines(count))
        await database.run(logs.remove, TENANT, run.id)

    left = []
    removed = [await database.run(logs.remove_deleted, TENANT, 3) for _ in range(2)]
    left.append([[each.position for each in await stored(database, run.id)] for run in runs])
    removed += [await database.run(logs.remove_deleted, TENANT, 3) for _ in range(2)]
    left.append([[each.position for each in await stored(database, run.id)] for run in runs])

    assert [3, 3, 2, 0] == removed
    assert [[[], [5], [], [1]], [[]] * 4] == left
    assert not await database.read(logs.deleted_exist, TENANT)


async def test_what_was_cut_from_a_log_is_not_removed_again(database: Database) -> None:
    """Only the positions from the first one stored are noted; where none is stored, nothing is."""
    runs = [await a_started_run(database) for _ in range(2)]
    for run, first in zip(runs, (3, 5), strict=True):
        await write(database, key_of(run), some_lines(4))
        cut = log_heads.update().where(logs.head.flow_run_id == run.id).values(first_position=first)
        await database.run(lambda tx, cut: tx.conn.execute(cut), cut)
        await database.run(logs.remove, TENANT, run.id)

    assert 2 == await database.run(logs.remove_deleted, TENANT, 10)


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
async def test_lines_that_somebody_removes_are_left_to_them(database: Database) -> None:
    """Nobody waits for whoever is at it."""
    run = await a_started_run(database)
    await write(database, key_of(run), some_lines(4))
    await database.run(logs.remove, TENANT, run.id)
    gate = Gate()

    def removing(tx: Transaction) -> int:
        removed = logs.remove_deleted(tx, TENANT, 3)
        gate.stop_here()
        return removed

    one = asyncio.create_task(database.run(removing))
    await gate.reached()
    assert 0 == await database.run(logs.remove_deleted, TENANT, 3)
    gate.open()

    assert 3 == await one
    assert 1 == await database.run(logs.remove_deleted, TENANT, 3)


async def test_a_tenant_sees_only_its_own(database: Database) -> None:
    """Lines, heads, producers and standings of one tenant do not exist for another."""
    run = await a_started_run(database)
    await write(database, key_of(run), some_lines(1))

    assert (await database.read(logs.lines, OTHER_TENANT, run.id, 0, 10, ANY)).lines == []
    assert await database.read(logs.read_after, OTHER_TENANT, {run.id: 0}, 10) == {}
    assert await database.read(logs.standings, OTHER_TENANT, [run.id]) == {}
    assert await database.run(logs.lock_heads, OTHER_TENANT, [run.id]) == {}
    assert await database.read(logs.producer_ends, OTHER_TENANT, run.id) == ()
    assert await database.read(logs.producers, OTHER_TENANT, [key_of(run)]) == {}


async def test_the_second_writer_of_a_run_waits_for_the_first(database: Database, database_kind: Kind) -> None:
    """Positions become visible in their order: who read while the first writer was late misses none of its lines."""
    run = await a_started_run(database)
    appended, go_on = threading.Event(), threading.Event()

    def late(tx: Transaction) -> None:
        append(tx, key_of(run, producer="late"), some_lines(2))
        appended.set()
        assert go_on.wait(WAIT_SECONDS)

    first = asyncio.create_task(database.run(late))
    assert await asyncio.to_thread(appended.wait, WAIT_SECONDS)
    second = asyncio.create_task(database.run(append, key_of(run, producer="prompt"), some_lines(2)))
    if database_kind == "postgres":
        await until_somebody_waits_for_a_lock(database)
    seen = await stored(database, run.id)
    go_on.set()
    await asyncio.gather(first, second)

    assert seen == []
    assert [(each.position, each.producer) for each in await stored(database, run.id)] == [
        (1, "late"),
        (2, "late"),
        (3, "prompt"),
        (4, "prompt"),
    ]


@pytest.mark.parametrize("lines_first", [True, False])
async def test_a_producer_opened_while_its_first_lines_are_stored(
    database: Database, database_kind: Kind, lines_first: bool
) -> None:
    """Whichever transaction is first, the start that opens it or the first lines, both succeed and the lines count."""
    run = await an_accepted_run(database)
    done, go_on = threading.Event(), threading.Event()

    def store(tx: Transaction) -> None:
        append(tx, key_of(run), some_lines(2))

    def start(tx: Transaction) -> None:
        logs.open_producers(tx, TENANT, [key_of(run)])

    def held_open(tx: Transaction, work: Callable[[Transaction], None]) -> None:
        work(tx)
        done.set()
        assert go_on.wait(WAIT_SECONDS)

    first, second = (store, start) if lines_first else (start, store)
    earlier = asyncio.create_task(database.run(held_open, first))
    assert await asyncio.to_thread(done.wait, WAIT_SECONDS)
    later = asyncio.create_task(database.run(second))
    if database_kind == "postgres":
        await until_somebody_waits_for_a_lock(database)
    go_on.set()
    await asyncio.gather(earlier, later)

    assert (ProducerEnd(1, "supervisor", 2, closed=False),) == await database.read(logs.producer_ends, TENANT, run.id)


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
async def test_heads_are_locked_in_one_order(database: Database) -> None:
    """Who waits for the first of several runs, by id, holds none of the others: so no two wait in a circle."""
    first, *others = sorted([(await a_started_run(database)).id for _ in range(8)])
    locked, go_on = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        logs.lock_heads(tx, TENANT, [first])
        locked.set()
        assert go_on.wait(WAIT_SECONDS)

    holding = asyncio.create_task(database.run(hold))
    assert await asyncio.to_thread(locked.wait, WAIT_SECONDS)
    waiting = asyncio.create_task(database.run(logs.lock_heads, TENANT, [*reversed(others), first]))
    await until_somebody_waits_for_a_lock(database)
    free = await database.read(free_heads)
    go_on.set()
    await asyncio.gather(holding, waiting)

    assert set(others) == free


async def test_a_page_ends_at_its_limit(database: Database) -> None:
    """A page holds at most as many lines as asked for, and says whether more follow."""
    run = await a_started_run(database)
    await write(database, key_of(run), some_lines(5))

    async def page(after: int, limit: int) -> tuple[list[int], bool]:
        found = await database.read(logs.lines, TENANT, run.id, after, limit, ANY)
        return [each.position for each in found.lines], found.more

    assert await page(0, 2) == ([1, 2], True)
    assert await page(2, 2) == ([3, 4], True)
    assert await page(4, 2) == ([5], False)
    assert await page(3, 2) == ([4, 5], False)
    assert await page(5, 2) == ([], False)


async def test_a_page_ends_by_bytes(database: Database) -> None:
    """Lines that would make a message too large are left to the next page, and none is lost between pages."""
    run = await a_started_run(database)
    count = 2 * PAGE_BYTES_MAX // LOG_LINE_BYTES_MAX
    await write(database, key_of(run), [a_line(sequence, BIG) for sequence in range(1, count + 1)])

    pages = [await database.read(logs.lines, TENANT, run.id, 0, 1_000, ANY)]
    while pages[-1].more:
        pages.append(await database.read(logs.lines, TENANT, run.id, pages[-1].lines[-1].position, 1_000, ANY))

    assert list(range(1, count + 1)) == [each.position for page in pages for each in page.lines]
    assert [page.more for page in pages] == [True, False]
    assert all((len(page.lines) - 1) * LOG_LINE_BYTES_MAX < PAGE_BYTES_MAX for page in pages)


FILTERS: Final[tuple[tuple[LogFilter, list[int]], ...]] = (
    (LogFilter(), [1, 2, 3, 4, 5, 6]),
    (LogFilter(level=LogLevel.INFO), [1, 3, 4, 5, 6]),
    (LogFilter(level=LogLevel.ERROR), [3, 4, 5, 6]),
    (LogFilter(contains="100%_ü"), [1]),
    (LogFilter(contains="needle"), [2, 3]),
    (LogFilter(contains="Needle"), []),
    (LogFilter(contains="\0"), [6]),
    (LogFilter(level=LogLevel.INFO, contains="needle"), [3]),
    (LogFilter(start_time=NOON.add(seconds=3)), [3, 4, 5, 6]),
    (LogFilter(end_time=NOON.add(seconds=3)), [1, 2]),
    (LogFilter(start_time=NOON.add(seconds=2), end_time=NOON.add(seconds=2)), []),
)


async def test_filters(database: Database) -> None:
    """Levels count upwards and let output without one pass; only text is searched, as it is; the end is left out."""
    run = await a_started_run(database)
    lines = [
        a_line(1, "it is 100%_ü done", level=LogLevel.INFO),
        a_line(2, "a needle below the level", level=LogLevel.DEBUG),
        a_line(3, "a needle without a level"),
        a_line(4, b"a needle in bytes", level=LogLevel.CRITICAL),
        a_line(5, Dropped(1, "a needle in a reason"), level=LogLevel.ERROR),
        a_line(6, "a \0 in text"),
    ]
    await write(database, key_of(run), [replace(line, time=NOON.add(seconds=line.sequence)) for line in lines])

    pages = [await database.read(logs.lines, TENANT, run.id, 0, 10, wanted) for wanted, _ in FILTERS]

    for (wanted, found), page in zip(FILTERS, pages, strict=True):
        assert found == [each.position for each in page.lines], wanted


async def test_filtered_pages_say_whether_more_match(database: Database) -> None:
    """Lines behind the page that do not match are not more."""
    run = await a_started_run(database)
    await write(database, key_of(run), [a_line(n, "odd" if n % 2 else "even") for n in range(1, 8)])
    odd = LogFilter(contains="odd")

    first = await database.read(logs.lines, TENANT, run.id, 0, 3, odd)
    second = await database.read(logs.lines, TENANT, run.id, 5, 1, odd)

    assert ([each.position for each in first.lines], first.more) == ([1, 3, 5], True)
    assert ([each.position for each in second.lines], second.more) == ([7], False)


async def test_many_runs_are_read_in_one_go(database: Database) -> None:
    """Each run's lines behind its own position come in order, at most so many; runs without any are left out."""
    runs = [await a_started_run(database) for _ in range(4)]
    for run in runs[:3]:
        await write(database, key_of(run), some_lines(5))

    asked = {runs[0].id: 0, runs[1].id: 3, runs[2].id: 5, runs[3].id: 0}
    read = await database.read(logs.read_after, TENANT, asked, 4)

    assert {runs[0].id: [1, 2, 3, 4], runs[1].id: [4, 5]} == {
        flow_run_id: [each.position for each in lines] for flow_run_id, lines in read.items()
    }
    assert await database.read(logs.read_after, TENANT, {}, 4) == {}


async def test_what_fits_is_shared_evenly(database: Database) -> None:
    """A run with much to show leaves room for the others, and each shows at least one line."""
    greedy, modest = [await a_started_run(database) for _ in range(2)]
    await write(database, key_of(greedy), [a_line(n, BIG) for n in range(1, 65)])
    await write(database, key_of(modest), some_lines(10))
    waiting = [await a_started_run(database) for _ in range(60)]
    for run in waiting:
        await write(database, key_of(run), [a_line(1, BIG), a_line(2, BIG)])

    two = await database.read(logs.read_after, TENANT, {greedy.id: 0, modest.id: 0}, 1_000)
    many = await database.read(logs.read_after, TENANT, {run.id: 0 for run in (greedy, modest, *waiting)}, 1_000)

    assert len(two[modest.id]) == 10
    assert (len(two[greedy.id]) - 1) * LOG_LINE_BYTES_MAX <= PAGE_BYTES_MAX // 2
    assert len(many[greedy.id]) == 1
    assert len(many[modest.id]) == 10
    assert all(len(many[run.id]) == 1 for run in waiting)


async def test_lines_of_an_older_execution_are_superseded(database: Database) -> None:
    """Lines count as superseded as soon as a later lease is accepted, however they are read."""
    run = await a_started_run(database)
    await write(database, key_of(run), [a_line(1, "old")])
    before = await stored(database, run.id)
    rescued = await rescue(database, run)
    await write(database, key_of(rescued), [a_line(1, "new")])
    await write(database, key_of(run), [a_line(2, "late")])

    listed = await stored(database, run.id)
    read = (await database.read(logs.read_after, TENANT, {run.id: 0}, 10))[run.id]

    assert [each.superseded for each in before] == [False]
    assert [(each.line.content, each.superseded) for each in listed] == [("old", True), ("new", False), ("late", True)]
    assert listed == read


async def test_standings(database: Database, clock: FakeClock) -> None:
    """The standing of a run says its version, end, last position and producers; runs that do not exist have none."""
    scheduled, started = await a_scheduled_run(database), await a_started_run(database)
    await write(database, key_of(started, producer="body"), some_lines(2), closed=True)
    await finish(database, started)

    found = await database.read(logs.standings, TENANT, [scheduled.id, started.id, FlowRunId(UUID(int=1))])

    assert {scheduled.id, started.id} == found.keys()
    assert logs.Standing(1, None, False, 1, 0, ()) == found[scheduled.id]
    producers = (ProducerEnd(1, "body", 2, closed=True), ProducerEnd(1, "supervisor", 0, closed=False))
    assert logs.Standing(started.version + 1, clock.now(), True, 1, 2, producers) == found[started.id]


def places(lines: Sequence[StoredLine]) -> list[tuple[int, object]]:
    return list(zip([each.position for each in lines], contents(lines), strict=True))


def free_heads(tx: Transaction) -> set[FlowRunId]:
    """The logs that nobody has locked."""
    return set(tx.conn.scalars(select(logs.head.flow_run_id).with_for_update(skip_locked=True)))


async def until_somebody_waits_for_a_lock(database: Database) -> None:
    """Only PostgreSQL can be asked this."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(WAIT_SECONDS):
        while not await database.read(lambda tx: tx.conn.execute(waiting).scalar_one()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
