"""Tests of `penstock.wire.logs`."""

from typing import Any
from uuid import UUID

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from flowrun.v1 import log_pb2
from flowrun.v1 import log_service_pb2 as pb
from penstock.domain import limits
from penstock.domain.errors import PageTokenInvalid
from penstock.domain.ids import FlowRunId
from penstock.domain.log import (
    Content,
    Dropped,
    LogLevel,
    LogLine,
    LogStream,
    ProducerEnd,
    ProducerKey,
    StoredLine,
    Writing,
)
from penstock.domain.queries import LogFilter
from penstock.wire import logs
from penstock.wire.checks import INT64_MAX, Checks
from penstock.wire.logs import log_filter_of, producer_end_to_proto, stored_line_to_proto, tailing_of, writing_of
from penstock.wire.pages import PageTokens, cursor_of
from tests.domain.builders import RUN_ID
from tests.support.fake_clock import NOON
from tests.wire.refusing import wrong, wrong_fields

TIME = Timestamp(seconds=NOON.int_timestamp)
TOKENS = PageTokens(b"k" * 32)
KEY = ProducerKey(RUN_ID, 7, "supervisor")


def a_line(sequence: int = 1, **fields: Any) -> log_pb2.LogLine:
    plain: dict[str, Any] = {"sequence": sequence, "time": TIME, "stream": log_pb2.LOG_STREAM_STDOUT}
    content = {} if {"data", "dropped"} & fields.keys() else {"text": "high water"}
    return log_pb2.LogLine(**(plain | content | fields))


def a_write(*lines: log_pb2.LogLine, **fields: Any) -> pb.WriteLogsRequest:
    plain: dict[str, Any] = {"flow_run_id": str(RUN_ID), "fence": 7, "producer": "supervisor", "lines": lines}
    return pb.WriteLogsRequest(**(plain | fields))


def a_hole(sequence: int, count: int) -> log_pb2.LogLine:
    return a_line(sequence, dropped=log_pb2.Dropped(count=count, reason="full"))


def test_a_plain_write() -> None:
    """A producer sends lines, or nothing but that it is done."""
    line = LogLine(sequence=1, time=NOON, stream=LogStream.STDOUT, content="high water")

    assert Writing(KEY, (line,), False) == writing_of(a_write(a_line()))
    assert Writing(KEY, (), True) == writing_of(a_write(closed=True))


def test_a_full_line_survives() -> None:
    """Everything that a line says arrives, and is answered with what its storing added."""
    sent = a_line(
        3,
        level=log_pb2.LOG_LEVEL_WARNING,
        level_name="NOTICE",
        logger="levels",
        stream=log_pb2.LOG_STREAM_LOGGER,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="B7AD6B7169203331",
    )
    (line,) = writing_of(a_write(sent)).lines

    answer = stored_line_to_proto(StoredLine(9, 7, "supervisor", True, line))

    assert {"data", "dropped"} == {field.name for field in answer.DESCRIPTOR.fields} - {
        field.name for field, _ in answer.ListFields()
    }
    assert (answer.position, answer.fence, answer.producer, answer.superseded) == (9, 7, "supervisor", True)
    for name in ("position", "fence", "producer", "superseded"):
        answer.ClearField(name)
    assert sent == answer


@pytest.mark.parametrize(
    ("fields", "content", "kind"),
    [
        ({"text": ""}, "", "text"),
        ({"text": "a\0b"}, "a\0b", "text"),
        ({"data": b""}, b"", "data"),
        ({"data": b"\xff"}, b"\xff", "data"),
        ({"dropped": log_pb2.Dropped(count=5, reason="full")}, Dropped(5, "full"), "dropped"),
    ],
)
def test_contents(fields: dict[str, Any], content: Content, kind: str) -> None:
    """Text with any character, bytes, and holes arrive, and are answered as what they are, empty ones included."""
    sent = a_line(**fields)

    (line,) = writing_of(a_write(sent)).lines

    assert content == line.content
    answer = stored_line_to_proto(StoredLine(1, 7, "supervisor", False, line))
    assert kind == answer.WhichOneof("content")
    assert getattr(sent, kind) == getattr(answer, kind)


def test_output_has_no_level() -> None:
    """A line without a level is answered without one."""
    (line,) = writing_of(a_write(a_line())).lines

    assert line.level is None
    assert stored_line_to_proto(StoredLine(1, 7, "p", False, line)).level == log_pb2.LOG_LEVEL_UNSPECIFIED


def test_everything_wrong_is_said_at_once() -> None:
    """Every violation of a write is in one refusal, by the path that the proto spells."""
    request = pb.WriteLogsRequest(
        lines=[
            log_pb2.LogLine(level=99),  # type: ignore[arg-type]
            a_line(
                1,
                stream=99,
                time=Timestamp(nanos=-1),
                dropped=log_pb2.Dropped(),
                level_name="\0",
                logger="\0",
                trace_id="x",
                span_id="0af7651916cd43dd8448eb211c80319c",
            ),
        ]
    )

    assert {
        "flow_run_id",
        "fence",
        "producer",
        "lines[0].sequence",
        "lines[0].time",
        "lines[0].level",
        "lines[0].stream",
        "lines[0].content",
        "lines[1].time",
        "lines[1].stream",
        "lines[1].dropped.count",
        "lines[1].dropped.reason",
        "lines[1].level_name",
        "lines[1].logger",
        "lines[1].trace_id",
        "lines[1].span_id",
    } <= set(wrong_fields(writing_of, request))


@pytest.mark.parametrize(
    "lines",
    [[a_line(5), a_line(6)], [a_hole(1, 3), a_line(4)], [a_line(1), a_hole(2, 2), a_line(4)]],
)
def test_sequences_without_gaps(lines: list[log_pb2.LogLine]) -> None:
    """Sequences rise by one from anywhere; a hole covers several."""
    assert len(lines) == len(writing_of(a_write(*lines)).lines)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([a_line(1), a_line(3)], "is 3, but 2 follows the line before it"),
        ([a_line(2), a_line(2)], "is 2, but 3 follows the line before it"),
        ([a_line(2), a_line(1)], "is 1, but 3 follows the line before it"),
        ([a_hole(1, 3), a_line(2)], "is 2, but 4 follows the line before it"),
    ],
)
def test_sequences_with_gaps(lines: list[log_pb2.LogLine], sentence: str) -> None:
    """A gap, a repeat and a step back are refused, with the sequence that was expected."""
    assert [("lines[1].sequence", sentence)] == wrong(writing_of, a_write(*lines))


def test_sequences_at_their_limit() -> None:
    """A hole may reach to the last number there is, and no further."""
    writing_of(a_write(a_hole(INT64_MAX, 1)))
    writing_of(a_write(a_hole(1, INT64_MAX)))

    assert wrong_fields(writing_of, a_write(a_hole(2, INT64_MAX))) == ["lines[0].dropped.count"]
    assert wrong_fields(writing_of, a_write(a_line(-(2**63)))) == ["lines[0].sequence"]


@pytest.mark.parametrize(
    ("at_limit", "beyond", "field"),
    [
        ({"text": "é" * (limits.LOG_LINE_BYTES_MAX // 2)}, {"text": "x" * (limits.LOG_LINE_BYTES_MAX + 1)}, "text"),
        ({"data": b"x" * limits.LOG_LINE_BYTES_MAX}, {"data": b"x" * (limits.LOG_LINE_BYTES_MAX + 1)}, "data"),
        (
            {"level_name": "x" * limits.LOG_LEVEL_CHARACTERS_MAX},
            {"level_name": "x" * (limits.LOG_LEVEL_CHARACTERS_MAX + 1)},
            "level_name",
        ),
        (
            {"logger": "x" * limits.LOGGER_CHARACTERS_MAX},
            {"logger": "x" * (limits.LOGGER_CHARACTERS_MAX + 1)},
            "logger",
        ),
        (
            {"dropped": log_pb2.Dropped(count=1, reason="x" * limits.REASON_CHARACTERS_MAX)},
            {"dropped": log_pb2.Dropped(count=1, reason="x" * (limits.REASON_CHARACTERS_MAX + 1))},
            "dropped.reason",
        ),
    ],
    ids=["text", "data", "level name", "logger", "reason"],
)
def test_a_line_at_its_limits(at_limit: dict[str, Any], beyond: dict[str, Any], field: str) -> None:
    """Each part of a line is taken at its limit and refused beyond it."""
    writing_of(a_write(a_line(**at_limit)))

    assert [f"lines[0].{field}"] == wrong_fields(writing_of, a_write(a_line(**beyond)))


def test_a_write_at_its_limits() -> None:
    """As many lines as allowed are taken and one more refused; a producer's name is bounded."""
    lines = [a_line(sequence) for sequence in range(1, limits.LOG_LINES_PER_CALL_MAX + 2)]
    writing_of(a_write(*lines[:-1], producer="x" * limits.PRODUCER_CHARACTERS_MAX))

    assert wrong(writing_of, a_write(*lines)) == [("lines", "holds 1001; at most 1000 are allowed")]
    long = a_write(producer="x" * (limits.PRODUCER_CHARACTERS_MAX + 1))
    assert wrong_fields(writing_of, long) == ["producer"]


def test_filters() -> None:
    """What a filter leaves out is no condition."""
    request = pb.ListLogsRequest(
        level=log_pb2.LOG_LEVEL_WARNING,
        contains="water",
        start_time=TIME,
        end_time=Timestamp(seconds=TIME.seconds + 60),
    )

    assert LogFilter() == log_filter_of(pb.ListLogsRequest())
    assert LogFilter(LogLevel.WARNING, "water", NOON, NOON.add(minutes=1)) == log_filter_of(request)


def test_wrong_filters() -> None:
    """A filter adds what is wrong with it to the checks it is given."""
    checks = Checks()
    checks.refuse("page_size", "is negative")
    request = pb.ListLogsRequest(
        level=99,  # type: ignore[arg-type]
        contains="x" * (limits.LOG_CONTAINS_CHARACTERS_MAX + 1),
        start_time=Timestamp(nanos=-1),
        end_time=Timestamp(seconds=2**60),
    )

    log_filter_of(request, checks)

    assert wrong_fields(checks.done) == ["page_size", "level", "contains", "start_time", "end_time"]
    log_filter_of(pb.ListLogsRequest(contains="x" * limits.LOG_CONTAINS_CHARACTERS_MAX))


def test_tailing() -> None:
    """A tail begins at the beginning or where its cursor says; a cursor of another run is refused."""
    cursor = cursor_of(41, RUN_ID, TOKENS)

    assert tailing_of(pb.TailLogsRequest(flow_run_id=str(RUN_ID)), TOKENS) == (RUN_ID, 0)
    assert tailing_of(pb.TailLogsRequest(flow_run_id=str(RUN_ID).upper(), cursor=cursor), TOKENS) == (RUN_ID, 41)
    other = pb.TailLogsRequest(flow_run_id=str(FlowRunId(UUID(int=1))), cursor=cursor)
    with pytest.raises(PageTokenInvalid):
        tailing_of(other, TOKENS)
    assert wrong_fields(tailing_of, pb.TailLogsRequest(cursor=cursor), TOKENS) == ["flow_run_id"]


def test_how_far_a_producer_came() -> None:
    """The end of a producer is answered whole."""
    expected = pb.ProducerEnd(fence=7, producer="supervisor", last_sequence=41, closed=True)

    assert expected == producer_end_to_proto(ProducerEnd(7, "supervisor", 41, True))


def test_enums_are_total() -> None:
    """Every value of the domain has its number and every number its value, but for the unspecified ones."""
    assert set(LogLevel) == set(logs.LOG_LEVEL_TO_PROTO) == set(logs.LOG_LEVEL_FROM_PROTO.values())
    assert set(log_pb2.LogLevel.values()) - {0} == set(logs.LOG_LEVEL_FROM_PROTO)
    assert set(LogStream) == set(logs.LOG_STREAM_TO_PROTO) == set(logs.LOG_STREAM_FROM_PROTO.values())
    assert set(log_pb2.LogStream.values()) - {0} == set(logs.LOG_STREAM_FROM_PROTO)
