"""FlowRunService: reads the request, calls one operation, writes the answer."""

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import grpc

from flowrun.v1 import flow_run_service_pb2 as pb
from flowrun.v1.flow_run_service_pb2_grpc import FlowRunServiceServicer
from penstock.domain.errors import FlowRunNotFound, Refusal
from penstock.domain.flow_run import Cancelling, Created, Creation, Finishing, FlowRun, Starting, Transition
from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.limits import COMMITTER_WAITING_MAX, CREATIONS_PER_COMMIT_BYTES_MAX
from penstock.flow_run import creation, operations
from penstock.flow_run.operations import Sight, Started
from penstock.runtime import telemetry
from penstock.runtime.committer import Committer
from penstock.runtime.drawing import Drawing
from penstock.runtime.follow import Follower, Page
from penstock.runtime.serving import internal_error, tenant_of
from penstock.storage.database import Database
from penstock.storage.tenancy import flushing
from penstock.wire import checks
from penstock.wire import flow_runs as wire
from penstock.wire.checks import Checks
from penstock.wire.leases import lease_to_proto
from penstock.wire.listing import listing
from penstock.wire.pages import PageTokens, page_of, position_page_of

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
Watches: TypeAlias = Follower[Transition, FlowRun]


class FlowRunServicer(FlowRunServiceServicer):
    """Serves flow runs. Creations, starts, finishes and cancellations share their commits with the calls that arrive
    meanwhile."""

    def __init__(
        self,
        database: Database,
        tokens: PageTokens,
        drawing: Drawing,
        watches: Watches,
        *,
        creations: Committer[tuple[TenantId, Creation], Created],
        startings: Committer[tuple[TenantId, Starting], Started],
        finishings: Committer[tuple[TenantId, Finishing], FlowRun],
        cancellings: Committer[tuple[TenantId, Cancelling], FlowRun],
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._drawing = drawing
        self._watches = watches
        self._creations = creations
        self._startings = startings
        self._finishings = finishings
        self._cancellings = cancellings

    async def CreateFlowRun(self, request: pb.CreateFlowRunRequest, context: Context) -> pb.CreateFlowRunResponse:
        return wire.created_to_proto(await self._create(request, tenant_of(context)))

    async def BatchCreateFlowRuns(
        self, request: pb.BatchCreateFlowRunsRequest, context: Context
    ) -> pb.BatchCreateFlowRunsResponse:
        items = wire.batch_of(request)
        creating = (self._create(each, tenant_of(context)) for each in items)
        outcomes = await asyncio.gather(*creating, return_exceptions=True)
        return pb.BatchCreateFlowRunsResponse(outcomes=map(_outcome_to_proto, outcomes))

    async def StartFlowRun(self, request: pb.StartFlowRunRequest, context: Context) -> pb.StartFlowRunResponse:
        starting = wire.starting_of(request)
        started = await self._startings.commit((tenant_of(context), starting), key=starting.flow_run_id)
        return pb.StartFlowRunResponse(flow_run=wire.flow_run_to_proto(started.run), lease=lease_to_proto(started.held))

    async def FinishFlowRun(self, request: pb.FinishFlowRunRequest, context: Context) -> pb.FinishFlowRunResponse:
        finishing = wire.finishing_of(request)
        run = await self._finishings.commit((tenant_of(context), finishing), key=finishing.flow_run_id)
        return pb.FinishFlowRunResponse(flow_run=wire.flow_run_to_proto(run))

    async def GetFlowRun(self, request: pb.GetFlowRunRequest, context: Context) -> pb.GetFlowRunResponse:
        flow_run_id = FlowRunId(checks.id_of("flow_run_id", request.flow_run_id))
        run = await self._database.read(operations.get_flow_run, tenant_of(context), flow_run_id)
        return pb.GetFlowRunResponse(flow_run=wire.flow_run_to_proto(run))

    async def GetFlowRunByKey(self, request: pb.GetFlowRunByKeyRequest, context: Context) -> pb.GetFlowRunByKeyResponse:
        target, key = wire.key_of(request)
        found = await self._database.read(creation.get_flow_run_by_key, tenant_of(context), target, key)
        return wire.found_to_proto(found)

    async def CancelFlowRun(self, request: pb.CancelFlowRunRequest, context: Context) -> pb.CancelFlowRunResponse:
        cancelling = wire.cancelling_of(request)
        run = await self._cancellings.commit((tenant_of(context), cancelling), key=cancelling.flow_run_id)
        return pb.CancelFlowRunResponse(flow_run=wire.flow_run_to_proto(run))

    async def RestartFlowRun(self, request: pb.RestartFlowRunRequest, context: Context) -> pb.RestartFlowRunResponse:
        restarting = wire.restarting_of(request)
        run = await self._database.run(operations.restart_flow_run, tenant_of(context), restarting)
        return pb.RestartFlowRunResponse(flow_run=wire.flow_run_to_proto(run))

    async def DeleteFlowRun(self, request: pb.DeleteFlowRunRequest, context: Context) -> pb.DeleteFlowRunResponse:
        flow_run_id = FlowRunId(checks.id_of("flow_run_id", request.flow_run_id))
        deleted = await self._database.run(operations.delete_flow_run, tenant_of(context), flow_run_id)
        return pb.DeleteFlowRunResponse(deleted=deleted)

    async def ListFlowRuns(self, request: pb.ListFlowRunsRequest, context: Context) -> pb.ListFlowRunsResponse:
        found = Checks()
        wanted = wire.run_filter_of(request, found)
        page = page_of(request, found, self._tokens)
        found.done()
        one_more = replace(page, size=page.size + 1)
        runs = await self._database.read(operations.list_flow_runs, tenant_of(context), wanted, one_more)
        to_proto = partial(wire.flow_run_to_proto, whole=False)
        shown, token = listing(runs, page.size, to_proto, lambda run: (run.create_time, run.id), self._tokens, request)
        return pb.ListFlowRunsResponse(flow_runs=shown, next_page_token=token)

    async def ListTransitions(self, request: pb.ListTransitionsRequest, context: Context) -> pb.ListTransitionsResponse:
        found = Checks()
        flow_run_id = FlowRunId(found.uuid("flow_run_id", request.flow_run_id))
        page = position_page_of(request, found, self._tokens)
        found.done()
        one_more = replace(page, size=page.size + 1)
        steps = await self._database.read(operations.list_transitions, tenant_of(context), flow_run_id, one_more)
        shown, token = listing(
            steps, page.size, wire.transition_to_proto, lambda step: (step.version,), self._tokens, request
        )
        return pb.ListTransitionsResponse(transitions=shown, next_page_token=token)

    async def WatchFlowRun(  # type: ignore[override] # it writes; the stubs know only handlers that yield
        self, request: pb.WatchFlowRunRequest, context: Context
    ) -> None:
        flow_run_id, version = wire.watching_of(request)
        await self._database.read(operations.check_flow_run, tenant_of(context), flow_run_id)
        async with aclosing(self._watches.follow(flow_run_id, version)) as pages:
            async for page in pages:
                for step, transition in page.items:
                    version = step
                    await context.write(pb.WatchFlowRunResponse(transition=wire.transition_to_proto(transition)))
                if page.ended:
                    end = pb.WatchEnd(flow_run=wire.flow_run_to_proto(page.ended))
                    await context.write(pb.WatchFlowRunResponse(end=end))
                elif not page.items:
                    await context.write(pb.WatchFlowRunResponse(heartbeat=pb.WatchHeartbeat(version=version)))

    async def _create(self, request: pb.CreateFlowRunRequest, tenant: TenantId) -> Created:
        trace = telemetry.carrier() or {"traceparent": telemetry.new_traceparent()}
        asked = wire.creation_of(
            request,
            new_id=self._drawing.id,
            spare_name=self._drawing.name,
            traceparent=trace["traceparent"],
            tracestate=trace.get("tracestate", ""),
        )
        key = (asked.target, asked.idempotency_key) if asked.idempotency_key else asked.request_id
        return await self._creations.commit((tenant, asked), key=key)


def committing_creations(
    database: Database, *, waiting_max: int = COMMITTER_WAITING_MAX
) -> Committer[tuple[TenantId, Creation], Created]:
    """What shares the commits of creations. A large one holds up those that come with it, so not many go together."""
    return Committer(
        flushing(database, creation.create_flow_runs),
        name="create",
        run_again=flushing(database, creation.create_flow_runs_again),
        waiting_max=waiting_max,
        weigh=lambda item: item[1].written.bytes_count,
        weight_max=CREATIONS_PER_COMMIT_BYTES_MAX,
    )


async def look(
    database: Database, tenant: TenantId, versions: Mapping[FlowRunId, int]
) -> Mapping[FlowRunId, Page[Transition, FlowRun]]:
    """What the watches of a process ask for, all at once."""
    found = await database.read(operations.look_at_flow_runs, tenant, versions)
    return {flow_run_id: _page_of(each) for flow_run_id, each in found.items()}


def _outcome_to_proto(outcome: Created | BaseException) -> pb.BatchCreateFlowRunsOutcome:
    """One item of a batch: its refusal is its own outcome, and so is a mistake of ours that concerns it."""
    if isinstance(outcome, Created | Refusal):
        return wire.outcome_to_proto(outcome)
    if not isinstance(outcome, Exception):
        raise outcome
    told = internal_error(outcome, "an item of BatchCreateFlowRuns")
    return pb.BatchCreateFlowRunsOutcome(refusal=pb.Refusal(code=grpc.StatusCode.INTERNAL.value[0], message=told))


def _page_of(found: Sight | FlowRunNotFound) -> Page[Transition, FlowRun]:
    if isinstance(found, FlowRunNotFound):
        return Page(refusal=found)
    return Page([(step.version, step) for step in found.steps], found.ended)
