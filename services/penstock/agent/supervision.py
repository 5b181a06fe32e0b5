"""Everything a supervisor does once the body of its run waits at the gate."""

import asyncio
import contextlib
import logging
import os
import signal
import time
import uuid
from enum import Enum, auto
from typing import Any, Final

import grpc
from google.protobuf import json_format
from opentelemetry import trace

from flowrun.v1 import (
    flow_run_pb2,
    flow_run_service_pb2,
    flow_run_service_pb2_grpc,
    lease_pb2,
    log_service_pb2_grpc,
    queue_service_pb2_grpc,
)
from penstock.agent.body import Body
from penstock.agent.calls import CALL_WAIT_MAX, Backoff, passes
from penstock.agent.ending import Finish, failure, finish_request, how_it_ended
from penstock.agent.exit_code import ExitCode
from penstock.agent.leases import LeaseCount, lease_time, renew
from penstock.agent.log_writer import LogWriter
from penstock.agent.output import Line, RawOutput, RecordedOutput, Report
from penstock.agent.pipes import Pipes
from penstock.agent.run_directory import HURRY, STOP_SIGNALS, Assignment, RunDirectory
from penstock.runtime import telemetry
from penstock.runtime.channel import open_channel
from penstock.runtime.guarding import guarded
from penstock.wire.errors import refusal_details

# How long a body has to end by itself after its lease was lost, when a successor may begin at any moment.
LOST_GRACE_SECONDS: Final = 1.0
# How long a killed body may take to be gone.
KILL_SECONDS: Final = 0.5
# A machine that slept wakes its timers late: the lease is looked at as often as this.
_LOOK_SECONDS: Final = 1.0
# How long an end is reported to servers that do not answer, once the lease has run out by our own count.
REPORT_SECONDS_MAX: Final = 600.0
# How long lines are kept for a log service that does not answer, once the run is over.
LINES_SECONDS_MAX: Final = 300.0
# How long a log service that does not answer is told that an earlier supervisor's log is closed.
CLOSING_SECONDS_MAX: Final = 10.0
PIPES_SECONDS_MAX: Final = 2.0
_GLANCE_SECONDS: Final = 0.1

_LOGGER: Final = logging.getLogger("penstock.supervisor")


class Standing(Enum):
    """What is known of the lease."""

    HELD = auto()
    # Held, and the run is CANCELLING.
    STOPPING = auto()
    # Somebody said that it is not ours any more.
    LOST = auto()
    # It ran out by our own count, because nobody answered.
    EXPIRED = auto()


class Permission(Enum):
    """Whether the code of the run may begin."""

    GIVEN = auto()
    # The run is CANCELLING: it must not begin, and that is to be reported.
    STOPPING = auto()
    REFUSED = auto()
    # Nobody answered in time, or the agent asked to stop before anybody did.
    UNKNOWN = auto()


def supervise(assignment: Assignment, directory: RunDirectory, body: Body | None) -> int:
    """Supervise a body, or report the end that an earlier supervisor recorded."""
    telemetry.configure("penstock-supervisor")
    try:
        return asyncio.run(_supervise(assignment, directory, body))
    finally:
        telemetry.shutdown()


async def _supervise(assignment: Assignment, directory: RunDirectory, body: Body | None) -> int:
    context = telemetry.context_of(assignment.trace_context)
    with telemetry.tracer().start_as_current_span(f"run {assignment.flow_name}", context=context):
        async with contextlib.AsyncExitStack() as stack:
            addresses = (assignment.flow_run_address, assignment.queue_address, assignment.log_address)
            channels = {
                address: await stack.enter_async_context(open_channel(address, token=assignment.token))
                for address in dict.fromkeys(addresses)
            }
            flow_runs, queue, logs = (channels[address] for address in addresses)
            supervision = Supervision(assignment, directory, flow_runs, queue, logs)
            code = await (supervision.report_recorded() if body is None else supervision.run(body))
    if code == ExitCode.REPORTED:
        directory.remove()
    return code


class Supervision:
    """One run from its start to the report of its end."""

    def __init__(
        self,
        assignment: Assignment,
        directory: RunDirectory,
        flow_runs: grpc.aio.Channel,
        queue: grpc.aio.Channel,
        logs: grpc.aio.Channel,
    ) -> None:
        self._assignment = assignment
        self._directory = directory
        self._flow_runs = flow_run_service_pb2_grpc.FlowRunServiceStub(flow_runs)
        self._queue = queue_service_pb2_grpc.QueueServiceStub(queue)
        self._lease = LeaseCount(
            assignment.flow_run_id, assignment.fence, assignment.lease_seconds, assignment.lease_end
        )
        self._execution_id = str(uuid.uuid4())
        self._standing = Standing.HELD
        self._moved = asyncio.Event()  # the standing is no longer HELD
        self._asked_to_stop = asyncio.Event()
        self._hurried = False
        span = trace.get_current_span().get_span_context()
        self._writer = LogWriter(
            log_service_pb2_grpc.LogServiceStub(logs),
            assignment.flow_run_id,
            assignment.fence,
            trace_id=trace.format_trace_id(span.trace_id) if span.is_valid else "",
            span_id=trace.format_span_id(span.span_id) if span.is_valid else "",
        )

    async def run(self, body: Body) -> int:
        """Ask for permission, let the body run, report its end. Returns the exit code of this process."""
        self._heed_signals()
        self._record_start(body)
        permission = await self._ask_permission()
        if permission is Permission.GIVEN:
            return await self._run_started(body)
        body.kill()
        await asyncio.to_thread(body.wait)
        if permission is Permission.STOPPING:
            # With the execution's id: an earlier answer, which was lost, may have started it.
            request = Finish(
                flow_run_id=self._lease.flow_run_id, fence=self._lease.fence, execution_id=self._execution_id
            )
            request.stopped.message = "The run was cancelled before its code began."
            return await self._report(request)
        return ExitCode.NOT_STARTED if permission is Permission.UNKNOWN else ExitCode.DROPPED

    def _heed_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._asked_to_stop.set)
        loop.add_signal_handler(HURRY, self._hurry)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _hurry(self) -> None:
        """End the body without grace; whoever asked does not wait for it."""
        self._hurried = True
        self._asked_to_stop.set()

    async def report_recorded(self) -> int:
        """Report the end that an earlier supervisor of this run recorded and could not report."""
        self._heed_signals()
        request = json_format.Parse(self._directory.recorded_exit() or "{}", Finish())
        code = await self._report(request, record=False)
        # Whoever follows the log learns that nothing more will come.
        self._writer.close()
        writing = asyncio.create_task(self._write_log())
        await self._or_asked(writing, CLOSING_SECONDS_MAX)
        writing.cancel()
        return code

    async def _ask_permission(self) -> Permission:
        """Make the run RUNNING. One lease starts code at most once, so whoever is refused must never begin."""
        request = flow_run_service_pb2.StartFlowRunRequest(
            flow_run_id=self._lease.flow_run_id, fence=self._lease.fence, execution_id=self._execution_id
        )
        backoff = Backoff()
        while self._lease.left() > 0 and not self._asked_to_stop.is_set():
            sent = lease_time()
            try:
                answer = await self._flow_runs.StartFlowRun(request, timeout=self._call_seconds())
            except grpc.aio.AioRpcError as error:
                _LOGGER.warning("the run could not be started: %s", refusal_details(error).message)
                if not passes(error):
                    return Permission.REFUSED
                await self._pause(min(backoff.seconds(error), max(0.0, self._lease.left())))
                continue
            self._lease.renewed(answer.lease, sent)
            if answer.flow_run.state == flow_run_pb2.FLOW_RUN_STATE_RUNNING:
                return Permission.GIVEN
            return Permission.STOPPING
        _LOGGER.warning("the run was not started: %s", "asked to stop" if self._lease.left() > 0 else "no answer came")
        return Permission.UNKNOWN

    async def _run_started(self, body: Body) -> int:
        keeping = asyncio.create_task(self._keep_lease())
        writing = asyncio.create_task(self._write_log())
        code = await guarded(
            self._until_reported(body),
            "the supervisor failed",
            lambda error: self._break_off(body, f"The supervisor of the run failed: {error!r}"),
        )
        await self._or_asked(writing, LINES_SECONDS_MAX)
        await asyncio.wait({writing}, timeout=self._assignment.stop_grace_seconds)
        for task in (keeping, writing):
            task.cancel()
        await asyncio.gather(keeping, writing, return_exceptions=True)
        return code

    async def _break_off(self, body: Body, why: str) -> int:
        body.kill()
        self._writer.close()
        return await self._report(self._failed(why))

    async def _write_log(self) -> None:
        """Store the lines; if that fails on our side, go without, because a body must not wait for a dead writer."""
        await guarded(self._writer.run(), "writing the log failed", self._go_without_log)

    async def _go_without_log(self, _: Exception) -> bool:
        self._writer.give_up()
        return False

    async def _until_reported(self, body: Body) -> int:
        report, pipes = self._listen(body)
        for warning in self._assignment.warnings:
            self._writer.add(Line(stream="logger", content=warning, level="WARNING", logger="penstock.supervisor"))
        body.open_gate(*self._trace_context())
        with contextlib.suppress(OSError):  # an agent that is gone needs no telling
            os.write(1, b"started\n")
        ending = asyncio.create_task(asyncio.to_thread(body.wait))
        moved, asked = asyncio.create_task(self._moved.wait()), asyncio.create_task(self._asked_to_stop.wait())
        await asyncio.wait({ending, moved, asked}, return_when=asyncio.FIRST_COMPLETED)
        moved.cancel()
        asked.cancel()
        ended_by_us = not ending.done()
        if ended_by_us:
            await self._end_body(body, ending)
        code = await ending
        await pipes.read_rest(PIPES_SECONDS_MAX)
        if ended_by_us and self._standing in (Standing.LOST, Standing.EXPIRED):
            self._writer.close()
            _LOGGER.warning("the lease was lost; the body was ended (%s)", how_it_ended(code))
            return ExitCode.DROPPED
        if report.returned and code != 0:
            words = f"{how_it_ended(code)} The flow had returned before, and that counts."
            self._writer.add(Line(stream="logger", content=words, level="WARNING", logger="penstock.supervisor"))
        self._writer.close()
        return await self._report(
            finish_request(
                self._lease.flow_run_id,
                self._lease.fence,
                self._execution_id,
                code=code,
                report=report,
                must_return=bool(self._assignment.entry_point),
                stopping=ended_by_us and self._standing is Standing.STOPPING,
                ended_by_us="The agent was told to stop at once." if ended_by_us else "",
            )
        )

    def _listen(self, body: Body) -> tuple[Report, Pipes]:
        pipes = Pipes(lambda: self._writer.full)
        self._writer.on_room = pipes.resume_if_room
        pipes.listen(body.stdout, RawOutput("stdout", self._writer.add))
        pipes.listen(body.stderr, RawOutput("stderr", self._writer.add))
        recorded = RecordedOutput(self._writer.add)
        if body.records is not None:
            pipes.listen(body.records, recorded)
        return recorded.report, pipes

    def _trace_context(self) -> tuple[str, str]:
        own = telemetry.carrier()
        return own.get("traceparent") or telemetry.new_traceparent(), own.get("tracestate", "")

    async def _end_body(self, body: Body, ending: "asyncio.Task[int]") -> None:
        """Ask the body to end, then end it. Whoever asked us without a reason is asked for it meanwhile."""
        body.terminate()
        asking = asyncio.create_task(self._ask_why()) if self._standing is Standing.HELD else None
        deadline = time.monotonic() + self._assignment.stop_grace_seconds
        while not ending.done() and time.monotonic() < deadline and not self._hurried:
            if self._standing in (Standing.LOST, Standing.EXPIRED):
                deadline = min(deadline, time.monotonic() + self._lost_grace())
                await asyncio.wait({ending}, timeout=max(0.0, deadline - time.monotonic()))
                break
            await asyncio.wait({ending}, timeout=_GLANCE_SECONDS)
        body.kill()
        await asyncio.wait({ending})
        if asking is not None:
            await asking

    async def _ask_why(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            (outcome,) = await renew(self._queue, [self._lease])
            self._learn(outcome)

    async def _keep_lease(self) -> None:
        """Renew the lease until it is over. If that fails on our side nobody renews it any more: it counts as over."""
        await guarded(self._keep_until_over(), "keeping the lease failed", self._count_as_over)

    async def _count_as_over(self, _: Exception) -> None:
        self._stand(Standing.EXPIRED)

    async def _keep_until_over(self) -> None:
        """Renew the lease, and see it run out even while a renewal waits for its answer."""
        renewing = asyncio.create_task(self._renew_lease())
        try:
            while not renewing.done():
                if (left := self._lease.left() - self._ending_seconds()) <= 0:
                    _LOGGER.warning("the lease ran out: no server answered")
                    self._stand(Standing.EXPIRED)
                    return
                await asyncio.wait({renewing}, timeout=min(left, _LOOK_SECONDS))
            renewing.result()
        finally:
            renewing.cancel()

    def _ending_seconds(self) -> float:
        """How long before the end of the lease its body is asked to end, so that it is gone by then."""
        return min(LOST_GRACE_SECONDS, self._lease.seconds / 6) + self._kill_seconds()

    def _lost_grace(self) -> float:
        """How long a body whose lease is over has to end by itself: nothing, once a successor may have begun."""
        if self._standing is Standing.LOST:
            return LOST_GRACE_SECONDS
        return max(0.0, min(LOST_GRACE_SECONDS, self._lease.left() - self._kill_seconds()))

    def _kill_seconds(self) -> float:
        return min(KILL_SECONDS, self._lease.seconds / 12)

    async def _renew_lease(self) -> None:
        backoff = Backoff()
        wait = self._lease.until_renewal()
        while self._standing in (Standing.HELD, Standing.STOPPING):
            await asyncio.sleep(wait)
            try:
                (outcome,) = await renew(self._queue, [self._lease])
            except grpc.aio.AioRpcError as error:
                _LOGGER.warning("the lease could not be renewed: %s", refusal_details(error).message)
                wait = min(backoff.seconds(error), self._lease.seconds / 6)
                continue
            backoff.reset()
            self._learn(outcome)
            wait = self._lease.until_renewal()

    def _learn(self, outcome: int) -> None:
        if outcome == lease_pb2.LEASE_OUTCOME_STOPPING:
            self._stand(Standing.STOPPING)
        elif outcome in (lease_pb2.LEASE_OUTCOME_LOST, lease_pb2.LEASE_OUTCOME_ENDED):
            self._stand(Standing.LOST)

    def _stand(self, standing: Standing) -> None:
        self._standing = standing
        self._moved.set()

    async def _report(self, request: Finish, *, record: bool = True) -> int:
        """Record the end, then report it until somebody answers for good."""
        if record:
            self._record(request)
        give_up = time.monotonic() + max(0.0, self._lease.left()) + REPORT_SECONDS_MAX
        backoff = Backoff()
        while time.monotonic() < give_up:
            try:
                await self._flow_runs.FinishFlowRun(request, timeout=CALL_WAIT_MAX.total_seconds())
            except grpc.aio.AioRpcError as error:
                _LOGGER.warning("the end could not be reported: %s", refusal_details(error).message)
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT and request.HasField("succeeded"):
                    request = self._failed(f"The result was refused: {refusal_details(error).message}")
                    self._record(request)
                elif error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                    return ExitCode.UNREPORTED
                elif not passes(error) or self._standing is Standing.LOST:
                    return ExitCode.DROPPED
                else:
                    if self._asked_to_stop.is_set():
                        give_up = min(give_up, time.monotonic() + self._assignment.stop_grace_seconds)
                    await self._pause(backoff.seconds(error))
                continue
            self._mark_span(request)
            return ExitCode.REPORTED
        return ExitCode.UNREPORTED

    def _record(self, request: Finish) -> None:
        try:
            self._directory.record_exit(json_format.MessageToJson(request))
        except OSError:
            # A full disk must not keep the end from being reported.
            _LOGGER.exception("the end could not be recorded")

    def _record_start(self, body: Body) -> None:
        try:
            self._directory.record_start(self._execution_id, body.pid)
        except OSError:
            _LOGGER.exception("the start could not be recorded")

    def _failed(self, message: str) -> Finish:
        return Finish(
            flow_run_id=self._lease.flow_run_id,
            fence=self._lease.fence,
            execution_id=self._execution_id,
            failed=failure(message),
        )

    def _mark_span(self, request: Finish) -> None:
        if request.HasField("failed"):
            trace.get_current_span().set_status(trace.StatusCode.ERROR, request.failed.message[:1_000])

    def _call_seconds(self) -> float:
        return min(CALL_WAIT_MAX.total_seconds(), max(0.1, self._lease.left()))

    async def _pause(self, seconds: float) -> None:
        """Wait before the next try; somebody who asks to stop ends the wait once."""
        sleeping = asyncio.create_task(asyncio.sleep(seconds))
        if self._asked_to_stop.is_set():
            await sleeping
        else:
            await self._or_asked(sleeping, seconds)
            sleeping.cancel()

    async def _or_asked(self, task: "asyncio.Task[Any]", seconds: float) -> None:
        """Wait for a task, but not longer than that, nor after somebody asked to stop."""
        asked = asyncio.create_task(self._asked_to_stop.wait())
        await asyncio.wait({task, asked}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
