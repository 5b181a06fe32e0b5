"""Telling streams what to stop: over real sockets, on both databases, and what is asked of the database for it."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from flowrun.v1 import lease_pb2
from penstock.domain.agent import AgentHello
from penstock.domain.errors import Unavailable
from penstock.domain.ids import AgentId, FlowRunId, StreamId
from penstock.domain.lease import Lease
from penstock.queue import operations
from penstock.queue.stopping import Stopping
from penstock.queue.stream import AgentStream
from penstock.storage.database import Database
from tests.queue.scenes import TENANT, ask_to_stop, release
from tests.queue.served import Agent, QueueProcess, due_runs, serving, to_proto, until
from tests.support.builders import an_id
from tests.support.databases import Kind

on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
HOUR = timedelta(hours=1)
SOON = timedelta(milliseconds=20)


def lease_of(lease: lease_pb2.Lease) -> Lease:
    return Lease(FlowRunId(UUID(lease.flow_run_id)), lease.fence)


async def holding(process: QueueProcess, database: Database, count: int) -> tuple[Agent, list[Lease]]:
    """An agent with so many leases."""
    await due_runs(database, count)
    agent = await Agent(process).open(credit=count)
    offers = await agent.hear_offers(count)
    await agent.accept(*offers)
    return agent, [lease_of(each.lease) for each in offers]


async def test_a_hint_tells_what_to_stop(database: Database) -> None:
    """Without a sweep: the run that was cancelled, and no other."""
    async with serving(database) as process:
        agent, leases = await holding(process, database, 3)

        await ask_to_stop(database, leases[1])

        assert [to_proto(leases[1])] == await agent.hear_stops(1)


async def test_a_sweep_finds_what_no_hint_told(database: Database) -> None:
    """A hint may be lost."""
    async with serving(database, sweep=SOON, deaf=True) as process:
        agent, leases = await holding(process, database, 2)
        for lease in leases:
            await ask_to_stop(database, lease)

        stops = await agent.hear_stops(2)

    assert [to_proto(lease) for lease in leases] == sorted(stops, key=lambda each: each.flow_run_id)


async def test_a_stream_is_told_once(database: Database) -> None:
    """However often the database is asked while the agent stops its work."""
    async with serving(database) as process:
        agent, leases = await holding(process, database, 2)
        await ask_to_stop(database, leases[0])
        await agent.hear_stops(1)

        for _ in range(3):
            await process.stopping.look_once()
        await agent.hear_echo()
        await ask_to_stop(database, leases[1])
        await agent.hear_stops(2)

    assert [to_proto(lease) for lease in leases] == agent.stops


async def test_a_new_stream_is_told_again(database: Database) -> None:
    """With its opening, whether or not the agent names the lease, and once."""
    async with serving(database, deaf=True) as process:
        agent, leases = await holding(process, database, 2)
        for lease in leases:
            await ask_to_stop(database, lease)
        await agent.half_close()

        again = await Agent(process, agent_id=agent.agent_id).open(to_proto(leases[0]))
        assert [to_proto(leases[0])] == await again.hear_stops(1)
        await process.stopping.look_once()
        assert list(map(to_proto, leases)) == await again.hear_stops(2)
        await process.stopping.look_once()
        await again.hear_echo()

    assert 2 == len(again.stops)


async def test_every_replica_tells_its_own_agents(database: Database) -> None:
    """Wherever the cancellation was asked for, the stream that its holder has is told, and no other."""
    async with serving(database) as one, serving(database) as other:
        first, (kept,) = await holding(one, database, 1)
        second, (cancelled,) = await holding(other, database, 1)

        await ask_to_stop(database, cancelled)

        assert [to_proto(cancelled)] == await second.hear_stops(1)
        await one.stopping.look_once()
        await first.hear_echo()
        assert [] == first.stops
        await ask_to_stop(database, kept)
        assert [to_proto(kept)] == await first.hear_stops(1)


async def test_what_ended_is_not_told(database: Database) -> None:
    """An agent that gave its lease back before anybody looked has nothing to stop."""
    async with serving(database, deaf=True) as process:
        agent, (lease,) = await holding(process, database, 1)
        await ask_to_stop(database, lease)
        await release(database, lease)

        await process.stopping.look_once()
        await agent.hear_echo()

    assert [] == agent.stops


class Counting:
    """A database that notes what it is asked, and is away as often as it is told to."""

    def __init__(self, database: Database, away: int = 0) -> None:
        self._database = database
        self.away = away
        self.asked: list[Callable[..., Any]] = []

    async def read(self, work: Callable[..., Any], *args: Any) -> Any:
        self.asked.append(work)
        if self.away:
            self.away -= 1
            raise Unavailable(detail="the database is away")
        return await self._database.read(work, *args)


def a_stream() -> AgentStream:
    hello = AgentHello(AgentId(an_id()), "agent", (), 1, "1")
    return AgentStream(TENANT, hello, StreamId(an_id()), lambda: None)


@on_sqlite
async def test_it_asks_once_for_all_and_nothing_for_nobody(database: Database, database_kind: Kind) -> None:
    """However many streams there are; and when the last one has gone, no hint makes it ask."""
    counting: Any = Counting(database)
    stopping = Stopping(counting, sweep_interval=SOON)

    with stopping.told_to(a_stream()), stopping.told_to(a_stream()), stopping.told_to(a_stream()):
        await stopping.look_once()
    assert [operations.stopping] == counting.asked
    serving_it = asyncio.create_task(stopping.serve())
    for _ in range(3):
        stopping.wake()
        await asyncio.sleep(SOON.total_seconds())
    serving_it.cancel()
    await asyncio.wait([serving_it])

    assert [operations.stopping] == counting.asked


@on_sqlite
async def test_it_asks_on_after_the_database_came_back(database: Database, database_kind: Kind) -> None:
    """A database that is away ends nothing; what a hint told of meanwhile is found by the sweep."""
    counting: Any = Counting(database, away=3)
    stopping = Stopping(counting, sweep_interval=SOON)
    serving_it = asyncio.create_task(stopping.serve())

    with stopping.told_to(a_stream()):
        stopping.wake()
        await until(lambda: len(counting.asked) >= 5)
    serving_it.cancel()
    await asyncio.wait([serving_it])

    assert 0 == counting.away


@on_sqlite
async def test_a_quiet_process_asks_nothing(database: Database, database_kind: Kind) -> None:
    """Between hints and sweeps."""
    counting: Any = Counting(database)
    stopping = Stopping(counting, sweep_interval=HOUR)
    serving_it = asyncio.create_task(stopping.serve())

    with stopping.told_to(a_stream()):
        for count in range(3):
            await asyncio.sleep(SOON.total_seconds())
            assert count == len(counting.asked)
            stopping.wake()
            await until(lambda wanted=count + 1: len(counting.asked) == wanted)  # type: ignore[misc]
    serving_it.cancel()
    await asyncio.wait([serving_it])
