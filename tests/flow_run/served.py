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
from penstock.domain.limits import HELD_LEASE
from penstock.flow_run import operations
from penstock.flow_run.flow_service import FlowServicer
from penstock.flow_run.service import FlowRunServicer, Watches, look
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
    """Stubs on one channel, and the watches behind them."""

    flow_runs: Any
    flows: Any
    watches: Watches


@contextlib.asynccontextmanager
async def serving(
    database: Database, *, sweep: timedelta = NEVER, heartbeat: timedelta = NEVER
) -> AsyncIterator[FlowRunProcess]:
    """A process's worth of services, which hear hints; they sweep and beat only if told to."""
    tokens = PageTokens(await database.read(installation.signing_key))
    start = partial(operations.start_flow_runs, ttl=HELD_LEASE)
    creations = Committer(flushing(database, operations.create_flow_runs), name="create")
    startings = Committer(flushing(database, start), name="start")
    finishings = Committer(flushing(database, operations.finish_flow_runs), name="finish")
    watches = Watches(partial(look, database, TENANT), sweep=sweep, heartbeat=heartbeat)

    def hear(hint: Hint) -> None:
        watches.hint(None if hint.anything else hint.moved)

    listener = wakeups.listen(database.engine)
    hearing = Hearing(listener.hints, hear)
    works = (creations.serve, startings.serve, finishings.serve, watches.serve, hearing.serve)
    tasks = [asyncio.create_task(work()) for work in works]
    drawing = Drawing(FakeClock())
    flow_runs = FlowRunServicer(  # type: ignore[abstract]
        database, tokens, drawing, watches, creations=creations, startings=startings, finishings=finishings
    )
    flows = FlowServicer(database, tokens, drawing)  # type: ignore[abstract]
    services = ((add_FlowRunServiceServicer_to_server, flow_runs), (add_FlowServiceServicer_to_server, flows))
    try:
        async with (
            asyncio.timeout(WAIT_SECONDS),
            running(*services) as address,
            open_channel(address, repeatable=()) as channel,
        ):
            yield FlowRunProcess(FlowRunServiceStub(channel), FlowServiceStub(channel), watches)
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
