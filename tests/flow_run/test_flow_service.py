"""FlowService over a real socket, on both databases."""

from typing import Any
from uuid import UUID

import grpc

from flowrun.v1 import flow_pb2, flow_run_pb2
from flowrun.v1 import flow_run_service_pb2 as run_pb
from flowrun.v1 import flow_service_pb2 as pb
from penstock.domain.errors import Violation
from penstock.storage.database import Database
from tests.flow_run.served import refused, serving
from tests.queue.scenes import SECOND
from tests.support.fake_clock import FakeClock

NOBODY = str(UUID(int=1))


def registration(**fields: Any) -> pb.RegisterFlowRequest:
    defaults: dict[str, Any] = {
        "project_name": "water",
        "name": "levels",
        "entry_point": flow_pb2.EntryPoint(python="levels.py:main"),
        "parameters": [flow_pb2.Parameter(name="n", default_json="1.50")],
    }
    return pb.RegisterFlowRequest(**(defaults | fields))


async def test_a_flow_is_registered_and_found(database: Database) -> None:
    """Once; unchanged it stays, changed it gets a version; it is got, looked up and listed as it was registered."""
    async with serving(database) as process:
        flows = process.flows
        first = await flows.RegisterFlow(registration())
        same = await flows.RegisterFlow(registration())
        second = await flows.RegisterFlow(registration(description="better"))
        got = await flows.GetFlow(pb.GetFlowRequest(flow_id=first.flow.flow_id))
        by_name = await flows.LookUpFlow(pb.LookUpFlowRequest(name=pb.FlowName(name="levels")))
        group = await flows.GetFlowGroup(pb.GetFlowGroupRequest(flow_group_id=first.flow.flow_group_id))
        listed = await flows.ListFlows(pb.ListFlowsRequest(project_name="water"))

    assert [True, False, True] == [first.created, same.created, second.created]
    assert first.flow == same.flow
    assert [1, 2] == [first.flow.version, second.flow.version]
    assert "1.50" == first.flow.parameters[0].default_json
    assert got.flow.HasField("archive_time")
    assert second.flow == by_name.flow
    assert (second.flow.flow_id, 2) == (group.flow_group.live_flow_id, group.flow_group.latest_version)
    assert [second.flow] == list(listed.flows)


async def test_lists_go_on_from_page_to_page(database: Database, clock: FakeClock) -> None:
    """Flows, newest first, and projects, oldest first, over three pages each."""
    async with serving(database) as process:
        for number in range(5):
            await process.flows.RegisterFlow(registration(project_name=f"p{number}"))
            clock.advance(SECOND * (number % 2))
        names: list[str] = []
        request = pb.ListFlowsRequest(page_size=2)
        while not names or request.page_token:
            page = await process.flows.ListFlows(request)
            names += [each.project_id for each in page.flows]
            request.page_token = page.next_page_token
        projects: list[str] = []
        asked = pb.ListProjectsRequest(page_size=2)
        while not projects or asked.page_token:
            shown = await process.flows.ListProjects(asked)
            projects += [each.project_id for each in shown.projects]
            asked.page_token = shown.next_page_token

    assert 5 == len(set(projects)) == len(projects)
    assert sorted(projects) == sorted(names)


async def test_a_project_is_made_once(database: Database) -> None:
    """A repeat answers with the first."""
    async with serving(database) as process:
        first, again = [await process.flows.CreateProject(pb.CreateProjectRequest(name="p")) for _ in range(2)]

    assert (True, False) == (first.created, again.created)
    assert first.project == again.project


async def test_refusals_are_named(database: Database) -> None:
    """Code, reason and about what; everything wrong with a registration at once."""
    async with serving(database) as process:
        flows = process.flows
        for project in ("one", "two"):
            await flows.RegisterFlow(registration(project_name=project))
        refusals = [
            await refused(flows.GetFlow(pb.GetFlowRequest(flow_id=NOBODY))),
            await refused(flows.GetFlowGroup(pb.GetFlowGroupRequest(flow_group_id=NOBODY))),
            await refused(flows.LookUpFlow(pb.LookUpFlowRequest(id=NOBODY))),
            await refused(flows.LookUpFlow(pb.LookUpFlowRequest(name=pb.FlowName(name="levels")))),
            await refused(flows.ListFlows(pb.ListFlowsRequest(page_token="x"))),
            await refused(flows.RegisterFlow(pb.RegisterFlowRequest(name=" "))),
        ]

    assert [
        (grpc.StatusCode.NOT_FOUND, "FLOW_NOT_FOUND"),
        (grpc.StatusCode.NOT_FOUND, "FLOW_GROUP_NOT_FOUND"),
        (grpc.StatusCode.NOT_FOUND, "FLOW_NOT_FOUND"),
        (grpc.StatusCode.FAILED_PRECONDITION, "FLOW_NAME_AMBIGUOUS"),
        (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID"),
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ] == [(each.code, each.reason) for each in refusals]
    assert {"name": "levels", "projects": "one, two"} == refusals[3].metadata
    assert {"project_name", "name", "entry_point"} == {each.field for each in refusals[5].violations}


async def test_a_flow_is_archived_and_made_live_again(database: Database) -> None:
    """Each answers with the flow as it is then, again and again; without a live flow nothing is looked up."""
    async with serving(database) as process:
        flows = process.flows
        first = (await flows.RegisterFlow(registration())).flow
        second = (await flows.RegisterFlow(registration(description="better"))).flow
        archived = [await flows.ArchiveFlow(pb.ArchiveFlowRequest(flow_id=second.flow_id)) for _ in range(2)]
        none = await refused(flows.LookUpFlow(pb.LookUpFlowRequest(id=first.flow_group_id)))
        live = [await flows.UnarchiveFlow(pb.UnarchiveFlowRequest(flow_id=first.flow_id)) for _ in range(2)]
        found = await flows.LookUpFlow(pb.LookUpFlowRequest(id=first.flow_group_id))

    assert archived[0] == archived[1]
    assert archived[0].flow.HasField("archive_time")
    assert (grpc.StatusCode.FAILED_PRECONDITION, "NO_LIVE_FLOW") == (none.code, none.reason)
    assert f"{second.flow_id}, {first.flow_id}" == none.metadata["archived"]
    assert [first, first] == [each.flow for each in live]
    assert first == found.flow


async def test_a_flow_is_registered_into_a_group(database: Database) -> None:
    """By its id alone; other names than the group's are violations that name the group's."""
    async with serving(database) as process:
        flows = process.flows
        first = (await flows.RegisterFlow(registration())).flow
        asked = registration(project_name="", name="", description="better", flow_group_id=first.flow_group_id)
        second, again = [await flows.RegisterFlow(asked) for _ in range(2)]
        asked.name = "other"
        other = await refused(flows.RegisterFlow(asked))
        asked.flow_group_id = NOBODY
        nobody = await refused(flows.RegisterFlow(asked))

    assert (True, False, 2, "water", "levels") == (
        second.created,
        again.created,
        second.flow.version,
        second.flow.project_name,
        second.flow.name,
    )
    assert [Violation("name", "is 'other', but the flow group's is 'levels'; leave it out")] == list(other.violations)
    assert (grpc.StatusCode.NOT_FOUND, "FLOW_GROUP_NOT_FOUND") == (nobody.code, nobody.reason)


async def test_the_defaults_of_a_group_are_replaced(database: Database) -> None:
    """All that the request holds, and nothing else, goes before what the flow says."""
    async with serving(database) as process:
        flows = process.flows
        flow = (await flows.RegisterFlow(registration(labels=["flow"]))).flow
        asked = pb.UpdateFlowGroupRequest(
            flow_group_id=flow.flow_group_id, default_parameters_json='{"n": 2.50}', labels=flow_run_pb2.Labels()
        )
        full = (await flows.UpdateFlowGroup(asked)).flow_group
        got = (await flows.GetFlowGroup(pb.GetFlowGroupRequest(flow_group_id=flow.flow_group_id))).flow_group
        run = await process.flow_runs.CreateFlowRun(
            run_pb.CreateFlowRunRequest(flow_group_id=flow.flow_group_id, name="mine")
        )
        bare = pb.UpdateFlowGroupRequest(flow_group_id=flow.flow_group_id)
        bared = (await flows.UpdateFlowGroup(bare)).flow_group

    assert full == got
    assert ('{"n":2.50}', True, False) == (
        full.default_parameters_json,
        full.HasField("labels"),
        full.HasField("run_config"),
    )
    assert ('{"n":2.50}', []) == (run.flow_run.parameters_json, list(run.flow_run.labels))
    assert not [name for name in ("default_parameters_json", "labels", "run_config") if bared.HasField(name)]


async def test_unknown_flows_and_groups_are_refused_by_name(database: Database) -> None:
    """Each change of one that does not exist."""
    async with serving(database) as process:
        flows = process.flows
        refusals = [
            await refused(flows.ArchiveFlow(pb.ArchiveFlowRequest(flow_id=NOBODY))),
            await refused(flows.UnarchiveFlow(pb.UnarchiveFlowRequest(flow_id=NOBODY))),
            await refused(flows.UpdateFlowGroup(pb.UpdateFlowGroupRequest(flow_group_id=NOBODY))),
        ]

    assert ["FLOW_NOT_FOUND", "FLOW_NOT_FOUND", "FLOW_GROUP_NOT_FOUND"] == [each.reason for each in refusals]
    assert {grpc.StatusCode.NOT_FOUND} == {each.code for each in refusals}
