"""Writes the lines of one run to LogService: numbered, in order, each stored once, however often the service is away.

One call is under way at a time; what arrives meanwhile goes into the next one. What waits is bounded: whoever feeds
the writer stops reading while it is full.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Final

import grpc

from flowrun.v1 import log_pb2, log_service_pb2, log_service_pb2_grpc
from penstock.agent.calls import CALL_WAIT_MAX, Backoff, passes
from penstock.agent.output import Line, clean
from penstock.domain.limits import LOG_LINES_PER_CALL_MAX, MIB, REASON_CHARACTERS_MAX
from penstock.wire.errors import refusal_details

PRODUCER: Final = "supervisor"
BATCH_BYTES_MAX: Final = MIB
WAITING_BYTES_MAX: Final = 8 * MIB
# While a run is under way its lines should not wait long for a service that is back.
BACKOFF_MAX: Final = timedelta(seconds=5)


class LogWriter:
    """The producer of one run's lines."""

    def __init__(
        self,
        stub: "log_service_pb2_grpc.LogServiceAsyncStub",
        flow_run_id: str,
        fence: int,
        *,
        trace_id: str,
        span_id: str,
    ) -> None:
        self._stub = stub
        self._flow_run_id = flow_run_id
        self._fence = fence
        self._trace_id = trace_id
        self._span_id = span_id
        self._waiting: deque[log_pb2.LogLine] = deque()
        self._waiting_bytes = 0
        self._last_sequence = 0
        self._lines_max = LOG_LINES_PER_CALL_MAX
        self._arrived = asyncio.Event()
        self._closing = False
        self._refused = False
        self.on_room: Callable[[], None] = lambda: None

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing more should be read for now."""
        return self._waiting_bytes > WAITING_BYTES_MAX

    def add(self, line: Line) -> None:
        """Number a line and let it wait for the next call."""
        if self._refused:
            return
        message = log_pb2.LogLine(
            sequence=self._last_sequence + 1,
            level=log_pb2.LogLevel.Value(f"LOG_LEVEL_{line.level or 'UNSPECIFIED'}"),
            level_name=line.level_name,
            logger=line.logger,
            stream=log_pb2.LogStream.Value(f"LOG_STREAM_{line.stream.upper()}"),
            trace_id=line.trace_id or self._trace_id,
            span_id=line.span_id or self._span_id,
        )
        message.time.FromNanoseconds(time.time_ns() if line.time is None else int(line.time * 1e6) * 1000)
        if isinstance(line.content, str):
            message.text = line.content
        else:
            message.data = line.content
        # Only a line that waits has a number: behind a gap the service would store nothing more.
        self._last_sequence += 1
        self._waiting.append(message)
        self._waiting_bytes += message.ByteSize()
        self._arrived.set()

    def close(self) -> None:
        """Add nothing more; `run` returns once everything is stored."""
        self._closing = True
        self._arrived.set()

    def give_up(self) -> None:
        """Forget what waits and whatever is added later, so that nobody waits for room; only the end is still said."""
        self._refused = True
        self._waiting.clear()
        self._waiting_bytes = 0
        self.close()
        self.on_room()

    async def run(self) -> bool:
        """Store what is added until closed. False if the service refused the rest."""
        backoff = Backoff(BACKOFF_MAX)
        while True:
            await self._arrived.wait()
            request = self._next_request()
            try:
                answer = await self._stub.WriteLogs(request, timeout=CALL_WAIT_MAX.total_seconds())
            except grpc.aio.AioRpcError as error:
                if passes(error):
                    await asyncio.sleep(backoff.seconds(error))
                elif error.code() is grpc.StatusCode.INVALID_ARGUMENT and request.lines:
                    self._single_out(request, error)
                else:
                    self.give_up()
                    return False
                continue
            self._lines_max = min(2 * self._lines_max, LOG_LINES_PER_CALL_MAX)
            if self._forget_until(answer.last_sequence) or not request.lines:
                backoff.reset()
            else:
                await asyncio.sleep(backoff.seconds())
            if request.closed and not self._waiting:
                return not self._refused

    def _next_request(self) -> log_service_pb2.WriteLogsRequest:
        request = log_service_pb2.WriteLogsRequest(flow_run_id=self._flow_run_id, fence=self._fence, producer=PRODUCER)
        size = 0
        for line in self._waiting:
            size += line.ByteSize()
            if len(request.lines) == self._lines_max or (request.lines and size > BATCH_BYTES_MAX):
                break
            request.lines.append(line)
        request.closed = self._closing and len(request.lines) == len(self._waiting)
        return request

    def _forget_until(self, sequence: int) -> bool:
        """Forget the lines that are durable; say whether there were any."""
        before = len(self._waiting)
        while self._waiting and self._waiting[0].sequence <= sequence:
            self._waiting_bytes -= self._waiting.popleft().ByteSize()
        if not self._waiting and not self._closing:
            self._arrived.clear()
        self.on_room()
        return len(self._waiting) < before

    def _single_out(self, request: log_service_pb2.WriteLogsRequest, error: grpc.aio.AioRpcError) -> None:
        """Send half as much until the line that the service will never take is alone; put a visible hole there."""
        if len(request.lines) > 1:
            self._lines_max = len(request.lines) // 2
        elif request.lines[0].HasField("dropped"):
            self.give_up()
        elif self._waiting:
            self._replace_first(refusal_details(error).message)

    def _replace_first(self, refusal: str) -> None:
        line = self._waiting.popleft()
        reason = clean(f"The log service refused this line: {refusal}")[:REASON_CHARACTERS_MAX]
        hole = log_pb2.LogLine(
            sequence=line.sequence,
            time=line.time,
            stream=line.stream,
            dropped=log_pb2.Dropped(count=1, reason=reason),
        )
        self._waiting.appendleft(hole)
        self._waiting_bytes += hole.ByteSize() - line.ByteSize()
