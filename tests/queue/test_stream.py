"""What the dispatcher knows of one stream, without a wire."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from flowrun.v1 import lease_pb2
from flowrun.v1 import queue_service_pb2 as pb
from penstock.domain.agent import AgentHello
from penstock.domain.errors import AgentSilent, InvalidRequest, Unavailable
from penstock.domain.ids import AgentId, FlowRunId, StreamId
from penstock.domain.lease import HeldLease, Lease
from penstock.domain.limits import STOPS_WAITING_MAX
from penstock.queue.stream import AgentStream
from tests.queue.scenes import TENANT
from tests.support.builders import an_id
from tests.support.fake_clock import NOON

LONG = timedelta(hours=1)


class Woken:
    """Counts how often the dispatcher was woken."""

    count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def stream(woken: Woken) -> AgentStream:
    hello = AgentHello(AgentId(an_id()), "agent", ("a",), 1, "1")
    return AgentStream(TENANT, hello, StreamId(an_id()), woken)


def said(**message: Any) -> pb.StreamFlowRunsRequest:
    return pb.StreamFlowRunsRequest(**message)


def credit(total: int) -> pb.StreamFlowRunsRequest:
    return said(credit=pb.Credit(granted_total=total))


def beat(number: int) -> pb.StreamFlowRunsRequest:
    return said(heartbeat=pb.Heartbeat(number=number))


def some_offers(count: int, ttl: timedelta = LONG) -> list[tuple[HeldLease, lease_pb2.Offer]]:
    leases = [Lease(FlowRunId(an_id()), 1) for _ in range(count)]
    return [(HeldLease(each, ttl, NOON + ttl), lease_pb2.Offer()) for each in leases]


async def test_there_is_room_for_what_was_allowed(stream: AgentStream, woken: Woken) -> None:
    """While a batch waits to be written there is none; more credit wakes the dispatcher, less does not."""
    assert stream.room == 0
    for total in (3, 3, 1):
        stream.hear(credit(total))
    assert (stream.room, woken.count) == (3, 1)

    stream.offer(some_offers(2))
    assert stream.room == 0
    message = await stream.next_message()
    assert message is not None
    assert len(message.offers.offers) == 2
    stream.written(message)

    assert (stream.room, woken.count) == (1, 2)
    with pytest.raises(AssertionError):
        stream.offer(some_offers(2))


async def test_nothing_is_written_once_it_is_closed(stream: AgentStream) -> None:
    """Neither offers nor echoes that were waiting; a later ending does not change the first."""
    stream.hear(credit(5))
    stream.offer(some_offers(1))
    stream.hear(beat(1))
    stream.close()
    stream.close(Unavailable(detail="too late"))

    assert await stream.next_message() is None
    assert stream.room == 0
    assert len(stream.in_hand) == 1


async def test_it_ends_as_it_was_closed(stream: AgentStream) -> None:
    """Whoever waits for the next message is told at once."""
    waiting = asyncio.create_task(stream.next_message())
    await asyncio.sleep(0)

    stream.close(Unavailable(detail="going"))

    with pytest.raises(Unavailable):
        await waiting


async def test_offers_are_in_hand_until_they_expire(stream: AgentStream) -> None:
    """By the clock of this process, which only ever sees them longer than the database does."""
    stream.hear(credit(10))
    expired, current = some_offers(2, timedelta(0)), some_offers(1)
    stream.offer(expired)
    message = await stream.next_message()
    assert message is not None
    stream.written(message)
    stream.offer(current)

    assert stream.in_hand == [held.lease for held, _ in current]


async def test_heartbeats_are_echoed_but_never_pile_up(stream: AgentStream) -> None:
    """Two signs of life that wait say as much as twenty."""
    for number in range(1, 21):
        stream.hear(beat(number))
    echoes = [await stream.next_message() for _ in range(2)]
    stream.close()

    assert [each.heartbeat.number for each in echoes if each] == [-1, -2]
    assert await stream.next_message() is None


async def test_who_does_not_echo_is_silent(stream: AgentStream) -> None:
    """Three unanswered heartbeats are one too many; an echo of what was never sent counts for nothing."""
    stream.hear(beat(-1_000))
    for _ in range(3):
        stream.beat()
    with pytest.raises(AgentSilent):
        stream.beat()
    stream.hear(beat(-3))

    for _ in range(3):
        stream.beat()
    with pytest.raises(AgentSilent):
        stream.beat()


async def test_what_does_not_belong_there_is_refused(stream: AgentStream) -> None:
    """A second Hello, and a message that is none."""
    with pytest.raises(InvalidRequest):
        stream.hear(said(hello=pb.Hello()))
    with pytest.raises(InvalidRequest):
        stream.hear(said())


async def test_what_shall_stop_is_told_once(stream: AgentStream) -> None:
    """In order, behind signs of life and before offers; what shall stop no longer is forgotten, and told anew."""
    first, second, third = (Lease(FlowRunId(an_id()), fence) for fence in (1, 2, 3))
    stream.hear(credit(1))
    stream.offer(some_offers(1))
    stream.stop([first, second])
    stream.stop([first, second])
    stream.hear(beat(1))

    heard = [await told(stream) for _ in range(4)]
    stream.stop([second, third])
    stream.stop([first, second])
    heard += [await told(stream) for _ in range(2)]

    assert ["heartbeat", 1, 2, "offers", 3, 1] == heard


async def test_a_stalled_reader_piles_up_no_stops(stream: AgentStream) -> None:
    """So many wait and no more; the others are told when there is room again, none twice."""
    leases = [Lease(FlowRunId(an_id()), number) for number in range(1, STOPS_WAITING_MAX + 11)]
    for _ in range(3):
        stream.stop(leases)
    heard = [await told(stream) for _ in range(STOPS_WAITING_MAX)]
    waiting = asyncio.create_task(told(stream))
    await asyncio.sleep(0)
    assert not waiting.done()

    stream.stop(leases)
    heard += [await waiting, *[await told(stream) for _ in range(9)]]

    assert [each.fence for each in leases] == heard
    stream.stop([*leases, Lease(FlowRunId(an_id()), 1)])
    stream.close()
    assert await stream.next_message() is None


async def told(stream: AgentStream) -> int | str | None:
    """The fence of what it is told to stop, else the kind of the message."""
    async with asyncio.timeout(20):
        message = await stream.next_message()
    assert message is not None
    stream.written(message)
    return message.stop.lease.fence if message.HasField("stop") else message.WhichOneof("message")
