"""FlowService: reads the request, calls one operation, writes the answer."""

from dataclasses import replace
from typing import Any, TypeAlias

import grpc

from flowrun.v1 import flow_service_pb2 as pb
from flowrun.v1.flow_service_pb2_grpc import FlowServiceServicer
from penstock.domain.ids import FlowGroupId, FlowId, ProjectId
from penstock.flow_run import flow_operations as operations
from penstock.flow_run.flow_operations import FreshIds
from penstock.runtime.drawing import Drawing
from penstock.runtime.serving import tenant_of
from penstock.storage.database import Database
from penstock.wire import checks
from penstock.wire import flows as wire
from penstock.wire.checks import Checks
from penstock.wire.listing import listing
from penstock.wire.pages import PageTokens, page_of

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]


class FlowServicer(FlowServiceServicer):
    """Serves flows, flow groups and projects."""

    def __init__(self, database: Database, tokens: PageTokens, drawing: Drawing) -> None:
        self._database = database
        self._tokens = tokens
        self._drawing = drawing

    async def CreateProject(self, request: pb.CreateProjectRequest, context: Context) -> pb.CreateProjectResponse:
        name, fresh = wire.project_name_of(request), ProjectId(self._drawing.id())
        project, created = await self._database.run(operations.create_project, tenant_of(context), fresh, name)
        return pb.CreateProjectResponse(project=wire.project_to_proto(project), created=created)

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsResponse:
        found = Checks()
        page = page_of(request, found, self._tokens)
        found.done()
        one_more = replace(page, size=page.size + 1)
        projects = await self._database.read(operations.list_projects, tenant_of(context), one_more)
        shown, token = listing(
            projects, page.size, wire.project_to_proto, lambda each: (each.create_time, each.id), self._tokens, request
        )
        return pb.ListProjectsResponse(projects=shown, next_page_token=token)

    async def RegisterFlow(self, request: pb.RegisterFlowRequest, context: Context) -> pb.RegisterFlowResponse:
        registration, group_id = wire.registering_of(request)
        draw = self._drawing.id
        fresh = FreshIds(ProjectId(draw()), FlowGroupId(draw()), FlowId(draw()))
        flow, created = await self._database.run(
            operations.register_flow, tenant_of(context), fresh, registration, group_id
        )
        return pb.RegisterFlowResponse(flow=wire.flow_to_proto(flow), created=created)

    async def GetFlow(self, request: pb.GetFlowRequest, context: Context) -> pb.GetFlowResponse:
        flow_id = FlowId(checks.id_of("flow_id", request.flow_id))
        flow = await self._database.read(operations.get_flow, tenant_of(context), flow_id)
        return pb.GetFlowResponse(flow=wire.flow_to_proto(flow))

    async def LookUpFlow(self, request: pb.LookUpFlowRequest, context: Context) -> pb.LookUpFlowResponse:
        reference = wire.reference_of(request)
        flow = await self._database.read(operations.look_up_flow, tenant_of(context), reference)
        return pb.LookUpFlowResponse(flow=wire.flow_to_proto(flow))

    async def ListFlows(self, request: pb.ListFlowsRequest, context: Context) -> pb.ListFlowsResponse:
        found = Checks()
        wanted = wire.flow_filter_of(request, found)
        page = page_of(request, found, self._tokens)
        found.done()
        one_more = replace(page, size=page.size + 1)
        flows = await self._database.read(operations.list_flows, tenant_of(context), wanted, one_more)
        shown, token = listing(
            flows, page.size, wire.flow_to_proto, lambda each: (each.create_time, each.id), self._tokens, request
        )
        return pb.ListFlowsResponse(flows=shown, next_page_token=token)

    async def ArchiveFlow(self, request: pb.ArchiveFlowRequest, context: Context) -> pb.ArchiveFlowResponse:
        flow_id = FlowId(checks.id_of("flow_id", request.flow_id))
        flow = await self._database.run(operations.archive_flow, tenant_of(context), flow_id)
        return pb.ArchiveFlowResponse(flow=wire.flow_to_proto(flow))

    async def UnarchiveFlow(self, request: pb.UnarchiveFlowRequest, context: Context) -> pb.UnarchiveFlowResponse:
        flow_id = FlowId(checks.id_of("flow_id", request.flow_id))
        flow = await self._database.run(operations.unarchive_flow, tenant_of(context), flow_id)
        return pb.UnarchiveFlowResponse(flow=wire.flow_to_proto(flow))

    async def GetFlowGroup(self, request: pb.GetFlowGroupRequest, context: Context) -> pb.GetFlowGroupResponse:
        group_id = FlowGroupId(checks.id_of("flow_group_id", request.flow_group_id))
        group = await self._database.read(operations.get_flow_group, tenant_of(context), group_id)
        return pb.GetFlowGroupResponse(flow_group=wire.group_to_proto(group))

    async def UpdateFlowGroup(self, request: pb.UpdateFlowGroupRequest, context: Context) -> pb.UpdateFlowGroupResponse:
        group_id, defaults = wire.group_defaults_of(request)
        group = await self._database.run(operations.update_flow_group, tenant_of(context), group_id, defaults)
        return pb.UpdateFlowGroupResponse(flow_group=wire.group_to_proto(group))
