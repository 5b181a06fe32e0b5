"""One agent's stream: credit in, offers and stops out, liveness both ways. A stream carries; others decide."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import timedelta
from itertools import takewhile
from typing import Any, Final, Protocol, TypeAlias

import grpc
from google.protobuf.duration_pb2 import Duration

from flowrun.v1 import lease_pb2
from flowrun.v1 import queue_service_pb2 as pb
from penstock.domain.agent import AgentHello, Joined
from penstock.domain.errors import AgentSilent, InvalidRequest, Refusal, Unavailable, Violation
from penstock.domain.ids import StreamId, TenantId
from penstock.domain.lease import HeldLease, Lease
from penstock.domain.limits import SILENCE_INTERVALS_MAX, STOPS_WAITING_MAX
from penstock.domain.window import Window
from penstock.wire import leases as wire

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
AGE_JITTER: Final = 0.1


class AgentStream:
    """What the dispatcher knows of one stream: who is at its other end, and what may be sent there.

    Only the event loop's thread touches it. At most one batch of offers waits to be written, because a stream that has
    one has no room, and so many stops and no more: so a reader that stalls fills no memory.
    """

    def __init__(self, tenant: TenantId, hello: AgentHello, stream_id: StreamId, woken: Callable[[], None]) -> None:
        self.tenant = tenant
        self.hello = hello
        self.id = stream_id
        self.labels = frozenset(hello.labels)
        self.heard_of = True
        self._woken = woken
        self._window = Window()
        self._in_hand: dict[Lease, float] = {}
        self._offers: Sequence[lease_pb2.Offer] = ()
        self._signs: deque[pb.Heartbeat] = deque()
        self._stops: deque[Lease] = deque()
        self._told: set[Lease] = set()
        self._beats = 0
        self._echoed = 0
        self._stirred = asyncio.Event()
        self._closed = False
        self._ending: Refusal | None = None

    @property
    def room(self) -> int:
        """How many offers it would take now."""
        return 0 if self._closed or self._offers else self._window.room

    @property
    def in_hand(self) -> list[Lease]:
        """The offers it was given that may not have been accepted yet."""
        self._forget_expired()
        return list(self._in_hand)

    def offer(self, offers: Sequence[tuple[HeldLease, lease_pb2.Offer]]) -> None:
        """Send offers, each with its lease. The caller has asked for room in the same breath."""
        self._window.spend(len(offers))
        self._forget_expired()
        now = asyncio.get_running_loop().time()
        self._in_hand.update((held.lease, now + held.ttl.total_seconds()) for held, _ in offers)
        self._offers = [offer for _, offer in offers]
        self._stirred.set()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def offered(self) -> Sequence[lease_pb2.Offer]:
        """The batch of offers that waits to be written; none once it is closed."""
        return () if self._closed else self._offers

    def surrender(self) -> dict[Lease, float]:
        """The offers in hand, each with when it ends by the loop's clock. From now on they are not this stream's."""
        self._forget_expired()
        surrendered, self._in_hand = self._in_hand, {}
        return surrendered

    def stop(self, stopping: Collection[Lease]) -> None:
        """Tell of leases whose work shall stop, each once. `stopping` are all of this agent that shall stop now.

        What shall stop no longer is forgotten. What finds no room is told the next time.
        """
        now = frozenset(stopping)
        self._told &= now
        fresh = [lease for lease in stopping if lease not in self._told]
        fitting = fresh[: max(0, STOPS_WAITING_MAX - len(self._stops))]
        if fitting:
            self._told.update(fitting)
            self._stops.extend(fitting)
            self._stirred.set()

    def allow(self, granted_total: int) -> None:
        """Let it have offers, up to that many since it opened."""
        if self._window.grant(granted_total):
            self._woken()

    def hear(self, request: pb.StreamFlowRunsRequest) -> None:
        """Take a message of the agent. Credit only ever grows, so a repeated one changes nothing."""
        self.heard_of = True
        match request.WhichOneof("message"):
            case "credit":
                self.allow(request.credit.granted_total)
            case "heartbeat" if request.heartbeat.number < 0:
                self._echoed = max(self._echoed, min(self._beats, -request.heartbeat.number))
            case "heartbeat":
                # Two signs of life that were not written yet say as much as twenty: the rest is dropped, not queued.
                if len(self._signs) < 2:
                    self._signs.append(pb.Heartbeat(number=-request.heartbeat.number))
                    self._stirred.set()
            case "hello":
                raise InvalidRequest((Violation("hello", "was said already; it comes first, and once"),))
            case _:
                raise InvalidRequest((Violation("message", "is required"),))

    def beat(self) -> None:
        """Send a heartbeat. Raises AgentSilent when those before it were not echoed: nobody reads at the other end."""
        if self._beats - self._echoed >= SILENCE_INTERVALS_MAX:
            raise AgentSilent(agent_id=str(self.hello.agent_id))
        self._beats += 1
        self._signs.append(pb.Heartbeat(number=self._beats))
        self._stirred.set()

    def close(self, ending: Refusal | None = None) -> None:
        """Write nothing more, and end the stream: with OK, or as the refusal says."""
        if not self._closed:
            self._closed, self._ending = True, ending
            self._stirred.set()

    async def next_message(self) -> pb.StreamFlowRunsResponse | None:
        """The next message to write; None once it is closed. Raises the refusal that it was closed with."""
        while not (self._closed or self._offers or self._signs or self._stops):
            self._stirred.clear()
            await self._stirred.wait()
        if self._ending:
            raise self._ending
        if self._closed:
            return None
        if self._signs:
            return pb.StreamFlowRunsResponse(heartbeat=self._signs.popleft())
        if self._stops:
            return pb.StreamFlowRunsResponse(stop=pb.Stop(lease=wire.lease_to_proto(self._stops.popleft())))
        return pb.StreamFlowRunsResponse(offers=pb.Offers(offers=self._offers))

    def written(self, message: pb.StreamFlowRunsResponse) -> None:
        """A message has left this process; once its offers have, the stream has room again."""
        if message.WhichOneof("message") == "offers":
            self._offers = ()
            if self._window.room:
                self._woken()

    def _forget_expired(self) -> None:
        """Offers last equally long, so those that expired come first."""
        now = asyncio.get_running_loop().time()
        for lease in list(takewhile(lambda each: self._in_hand[each] <= now, self._in_hand)):
            del self._in_hand[lease]


class Streams(Protocol):
    """Where streams are joined to what hands out work."""

    def joined(self, tenant: TenantId, hello: AgentHello) -> AbstractAsyncContextManager[tuple[AgentStream, Joined]]:
        """While it lasts the stream gets offers; leaving it gives back those that were not accepted."""
        ...


class Stops(Protocol):
    """Where streams learn what their agents shall stop."""

    def told_to(self, stream: AgentStream) -> AbstractContextManager[None]:
        """While it lasts the stream is told."""
        ...


async def serve_agent(
    requests: AsyncIterator[pb.StreamFlowRunsRequest],
    context: Context,
    tenant: TenantId,
    streams: Streams,
    stops: Stops,
    *,
    heartbeat_interval: timedelta,
    age_max: timedelta,
) -> None:
    """Carry offers and stops to one agent until it half-closes or falls silent, or its stream grows old or closes."""
    silence_seconds = heartbeat_interval.total_seconds() * SILENCE_INTERVALS_MAX
    loop = asyncio.get_running_loop()
    agent_id = "of this stream"
    try:
        async with asyncio.timeout(silence_seconds) as silence:
            hello = await _first(requests)
            agent_id = str(hello.agent_id)
            async with streams.joined(tenant, hello) as (stream, joined), asyncio.TaskGroup() as tasks:
                interval = Duration()
                interval.FromTimedelta(heartbeat_interval)
                welcome = pb.Welcome(lost=map(wire.lease_to_proto, joined.lost), heartbeat_interval=interval)
                await context.write(pb.StreamFlowRunsResponse(welcome=welcome))
                stream.stop(joined.stopping)

                async def listen() -> None:
                    async for request in requests:
                        silence.reschedule(loop.time() + silence_seconds)
                        stream.hear(request)
                    stream.close()

                async def beat() -> None:
                    while True:
                        await asyncio.sleep(heartbeat_interval.total_seconds())
                        stream.beat()

                async def grow_old() -> None:
                    await asyncio.sleep(age_max.total_seconds() * random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER))  # noqa: S311
                    stream.close(Unavailable(detail="the stream has grown old; open another"))

                at_work = [tasks.create_task(each()) for each in (listen, beat, grow_old)]
                with stops.told_to(stream):
                    while (message := await stream.next_message()) is not None:
                        async with asyncio.timeout(silence_seconds):
                            await context.write(message)
                        stream.written(message)
                for task in at_work:
                    task.cancel()
    except* TimeoutError:
        raise AgentSilent(agent_id=agent_id) from None


async def _first(requests: AsyncIterator[pb.StreamFlowRunsRequest]) -> AgentHello:
    request = await anext(requests, None)
    if request is None or request.WhichOneof("message") != "hello":
        raise InvalidRequest((Violation("hello", "is required; it comes first, and once"),))
    return wire.hello_of(request.hello)
