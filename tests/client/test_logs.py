"""Logs, as both clients see them."""

from typing import Any

import pendulum

from flowrun.v1 import log_pb2
from flowrun.v1 import log_service_pb2 as verbs
from penstock.client import LogLevel
from tests.client.conftest import Speak
from tests.client.scripted import RUN_ID, ScriptedServices, some_lines, the_tail_end


async def test_lines_are_read_with_their_filters(speak: Speak, services: ScriptedServices) -> None:
    """A log is listed page by page, with what the reader asked for on each."""
    page = some_lines("one", "two").lines.lines
    services.scripts["ListLogs"] = lambda *_: verbs.ListLogsResponse(lines=page)

    found = await speak("read_logs", RUN_ID, level=LogLevel.WARNING, start_time=pendulum.datetime(2026, 1, 1))

    assert ["one", "two"] == [line.text for line in found]
    (request,) = services.requests
    assert log_pb2.LOG_LEVEL_WARNING == request.level
    assert "2026-01-01T00:00:00Z" == request.start_time.ToJsonString()
    assert not request.HasField("end_time")


async def test_output_that_is_no_text_and_holes_can_be_shown(speak: Speak, services: ScriptedServices) -> None:
    """Whatever a line holds, its text says it."""
    lines = [
        log_pb2.LogLine(position=1, data=b"caf\xe9"),
        log_pb2.LogLine(position=2, dropped=log_pb2.Dropped(count=3, reason="the disk was full")),
    ]
    services.scripts["ListLogs"] = lambda *_: verbs.ListLogsResponse(lines=lines)

    found = await speak("read_logs", RUN_ID)

    assert [r"caf\xe9", "[3 lines are missing: the disk was full]"] == [str(line) for line in found]


async def test_a_tail_is_followed_to_its_end(speak: Speak, services: ScriptedServices) -> None:
    """A tail yields its lines, passes over signs of life, and ends with the end marker."""

    async def tail(request: verbs.TailLogsRequest, context: Any) -> None:
        await context.write(some_lines("one", "two"))
        await context.write(verbs.TailLogsResponse(heartbeat=verbs.TailHeartbeat(), cursor="2"))
        await context.write(some_lines("three", first=3))
        await context.write(the_tail_end("3"))

    services.scripts["TailLogs"] = tail

    found = await speak("follow_logs", RUN_ID, cursor="0")

    assert ["one", "two", "three"] == [line.text for line in found]
    assert ["0"] == [request.cursor for request in services.requests]


async def test_a_line_knows_where_to_resume_after_it(speak: Speak, services: ScriptedServices) -> None:
    """Resuming at a line's cursor never misses a line after it."""

    async def tail(request: verbs.TailLogsRequest, context: Any) -> None:
        await context.write(some_lines("one", "two"))
        await context.write(some_lines("three", first=3))
        await context.write(the_tail_end("3"))

    services.scripts["TailLogs"] = tail

    found = await speak("follow_logs", RUN_ID)

    assert ["", "2", "3"] == [line.cursor for line in found]
