"""Small services on a real socket that keep the contract's promises about leases, executions and log sequences."""

import asyncio
import contextlib
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from flowrun.v1 import (
    flow_pb2,
    flow_run_pb2,
    flow_run_service_pb2,
    flow_run_service_pb2_grpc,
    lease_pb2,
    log_pb2,
    log_service_pb2,
    log_service_pb2_grpc,
    queue_service_pb2,
    queue_service_pb2_grpc,
)
from penstock.domain.errors import ExecutionRefused, FlowRunFinal, FlowRunNotFound, LeaseLost, Unavailable
from penstock.runtime.server import Server
from penstock.runtime.serving import Serving

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"

FINAL = (
    flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED,
    flow_run_pb2.FLOW_RUN_STATE_FAILED,
    flow_run_pb2.FLOW_RUN_STATE_CANCELLED,
)


@dataclass(slots=True)
class Run:
    """One run as the services know it."""

    flow_run: flow_run_pb2.FlowRun
    flow: flow_pb2.Flow
    fence: int = 1
    agent_id: str = ""
    execution_id: str = ""
    lines: list[log_pb2.LogLine] = field(default_factory=list)
    last_sequence: int = 0
    closed: bool = False
    end: flow_run_service_pb2.FinishFlowRunRequest | None = None
    release_reasons: list[str] = field(default_factory=list)
    # How often a failed attempt is tried again, and whether an attempt that waits is due.
    retries: int = 0
    due: bool = True

    @property
    def id(self) -> str:
        return self.flow_run.flow_run_id

    @property
    def state(self) -> str:
        return flow_run_pb2.FlowRunState.Name(self.flow_run.state).removeprefix("FLOW_RUN_STATE_")

    @state.setter
    def state(self, name: str) -> None:
        self.flow_run.state = flow_run_pb2.FlowRunState.Value(f"FLOW_RUN_STATE_{name}")

    @property
    def texts(self) -> list[str]:
        return [line.text for line in self.lines]

    def lose_lease(self) -> None:
        """As when the keeper moved the run on."""
        self.fence += 1

    def wait_again(self) -> None:
        """As when its lease was lost, or its attempt failed and another is left."""
        self.lose_lease()
        self.state, self.execution_id = "SCHEDULED", ""


class SmallServices:
    """Queue, flow-run and log service behind one port. `history` names every call that changed something, in order."""

    def __init__(self, *, port: int = 0, lease: float = 60.0, heartbeat: float = 15.0) -> None:
        self.runs: dict[str, Run] = {}
        self.history: list[str] = []
        self.away: set[str] = set()
        self.calls: list[str] = []
        self.streams: list[SmallStream] = []
        self.polls: list[queue_service_pb2.LeaseFlowRunsRequest] = []
        self.lease = timedelta(seconds=lease)
        self.heartbeat = timedelta(seconds=heartbeat)
        self.before: Callable[[str, Any], None] = lambda rpc, request: None
        self._port = port
        self._changed = asyncio.Condition()
        self._server: Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._server = Server(Serving(token=""), host="127.0.0.1", port=self._port)
        self._server.add(queue_service_pb2_grpc.add_QueueServiceServicer_to_server, SmallQueue(self))
        self._server.add(flow_run_service_pb2_grpc.add_FlowRunServiceServicer_to_server, SmallFlowRuns(self))
        self._server.add(log_service_pb2_grpc.add_LogServiceServicer_to_server, SmallLogs(self))
        self._port = await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            for stream in self.streams:
                stream.close(Unavailable(detail="stopping"))
            await self._server.stop(timedelta(0))
            self._server = None

    async def __aenter__(self) -> "SmallServices":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def add_run(self, *, python: str = "", command: Sequence[str] = (), state: str = "SUBMITTED", **fields: Any) -> Run:
        entry_point = flow_pb2.EntryPoint(python=python)
        if command:
            entry_point = flow_pb2.EntryPoint(command=flow_pb2.Command(arguments=command))
        flow_run = flow_run_pb2.FlowRun(
            **{
                "flow_run_id": str(uuid.uuid4()),
                "flow_name": "example",
                "name": "quiet-river",
                "attempt": 1,
                "parameters_json": "{}",
                "context_json": "{}",
                "trace_context": {"traceparent": TRACEPARENT},
                **fields,
            }
        )
        run = Run(flow_run, flow_pb2.Flow(name="example", entry_point=entry_point))
        run.state = state
        self.runs[run.id] = run
        return run

    async def offer(self, *runs: Run) -> None:
        """Offer runs on the newest stream."""
        offers = queue_service_pb2.Offers(offers=map(self.offer_of, runs))
        await self.streams[-1].send(queue_service_pb2.StreamFlowRunsResponse(offers=offers))

    def offer_of(self, run: Run) -> lease_pb2.Offer:
        return lease_pb2.Offer(
            flow_run=run.flow_run,
            flow=run.flow,
            lease=self.lease_of(run),
            trace_context=run.flow_run.trace_context,
        )

    async def until(self, holds: Callable[[], Any], seconds: float = 20) -> None:
        """Wait for something that these services are told of."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(holds)

    async def tell(self, event: str = "") -> None:
        if event:
            self.history.append(event)
        async with self._changed:
            self._changed.notify_all()

    async def called(self, rpc: str, request: Any) -> None:
        self.calls.append(rpc)
        self.before(rpc, request)
        await self.tell()
        if rpc in self.away:
            raise Unavailable(detail="away for a test")

    def lease_of(self, run: Run) -> lease_pb2.Lease:
        lease = lease_pb2.Lease(flow_run_id=run.id, fence=run.fence)
        lease.ttl.FromTimedelta(self.lease)
        return lease

    def held(self, flow_run_id: str, fence: int) -> Run:
        run = self.runs[flow_run_id]
        if run.fence != fence or run.flow_run.state in FINAL:
            raise LeaseLost(flow_run_id=flow_run_id, fence=fence)
        return run

    def outcome(self, lease: lease_pb2.Lease) -> lease_pb2.LeaseResult:
        run = self.runs.get(lease.flow_run_id)
        if run is None or run.fence != lease.fence:
            return lease_pb2.LeaseResult(lease=lease, outcome=lease_pb2.LEASE_OUTCOME_LOST)
        if run.flow_run.state in FINAL:
            return lease_pb2.LeaseResult(lease=lease, outcome=lease_pb2.LEASE_OUTCOME_ENDED)
        stopping = run.state == "CANCELLING"
        outcome = lease_pb2.LEASE_OUTCOME_STOPPING if stopping else lease_pb2.LEASE_OUTCOME_HELD
        return lease_pb2.LeaseResult(lease=self.lease_of(run), outcome=outcome)


class SmallStream:
    """One open stream: what the agent said, and a queue of what it is told."""

    def __init__(self, hello: queue_service_pb2.Hello) -> None:
        self.hello = hello
        self.credit = 0
        self.credits: list[int] = []
        self.heartbeats: list[int] = []
        self.half_closed = False
        self.deaf = False
        self._outgoing: deque[Any] = deque()
        self._waiting = asyncio.Event()

    async def send(self, message: Any) -> None:
        self._outgoing.append(message)
        self._waiting.set()

    def close(self, refusal: Exception | None = None) -> None:
        self._outgoing.append(refusal)
        self._waiting.set()

    async def next(self) -> Any:
        while not self._outgoing:
            self._waiting.clear()
            await self._waiting.wait()
        return self._outgoing.popleft()


class SmallQueue(queue_service_pb2_grpc.QueueServiceServicer):
    def __init__(self, services: SmallServices) -> None:
        self._services = services

    async def StreamFlowRuns(self, requests: AsyncIterator[Any], context: Any) -> None:
        hello = await anext(aiter(requests))
        await self._services.called("StreamFlowRuns", hello)
        stream = SmallStream(hello.hello)
        self._services.streams.append(stream)
        lost = [
            lease
            for lease in stream.hello.held
            if self._services.outcome(lease).outcome != lease_pb2.LEASE_OUTCOME_HELD
        ]
        welcome = queue_service_pb2.Welcome(lost=lost)
        welcome.heartbeat_interval.FromTimedelta(self._services.heartbeat)
        await stream.send(queue_service_pb2.StreamFlowRunsResponse(welcome=welcome))
        await self._services.tell("Hello")
        listening = asyncio.create_task(self._listen(requests, stream))
        try:
            while (message := await stream.next()) is not None:
                if isinstance(message, Exception):
                    raise message
                await context.write(message)
        finally:
            listening.cancel()

    async def _listen(self, requests: AsyncIterator[Any], stream: SmallStream) -> None:
        async for request in requests:
            if stream.deaf:
                continue
            match request.WhichOneof("message"):
                case "credit":
                    stream.credit = request.credit.granted_total
                    stream.credits.append(stream.credit)
                case "heartbeat":
                    stream.heartbeats.append(request.heartbeat.number)
                    if request.heartbeat.number > 0:
                        echo = queue_service_pb2.Heartbeat(number=-request.heartbeat.number)
                        await stream.send(queue_service_pb2.StreamFlowRunsResponse(heartbeat=echo))
            await self._services.tell()
        stream.half_closed = True
        stream.close()
        await self._services.tell("HalfClose")

    async def LeaseFlowRuns(self, request: Any, context: Any) -> Any:
        self._services.polls.append(request)
        await self._services.called("LeaseFlowRuns", request)
        answer = queue_service_pb2.LeaseFlowRunsResponse()
        with contextlib.suppress(TimeoutError):
            await self._services.until(
                lambda: self._answer(request, answer), request.wait.ToTimedelta().total_seconds()
            )
        return answer

    def _answer(self, request: Any, answer: Any) -> bool:
        """Say what there is now; whether that is anything."""
        run = self._services.runs.get(request.flow_run_id)
        if run is None:
            raise FlowRunNotFound(flow_run_id=request.flow_run_id)
        if run.flow_run.state in FINAL:
            raise FlowRunFinal(flow_run_id=run.id, present=run.state)
        for lease in request.hello.held:
            outcome = self._services.outcome(lease).outcome
            if outcome == lease_pb2.LEASE_OUTCOME_STOPPING:
                answer.stopping.append(lease)
            elif outcome != lease_pb2.LEASE_OUTCOME_HELD:
                answer.lost.append(lease)
        if run.state == "SCHEDULED" and run.due and request.offers_max:
            answer.offers.append(self._services.offer_of(run))
        return bool(answer.offers or answer.stopping or answer.lost)

    async def AcceptFlowRuns(self, request: Any, context: Any) -> Any:
        await self._services.called("AcceptFlowRuns", request)
        results = []
        for lease in request.leases:
            result = self._services.outcome(lease)
            if result.outcome == lease_pb2.LEASE_OUTCOME_HELD:
                run = self._services.runs[lease.flow_run_id]
                run.agent_id, run.state = request.agent_id, "SUBMITTED"
            results.append(result)
        await self._services.tell("Accept")
        return queue_service_pb2.AcceptFlowRunsResponse(results=results)

    async def RenewLeases(self, request: Any, context: Any) -> Any:
        await self._services.called("RenewLeases", request)
        return queue_service_pb2.RenewLeasesResponse(results=[self._services.outcome(each) for each in request.leases])

    async def ReleaseFlowRuns(self, request: Any, context: Any) -> Any:
        await self._services.called("ReleaseFlowRuns", request)
        results = []
        for release in request.releases:
            result = self._services.outcome(release.lease)
            run = self._services.runs[release.lease.flow_run_id]
            if result.outcome != lease_pb2.LEASE_OUTCOME_LOST:
                run.release_reasons.append(release.reason)
                run.wait_again()
                result.outcome = lease_pb2.LEASE_OUTCOME_RELEASED
            results.append(result)
        await self._services.tell("Release")
        return queue_service_pb2.ReleaseFlowRunsResponse(results=results)


class SmallFlowRuns(flow_run_service_pb2_grpc.FlowRunServiceServicer):
    def __init__(self, services: SmallServices) -> None:
        self._services = services

    async def StartFlowRun(self, request: Any, context: Any) -> Any:
        await self._services.called("StartFlowRun", request)
        run = self._services.held(request.flow_run_id, request.fence)
        if run.state != "CANCELLING":
            if run.execution_id not in ("", request.execution_id):
                raise ExecutionRefused(flow_run_id=run.id, fence=run.fence)
            run.execution_id, run.state = request.execution_id, "RUNNING"
        await self._services.tell("Start")
        return flow_run_service_pb2.StartFlowRunResponse(flow_run=run.flow_run, lease=self._services.lease_of(run))

    async def FinishFlowRun(self, request: Any, context: Any) -> Any:
        await self._services.called("FinishFlowRun", request)
        run = self._services.held(request.flow_run_id, request.fence)
        if run.execution_id not in ("", request.execution_id):
            raise ExecutionRefused(flow_run_id=run.id, fence=run.fence)
        run.end = request
        if run.retries and request.HasField("failed"):
            run.retries, run.due, run.flow_run.attempt = run.retries - 1, False, run.flow_run.attempt + 1
            run.wait_again()
            await self._services.tell("Retry")
            return flow_run_service_pb2.FinishFlowRunResponse(flow_run=run.flow_run)
        run.state = {"succeeded": "SUCCEEDED", "failed": "FAILED", "stopped": "CANCELLED"}[
            request.WhichOneof("outcome")
        ]
        await self._services.tell("Finish")
        return flow_run_service_pb2.FinishFlowRunResponse(flow_run=run.flow_run)


class SmallLogs(log_service_pb2_grpc.LogServiceServicer):
    def __init__(self, services: SmallServices) -> None:
        self._services = services

    async def WriteLogs(self, request: Any, context: Any) -> Any:
        await self._services.called("WriteLogs", request)
        run = self._services.runs[request.flow_run_id]
        for line in request.lines:
            if line.sequence == run.last_sequence + 1:
                run.lines.append(line)
                run.last_sequence += line.dropped.count or 1
        run.closed = run.closed or request.closed
        await self._services.tell("WriteLogs")
        return log_service_pb2.WriteLogsResponse(last_sequence=run.last_sequence)
