"""Log lines and what is asked of the log."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from flowrun.v1 import log_pb2, log_service_pb2
from penstock.domain.ids import FlowRunId
from penstock.domain.limits import (
    LOG_CONTAINS_CHARACTERS_MAX,
    LOG_LEVEL_CHARACTERS_MAX,
    LOG_LINE_BYTES_MAX,
    LOG_LINES_PER_CALL_MAX,
    LOGGER_CHARACTERS_MAX,
    PRODUCER_CHARACTERS_MAX,
    REASON_CHARACTERS_MAX,
)
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
from penstock.wire.checks import INT64_MAX, Checks, collecting
from penstock.wire.pages import PageTokens, position_of
from penstock.wire.times import to_timestamp

LOG_LEVEL_TO_PROTO: Final[Mapping[LogLevel, log_pb2.LogLevel.ValueType]] = {
    level: log_pb2.LogLevel.Value(f"LOG_LEVEL_{level.name}") for level in LogLevel
}
LOG_LEVEL_FROM_PROTO: Final[Mapping[int, LogLevel]] = {number: level for level, number in LOG_LEVEL_TO_PROTO.items()}
LOG_STREAM_TO_PROTO: Final[Mapping[LogStream, log_pb2.LogStream.ValueType]] = {
    stream: log_pb2.LogStream.Value(f"LOG_STREAM_{stream.name}") for stream in LogStream
}
LOG_STREAM_FROM_PROTO: Final[Mapping[int, LogStream]] = {
    number: stream for stream, number in LOG_STREAM_TO_PROTO.items()
}

_TRACE_ID: Final = re.compile("[0-9a-fA-F]{32}")
_SPAN_ID: Final = re.compile("[0-9a-fA-F]{16}")


def writing_of(request: log_service_pb2.WriteLogsRequest) -> Writing:
    """The lines that one producer sends."""
    with collecting(None) as checks:
        key = ProducerKey(
            flow_run_id=FlowRunId(checks.uuid("flow_run_id", request.flow_run_id)),
            fence=checks.fence("fence", request.fence),
            producer=checks.name("producer", request.producer, PRODUCER_CHARACTERS_MAX),
        )
        sent = checks.several("lines", request.lines, LOG_LINES_PER_CALL_MAX)
        lines = tuple(_line_of(checks, f"lines[{index}]", line) for index, line in enumerate(sent))
        _check_gapless(checks, lines)
        return Writing(key=key, lines=lines, closed=request.closed)


def log_filter_of(request: log_service_pb2.ListLogsRequest, checks: Checks | None = None) -> LogFilter:
    """Which lines to list. Violations go to `checks` where there are some, whose owner then refuses by them."""
    with collecting(checks) as checks:
        return LogFilter(
            level=checks.choice("level", request.level, LOG_LEVEL_FROM_PROTO, unspecified=None),
            contains=checks.text("contains", request.contains, LOG_CONTAINS_CHARACTERS_MAX),
            start_time=checks.time(request, "start_time"),
            end_time=checks.time(request, "end_time"),
        )


def tailing_of(request: log_service_pb2.TailLogsRequest, tokens: PageTokens) -> tuple[FlowRunId, int]:
    """Whose log to follow, and after which position."""
    with collecting(None) as checks:
        flow_run_id = FlowRunId(checks.uuid("flow_run_id", request.flow_run_id))
    return flow_run_id, position_of(request.cursor, flow_run_id, tokens)


def stored_line_to_proto(stored: StoredLine) -> log_pb2.LogLine:
    line = stored.line
    message = log_pb2.LogLine(
        position=stored.position,
        fence=stored.fence,
        producer=stored.producer,
        sequence=line.sequence,
        time=to_timestamp(line.time),
        level=log_pb2.LOG_LEVEL_UNSPECIFIED if line.level is None else LOG_LEVEL_TO_PROTO[line.level],
        level_name=line.level_name,
        logger=line.logger,
        stream=LOG_STREAM_TO_PROTO[line.stream],
        trace_id=line.trace_id,
        span_id=line.span_id,
        superseded=stored.superseded,
    )
    match line.content:
        case str(text):
            message.text = text
        case bytes(data):
            message.data = data
        case Dropped(count, reason):
            message.dropped.count = count
            message.dropped.reason = reason
    return message


def producer_end_to_proto(end: ProducerEnd) -> log_service_pb2.ProducerEnd:
    return log_service_pb2.ProducerEnd(
        fence=end.fence, producer=end.producer, last_sequence=end.last_sequence, closed=end.closed
    )


def _line_of(checks: Checks, field: str, line: log_pb2.LogLine) -> LogLine:
    stream = checks.choice(f"{field}.stream", line.stream, LOG_STREAM_FROM_PROTO, unspecified=None)
    if stream is None:
        checks.refuse(f"{field}.stream", "is required")
    return LogLine(
        sequence=checks.count(f"{field}.sequence", line.sequence, 1, INT64_MAX),
        time=checks.time(line, "time", path=f"{field}.", required=True),
        stream=stream or LogStream.LOGGER,
        content=_content_of(checks, field, line),
        level=checks.choice(f"{field}.level", line.level, LOG_LEVEL_FROM_PROTO, unspecified=None),
        level_name=checks.text(f"{field}.level_name", line.level_name, LOG_LEVEL_CHARACTERS_MAX),
        logger=checks.text(f"{field}.logger", line.logger, LOGGER_CHARACTERS_MAX),
        trace_id=_hexadecimal(checks, f"{field}.trace_id", line.trace_id, _TRACE_ID),
        span_id=_hexadecimal(checks, f"{field}.span_id", line.span_id, _SPAN_ID),
    )


def _content_of(checks: Checks, field: str, line: log_pb2.LogLine) -> Content:
    match line.WhichOneof("content"):
        case "text":
            # Any text is fine, NUL included: it is kept as bytes.
            checks.size(f"{field}.text", len(line.text.encode()), LOG_LINE_BYTES_MAX)
            return line.text
        case "data":
            checks.size(f"{field}.data", len(line.data), LOG_LINE_BYTES_MAX)
            return line.data
        case "dropped":
            return _dropped_of(checks, f"{field}.dropped", line)
        case _:
            checks.refuse(f"{field}.content", "is required: text, data or dropped")
            return ""


def _dropped_of(checks: Checks, field: str, line: log_pb2.LogLine) -> Dropped:
    return Dropped(
        # The last sequence that it covers must be a number that the contract can carry.
        count=checks.count(f"{field}.count", line.dropped.count, 1, INT64_MAX - max(line.sequence, 1) + 1),
        reason=checks.name(f"{field}.reason", line.dropped.reason, REASON_CHARACTERS_MAX),
    )


def _hexadecimal(checks: Checks, field: str, value: str, form: re.Pattern[str]) -> str:
    if value and not form.fullmatch(value):
        checks.refuse(field, "is not made of hexadecimal digits in the right number")
    return value


def _check_gapless(checks: Checks, lines: Sequence[LogLine]) -> None:
    for index, (before, line) in enumerate(pairwise(lines), start=1):
        if line.sequence != before.last_sequence + 1:
            expected = before.last_sequence + 1
            checks.refuse(f"lines[{index}].sequence", f"is {line.sequence}, but {expected} follows the line before it")
