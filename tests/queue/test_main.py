"""The queue process as a whole: a real process on a real database."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Engine

from flowrun.v1 import queue_service_pb2 as pb
from flowrun.v1.queue_service_pb2_grpc import QueueServiceStub
from penstock.domain.ids import AgentId
from penstock.domain.limits import LONG_POLL_MAX
from penstock.runtime.channel import open_channel
from penstock.storage.database import Database, DatabaseClock
from penstock.wire.times import to_duration
from tests.queue.scenes import SECOND, accept, ask_to_stop, create, offer, register
from tests.queue.served import Agent, QueueProcess, to_proto


@contextlib.asynccontextmanager
async def queue_process(database_url: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Any]]:
    """`python -m penstock.queue` on a free port, and a stub; gone afterwards whatever happened."""
    told = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PENSTOCK_DATABASE": database_url,
        "PENSTOCK_PORT": "0",
        # So that only hints, of another process, can be why anything comes.
        "PENSTOCK_SWEEP_INTERVAL": "3600",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.queue", env=dict(os.environ) | told, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60), open_channel(await address_of(process), repeatable=()) as channel:
            yield process, QueueServiceStub(channel)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def address_of(process: asyncio.subprocess.Process) -> str:
    """Wait until it says where it listens."""
    assert process.stderr is not None
    said: list[str] = []
    async for line in process.stderr:
        said.append(line.decode())
        if "listens on" in said[-1]:
            return said[-1].split()[-1]
    raise AssertionError("".join(said))


async def test_it_tells_and_offers_until_it_is_told_to_stop(engine: Engine, database_url: str) -> None:
    """A stop reaches the stream of its holder and the poll that names it; SIGTERM answers a poll that waits, and ends
    the process in good order."""
    database = Database(engine, DatabaseClock(), threads=4)
    flow = await register(database)
    leases = [await offer(database, (await create(database, flow)).id) for _ in range(2)]
    later = await create(database, flow, labels=("x",), start_delay=1_000 * SECOND)

    async with queue_process(database_url) as (process, stub):
        served: Any = None
        agent = Agent(QueueProcess(stub, served, served, served, served))
        await accept(database, *leases, agent_id=AgentId(UUID(agent.agent_id)))
        await agent.open(to_proto(leases[0]))
        await agent.hear_echo()
        asked = pb.LeaseFlowRunsRequest(
            hello=pb.Hello(agent_id=str(uuid4()), name="agent", labels=["x"], slots=1, held=[to_proto(leases[1])]),
            wait=to_duration(LONG_POLL_MAX),
            flow_run_id=str(later.id),
            offers_max=1,
        )
        # Asked before the other poll, so it waits in the process by the time that one is answered.
        waiting = asyncio.ensure_future(stub.LeaseFlowRuns(without_held(asked)))
        polling = asyncio.ensure_future(stub.LeaseFlowRuns(asked))
        for lease in leases:
            await ask_to_stop(database, lease)

        assert {lease.fence for lease in leases} == {each.fence for each in await agent.hear_stops(2)}
        assert [to_proto(leases[1])] == list((await polling).stopping)
        process.send_signal(signal.SIGTERM)
        answer = await waiting
        code = await process.wait()

    database.close()
    assert pb.LeaseFlowRunsResponse() == answer
    assert 0 == code


def without_held(asked: pb.LeaseFlowRunsRequest) -> pb.LeaseFlowRunsRequest:
    """The same poll by an agent that holds nothing."""
    other = pb.LeaseFlowRunsRequest()
    other.CopyFrom(asked)
    other.hello.agent_id = str(uuid4())
    del other.hello.held[:]
    return other
