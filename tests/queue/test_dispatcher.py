"""The dispatcher when its database does not answer, and what it does of itself; the rest is in `test_service`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from flowrun.v1 import queue_service_pb2 as pb
from penstock.domain.agent import AgentHello
from penstock.domain.errors import Unavailable
from penstock.domain.ids import AgentId
from penstock.domain.lease import Phase
from penstock.domain.limits import OFFER_LEASE
from penstock.queue import operations
from penstock.queue.dispatcher import Dispatcher
from penstock.queue.stream import AgentStream
from penstock.runtime.clock import SystemClock
from penstock.runtime.drawing import Drawing
from penstock.storage.database import Database
from tests.queue.scenes import TENANT, accept, create, entry_of, everything, register
from tests.support.builders import an_id
from tests.support.databases import Kind

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
HOUR = timedelta(hours=1)


class Unanswering:
    """A database that commits what it was told to, and then does not answer."""

    def __init__(self, database: Database, *works: Callable[..., Any]) -> None:
        self._database = database
        self.silent_after = list(works)
        self.done: list[Callable[..., Any]] = []

    async def run(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answer = await self._database.run(work, *args, **kwargs)
        self.done.append(work)
        if work in self.silent_after:
            self.silent_after.remove(work)
            raise Unavailable(detail="the database is away")
        return answer


def dispatching(database: Any, sweep: timedelta = HOUR) -> Dispatcher:
    return Dispatcher(
        database, Drawing(SystemClock()), offer_lease=OFFER_LEASE, sweep_interval=sweep, heartbeat_interval=HOUR
    )


@contextlib.asynccontextmanager
async def joined(dispatcher: Dispatcher, credit: int, agent_id: UUID | None = None) -> AsyncIterator[AgentStream]:
    hello = AgentHello(AgentId(agent_id or an_id()), "agent", (), 10, "1")
    async with dispatcher.joined(TENANT, hello) as (stream, _):
        stream.hear(pb.StreamFlowRunsRequest(credit=pb.Credit(granted_total=credit)))
        yield stream


async def phases(database: Database) -> list[Phase]:
    return sorted(row[5] for row in (await everything(database))["queue_entries"])


async def test_a_take_that_was_not_answered_is_given_back(database: Database, database_kind: Kind) -> None:
    """Before anything else is taken: nobody knows of those offers, so nobody could accept them."""
    run = await create(database, await register(database))
    unanswering = Unanswering(database, operations.take)
    dispatcher = dispatching(unanswering)

    async with joined(dispatcher, 5) as stream:
        with pytest.raises(Unavailable):
            await dispatcher.run_once()
        assert ([Phase.OFFERED], []) == (await phases(database), stream.in_hand)

        await dispatcher.run_once()

        assert [run.id] == [each.flow_run_id for each in stream.in_hand]
        assert [3] == [each.fence for each in stream.in_hand]
        assert [operations.take, operations.give_back_strays, operations.take] == unanswering.done[1:]


async def test_offers_in_hand_survive_a_take_that_was_not_answered(database: Database, database_kind: Kind) -> None:
    """Only strays are given back: an agent may be about to accept the others, or has done so."""
    flow = await register(database)
    first, accepted = [(await create(database, flow)).id for _ in range(2)]
    unanswering = Unanswering(database)
    dispatcher = dispatching(unanswering)

    async with joined(dispatcher, 2) as stream, joined(dispatcher, 5) as other:
        await dispatcher.run_once()
        in_hand = {each.flow_run_id: each for each in [*stream.in_hand, *other.in_hand]}
        await accept(database, in_hand[accepted])
        for each in (stream, other):
            if (message := await _message(each)) is not None:
                each.written(message)
        await create(database, flow)
        unanswering.silent_after.append(operations.take)
        with pytest.raises(Unavailable):
            await dispatcher.run_once()
        await dispatcher.run_once()

        entries = [await entry_of(database, each) for each in (first, accepted)]
        assert [(Phase.OFFERED, 1), (Phase.HELD, 1)] == [(each.phase, each.fence) for each in entries if each]
        assert 3 == len({each.flow_run_id for each in [*stream.in_hand, *other.in_hand]})


async def _message(stream: AgentStream) -> pb.StreamFlowRunsResponse | None:
    return await stream.next_message() if stream.in_hand else None


async def test_it_serves_on_after_the_database_came_back(
    database: Database, database_kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that is away ends nothing; what was due is handed out as soon as it answers again."""
    monkeypatch.setattr("penstock.queue.dispatcher.AWAY_PAUSE_SECONDS", 0.01)
    run = await create(database, await register(database))
    dispatcher = dispatching(Unanswering(database, operations.take, operations.give_back_strays, operations.take))
    serving = asyncio.create_task(dispatcher.serve())

    async with asyncio.timeout(20), joined(dispatcher, 1) as stream:
        message = await stream.next_message()
        assert message is not None
        assert [str(run.id)] == [each.flow_run.flow_run_id for each in message.offers.offers]
    serving.cancel()
    await asyncio.wait([serving])


async def test_it_sweeps_without_being_told(database: Database, database_kind: Kind) -> None:
    """A hint may be lost: a run is found by itself."""
    dispatcher = dispatching(database, sweep=timedelta(milliseconds=10))
    serving = asyncio.create_task(dispatcher.serve())

    async with asyncio.timeout(20), joined(dispatcher, 1) as stream:
        await create(database, await register(database))
        assert await stream.next_message() is not None
    serving.cancel()
    await asyncio.wait([serving])


async def test_a_leave_that_cannot_be_written_ends_all_the_same(database: Database, database_kind: Kind) -> None:
    """Its offers are looked for as soon as the database answers, and a drain does not wait for it."""
    await create(database, await register(database))
    unanswering = Unanswering(database, operations.give_back, operations.leave)
    dispatcher = dispatching(unanswering)

    async with joined(dispatcher, 1):
        await dispatcher.run_once()
    async with joined(dispatcher, 1):
        pass
    unanswering.done.clear()
    await dispatcher.run_once()
    assert [operations.give_back_strays] == unanswering.done

    async with asyncio.timeout(20):
        await dispatcher.drain()


class Pausing(Unanswering):
    """A database that pauses before it answers a certain work, and refuses another without doing it."""

    def __init__(self, database: Database, *works: Callable[..., Any]) -> None:
        super().__init__(database, *works)
        self.pausing_after: Callable[..., Any] | None = None
        self.refused: Callable[..., Any] | None = None
        self.reached, self.going_on = asyncio.Event(), asyncio.Event()

    async def run(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if work is self.refused:
            raise Unavailable(detail="the database is away")
        answer = await super().run(work, *args, **kwargs)
        if work is self.pausing_after:
            self.reached.set()
            await self.going_on.wait()
        return answer


@pytest.mark.parametrize("meanwhile", [operations.take, operations.give_back_strays])
async def test_a_stream_that_ends_without_a_trace_is_remembered(
    database: Database, database_kind: Kind, meanwhile: Callable[..., Any]
) -> None:
    """Also when it ends while the dispatcher takes, or looks for strays: its offers wait again at the next round."""
    run = await create(database, await register(database))
    pausing = Pausing(database)
    dispatcher = dispatching(pausing)

    async with asyncio.timeout(20), joined(dispatcher, 0) as other:
        async with joined(dispatcher, 1):
            await dispatcher.run_once()
            if meanwhile is operations.give_back_strays:
                dispatcher._unsure.add(TENANT)
            other.allow(1)
            pausing.pausing_after, pausing.refused = meanwhile, operations.give_back
            round_under_way = asyncio.create_task(dispatcher.run_once())
            await pausing.reached.wait()
        pausing.refused = None
        pausing.going_on.set()
        await round_under_way

        await dispatcher.run_once()

        assert [run.id] == [each.flow_run_id for each in other.in_hand]


async def test_draining_gives_back_what_nobody_knows_of(database: Database, database_kind: Kind) -> None:
    """A take that was not answered leaves nothing behind."""
    await create(database, await register(database))
    dispatcher = dispatching(Unanswering(database, operations.take))

    async with joined(dispatcher, 1):
        with pytest.raises(Unavailable):
            await dispatcher.run_once()
        draining = asyncio.create_task(dispatcher.drain())
    await draining

    assert [Phase.WAITING] == await phases(database)


async def test_a_join_that_was_not_answered_is_undone(database: Database, database_kind: Kind) -> None:
    """Its agent is refused, and opens another stream that nobody replaces."""
    agent_id = an_id()
    dispatcher = dispatching(Unanswering(database, operations.join))

    with pytest.raises(Unavailable):
        async with joined(dispatcher, 1, agent_id):
            pass

    async with joined(dispatcher, 1, agent_id) as stream:
        await dispatcher.touch_once()
        assert stream.room == 1


async def test_who_is_idle_asks_nothing(database: Database, database_kind: Kind) -> None:
    """Without room on any stream nothing is asked of the database."""
    counting = Unanswering(database)
    dispatcher = dispatching(counting)

    async with joined(dispatcher, 0):
        counting.done.clear()
        await dispatcher.run_once()

        assert [] == counting.done


async def test_an_agent_that_was_heard_of_is_stored(database: Database, database_kind: Kind) -> None:
    """In one statement for all; who said nothing since is not."""
    counting = Unanswering(database)
    dispatcher = dispatching(counting)

    async with joined(dispatcher, 1) as first, joined(dispatcher, 1):
        await dispatcher.touch_once()
        assert not first.heard_of
        first.hear(pb.StreamFlowRunsRequest(heartbeat=pb.Heartbeat(number=1)))
        assert first.heard_of
        counting.done.clear()
        await dispatcher.touch_once()

        assert [operations.replaced] == counting.done
