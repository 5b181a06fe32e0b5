"""Writing the lines of a run, whatever the service thinks of them."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from flowrun.v1 import log_service_pb2_grpc
from penstock.agent.log_writer import WAITING_BYTES_MAX, LogWriter
from penstock.agent.output import Line, RecordedOutput
from penstock.domain.errors import InvalidRequest, LeaseLost, Violation
from penstock.domain.limits import LOG_LINE_BYTES_MAX
from penstock.wire.logs import writing_of
from tests.agent.small_services import Run, SmallServices


@pytest.fixture
async def stub(services: SmallServices) -> AsyncIterator["log_service_pb2_grpc.LogServiceAsyncStub"]:
    """Calls a log service that checks what it is sent as the true one does."""

    def check(rpc: str, request: Any) -> None:
        writing_of(request)

    services.before = check
    async with grpc.aio.insecure_channel(services.address) as channel:
        yield log_service_pb2_grpc.LogServiceStub(channel)


def writer_of(stub: "log_service_pb2_grpc.LogServiceAsyncStub", run: Run) -> LogWriter:
    return LogWriter(stub, run.id, run.fence, trace_id="", span_id="")


async def test_only_the_lines_that_are_refused_are_missing(
    services: SmallServices, stub: "log_service_pb2_grpc.LogServiceAsyncStub"
) -> None:
    """Each of them leaves a hole of one line; those of the same call, before and after, are stored."""
    run = services.add_run()
    writer = writer_of(stub, run)
    bad = {0, 17, 18, 99}
    for number in range(100):
        writer.add(Line(stream="logger", content=str(number), logger="a\0b" if number in bad else "a"))
    writer.close()

    whole = await writer.run()

    expected = [("", 1) if number in bad else (str(number), 0) for number in range(100)]
    assert expected == [(line.text, line.dropped.count) for line in run.lines]
    assert "NUL" in run.lines[17].dropped.reason
    assert (True, True) == (whole, run.closed)


async def test_calls_grow_again_after_a_refused_line(
    services: SmallServices, stub: "log_service_pb2_grpc.LogServiceAsyncStub"
) -> None:
    """One bad line does not make the thousands after it travel alone."""
    run = services.add_run()
    writer = writer_of(stub, run)
    for number in range(5_000):
        writer.add(Line(stream="logger", content="x", logger="a" if number else "\0"))
    writer.close()

    await writer.run()

    assert 5_000 == len(run.lines)
    assert len(services.calls) < 50


async def test_a_service_that_refuses_even_the_hole_is_told_the_end(
    services: SmallServices, stub: "log_service_pb2_grpc.LogServiceAsyncStub"
) -> None:
    """Nobody waits for room or for the end of the log then."""
    run = services.add_run()
    writer = writer_of(stub, run)
    room: list[bool] = []
    writer.on_room = lambda: room.append(not writer.full)

    def refuse_lines(rpc: str, request: Any) -> None:
        if request.lines:
            raise InvalidRequest((Violation("lines", "are not wanted"),))

    services.before = refuse_lines
    for _ in range(WAITING_BYTES_MAX // LOG_LINE_BYTES_MAX + 1):
        writer.add(Line(stream="stdout", content="x" * LOG_LINE_BYTES_MAX))
    assert writer.full

    whole = await writer.run()

    writer.add(Line(stream="stdout", content="x" * 2 * WAITING_BYTES_MAX))
    assert (False, [], True) == (whole, run.lines, run.closed)
    assert room[-1]
    assert not writer.full


async def test_a_refused_end_is_not_said_again(
    services: SmallServices, stub: "log_service_pb2_grpc.LogServiceAsyncStub"
) -> None:
    """A call that holds no line has no line to blame."""
    run = services.add_run()
    writer = writer_of(stub, run)

    def refuse(rpc: str, request: Any) -> None:
        raise InvalidRequest((Violation("producer", "is not wanted"),))

    services.before = refuse
    writer.close()

    assert not await writer.run()
    assert 1 == len(services.calls)


async def test_a_lost_lease_ends_the_writing(
    services: SmallServices, stub: "log_service_pb2_grpc.LogServiceAsyncStub"
) -> None:
    """There is no line whose absence would help."""
    run = services.add_run()
    writer = writer_of(stub, run)

    def refuse(rpc: str, request: Any) -> None:
        raise LeaseLost(flow_run_id=run.id, fence=run.fence)

    services.before = refuse
    writer.add(Line(stream="stdout", content="x"))

    assert not await writer.run()
    assert 1 == len(services.calls)


async def test_a_line_that_cannot_be_encoded_takes_no_number(
    services: SmallServices, stub: "log_service_pb2_grpc.LogServiceAsyncStub"
) -> None:
    """The lines after it follow the one before it without a gap."""
    run = services.add_run()
    writer = writer_of(stub, run)
    for line in (Line(stream="stdout", content="", logger="\ud800"), Line(stream="stdout", content="", time=1e15)):
        with pytest.raises(ValueError):  # noqa: PT011 - protobuf's own words
            writer.add(line)
    writer.add(Line(stream="stdout", content="after"))
    writer.close()

    assert await writer.run()
    assert [(1, "after")] == [(line.sequence, line.text) for line in run.lines]


async def test_whatever_a_record_says_its_line_is_stored(
    services: SmallServices, stub: "log_service_pb2_grpc.LogServiceAsyncStub"
) -> None:
    """Names, ids and times that no service takes cost neither the line nor those after it."""
    run = services.add_run()
    writer = writer_of(stub, run)
    output = RecordedOutput(writer.add)
    for field in (
        rb'"logger": "\ud800"',
        rb'"logger": "\u0000"',
        rb'"level_name": "\udfff"',
        rb'"trace_id": "\ud800"',
        rb'"span_id": "0"',
        b'"time": 1e400',
        b'"time": 1e15',
        b'"time": 253402300799.9999999',
    ):
        output.feed(b'{"kind": "line", "stream": "logger", "text": "kept", ' + field + b"}\n")
    writer.close()

    assert await writer.run()
    assert ["kept"] * 8 == run.texts
