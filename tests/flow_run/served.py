"""The flow-run process's services at work on a socket, in the test's own process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

import grpc
import pytest

from flowrun.v1.flow_run_service_pb2_grpc import FlowRunServiceStub, add_FlowRunServiceServicer_to_server
from flowrun.v1.flow_service_pb2_grpc import FlowServiceStub, add_FlowServiceServicer_to_server
from penstock.domain.limits import COMMITTER_WAITING_MAX, HELD_LEASE
from penstock.flow_run import operations
from penstock.flow_run.flow_service import FlowServicer
from penstock.flow_run.service import FlowRunServicer, Watches, committing_creations, look
from penstock.runtime.channel import open_channel
from penstock.runtime.committer import Committer
from penstock.runtime.drawing import Drawing
from penstock.runtime.hearing import Hearing
from penstock.storage import installation, wakeups
from penstock.storage.database import Database
from penstock.storage.tenancy import flushing
from penstock.storage.wakeups import Hint
from penstock.wire.errors import Explained, refusal_details
from penstock.wire.pages import PageTokens
from tests.queue.scenes import TENANT
from tests.support.fake_clock import FakeClock
from tests.support.running import running

NEVER: Final = timedelta(hours=1)
WAIT_SECONDS: Final = 60


@dataclass
class FlowRunProcess:
    """Stubs on one channel, the watches behind them, and where others find it."""

    flow_runs: Any
    flows: Any
    watches: Watches
    address: str


@contextlib.asynccontextmanager
async def serving(
    database: Database,
    *,
    sweep: timedelta = NEVER,
    heartbeat: timedelta = NEVER,
    creations_waiting_max: int = COMMITTER_WAITING_MAX,
) -> AsyncIterator[FlowRunProcess]:
    """A process's worth of services, which hear hints; they sweep and beat only if told to."""
    tokens = PageTokens(await database.read(installation.signing_key))
    start = partial(operations.start_flow_runs, ttl=HELD_LEASE)
    creations = committing_creations(database, waiting_max=creations_waiting_max)
    startings = Committer(flushing(database, start), name="start")
    finishings = Committer(flushing(database, operations.finish_flow_runs), name="finish")
    cancellings = Committer(flushing(database, operations.cancel_flow_runs), name="cancel")
    watches = Watches(partial(look, database, TENANT), sweep=sweep, heartbeat=heartbeat)

    def hear(hint: Hint) -> None:
        watches.hint(None if hint.anything else hint.moved)

    listener = wakeups.listen(database.engine)
    hearing = Hearing(listener.hints, hear)
    works = (creations, startings, finishings, cancellings, watches, hearing)
    tasks = [asyncio.create_task(work.serve()) for work in works]
    drawing = Drawing(FakeClock())
    flow_runs = FlowRunServicer(
        database,
        tokens,
        drawing,
        watches,
        creations=creations,
        startings=startings,
        finishings=finishings,
        cancellings=cancellings,
    )
    flows = FlowServicer(database, tokens, drawing)
    services = ((add_FlowRunServiceServicer_to_server, flow_runs), (add_FlowServiceServicer_to_server, flows))
    try:
        async with (
            asyncio.timeout(WAIT_SECONDS),
            running(*services) as address,
            open_channel(address, repeatable=()) as channel,
        ):
            yield FlowRunProcess(FlowRunServiceStub(channel), FlowServiceStub(channel), watches, address)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        listener.close()


async def refused(call: Any) -> Explained:
    """How that call, or the next message of that stream, is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call.read() if hasattr(call, "read") else call)
    return refusal_details(caught.value)
