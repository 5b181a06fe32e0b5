"""LogService over a real socket, on both databases."""

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any, Final
from uuid import UUID

import grpc
import pytest

from flowrun.v1 import log_pb2
from flowrun.v1 import log_service_pb2 as pb
from flowrun.v1.log_service_pb2_grpc import LogServiceStub, add_LogServiceServicer_to_server
from penstock.domain.flow_run import FlowRun
from penstock.domain.ids import FlowRunId
from penstock.domain.limits import LOG_LINE_BYTES_MAX, MESSAGE_BYTES_MAX, TAIL_GRACE
from penstock.flow_run.operations import delete_flow_run
from penstock.log import operations
from penstock.log.service import LogServicer, Tails, look
from penstock.runtime.channel import open_channel
from penstock.runtime.committer import Committer
from penstock.runtime.hearing import Hearing
from penstock.storage import installation, wakeups
from penstock.storage.database import Database
from penstock.storage.tenancy import flushing
from penstock.storage.wakeups import Hint
from penstock.wire.errors import Explained, refusal_details
from penstock.wire.pages import PageTokens
from tests.log.scenes import TENANT, a_scheduled_run, a_started_run, finish, stored
from tests.support.fake_clock import FakeClock
from tests.support.running import running

NEVER: Final = timedelta(hours=1)
SOON: Final = timedelta(milliseconds=20)
WAIT_SECONDS: Final = 30
NOBODY: Final = str(UUID(int=1))


@dataclass
class Service:
    """LogService at work: its stub, and its tails."""

    stub: Any
    tails: Tails


@contextlib.asynccontextmanager
async def serving(
    database: Database, *, sweep: timedelta = NEVER, heartbeat: timedelta = NEVER
) -> AsyncIterator[Service]:
    """A process's worth of LogService, which hears hints; it sweeps and beats only if told to."""
    tokens = PageTokens(await database.read(installation.signing_key))
    writings = Committer(flushing(database, operations.write_logs), name="write")
    tails = Tails(partial(look, database, TENANT), sweep=sweep, heartbeat=heartbeat)

    def hear(hint: Hint) -> None:
        tails.hint(None if hint.anything else hint.written | hint.moved)

    listener = wakeups.listen(database.engine)
    silent = threading.Event()

    def hints() -> Iterator[Hint]:
        try:
            yield from listener.hints()
        finally:
            silent.set()

    hearing = Hearing(hints, hear)
    tasks = [asyncio.create_task(serve()) for serve in (writings.serve, tails.serve, hearing.serve)]
    servicer = LogServicer(database, tokens, tails, writings=writings)
    try:
        async with (
            asyncio.timeout(WAIT_SECONDS),
            running((add_LogServiceServicer_to_server, servicer)) as address,
            open_channel(address) as channel,
        ):
            yield Service(LogServiceStub(channel), tails)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        # The listening thread ends at the next hint it gets; until then it has the database open.
        await database.run(lambda tx: tx.hint.moved.add(FlowRunId(UUID(NOBODY))))
        assert await asyncio.to_thread(silent.wait, WAIT_SECONDS)
        listener.close()


def message(sequence: int, text: str = "", **fields: Any) -> log_pb2.LogLine:
    line = log_pb2.LogLine(
        sequence=sequence, stream=log_pb2.LOG_STREAM_STDOUT, text=text or f"line {sequence}", **fields
    )
    line.time.FromSeconds(1_700_000_000 + sequence)
    return line


def writing(
    run: FlowRun, lines: Sequence[log_pb2.LogLine] = (), *, producer: str = "supervisor", closed: bool = False
) -> pb.WriteLogsRequest:
    return pb.WriteLogsRequest(flow_run_id=str(run.id), fence=run.fence, producer=producer, lines=lines, closed=closed)


def numbered(count: int, first: int = 1) -> list[log_pb2.LogLine]:
    return [message(sequence) for sequence in range(first, first + count)]


async def refused(call: Any) -> Explained:
    """How that call, or the first message of that stream, is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if hasattr(call, "read") else call)
    return refusal_details(caught.value)


async def read_until(stream: Any, enough: Callable[[pb.TailLogsResponse], bool]) -> list[pb.TailLogsResponse]:
    """The messages of a tail up to and with the first that is enough."""
    messages: list[pb.TailLogsResponse] = []
    while not messages or not enough(messages[-1]):
        response = await stream.read()
        assert response is not grpc.aio.EOF, "the tail ended early"
        messages.append(response)
    return messages


async def rest_of(stream: Any) -> list[pb.TailLogsResponse]:
    """The messages of a tail up to its end."""
    messages: list[pb.TailLogsResponse] = []
    while (response := await stream.read()) is not grpc.aio.EOF:
        messages.append(response)
    return messages


def has_position(position: int) -> Callable[[pb.TailLogsResponse], bool]:
    return lambda response: any(line.position >= position for line in response.lines.lines)


def texts(messages: Sequence[pb.TailLogsResponse]) -> list[str]:
    return [line.text for each in messages for line in each.lines.lines]


def kinds(messages: Sequence[pb.TailLogsResponse]) -> list[str]:
    return [kind for kind, _ in itertools.groupby(each.WhichOneof("message") or "" for each in messages)]


async def whole_tail(service: Service, run: FlowRun, cursor: str = "") -> list[pb.TailLogsResponse]:
    """Every message of a tail that ends."""
    return [each async for each in service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id), cursor=cursor))]


async def test_writing_answers_once_the_lines_are_durable(database: Database) -> None:
    """The answer names the last stored sequence, and what it names can be read by anyone."""
    run = await a_started_run(database)

    async with serving(database) as service:
        answers = [
            (await service.stub.WriteLogs(writing(run, numbered(3)))).last_sequence,
            len(await stored(database, run.id)),
            (await service.stub.WriteLogs(writing(run, numbered(3)))).last_sequence,
            (await service.stub.WriteLogs(writing(run, numbered(1, first=9)))).last_sequence,
        ]

    assert answers == [3, 3, 3, 3]


async def test_writings_of_many_producers_share_commits(database: Database) -> None:
    """Calls that arrive together are each answered, and leave no holes in the positions."""
    run = await a_started_run(database)

    async with serving(database) as service:
        calls = [service.stub.WriteLogs(writing(run, numbered(10), producer=f"p{n}")) for n in range(30)]
        answers = await asyncio.gather(*calls)

    assert [answer.last_sequence for answer in answers] == [10] * 30
    assert list(range(1, 301)) == [each.position for each in await stored(database, run.id)]


async def test_what_writing_refuses(database: Database) -> None:
    """A request that is wrong in itself, an unknown run and a lease never accepted are told apart."""
    run = await a_started_run(database)
    unknown = pb.WriteLogsRequest(flow_run_id=NOBODY, fence=1, producer="supervisor", lines=numbered(1))
    stale = pb.WriteLogsRequest(flow_run_id=str(run.id), fence=9, producer="supervisor", lines=numbered(1))
    wrong = pb.WriteLogsRequest(flow_run_id="x", lines=[message(1), message(3)])

    async with serving(database) as service:
        not_found = await refused(service.stub.WriteLogs(unknown))
        lost = await refused(service.stub.WriteLogs(stale))
        invalid = await refused(service.stub.WriteLogs(wrong))

    assert (not_found.code, not_found.reason) == (grpc.StatusCode.NOT_FOUND, "FLOW_RUN_NOT_FOUND")
    assert (lost.code, lost.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
    assert (invalid.code, invalid.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert [each.field for each in invalid.violations] == ["flow_run_id", "fence", "producer", "lines[1].sequence"]


async def test_listing_page_by_page(database: Database) -> None:
    """Pages in a row hold every line once, and the last one has no token."""
    run = await a_started_run(database)

    async with serving(database) as service:
        await service.stub.WriteLogs(writing(run, numbered(25)))
        request = pb.ListLogsRequest(flow_run_id=str(run.id), page_size=10)
        pages = [await service.stub.ListLogs(request)]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(await service.stub.ListLogs(request))

    assert [len(page.lines) for page in pages] == [10, 10, 5]
    assert list(range(1, 26)) == [line.position for page in pages for line in page.lines]


async def test_pages_stay_within_a_message(database: Database) -> None:
    """A page of the largest lines ends early rather than become a message that nobody may receive."""
    run = await a_started_run(database)
    big = "🜁" * (LOG_LINE_BYTES_MAX // 4)
    named = {"logger": "🜁" * 255, "level_name": "🜁" * 64}

    async with serving(database) as service:
        for first in range(1, 101, 25):
            lines = [message(sequence, big, **named) for sequence in range(first, first + 25)]
            await service.stub.WriteLogs(writing(run, lines, producer="🜁" * 64))
        request = pb.ListLogsRequest(flow_run_id=str(run.id), page_size=1_000)
        pages = [await service.stub.ListLogs(request)]
        while pages[-1].next_page_token:
            request.page_token = pages[-1].next_page_token
            pages.append(await service.stub.ListLogs(request))

    assert list(range(1, 101)) == [line.position for page in pages for line in page.lines]
    assert all(page.ByteSize() <= MESSAGE_BYTES_MAX for page in pages)
    assert len(pages) < 5


async def test_what_listing_refuses(database: Database) -> None:
    """Tokens of another query, and an unknown run, are refused; violations are listed together."""
    run, other = await a_started_run(database), await a_started_run(database)

    async with serving(database) as service:
        await service.stub.WriteLogs(writing(run, numbered(3)))
        page = await service.stub.ListLogs(pb.ListLogsRequest(flow_run_id=str(run.id), page_size=1))
        foreign = pb.ListLogsRequest(flow_run_id=str(other.id), page_token=page.next_page_token)
        wrong = pb.ListLogsRequest(flow_run_id="x", page_size=-1, contains="y" * 256)
        told = [
            await refused(service.stub.ListLogs(foreign)),
            await refused(service.stub.ListLogs(pb.ListLogsRequest(flow_run_id=NOBODY))),
            await refused(service.stub.ListLogs(wrong)),
        ]

    assert [each.reason for each in told] == ["PAGE_TOKEN_INVALID", "FLOW_RUN_NOT_FOUND", "INVALID_REQUEST"]
    assert {"flow_run_id", "page_size", "contains"} == {each.field for each in told[2].violations}


async def test_a_tail_replays_then_follows_then_ends(database: Database) -> None:
    """What was stored before comes first, what is stored then comes as it is hinted at, the end last."""
    run = await a_started_run(database)

    async with serving(database) as service:
        await service.stub.WriteLogs(writing(run, numbered(3)))
        stream = service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id)))
        replayed = await read_until(stream, has_position(3))
        await service.stub.WriteLogs(writing(run, numbered(2, first=4)))
        live = await read_until(stream, has_position(5))
        await service.stub.WriteLogs(writing(run, numbered(1, first=6), closed=True))
        await finish(database, run)
        rest = await rest_of(stream)

    assert texts(replayed) == ["line 1", "line 2", "line 3"]
    assert texts(live) == ["line 4", "line 5"]
    assert texts(rest) == ["line 6"]
    assert kinds(rest) == ["lines", "end"]
    assert (run.version + 1, [pb.ProducerEnd(fence=1, producer="supervisor", last_sequence=6, closed=True)]) == (
        rest[-1].end.version,
        list(rest[-1].end.producers),
    )


async def test_a_tail_of_a_run_that_is_deleted_ends(database: Database) -> None:
    """With FLOW_RUN_NOT_FOUND, for everybody, while it waited for more; and no more is written."""
    run = await a_started_run(database)

    async with serving(database) as service:
        await service.stub.WriteLogs(writing(run, numbered(3)))
        streams = [service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id))) for _ in range(2)]
        seen = [await read_until(each, has_position(3)) for each in streams]
        await finish(database, run)
        assert await database.run(delete_flow_run, TENANT, run.id)
        refusals = [await refused(each) for each in streams]
        late = await refused(service.stub.WriteLogs(writing(run, numbered(1, first=4))))

    assert [["line 1", "line 2", "line 3"]] * 2 == [texts(each) for each in seen]
    assert [(grpc.StatusCode.NOT_FOUND, "FLOW_RUN_NOT_FOUND")] * 3 == [
        (each.code, each.reason) for each in (*refusals, late)
    ]


async def test_a_tail_resumed_at_any_cursor_misses_and_repeats_nothing(database: Database) -> None:
    """With writers at work, each message's cursor leads to exactly the lines behind it, then to the same end."""
    run = await a_started_run(database)
    random = Random(3)

    async def produce(service: Service, producer: str) -> None:
        sent = 0
        while sent < 40:
            count = random.randint(1, 6)
            await service.stub.WriteLogs(writing(run, numbered(count, first=sent + 1), producer=producer))
            sent += count
        await service.stub.WriteLogs(writing(run, producer=producer, closed=True))

    async def run_to_its_end(service: Service) -> None:
        await asyncio.gather(*(produce(service, producer) for producer in ("supervisor", "body", "other")))
        await finish(database, run)

    async with serving(database) as service:
        followed, _ = await asyncio.gather(whole_tail(service, run), run_to_its_end(service))
        resumed = [await whole_tail(service, run, each.cursor) for each in followed]

    shown = [line.position for each in followed for line in each.lines.lines]
    assert [each.position for each in await stored(database, run.id)] == shown
    assert len(followed) > 2, "it was not followed live"
    for number, again in enumerate(resumed, start=1):
        assert [line for each in followed[number:] for line in each.lines.lines] == [
            line for each in again for line in each.lines.lines
        ]
        assert followed[-1].end == again[-1].end


async def test_an_idle_tail_beats(database: Database) -> None:
    """A heartbeat bears the cursor to resume at."""
    run = await a_started_run(database)

    async with serving(database, sweep=SOON, heartbeat=SOON) as service:
        await service.stub.WriteLogs(writing(run, numbered(2)))
        stream = service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id)))
        messages = await read_until(stream, has_position(2))
        messages += await read_until(stream, lambda response: response.HasField("heartbeat"))
        stream.cancel()
        await service.stub.WriteLogs(writing(run, numbered(1, first=3), closed=True))
        await finish(database, run)
        resumed = await whole_tail(service, run, messages[-1].cursor)

    assert texts(messages) == ["line 1", "line 2"]
    assert texts(resumed) == ["line 3"]


async def test_a_tail_ends_by_the_sweep_when_its_grace_is_over(database: Database, clock: FakeClock) -> None:
    """Where a producer never closes, no hint tells that time has passed: the sweep finds the end."""
    run = await a_started_run(database)

    async with serving(database, sweep=SOON) as service:
        await service.stub.WriteLogs(writing(run, numbered(1)))
        await finish(database, run)
        stream = service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id)))
        before = await read_until(stream, has_position(1))
        clock.advance(TAIL_GRACE)
        after = await rest_of(stream)

    assert kinds(before) == ["lines"]
    assert kinds(after) == ["end"]
    assert [each.closed for each in after[-1].end.producers] == [False]


async def test_a_run_cancelled_before_it_was_taken_ends_its_tail_at_once(database: Database) -> None:
    """There is nothing to wait for: the end is the only message."""
    run = await a_scheduled_run(database)
    await finish(database, run)

    async with serving(database) as service:
        messages = await whole_tail(service, run)

    assert kinds(messages) == ["end"]


async def test_what_tailing_refuses(database: Database) -> None:
    """An unknown run is refused before anything else, as are a cursor of another run and one made by hand."""
    run, other = await a_started_run(database), await a_started_run(database)

    async with serving(database) as service:
        await service.stub.WriteLogs(writing(run, numbered(1)))
        stream = service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id)))
        (first,) = await read_until(stream, has_position(1))
        stream.cancel()
        told = [
            await refused(service.stub.TailLogs(request))
            for request in (
                pb.TailLogsRequest(flow_run_id=NOBODY),
                pb.TailLogsRequest(flow_run_id=str(other.id), cursor=first.cursor),
                pb.TailLogsRequest(flow_run_id=str(run.id), cursor="here"),
                pb.TailLogsRequest(flow_run_id="x"),
            )
        ]

    assert [each.reason for each in told] == [
        "FLOW_RUN_NOT_FOUND",
        "PAGE_TOKEN_INVALID",
        "PAGE_TOKEN_INVALID",
        "INVALID_REQUEST",
    ]


async def test_an_unknown_run_is_refused_before_anything_else(database: Database) -> None:
    """Even by a process that follows nothing any more, and so refuses to tail a run that exists."""
    run = await a_started_run(database)

    async with serving(database) as service:
        await service.tails.drain()
        unknown = await refused(service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=NOBODY)))
        known = await refused(service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id))))

    assert ["FLOW_RUN_NOT_FOUND", "UNAVAILABLE"] == [unknown.reason, known.reason]


async def test_a_reader_that_stalls_holds_up_nobody(database: Database) -> None:
    """While one tail takes nothing of a large log, another of the same run and one of another run go on."""
    run, other = await a_started_run(database), await a_started_run(database)
    big = "x" * LOG_LINE_BYTES_MAX

    async with serving(database) as service:
        for first in range(1, 201, 50):
            lines = [message(sequence, big) for sequence in range(first, first + 50)]
            await service.stub.WriteLogs(writing(run, lines))
        stalled = service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id)))
        first_read = await read_until(stalled, lambda _: True)
        quick = service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id)))
        await read_until(quick, has_position(200))
        beside = service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(other.id)))
        await service.stub.WriteLogs(writing(other, numbered(1)))
        await read_until(beside, has_position(1))
        late = await read_until(stalled, has_position(200))
        for stream in (stalled, quick, beside):
            stream.cancel()

    shown = [line.position for each in (*first_read, *late) for line in each.lines.lines]
    assert list(range(1, 201)) == shown
    assert all(each.ByteSize() <= MESSAGE_BYTES_MAX for each in (*first_read, *late))


async def test_draining_ends_tails_for_another_replica_to_go_on(database: Database) -> None:
    """A tail that waits is ended with UNAVAILABLE, after which its cursor still holds."""
    run = await a_started_run(database)

    async with serving(database) as service:
        await service.stub.WriteLogs(writing(run, numbered(1)))
        stream = service.stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id)))
        (first,) = await read_until(stream, has_position(1))
        await service.tails.drain()
        ended = await refused(stream)
    async with serving(database) as replica:
        await replica.stub.WriteLogs(writing(run, numbered(1, first=2), closed=True))
        await finish(database, run)
        resumed = await whole_tail(replica, run, first.cursor)

    assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    assert texts(resumed) == ["line 2"]
