"""`penstock get`."""

import json

from flowrun.v1 import agent_pb2, flow_pb2, flow_run_pb2, project_pb2
from flowrun.v1 import flow_run_service_pb2 as run_verbs
from flowrun.v1 import flow_service_pb2 as flow_verbs
from flowrun.v1 import operator_service_pb2 as operator_verbs
from tests.cli.command import penstock
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run


async def test_flow_runs_are_a_table(services: ScriptedServices) -> None:
    """Runs are shown in rows, with names that cannot command the terminal."""
    runs = [a_flow_run(name="\x1b[2Jbad"), a_flow_run(name="other")]
    services.scripts["ListFlowRuns"] = lambda *_: run_verbs.ListFlowRunsResponse(flow_runs=runs)

    shown = await penstock("get", "flow-runs", "--state", "running", "--limit", "7", PENSTOCK_ADDRESS=services.address)

    heading, first, second = shown.out.splitlines()
    assert ["FLOW", "RUN", "ID", "FLOW", "NAME", "STATE", "CREATED"] == heading.split()
    assert [RUN_ID, "river", r"\x1b[2Jbad", "SCHEDULED"] == first.split()[:4]
    assert "other" == second.split()[2]
    (request,) = services.requests
    assert ([flow_run_pb2.FLOW_RUN_STATE_RUNNING], 7) == (list(request.states), request.page_size)


async def test_a_limit_ends_the_list(services: ScriptedServices) -> None:
    """No more pages are asked for than the limit needs."""
    page = run_verbs.ListFlowRunsResponse(flow_runs=[a_flow_run()] * 2, next_page_token="more")
    services.scripts["ListFlowRuns"] = lambda *_: page

    shown = await penstock("get", "flow-runs", "--limit", "3", "--json", PENSTOCK_ADDRESS=services.address)

    assert [RUN_ID] * 3 == [json.loads(line)["flow_run_id"] for line in shown.out.splitlines()]
    assert 2 == len(services.requests)


async def test_a_state_that_does_not_exist_is_misuse(services: ScriptedServices) -> None:
    """A mistyped state is refused by listing those that exist."""
    refused = await penstock("get", "flow-runs", "--state", "runing", PENSTOCK_ADDRESS=services.address)

    assert 2 == refused.code
    assert "There is no state 'runing'; there are SCHEDULED, SUBMITTED, RUNNING" in refused.err


async def test_flows_are_a_table(services: ScriptedServices) -> None:
    """Flows are shown with project, version and labels."""
    flow = flow_pb2.Flow(flow_id="f", project_name="water", name="river", version=3, labels=["a", "b"])
    services.scripts["ListFlows"] = lambda *_: flow_verbs.ListFlowsResponse(flows=[flow])

    shown = await penstock("get", "flows", "--project", "water", PENSTOCK_ADDRESS=services.address)

    assert ["f", "water", "river", "3", "a,", "b"] == shown.out.splitlines()[1].split()[:6]
    assert ["water"] == [request.project_name for request in services.requests]


async def test_agents_are_a_table(services: ScriptedServices) -> None:
    """Agents are shown with what they do and whether they are well."""
    agent = agent_pb2.Agent(agent_id="a", name="north", slots=4, slots_used=1, healthy=True)
    services.scripts["ListAgents"] = lambda *_: operator_verbs.ListAgentsResponse(agents=[agent])

    shown = await penstock("get", "agents", PENSTOCK_ADDRESS=services.address)

    assert ["a", "north", "1", "of", "4", "yes"] == shown.out.splitlines()[1].split()[:6]


async def test_projects_are_a_table(services: ScriptedServices) -> None:
    """Projects are shown with their ids."""
    project = project_pb2.Project(project_id="p", name="water")
    project.create_time.FromJsonString("2026-03-01T10:00:00Z")
    services.scripts["ListProjects"] = lambda *_: flow_verbs.ListProjectsResponse(projects=[project])

    shown = await penstock("get", "projects", PENSTOCK_ADDRESS=services.address, TZ="UTC")

    assert ["p", "water", "2026-03-01", "10:00:00"] == shown.out.splitlines()[1].split()


async def test_one_flow_run_is_a_row_or_a_document(services: ScriptedServices) -> None:
    """One run is shown as in the list, and whole as JSON."""
    services.scripts["GetFlowRun"] = lambda *_: run_verbs.GetFlowRunResponse(flow_run=a_flow_run())

    shown = await penstock("get", "flow-run", RUN_ID, PENSTOCK_ADDRESS=services.address)
    document = json.loads((await penstock("get", "flow-run", RUN_ID, "--json", PENSTOCK_ADDRESS=services.address)).out)

    assert [RUN_ID, "river", "quiet-otter", "SCHEDULED"] == shown.out.splitlines()[1].split()[:4]
    assert 123456789012345678901234567890 == document["parameters"]["big"]
