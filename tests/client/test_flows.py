"""Projects, flows and groups, as both clients see them."""

from typing import Any

import pytest

from flowrun.v1 import flow_pb2, project_pb2
from flowrun.v1 import flow_service_pb2 as verbs
from penstock.client import InvalidRequest, ParameterType, RunConfig
from tests.client.conftest import Speak
from tests.client.scripted import ScriptedServices


class AFlow:
    """Something that can be registered."""

    def to_request(self, project: str) -> verbs.RegisterFlowRequest:
        return verbs.RegisterFlowRequest(project_name=project, name="river", labels=["a"])


def the_flow(**fields: Any) -> flow_pb2.Flow:
    flow = flow_pb2.Flow(flow_id="flow", flow_group_id="group", name="river", version=3, **fields)
    flow.create_time.FromJsonString("2026-03-01T10:00:00Z")
    return flow


async def test_a_flow_is_registered_as_it_describes_itself(speak: Speak, services: ScriptedServices) -> None:
    """What a flow says of itself is sent; the project is the caller's."""
    services.scripts["RegisterFlow"] = lambda *_: verbs.RegisterFlowResponse(flow=the_flow(), created=True)

    registered = await speak("register_flow", AFlow(), project="water")

    assert ("flow", 3, True) == (registered.flow_id, registered.version, registered.created)
    assert [AFlow().to_request("water")] == list(services.requests)


async def test_a_flow_is_registered_under_another_name(speak: Speak, services: ScriptedServices) -> None:
    """A name given at registration goes before the flow's own."""
    services.scripts["RegisterFlow"] = lambda *_: verbs.RegisterFlowResponse(flow=the_flow(), created=True)

    await speak("register_flow", AFlow(), project="water", name="stream")

    assert ["stream"] == [request.name for request in services.requests]


async def test_a_flow_shows_what_it_runs_and_takes(speak: Speak, services: ScriptedServices) -> None:
    """A flow comes with its entry point and its declared parameters; a default is parsed."""
    parameters = [
        flow_pb2.Parameter(name="path", type=flow_pb2.PARAMETER_TYPE_STRING, required=True),
        flow_pb2.Parameter(name="rows", type=flow_pb2.PARAMETER_TYPE_INTEGER, default_json="10"),
    ]
    entry_point = flow_pb2.EntryPoint(command=flow_pb2.Command(arguments=["sort", "-u"]))
    flow = the_flow(parameters=parameters, entry_point=entry_point)
    services.scripts["GetFlow"] = lambda *_: verbs.GetFlowResponse(flow=flow)

    found = await speak("get_flow", "flow")

    assert (("sort", "-u"), "") == (found.command, found.python)
    assert [("path", ParameterType.STRING, True, None), ("rows", ParameterType.INTEGER, False, 10)] == [
        (each.name, each.type, each.required, each.default) for each in found.parameters
    ]
    assert found.archive_time is None


async def test_a_flow_is_looked_up_by_id_or_name(speak: Speak, services: ScriptedServices) -> None:
    """A person may mean a flow by its id or by its name and project."""
    services.scripts["LookUpFlow"] = lambda *_: verbs.LookUpFlowResponse(flow=the_flow())

    await speak("look_up_flow", id="flow")
    await speak("look_up_flow", name="river", project="water")

    by_name = verbs.LookUpFlowRequest(name=verbs.FlowName(name="river", project_name="water"))
    assert [verbs.LookUpFlowRequest(id="flow"), by_name] == list(services.requests)


async def test_a_lookup_names_one_thing(speak: Speak) -> None:
    """A lookup by nothing, or by two things, is refused before it is sent."""
    with pytest.raises(InvalidRequest, match="exactly one of id and name"):
        await speak("look_up_flow")
    with pytest.raises(InvalidRequest, match="exactly one of id and name"):
        await speak("look_up_flow", id="flow", name="river")


async def test_flows_are_listed_with_their_filters(speak: Speak, services: ScriptedServices) -> None:
    """Filters of a list reach the server on every page."""
    pages = {
        "": verbs.ListFlowsResponse(flows=[the_flow()], next_page_token="t"),
        "t": verbs.ListFlowsResponse(flows=[the_flow()]),
    }
    services.scripts["ListFlows"] = lambda request, _: pages[request.page_token]

    found = await speak("list_flows", project="water", include_archived=True, page_size=1)

    assert 2 == len(found)
    assert [("water", True, 1)] * 2 == [(r.project_name, r.include_archived, r.page_size) for r in services.requests]


async def test_projects_are_created_and_listed(speak: Speak, services: ScriptedServices) -> None:
    """A project comes back with its id and name."""
    project = project_pb2.Project(project_id="p", name="water")
    services.scripts["CreateProject"] = lambda *_: verbs.CreateProjectResponse(project=project, created=True)
    services.scripts["ListProjects"] = lambda *_: verbs.ListProjectsResponse(projects=[project])

    created = await speak("create_project", "water")
    listed = await speak("list_projects")

    assert [created] == listed
    assert ("p", "water") == (created.project_id, created.name)


async def test_a_group_tells_absent_from_empty(speak: Speak, services: ScriptedServices) -> None:
    """A group without labels of its own differs from one whose labels are none."""
    group = flow_pb2.FlowGroup(flow_group_id="group", default_parameters_json='{"rows": 2}')
    services.scripts["GetFlowGroup"] = lambda *_: verbs.GetFlowGroupResponse(flow_group=group)

    found = await speak("get_flow_group", "group")
    group.labels.SetInParent()
    emptied = await speak("get_flow_group", "group")

    assert (None, ()) == (found.labels, emptied.labels)
    assert {"rows": 2} == found.default_parameters
    assert found.run_config is None


async def test_a_flow_is_registered_in_a_group(speak: Speak, services: ScriptedServices) -> None:
    """A group that is named by its id has a name and a project already; the flow's own name is but a default."""
    services.scripts["RegisterFlow"] = lambda *_: verbs.RegisterFlowResponse(flow=the_flow(), created=True)

    await speak("register_flow", AFlow(), flow_group_id="group")
    await speak("register_flow", AFlow(), flow_group_id="group", project="water", name="stream")

    assert [("group", "", ""), ("group", "water", "stream")] == [
        (request.flow_group_id, request.project_name, request.name) for request in services.requests
    ]


async def test_a_flow_is_registered_somewhere(speak: Speak) -> None:
    """A registration without project and group is refused before it is sent."""
    with pytest.raises(InvalidRequest, match="project: must be given, or flow_group_id in its place"):
        await speak("register_flow", AFlow())


@pytest.mark.parametrize("verb", ["archive_flow", "unarchive_flow"])
async def test_a_flow_is_archived_and_made_live_again(verb: str, speak: Speak, services: ScriptedServices) -> None:
    """The flow comes back as it is then."""
    rpc = "ArchiveFlow" if verb == "archive_flow" else "UnarchiveFlow"
    services.scripts[rpc] = lambda *_: getattr(verbs, f"{rpc}Response")(flow=the_flow())

    found = await speak(verb, "flow")

    assert ["flow"] == [request.flow_id for request in services.requests]
    assert 3 == found.version


async def test_what_is_left_out_of_a_groups_defaults_is_removed(speak: Speak, services: ScriptedServices) -> None:
    """None and an empty value differ: one removes, the other is a default of its own."""
    group = flow_pb2.FlowGroup(flow_group_id="group", default_parameters_json='{"n": 1}')
    group.create_time.FromJsonString("2026-03-01T10:00:00Z")
    services.scripts["UpdateFlowGroup"] = lambda *_: verbs.UpdateFlowGroupResponse(flow_group=group)

    await speak("update_flow_group", "group")
    found = await speak(
        "update_flow_group", "group", default_parameters={}, labels=[], run_config=RunConfig(image="new")
    )

    nothing, everything = services.requests
    assert [] == [field for field in ("default_parameters_json", "labels", "run_config") if nothing.HasField(field)]
    assert ("{}", [], "new") == (
        everything.default_parameters_json,
        list(everything.labels.labels),
        everything.run_config.image,
    )
    assert everything.HasField("labels")
    assert {"n": 1} == found.default_parameters
