"""The queue process's services at work on a socket, in the test's own process, and agents that speak to them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID, uuid4

import grpc
import pytest
from sqlalchemy import text

from flowrun.v1 import lease_pb2
from flowrun.v1 import queue_service_pb2 as pb
from flowrun.v1.operator_service_pb2_grpc import OperatorServiceStub, add_OperatorServiceServicer_to_server
from flowrun.v1.queue_service_pb2_grpc import QueueServiceStub, add_QueueServiceServicer_to_server
from penstock.domain.flow import Flow
from penstock.domain.flow_run import FlowRun
from penstock.domain.ids import FlowRunId
from penstock.domain.lease import Lease, Phase
from penstock.domain.limits import HELD_LEASE, LONG_POLL_MAX, OFFER_LEASE, POLLS_MAX
from penstock.queue import operations
from penstock.queue.dispatcher import Dispatcher
from penstock.queue.operator_service import OperatorServicer
from penstock.queue.polling import Polls
from penstock.queue.service import QueueServicer
from penstock.queue.stopping import Stopping
from penstock.runtime.channel import open_channel
from penstock.runtime.clock import SystemClock
from penstock.runtime.committer import Committer
from penstock.runtime.drawing import Drawing
from penstock.runtime.hearing import Hearing
from penstock.storage import installation, wakeups
from penstock.storage.database import Database, Transaction
from penstock.storage.tenancy import flushing
from penstock.storage.wakeups import Hint
from penstock.wire.errors import Explained, refusal_details
from penstock.wire.pages import PageTokens
from penstock.wire.times import to_duration
from tests.queue.scenes import create, entry_of, register
from tests.storage.gate import Gate
from tests.support.running import running

NEVER: Final = timedelta(hours=1)
WAIT_SECONDS: Final = 60


@dataclass
class QueueProcess:
    """Stubs on one channel, and what works behind them."""

    queue: Any
    operator: Any
    dispatcher: Dispatcher
    stopping: Stopping
    polls: Polls


@contextlib.asynccontextmanager
async def serving(
    database: Database,
    *,
    heartbeat: timedelta = NEVER,
    sweep: timedelta = NEVER,
    age: timedelta = NEVER,
    polls_max: int = POLLS_MAX,
    deaf: bool = False,
) -> AsyncIterator[QueueProcess]:
    """A process's worth of services, which hear hints unless they are deaf; they sweep, beat and grow old only if told
    to."""
    tokens = PageTokens(await database.read(installation.signing_key))
    accept = partial(operations.accept_flow_runs, ttl=HELD_LEASE)
    acceptances = Committer(flushing(database, accept), name="accept")
    drawing = Drawing(SystemClock())
    dispatcher = Dispatcher(
        database,
        drawing,
        offer_lease=OFFER_LEASE,
        sweep_interval=sweep,
        heartbeat_interval=heartbeat,
    )
    stopping = Stopping(database, sweep_interval=sweep)
    polls = Polls(database, dispatcher, drawing, offer_lease=OFFER_LEASE, sweep_interval=sweep, polls_max=polls_max)

    def hear(hint: Hint) -> None:
        if deaf:
            return
        if hint.anything or hint.due:
            dispatcher.wake()
        if hint.anything or hint.stop:
            stopping.wake()
        polls.hear(hint)

    listener = wakeups.listen(database.engine)
    hearing = Hearing(listener.hints, hear)
    works = (
        acceptances.serve,
        dispatcher.serve,
        dispatcher.keep_in_touch,
        stopping.serve,
        polls.serve,
        hearing.serve,
    )
    tasks = [asyncio.create_task(work()) for work in works]
    queue = QueueServicer(
        database,
        dispatcher,
        acceptances,
        stopping,
        polls,
        held_lease=HELD_LEASE,
        heartbeat_interval=heartbeat,
        stream_age=age,
    )
    operator = OperatorServicer(database, tokens, heartbeat_interval=heartbeat)  # type: ignore[abstract]
    services = (
        (add_QueueServiceServicer_to_server, queue),
        (add_OperatorServiceServicer_to_server, operator),
    )
    try:
        async with (
            asyncio.timeout(WAIT_SECONDS),
            running(*services) as address,
            open_channel(address, repeatable=()) as channel,
        ):
            yield QueueProcess(QueueServiceStub(channel), OperatorServiceStub(channel), dispatcher, stopping, polls)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        listener.close()


@dataclass
class Agent:
    """One end of a stream: says what a test tells it to, and keeps what it hears."""

    process: QueueProcess
    labels: tuple[str, ...] = ()
    agent_id: str = field(default_factory=lambda: str(uuid4()))
    call: Any = None
    welcome: pb.Welcome = field(default_factory=pb.Welcome)
    offers: list[lease_pb2.Offer] = field(default_factory=list)
    messages: list[pb.StreamFlowRunsResponse] = field(default_factory=list)
    beats: int = 0
    stops: list[lease_pb2.Lease] = field(default_factory=list)
    slots: int = 10

    async def open(self, *held: lease_pb2.Lease, credit: int = 0) -> "Agent":
        """Say Hello, hear Welcome, and allow offers."""
        self.call = self.process.queue.StreamFlowRuns()
        await self.say(hello=self.hello(*held))
        self.welcome = (await self.hear()).welcome
        if credit:
            await self.allow(credit)
        return self

    def hello(self, *held: lease_pb2.Lease) -> pb.Hello:
        return pb.Hello(
            agent_id=self.agent_id, name="agent", labels=self.labels, slots=self.slots, version="1", held=held
        )

    async def say(self, **message: Any) -> None:
        await self.call.write(pb.StreamFlowRunsRequest(**message))

    async def allow(self, granted_total: int) -> None:
        await self.say(credit=pb.Credit(granted_total=granted_total))

    async def hear(self) -> pb.StreamFlowRunsResponse:
        """The next message, which is there to come."""
        message = await self.call.read()
        assert isinstance(message, pb.StreamFlowRunsResponse), "the stream has ended"
        self.messages.append(message)
        self.offers += message.offers.offers
        if message.HasField("stop"):
            self.stops.append(message.stop.lease)
        return message

    async def hear_offers(self, count: int) -> list[lease_pb2.Offer]:
        """All offers so far, once there are that many."""
        while len(self.offers) < count:
            await self.hear()
        return self.offers

    async def hear_stops(self, count: int) -> list[lease_pb2.Lease]:
        """What it was told to stop so far, once there is that much."""
        while len(self.stops) < count:
            await self.hear()
        return self.stops

    async def poll(
        self,
        *held: lease_pb2.Lease,
        offers_max: int = 10,
        wait: timedelta = LONG_POLL_MAX,
        flow_run_id: object = "",
        timeout: float | None = None,  # noqa: ASYNC109 # the deadline that the call bears
    ) -> pb.LeaseFlowRunsResponse:
        """One long poll."""
        request = pb.LeaseFlowRunsRequest(
            hello=self.hello(*held), offers_max=offers_max, wait=to_duration(wait), flow_run_id=str(flow_run_id)
        )
        answer = await self.process.queue.LeaseFlowRuns(request, timeout=timeout)
        assert isinstance(answer, pb.LeaseFlowRunsResponse)
        return answer

    async def hear_echo(self) -> None:
        """Whatever was said before was understood, and what followed from it at once was said, when this returns."""
        self.beats += 1
        await self.say(heartbeat=pb.Heartbeat(number=self.beats))
        while (await self.hear()).heartbeat.number != -self.beats:
            pass

    async def accept(self, *offers: lease_pb2.Offer) -> list[int]:
        """Take offers; the outcomes."""
        request = pb.AcceptFlowRunsRequest(agent_id=self.agent_id, leases=[each.lease for each in offers])
        return [each.outcome for each in (await self.process.queue.AcceptFlowRuns(request)).results]

    async def half_close(self) -> grpc.StatusCode:
        """Drain; what comes until the end is kept, and how it ended is returned."""
        await self.call.done_writing()
        while (message := await self.call.read()) is not grpc.aio.EOF:
            self.messages.append(message)
            self.offers += message.offers.offers
        code: grpc.StatusCode = await self.call.code()
        return code

    async def refused(self) -> Explained:
        """How the stream ends, after whatever still comes."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.hear_all()
        return refusal_details(caught.value)

    async def hear_all(self) -> None:
        """Whatever comes, until the stream ends."""
        while True:
            await self.hear()


async def refused(call: Any) -> Explained:
    """How that call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return refusal_details(caught.value)


async def due_runs(database: Database, count: int, *labels: str, flow: Flow | None = None) -> list[FlowRun]:
    flow = flow or await register(database)
    return [await create(database, flow, labels=labels) for _ in range(count)]


def to_proto(lease: Lease) -> lease_pb2.Lease:
    return lease_pb2.Lease(flow_run_id=str(lease.flow_run_id), fence=lease.fence)


async def phases(database: Database, *offers: lease_pb2.Offer) -> list[Phase | None]:
    entries = [await entry_of(database, FlowRunId(UUID(each.lease.flow_run_id))) for each in offers]
    return [entry.phase if entry else None for entry in entries]


@contextlib.asynccontextmanager
async def queue_locked(database: Database) -> AsyncIterator[None]:
    """While it lasts nobody else can write to the queue or to the agents."""
    gate = Gate()

    def lock(tx: Transaction) -> None:
        if tx.conn.dialect.name == "postgresql":
            tx.conn.execute(text("LOCK TABLE queue_entries, agents IN EXCLUSIVE MODE"))
        gate.stop_here()

    locking = asyncio.create_task(database.run(lock))
    await gate.reached()
    try:
        yield
    finally:
        gate.open()
        await locking


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while True:
            if reached():
                return
            await asyncio.sleep(0.01)


async def until_blocked(database: Database) -> None:
    """Until somebody waits for `queue_locked`."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with asyncio.timeout(20):
        while database.engine.dialect.name == "postgresql":
            if await database.read(lambda tx: tx.conn.execute(waiting).scalar_one()):
                return
            await asyncio.sleep(0.01)
