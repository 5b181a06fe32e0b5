"""OperatorService: reads the request, calls one operation, writes the answer."""

from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeAlias

import grpc

from flowrun.v1 import operator_service_pb2 as pb
from flowrun.v1.operator_service_pb2_grpc import OperatorServiceServicer
from penstock.domain.ids import FlowRunId
from penstock.domain.limits import SILENCE_INTERVALS_MAX
from penstock.queue import operations
from penstock.queue.explaining import explain_flow_run
from penstock.runtime.serving import tenant_of
from penstock.storage.database import Database
from penstock.wire.checks import Checks, id_of
from penstock.wire.flow_runs import flow_run_to_proto
from penstock.wire.leases import agent_to_proto
from penstock.wire.listing import listing
from penstock.wire.operators import obstacle_to_proto
from penstock.wire.pages import PageTokens, page_of

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class OperatorServicer(OperatorServiceServicer):
    """Shows operators what agents do, and why runs wait."""

    def __init__(self, database: Database, tokens: PageTokens, *, heartbeat_interval: timedelta) -> None:
        self._database = database
        self._tokens = tokens
        # A sign of life may be an interval old when it is stored, and stay stored for another one.
        self._proven_within = heartbeat_interval * SILENCE_INTERVALS_MAX

    async def ListAgents(self, request: pb.ListAgentsRequest, context: Context) -> pb.ListAgentsResponse:
        found = Checks()
        page = page_of(request, found, self._tokens)
        found.done()
        one_more = replace(page, size=page.size + 1)
        agents = await self._database.read(
            operations.list_agents, tenant_of(context), one_more, proven_within=self._proven_within
        )
        shown, token = listing(
            agents, page.size, agent_to_proto, lambda each: (each.last_seen_time, each.agent_id), self._tokens, request
        )
        return pb.ListAgentsResponse(agents=shown, next_page_token=token)

    async def ExplainFlowRun(self, request: pb.ExplainFlowRunRequest, context: Context) -> pb.ExplainFlowRunResponse:
        flow_run_id = FlowRunId(id_of("flow_run_id", request.flow_run_id))
        explained = await self._database.read(
            explain_flow_run, tenant_of(context), flow_run_id, proven_within=self._proven_within
        )
        return pb.ExplainFlowRunResponse(
            obstacles=map(obstacle_to_proto, explained.obstacles),
            flow_run=flow_run_to_proto(explained.run, whole=False),
        )
