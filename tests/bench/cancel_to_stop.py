"""From the request to cancel a run until the agent that holds it is told to stop."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import grpc

from flowrun.v1 import flow_pb2, flow_run_service_pb2, flow_service_pb2, lease_pb2
from flowrun.v1 import queue_service_pb2 as queue_pb2
from flowrun.v1.flow_run_service_pb2_grpc import FlowRunServiceStub
from flowrun.v1.flow_service_pb2_grpc import FlowServiceStub
from flowrun.v1.queue_service_pb2_grpc import QueueServiceStub
from tests.bench.echo import echo_call
from tests.bench.place import Place
from tests.bench.rows import Row, time_row

REPETITIONS: Final = 5
CANCELS_EACH: Final = 200
CANCELS_EACH_QUICKLY: Final = 40
LIMIT_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 30.0


async def measure(place: Place) -> Sequence[Row]:
    """One run after the other is cancelled, and after each an echo is called: both are taken under the same load."""
    each = CANCELS_EACH_QUICKLY if place.quick else CANCELS_EACH
    async with (
        grpc.aio.insecure_channel(place.flow_run) as to_runs,
        grpc.aio.insecure_channel(place.queue) as to_queue,
        grpc.aio.insecure_channel(place.echo) as to_echo,
    ):
        runs, queue, echo = FlowRunServiceStub(to_runs), QueueServiceStub(to_queue), echo_call(to_echo)
        created = await _create(FlowServiceStub(to_runs), runs, REPETITIONS * each)
        async with _connected(queue, len(created)) as agent:
            await agent.hold_all()
            await _warm_up(echo)
            stops: list[list[float]] = []
            echoes: list[list[float]] = []
            for start in range(0, len(created), each):
                stops.append([])
                echoes.append([])
                for run in created[start : start + each]:
                    stops[-1].append(await agent.until_stopped(runs, run))
                    echoes[-1].append(await _echoed(echo))
    return [
        time_row("cancel → stop heard by the agent, p50", stops, echoes, part=0.5, limit=LIMIT_SECONDS),
        time_row("cancel → stop heard by the agent, p99", stops, echoes, part=0.99, limit=LIMIT_SECONDS),
    ]


async def _create(flows: Any, runs: Any, count: int) -> Sequence[str]:
    register = flow_service_pb2.RegisterFlowRequest(
        project_name="bench", name="cancelled", entry_point=flow_pb2.EntryPoint(python="bench:nothing")
    )
    flow = (await flows.RegisterFlow(register)).flow
    one = flow_run_service_pb2.CreateFlowRunRequest(flow_id=flow.flow_id)
    batch = flow_run_service_pb2.BatchCreateFlowRunsRequest(requests=[one] * count)
    return [each.response.flow_run.flow_run_id for each in (await runs.BatchCreateFlowRuns(batch)).outcomes]


@dataclass
class _Agent:
    """One end of a stream: accepts every offer, and notes when it was told to stop which run."""

    id: str
    queue: Any
    call: Any
    slots: int
    leases: dict[str, lease_pb2.Lease] = field(default_factory=dict)
    told: "dict[str, asyncio.Future[float]]" = field(default_factory=dict)
    all_held: asyncio.Event = field(default_factory=asyncio.Event)

    async def hear(self) -> None:
        """Understand what comes, until the stream ends."""
        while isinstance(message := await self.call.read(), queue_pb2.StreamFlowRunsResponse):
            now = time.perf_counter()
            match message.WhichOneof("message"):
                case "stop":
                    told = self.told[message.stop.lease.flow_run_id]
                    if not told.done():
                        told.set_result(now)
                case "offers":
                    await self._accept([offer.lease for offer in message.offers.offers])
                case "heartbeat" if message.heartbeat.number > 0:
                    await self.say(heartbeat=queue_pb2.Heartbeat(number=-message.heartbeat.number))

    async def say(self, **message: Any) -> None:
        await self.call.write(queue_pb2.StreamFlowRunsRequest(**message))

    async def hold_all(self) -> None:
        """Wait until every run is held."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.all_held.wait()

    async def until_stopped(self, runs: Any, run: str) -> float:
        """Cancel that run; the seconds until this agent is told. Then its work counts as stopped."""
        self.told[run] = asyncio.get_running_loop().create_future()
        begin = time.perf_counter()
        await runs.CancelFlowRun(flow_run_service_pb2.CancelFlowRunRequest(flow_run_id=run))
        async with asyncio.timeout(PATIENCE_SECONDS):
            end = await self.told[run]
        release = queue_pb2.Release(lease=self.leases.pop(run))
        await self.queue.ReleaseFlowRuns(queue_pb2.ReleaseFlowRunsRequest(releases=[release]))
        return end - begin

    async def _accept(self, leases: Sequence[lease_pb2.Lease]) -> None:
        await self.queue.AcceptFlowRuns(queue_pb2.AcceptFlowRunsRequest(agent_id=self.id, leases=leases))
        self.leases.update((lease.flow_run_id, lease) for lease in leases)
        if len(self.leases) == self.slots:
            self.all_held.set()


@asynccontextmanager
async def _connected(queue: Any, slots: int) -> AsyncIterator[_Agent]:
    """An agent that is connected, with room for so many runs."""
    agent = _Agent(str(uuid4()), queue, queue.StreamFlowRuns(), slots)
    await agent.say(hello=queue_pb2.Hello(agent_id=agent.id, name="bench", slots=slots, version="1"))
    await agent.say(credit=queue_pb2.Credit(granted_total=slots))
    hearing = asyncio.create_task(agent.hear())
    try:
        yield agent
    finally:
        agent.call.cancel()
        await asyncio.wait([hearing])


async def _warm_up(echo: Any) -> None:
    for _ in range(100):
        await _echoed(echo)


async def _echoed(echo: Any) -> float:
    begin = time.perf_counter()
    await echo(b"x")
    return time.perf_counter() - begin
