"""What WriteLogs, ListLogs and TailLogs do, on both databases."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from random import Random
from typing import Any, Final
from uuid import UUID

import pytest

from penstock.domain.errors import FlowRunNotFound, LeaseLost, Refusal
from penstock.domain.flow_run import FlowRun
from penstock.domain.ids import FlowRunId
from penstock.domain.limits import LOG_GRACE, PAGE_SIZE_MAX, TAIL_GRACE
from penstock.domain.log import Dropped, ProducerEnd, ProducerKey, StoredLine, Writing
from penstock.domain.queries import PositionPage
from penstock.log import operations
from penstock.log.operations import LogEnd, TailPage
from penstock.storage import logs
from penstock.storage.database import Database, Transaction
from penstock.storage.schema import log_heads, log_lines
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
from tests.support.fake_clock import FakeClock

INSTANT: Final = timedelta(microseconds=1)
NOBODY: Final = FlowRunId(UUID(int=1))


async def ends(database: Database, run: FlowRun) -> tuple[ProducerEnd, ...]:
    return await database.read(logs.producer_ends, TENANT, run.id)


async def tail(database: Database, flow_run_id: FlowRunId, after: int = 0) -> TailPage:
    """What a tail of that run is shown next."""
    pages = await database.read(operations.tail_pages, TENANT, {flow_run_id: after})
    page = pages.get(flow_run_id, TailPage())
    assert isinstance(page, TailPage), page
    return page


async def test_repeats_are_stored_once(database: Database) -> None:
    """However often lines are sent, and however the sendings overlap, each is stored once."""
    run = await a_started_run(database)

    answers = [
        await write(database, key_of(run), some_lines(3)),
        await write(database, key_of(run), some_lines(3)),
        await write(database, key_of(run), some_lines(3, first=2)),
        await write(database, key_of(run), some_lines(1)),
    ]

    assert answers == [3, 3, 4, 4]
    assert contents(await stored(database, run.id)) == ["line 1", "line 2", "line 3", "line 4"]


async def test_lines_behind_a_gap_are_not_stored(database: Database) -> None:
    """Lines that do not follow the last stored one are left out, and the answer says where to send from."""
    run = await a_started_run(database)

    answers = [
        await write(database, key_of(run), some_lines(2, first=2)),
        await write(database, key_of(run), some_lines(2)),
        await write(database, key_of(run), some_lines(2, first=4)),
    ]

    assert answers == [0, 2, 2]
    assert contents(await stored(database, run.id)) == ["line 1", "line 2"]


async def test_dropped_covers_the_numbers_it_stands_for(database: Database) -> None:
    """A hole takes as many numbers as lines are missing; of one that is partly stored, the rest is added."""
    run = await a_started_run(database)

    answers = [
        await write(database, key_of(run), [a_line(1), a_line(2, Dropped(5, "full")), a_line(7)]),
        await write(database, key_of(run), [a_line(6, Dropped(4, "full again")), a_line(10)]),
    ]

    assert answers == [7, 10]
    expected = [(1, "line 1"), (2, Dropped(5, "full")), (7, "line 7"), (8, Dropped(2, "full again")), (10, "line 10")]
    assert expected == [(each.line.sequence, each.line.content) for each in await stored(database, run.id)]


async def test_refusals_concern_only_their_own_writing(database: Database, clock: FakeClock) -> None:
    """An unknown run, a lease never accepted and one that ended too long ago are refused; their neighbours stored."""
    run, other, past = [await a_started_run(database) for _ in range(3)]
    scheduled = await a_scheduled_run(database)
    await finish(database, past)
    clock.advance(LOG_GRACE + INSTANT)
    keys = [
        ProducerKey(NOBODY, 1, "supervisor"),
        key_of(run),
        key_of(run, fence=2),
        key_of(past),
        key_of(scheduled, fence=1),
        key_of(other),
    ]

    outcomes = await database.run(operations.write_logs, TENANT, [Writing(key, some_lines(2)) for key in keys])

    told = [(type(each), each.metadata()) if isinstance(each, Refusal) else each for each in outcomes]
    assert [
        (FlowRunNotFound, {"flow_run_id": str(NOBODY)}),
        2,
        (LeaseLost, {"flow_run_id": str(run.id), "fence": "2"}),
        (LeaseLost, {"flow_run_id": str(past.id), "fence": "1"}),
        (LeaseLost, {"flow_run_id": str(scheduled.id), "fence": "1"}),
        2,
    ] == told
    assert await stored(database, past.id) == []
    assert (ProducerEnd(1, "supervisor", 2, closed=False),) == await ends(database, run)


async def test_late_lines_are_taken_until_the_grace_is_over(database: Database, clock: FakeClock) -> None:
    """Lines of an ended execution are stored up to and including 24 hours after its end, not after."""
    run = await a_started_run(database)
    await finish(database, run)

    clock.advance(LOG_GRACE)
    in_time = await write(database, key_of(run), some_lines(1))
    clock.advance(INSTANT)
    too_late = await write(database, key_of(run), some_lines(1, first=2))

    assert in_time == 1
    assert isinstance(too_late, LeaseLost)


async def test_an_older_lease_may_still_bear_witness(database: Database) -> None:
    """Lines of an execution that lost its lease are stored beside those of its successor."""
    run = await a_started_run(database)
    rescued = await rescue(database, run)

    answers = [await write(database, key_of(rescued), some_lines(1)), await write(database, key_of(run), some_lines(2))]

    assert answers == [1, 2]
    assert [(each.fence, each.superseded) for each in await stored(database, run.id)] == [
        (3, False),
        (1, True),
        (1, True),
    ]


async def test_any_producer_may_write(database: Database) -> None:
    """A producer that no start opened is known from its first line on, and not before."""
    run = await an_accepted_run(database)

    nothing = await write(database, key_of(run, producer="body"))
    before = await ends(database, run)
    something = await write(database, key_of(run, producer="body"), some_lines(2))

    assert [nothing, something] == [0, 2]
    assert before == ()
    assert (ProducerEnd(1, "body", 2, closed=False),) == await ends(database, run)


async def test_nothing_follows_the_last_lines(database: Database) -> None:
    """A producer that closed stays closed: a repeat is answered alike, and what it sends later is not stored."""
    run = await a_started_run(database)

    answers = [
        await write(database, key_of(run), some_lines(2), closed=True),
        await write(database, key_of(run), some_lines(2), closed=True),
        await write(database, key_of(run), some_lines(2, first=3)),
    ]

    assert answers == [2, 2, 2]
    assert len(await stored(database, run.id)) == 2
    assert (ProducerEnd(1, "supervisor", 2, closed=True),) == await ends(database, run)


async def test_closing_waits_for_the_lines_before_it(database: Database) -> None:
    """Lines behind a gap close nothing, since they are sent again; a closing without lines closes."""
    run = await a_started_run(database)

    await write(database, key_of(run), some_lines(1, first=2), closed=True)
    with_gap = await ends(database, run)
    await write(database, key_of(run), closed=True)

    assert (ProducerEnd(1, "supervisor", 0, closed=False),) == with_gap
    assert (ProducerEnd(1, "supervisor", 0, closed=True),) == await ends(database, run)


async def test_two_writings_of_one_producer_at_once(database: Database) -> None:
    """Where both are in one list, the second begins where the first ended."""
    run = await a_started_run(database)
    writings = [
        Writing(key_of(run), some_lines(2)),
        Writing(key_of(run), some_lines(3)),
        Writing(key_of(run), some_lines(1, first=4), closed=True),
    ]

    assert await database.run(operations.write_logs, TENANT, writings) == [2, 3, 4]
    assert contents(await stored(database, run.id)) == ["line 1", "line 2", "line 3", "line 4"]
    assert (ProducerEnd(1, "supervisor", 4, closed=True),) == await ends(database, run)


async def test_a_hint_names_the_runs_whose_log_changed(database: Database) -> None:
    """Runs with new lines or a newly closed producer are named; refused and repeated writings are not worth a look."""
    written, closed, repeated = [await a_started_run(database) for _ in range(3)]
    await write(database, key_of(repeated), some_lines(1))
    writings = [
        Writing(key_of(written), some_lines(1)),
        Writing(key_of(closed), (), closed=True),
        Writing(key_of(repeated), some_lines(1)),
        Writing(key_of(repeated, fence=9), some_lines(1)),
    ]

    def hinted(tx: Transaction) -> set[FlowRunId]:
        operations.write_logs(tx, TENANT, writings)
        return tx.hint.written

    assert {written.id, closed.id} == await database.run(hinted)


async def test_concurrent_writers_leave_no_holes(database: Database) -> None:
    """Positions are dense and every producer's lines in order, with many writers to one run and to several."""
    shared, *own = [await a_started_run(database) for _ in range(4)]
    random = Random(5)

    async def produce(name: str, runs: Sequence[FlowRun], sizes: Sequence[int]) -> None:
        sent = 0
        for size in sizes:
            lines = some_lines(size, first=sent + 1)
            writings = [Writing(key_of(run, producer=name), lines) for run in runs]
            sent += size
            assert [sent] * len(runs) == await database.run(operations.write_logs, TENANT, writings)

    producers: Mapping[str, Sequence[FlowRun]] = {f"p{n}": random.sample([shared, *own], k=3) for n in range(8)}
    sizes = {name: [random.randint(1, 5) for _ in range(8)] for name in producers}
    await asyncio.gather(*(produce(name, runs, sizes[name]) for name, runs in producers.items()))

    for run in (shared, *own):
        lines = await stored(database, run.id)
        assert list(range(1, len(lines) + 1)) == [each.position for each in lines]
        for name, runs in producers.items():
            expected = list(range(1, sum(sizes[name]) + 1)) if run in runs else []
            assert expected == [each.line.sequence for each in lines if each.producer == name]


async def test_list_logs(database: Database) -> None:
    """A page is listed from its position on; a run without lines has an empty one, and an unknown run is refused."""
    run, empty = await a_started_run(database), await a_scheduled_run(database)
    await write(database, key_of(run), some_lines(3))

    page = await database.read(operations.list_logs, TENANT, run.id, ANY, PositionPage(size=1, after=1))
    nothing = await database.read(operations.list_logs, TENANT, empty.id, ANY, PositionPage(size=1))

    assert (contents(page.lines), page.more) == (["line 2"], True)
    assert (nothing.lines, nothing.more) == ([], False)
    with pytest.raises(FlowRunNotFound):
        await database.read(operations.list_logs, TENANT, NOBODY, ANY, PositionPage(size=1))


async def test_tails_are_looked_up_together(database: Database) -> None:
    """One look answers for every run that has something to show, each behind its own position."""
    one, other, quiet = [await a_started_run(database) for _ in range(3)]
    await write(database, key_of(one), some_lines(3))
    await write(database, key_of(other), some_lines(2))

    asked = {one.id: 1, other.id: 0, quiet.id: 0, NOBODY: 4}
    pages = await database.read(operations.tail_pages, TENANT, asked)

    assert {one.id, other.id, NOBODY} == pages.keys()
    shown = {flow_run_id: page for flow_run_id, page in pages.items() if isinstance(page, TailPage)}
    assert contents(shown[one.id].lines) == ["line 2", "line 3"]
    assert contents(shown[other.id].lines) == ["line 1", "line 2"]
    assert [shown[one.id].end, shown[other.id].end] == [None, None]
    assert isinstance(pages[NOBODY], FlowRunNotFound)


async def test_a_tail_ends_when_the_run_is_final_and_every_producer_closed(database: Database) -> None:
    """Neither the one nor the other alone ends it; the end names the final version and the last sequences."""
    run = await a_started_run(database)

    await write(database, key_of(run), some_lines(2), closed=True)
    closed = await tail(database, run.id)
    await write(database, key_of(run, producer="body"), some_lines(1))
    await finish(database, run)
    final = await tail(database, run.id)
    await write(database, key_of(run, producer="body"), closed=True)
    both = await tail(database, run.id)

    assert (len(closed.lines), closed.end) == (2, None)
    assert (len(final.lines), final.end) == (3, None)
    producers = (ProducerEnd(1, "body", 1, closed=True), ProducerEnd(1, "supervisor", 2, closed=True))
    assert (3, LogEnd(run.version + 1, producers)) == (len(both.lines), both.end)


async def test_a_tail_ends_a_while_after_the_run(database: Database, clock: FakeClock) -> None:
    """A producer that never closes holds a tail up for 60 s after the run became final; the end says it is unclosed."""
    run = await a_started_run(database)
    await write(database, key_of(run), some_lines(1))
    await finish(database, run)

    clock.advance(TAIL_GRACE - INSTANT)
    before = await tail(database, run.id, after=1)
    clock.advance(INSTANT)
    after = await tail(database, run.id, after=1)
    await write(database, key_of(run), some_lines(1, first=2))
    later = await tail(database, run.id, after=1)

    assert TailPage() == before
    assert TailPage(end=LogEnd(run.version + 1, (ProducerEnd(1, "supervisor", 1, closed=False),))) == after
    assert contents(later.lines) == ["line 2"]
    assert LogEnd(run.version + 1, (ProducerEnd(1, "supervisor", 2, closed=False),)) == later.end


async def test_a_run_that_nobody_took_ends_at_once(database: Database) -> None:
    """Nobody will write about a run that was final before any lease was accepted."""
    run = await a_scheduled_run(database)

    before = await tail(database, run.id)
    await finish(database, run)
    after = await tail(database, run.id)

    assert TailPage() == before
    assert TailPage(end=LogEnd(run.version + 1, ())) == after


async def test_a_run_that_never_started_may_still_be_written_about(database: Database, clock: FakeClock) -> None:
    """Where a lease was accepted, and no producer is known, the reasons of a failed launch are waited for."""
    run = await an_accepted_run(database)
    await finish(database, run)

    before = await tail(database, run.id)
    clock.advance(TAIL_GRACE)
    after = await tail(database, run.id)

    assert TailPage() == before
    assert TailPage(end=LogEnd(run.version + 1, ())) == after


async def test_the_end_comes_after_the_last_line(database: Database) -> None:
    """A page that is full is not the end, though everything is known to have closed."""
    run = await a_started_run(database)
    await write(database, key_of(run), some_lines(PAGE_SIZE_MAX))
    await write(database, key_of(run), some_lines(1, first=PAGE_SIZE_MAX + 1), closed=True)
    await finish(database, run)

    first = await tail(database, run.id)
    second = await tail(database, run.id, after=PAGE_SIZE_MAX)

    assert (len(first.lines), first.end) == (PAGE_SIZE_MAX, None)
    ends_there = LogEnd(run.version + 1, (ProducerEnd(1, "supervisor", PAGE_SIZE_MAX + 1, closed=True),))
    assert (1, ends_there) == (len(second.lines), second.end)


async def test_an_end_names_exactly_what_was_shown(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines stored between the two statements of a look are never shown by a page whose end does not know of them."""
    run = await a_started_run(database)
    await write(database, key_of(run), some_lines(2))
    await finish(database, run)
    clock.advance(TAIL_GRACE)
    read_after = logs.read_after

    def late(tx: Transaction, *args: Any) -> Mapping[FlowRunId, Sequence[StoredLine]]:
        database.run_here(operations.write_logs, TENANT, [Writing(key_of(run), some_lines(1, first=3))])
        return read_after(tx, *args)

    monkeypatch.setattr(logs, "read_after", late)
    page = await tail(database, run.id)
    monkeypatch.undo()

    shown = len(page.lines)
    rest = page if page.end else await tail(database, run.id, after=shown)
    assert isinstance(rest.end, LogEnd)
    assert shown == 3 or page.end is not None
    assert (ProducerEnd(1, "supervisor", shown, closed=False),) == rest.end.producers


async def test_a_tail_goes_on_behind_lines_that_are_no_longer_kept(database: Database) -> None:
    """A position before the first line that is still there leads to that line."""
    run = await a_started_run(database)
    await write(database, key_of(run), some_lines(PAGE_SIZE_MAX))
    await write(database, key_of(run), some_lines(5, first=PAGE_SIZE_MAX + 1))

    def forget(tx: Transaction) -> None:
        line, head = log_lines.c, log_heads.c
        tx.conn.execute(log_lines.delete().where(line.flow_run_id == run.id, line.position <= PAGE_SIZE_MAX + 2))
        cut = log_heads.update().where(head.flow_run_id == run.id).values(first_position=PAGE_SIZE_MAX + 3)
        tx.conn.execute(cut)

    await database.run(forget)
    page = await tail(database, run.id)

    assert [each.position for each in page.lines] == [PAGE_SIZE_MAX + 3, PAGE_SIZE_MAX + 4, PAGE_SIZE_MAX + 5]
