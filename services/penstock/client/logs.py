"""The logs of runs: what a line looks like to a reader, and how lines are read and followed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from pendulum import DateTime

from flowrun.v1 import log_pb2 as nouns
from flowrun.v1 import log_service_pb2 as verbs
from penstock.client.calls import Call, Following, Listing, Page, Service, Step
from penstock.client.enums import LogLevel, LogStream, number_of, word_of
from penstock.client.times import timestamp_of
from penstock.wire.times import to_time

# How long the log of a run that has ended may say nothing before it is left; a killed run never closes its log.
QUIET_SECONDS_MAX: Final = 5.0


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a run's log. Of `text`, `data` and `dropped_count` one is set: text, other output, or a hole.

    `cursor` is where `follow_logs` may be resumed without missing a line after this one; empty on lines of a list.
    """

    position: int
    fence: int
    producer: str
    sequence: int
    time: DateTime
    level: LogLevel
    level_name: str
    logger: str
    stream: LogStream
    text: str | None
    data: bytes | None
    dropped_count: int
    dropped_reason: str
    trace_id: str
    span_id: str
    superseded: bool
    cursor: str = ""

    def __str__(self) -> str:
        if self.text is not None:
            return self.text
        if self.data is not None:
            return self.data.decode(errors="backslashreplace")
        lines = "line is" if self.dropped_count == 1 else "lines are"
        return f"[{self.dropped_count} {lines} missing: {self.dropped_reason}]"


def read_logs(
    flow_run_id: str,
    *,
    level: LogLevel | None = None,
    contains: str = "",
    start_time: datetime | None = None,
    end_time: datetime | None = None,
    page_size: int = 0,
) -> Listing[LogLine]:
    """List the lines that a run has written so far, in order. All filters must hold."""
    start, end = timestamp_of("start_time", start_time), timestamp_of("end_time", end_time)

    def page(token: str) -> Call[Page[LogLine]]:
        request = verbs.ListLogsRequest(
            flow_run_id=flow_run_id,
            page_size=page_size,
            page_token=token,
            level=_level_number(level),
            contains=contains,
            start_time=start,
            end_time=end,
        )
        return Call(
            Service.LOG,
            "ListLogs",
            request,
            lambda response: Page([log_line_of(each) for each in response.lines], response.next_page_token),
        )

    return Listing(page)


def follow_logs(flow_run_id: str, cursor: str = "") -> Following[LogLine]:
    """Follow the log of a run: every line after the cursor once and in order, new ones as they come, to the end."""

    def request(cursor: str) -> verbs.TailLogsRequest:
        return verbs.TailLogsRequest(flow_run_id=flow_run_id, cursor=cursor)

    return Following(Service.LOG, "TailLogs", cursor, request, _read)


def log_line_of(message: nouns.LogLine, cursor: str = "") -> LogLine:
    """The line in a message."""
    content = message.WhichOneof("content")
    return LogLine(
        position=message.position,
        fence=message.fence,
        producer=message.producer,
        sequence=message.sequence,
        time=to_time(message.time),
        level=word_of(LogLevel, nouns.LogLevel, "LOG_LEVEL_", message.level),
        level_name=message.level_name,
        logger=message.logger,
        stream=word_of(LogStream, nouns.LogStream, "LOG_STREAM_", message.stream),
        text=message.text if content == "text" else None,
        data=message.data if content == "data" else None,
        dropped_count=message.dropped.count,
        dropped_reason=message.dropped.reason,
        trace_id=message.trace_id,
        span_id=message.span_id,
        superseded=message.superseded,
        cursor=cursor,
    )


def _read(response: Any, before: str) -> Step[LogLine]:
    after = response.cursor or before
    lines = response.lines.lines
    # A line inside a message has no cursor of its own: resuming there repeats what follows it rather than missing it.
    items = [log_line_of(line, after if line is lines[-1] else before) for line in lines]
    return Step(items, after, response.HasField("end"))


def _level_number(level: LogLevel | None) -> Any:
    return None if level is None else number_of(nouns.LogLevel, "LOG_LEVEL_", level)
