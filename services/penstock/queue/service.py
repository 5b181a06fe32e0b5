"""QueueService: reads the request, calls one operation, writes the answer."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeAlias

import grpc

from flowrun.v1 import lease_pb2
from flowrun.v1 import queue_service_pb2 as pb
from flowrun.v1.queue_service_pb2_grpc import QueueServiceServicer
from penstock.domain.ids import TenantId
from penstock.domain.lease import LeaseResult
from penstock.domain.limits import DEADLINE_DEFAULT, LONG_POLL_MAX
from penstock.queue import operations
from penstock.queue.dispatcher import Dispatcher
from penstock.queue.operations import Accepting
from penstock.queue.polling import Polls
from penstock.queue.stopping import Stopping
from penstock.queue.stream import serve_agent
from penstock.runtime.committer import Committer
from penstock.runtime.serving import tenant_of
from penstock.storage.database import Database
from penstock.wire import leases as wire

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
ANSWER_MARGIN: Final = timedelta(seconds=1)


class QueueServicer(QueueServiceServicer):
    """Serves agents. Acceptances share their commits with the calls that arrive meanwhile."""

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        acceptances: Committer[tuple[TenantId, Accepting], LeaseResult],
        stopping: Stopping,
        polls: Polls,
        *,
        held_lease: timedelta,
        heartbeat_interval: timedelta,
        stream_age: timedelta,
    ) -> None:
        self._database = database
        self._acceptances = acceptances
        self._polls = polls
        self._held_lease = held_lease
        self._serve_agent = partial(
            serve_agent,
            streams=dispatcher,
            stops=stopping,
            heartbeat_interval=heartbeat_interval,
            age_max=stream_age,
        )

    async def StreamFlowRuns(  # type: ignore[override] # it writes; the stubs know only handlers that yield
        self, requests: AsyncIterator[pb.StreamFlowRunsRequest], context: Context
    ) -> None:
        await self._serve_agent(requests, context, tenant_of(context))

    async def AcceptFlowRuns(self, request: pb.AcceptFlowRunsRequest, context: Context) -> pb.AcceptFlowRunsResponse:
        agent_id, leases = wire.accepting_of(request)
        tenant = tenant_of(context)
        commits = (
            self._acceptances.commit((tenant, Accepting(lease, agent_id)), key=lease.flow_run_id) for lease in leases
        )
        return pb.AcceptFlowRunsResponse(results=_results(await asyncio.gather(*commits)))

    async def RenewLeases(self, request: pb.RenewLeasesRequest, context: Context) -> pb.RenewLeasesResponse:
        leases = wire.leases_of(request.leases)
        renewed = await self._database.run(operations.renew_leases, tenant_of(context), leases, ttl=self._held_lease)
        return pb.RenewLeasesResponse(results=_results(renewed))

    async def ReleaseFlowRuns(self, request: pb.ReleaseFlowRunsRequest, context: Context) -> pb.ReleaseFlowRunsResponse:
        releasings = wire.releases_of(request.releases)
        released = await self._database.run(operations.release_flow_runs, tenant_of(context), releasings)
        return pb.ReleaseFlowRunsResponse(results=_results(released))

    async def LeaseFlowRuns(self, request: pb.LeaseFlowRunsRequest, context: Context) -> pb.LeaseFlowRunsResponse:
        polling = wire.polling_of(request)
        answer = await self._polls.lease(
            tenant_of(context), replace(polling, wait=min(polling.wait, _patience(context)))
        )
        return pb.LeaseFlowRunsResponse(
            offers=answer.offers,
            stopping=map(wire.lease_to_proto, answer.judged.stopping),
            lost=map(wire.lease_to_proto, answer.judged.lost),
        )


def _patience(context: Context) -> timedelta:
    """How long a call may wait so that its answer still arrives before its deadline."""
    seconds = context.time_remaining()
    left = DEADLINE_DEFAULT if seconds is None else timedelta(seconds=min(seconds, LONG_POLL_MAX.total_seconds() * 2))
    return max(timedelta(0), left - ANSWER_MARGIN)


def _results(results: Sequence[LeaseResult]) -> list[lease_pb2.LeaseResult]:
    return list(map(wire.lease_result_to_proto, results))
