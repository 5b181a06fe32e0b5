"""`penstock describe`: golden text of a run and of a flow."""

import json
from typing import Any

import pytest

from flowrun.v1 import agent_pb2, flow_pb2, flow_run_pb2
from flowrun.v1 import flow_run_service_pb2 as run_verbs
from flowrun.v1 import flow_service_pb2 as flow_verbs
from flowrun.v1 import operator_service_pb2 as operator_verbs
from penstock.domain.errors import FlowRunNotFound, NoLiveFlow
from tests.cli.command import Finished, penstock
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run

FLOW_ID = "00000000-0000-0000-0000-0000000000f1"
GROUP_ID = "00000000-0000-0000-0000-0000000000f0"
PARENT_ID = "00000000-0000-0000-0000-0000000000aa"
CHILD_ID = "00000000-0000-0000-0000-0000000000c0"

WHOLE_RUN = f"""\
Flow run quiet-otter FAILED
  id                {RUN_ID}
  flow              river, version 3, in project water ({FLOW_ID})
  attempt           2
  labels            big, linux
  created           2026-03-01 10:00:00
  due               2026-03-01 10:00:00
  started           2026-03-01 10:00:07
  ended             2026-03-01 10:00:08
  idempotency key   nightly
  parent            old-heron of flow basin ({PARENT_ID})
  trace id          0af7651916cd43dd8448eb211c80319c
  policy            priority 5; retries 1, each 90 s after a failure; restarts when an agent is lost 3; \
log level DEBUG; with its parent ABANDON
Parameters:
  big               123456789012345678901234567890
  small             1.50
Context:
  why               "nightly"
Run config:
  working directory /data
  needs cpu         500m
  sets LEVEL        "high"
Failure: ValueError: no water
  File "river.py", line 1
  ValueError: no \\x1b[2Jwater
History:
  TIME                 STATE      CAUSE     ATTEMPT  AGENT    MESSAGE
  2026-03-01 10:00:01  SCHEDULED  CREATED   1
  2026-03-01 10:00:02  RUNNING    STARTED   1        north
  2026-03-01 10:00:03  SCHEDULED  RETRIED   2        agent-2  no water
  2026-03-01 10:00:04  FAILED     FINISHED  2        north
Children: 25, of which the latest 20:
  FLOW RUN ID                           FLOW   NAME         STATE
""" + "\n".join(f"  {CHILD_ID}  brook  quiet-otter  SUCCEEDED" for _ in range(20))

WHOLE_FLOW = f"""\
Flow river, version 3, live
  id                {FLOW_ID}
  group             {GROUP_ID}
  project           water
  entry point       /flows/river.py:river
  labels            big, linux
  registered        2026-03-01 10:00:00
  policy            priority 0; retries 0; restarts when an agent is lost 0; log level INFO; with its parent CANCEL
Description:
  Measures.
  Twice.
Parameters:
  NAME   TYPE     DEFAULT     DESCRIPTION
  day    string   (required)
  times  integer  2           how often
  other  any      null
Any other parameter is taken too.
Parameters by default of the group:
  times             7
Labels by default of the group: none
Versions:
  FLOW ID                               VERSION  REGISTERED           ARCHIVED
  {FLOW_ID}  3        2026-03-01 10:00:00  live
  older                                 2        2026-03-01 10:00:00  2026-03-02 10:00:00"""


def stripped(text: str) -> str:
    """The text without the spaces that fill a table's rows."""
    return "\n".join(line.rstrip() for line in text.splitlines())


async def described(services: ScriptedServices, *args: str) -> Finished:
    """What `penstock describe` prints, by a clock in UTC."""
    return await penstock("describe", *args, PENSTOCK_ADDRESS=services.address, TZ="UTC")


@pytest.fixture
def known_run(services: ScriptedServices) -> ScriptedServices:
    """Services that know a run of which everything there is is set."""
    run = a_flow_run(
        flow_id=FLOW_ID,
        state=flow_run_pb2.FLOW_RUN_STATE_FAILED,
        attempt=2,
        version=4,
        labels=["big", "linux"],
        idempotency_key="nightly",
        parent_flow_run_id=PARENT_ID,
        trace_context={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        run_config=flow_run_pb2.RunConfig(
            environment={"LEVEL": '"high"'}, working_directory="/data", resources={"cpu": "500m"}
        ),
        policy=a_policy(priority=5, max_retries=1, max_lost_restarts=3, log_level=1, child_policy=2),
        failure=flow_run_pb2.Failure(
            type="ValueError", message="no water", traceback='File "river.py", line 1\nValueError: no \x1b[2Jwater\n'
        ),
    )
    run.context_json = '{"why": "nightly"}'
    run.policy.retry_delay.FromSeconds(90)
    run.start_time.FromJsonString("2026-03-01T10:00:07Z")
    run.finish_time.FromJsonString("2026-03-01T10:00:08Z")
    parent = a_flow_run(flow_run_id=PARENT_ID, name="old-heron", flow_name="basin")
    by_id = {RUN_ID: run, PARENT_ID: parent}
    child = a_flow_run(flow_run_id=CHILD_ID, flow_name="brook", state=flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED)
    steps = [
        a_transition(1, flow_run_pb2.FLOW_RUN_STATE_SCHEDULED, flow_run_pb2.TRANSITION_CAUSE_CREATED, 1),
        a_transition(2, flow_run_pb2.FLOW_RUN_STATE_RUNNING, flow_run_pb2.TRANSITION_CAUSE_STARTED, 1, "agent-1"),
        a_transition(3, flow_run_pb2.FLOW_RUN_STATE_SCHEDULED, flow_run_pb2.TRANSITION_CAUSE_RETRIED, 2, "agent-2"),
        a_transition(4, flow_run_pb2.FLOW_RUN_STATE_FAILED, flow_run_pb2.TRANSITION_CAUSE_FINISHED, 2, "agent-1"),
    ]
    steps[2].message = "no water"
    agents = [agent_pb2.Agent(agent_id="agent-1", name="north"), agent_pb2.Agent(agent_id="agent-9", name="south")]
    services.scripts |= {
        "GetFlowRun": lambda request, _: run_verbs.GetFlowRunResponse(flow_run=by_id[request.flow_run_id]),
        "GetFlow": lambda *_: flow_verbs.GetFlowResponse(flow=a_flow()),
        "ListFlowRuns": lambda *_: run_verbs.ListFlowRunsResponse(flow_runs=[child] * 25),
        "ListTransitions": lambda *_: run_verbs.ListTransitionsResponse(transitions=steps),
        "ListAgents": lambda *_: operator_verbs.ListAgentsResponse(agents=agents),
    }
    return services


async def test_everything_about_a_run_is_shown(known_run: ScriptedServices) -> None:
    """Each thing that is known has its line, digits stay as written, and nothing can command the terminal."""
    shown = await described(known_run, "flow-run", RUN_ID)

    assert (0, "") == (shown.code, shown.err)
    assert WHOLE_RUN == stripped(shown.out)


async def test_everything_about_a_run_is_one_document(known_run: ScriptedServices) -> None:
    """A program gets the run, its flow, parent, children, transitions, agents and trace in one line."""
    shown = await described(known_run, "flow-run", RUN_ID, "--json")

    (line,) = shown.out.splitlines()
    document: dict[str, Any] = json.loads(line)
    assert 123456789012345678901234567890 == document["flow_run"]["parameters"]["big"]
    assert ("river", 3) == (document["flow"]["name"], document["flow"]["version"])
    assert "old-heron" == document["parent"]["name"]
    assert (20, 25) == (len(document["children"]), document["child_count"])
    assert [1, 2, 3, 4] == [step["version"] for step in document["transitions"]]
    assert ["north"] == [agent["name"] for agent in document["agents"]]
    assert "0af7651916cd43dd8448eb211c80319c" == document["trace_id"]


async def test_what_there_is_not_has_no_line(services: ScriptedServices) -> None:
    """A fresh run without extras is short; its deleted parent is still named by its id, and no agent is asked for."""
    fresh = a_flow_run(flow_id=FLOW_ID, policy=a_policy(), parent_flow_run_id=PARENT_ID, parameters_json="{}")

    def get(request: Any, _: Any) -> run_verbs.GetFlowRunResponse:
        if request.flow_run_id == PARENT_ID:
            raise FlowRunNotFound(PARENT_ID)
        return run_verbs.GetFlowRunResponse(flow_run=fresh)

    services.scripts |= {
        "GetFlowRun": get,
        "GetFlow": lambda *_: flow_verbs.GetFlowResponse(flow=a_flow()),
        "ListFlowRuns": lambda *_: run_verbs.ListFlowRunsResponse(),
        "ListTransitions": lambda *_: run_verbs.ListTransitionsResponse(),
    }

    shown = await described(services, "flow-run", RUN_ID)

    assert 0 == shown.code
    assert ["Flow", "id", "flow", "attempt", "created", "due", "parent", "policy", "History:", "TIME"] == [
        line.split()[0] for line in shown.out.splitlines()
    ]
    assert f"  parent            {PARENT_ID}" in shown.out.splitlines()


async def test_a_run_is_described_without_the_queue_service(known_run: ScriptedServices) -> None:
    """Names of agents are an extra: without them their ids are shown."""
    del known_run.scripts["ListAgents"]

    shown = await described(known_run, "flow-run", RUN_ID)

    assert 0 == shown.code
    assert "agent-1" in shown.out


@pytest.fixture
def known_flow(services: ScriptedServices) -> ScriptedServices:
    """Services that know a flow of two versions and its group."""
    flow, group = a_flow(), flow_pb2.FlowGroup(flow_group_id=GROUP_ID, live_flow_id=FLOW_ID)
    group.default_parameters_json = '{"times": 7}'
    group.labels.SetInParent()
    older = flow_pb2.Flow(flow_id="older", version=2, create_time=flow.create_time)
    older.archive_time.FromJsonString("2026-03-02T10:00:00Z")
    services.scripts |= {
        "LookUpFlow": lambda *_: flow_verbs.LookUpFlowResponse(flow=flow),
        "GetFlowGroup": lambda *_: flow_verbs.GetFlowGroupResponse(flow_group=group),
        "ListFlows": lambda *_: flow_verbs.ListFlowsResponse(flows=[flow, older]),
    }
    return services


@pytest.mark.parametrize("named", [["river", "--project", "water"], [FLOW_ID]], ids=["by name", "by id"])
async def test_everything_about_a_flow_is_shown(named: list[str], known_flow: ScriptedServices) -> None:
    """Parameters with types and defaults, what the group says, and the versions."""
    shown = await described(known_flow, "flow", *named)

    assert (0, "") == (shown.code, shown.err)
    assert WHOLE_FLOW == stripped(shown.out)
    asked = known_flow.requests[0]
    assert (FLOW_ID if named == [FLOW_ID] else "river") in (asked.id, asked.name.name)


async def test_everything_about_a_flow_is_one_document(known_flow: ScriptedServices) -> None:
    """A program gets the version, the group and the versions in one line."""
    document = json.loads((await described(known_flow, "flow", "river", "--json")).out)

    assert {"times": 7} == document["flow_group"]["default_parameters"]
    assert [3, 2] == [each["version"] for each in document["versions"]]
    assert ["day", "times", "other"] == [each["name"] for each in document["flow"]["parameters"]]


async def test_a_name_without_a_live_version_means_the_latest(known_flow: ScriptedServices) -> None:
    """A flow that was archived can still be looked at by its name."""

    def refuse(*_: object) -> None:
        raise NoLiveFlow(GROUP_ID)

    known_flow.scripts["LookUpFlow"] = refuse

    shown = await described(known_flow, "flow", "river")

    assert 0 == shown.code
    assert [GROUP_ID] == [each.flow_group_id for each in list(known_flow.requests)[1:2]]


def a_policy(**fields: Any) -> flow_run_pb2.FlowRunPolicy:
    """A policy as a server answers it, with every field set."""
    policy = flow_run_pb2.FlowRunPolicy(
        priority=0, max_retries=0, max_lost_restarts=0, log_level=2, child_policy=flow_run_pb2.CHILD_POLICY_CANCEL
    )
    policy.retry_delay.SetInParent()
    policy.MergeFrom(flow_run_pb2.FlowRunPolicy(**fields))
    return policy


def a_flow() -> flow_pb2.Flow:
    """A version of a flow, with parameters of every kind."""
    flow = flow_pb2.Flow(
        flow_id=FLOW_ID,
        flow_group_id=GROUP_ID,
        project_name="water",
        name="river",
        version=3,
        entry_point=flow_pb2.EntryPoint(python="/flows/river.py:river"),
        parameters=[
            flow_pb2.Parameter(name="day", type=flow_pb2.PARAMETER_TYPE_STRING, required=True),
            flow_pb2.Parameter(
                name="times", type=flow_pb2.PARAMETER_TYPE_INTEGER, default_json="2", description="how often"
            ),
            flow_pb2.Parameter(name="other", default_json="null"),
        ],
        accepts_extra_parameters=True,
        labels=["big", "linux"],
        policy=a_policy(),
        description="Measures.\nTwice.",
    )
    flow.create_time.FromJsonString("2026-03-01T10:00:00Z")
    return flow


def a_transition(version: int, state: int, cause: int, attempt: int, agent_id: str = "") -> flow_run_pb2.Transition:
    """A step of a run."""
    step = flow_run_pb2.Transition(version=version, attempt=attempt, agent_id=agent_id)
    step.state = flow_run_pb2.FlowRunState.ValueType(state)
    step.cause = flow_run_pb2.TransitionCause.ValueType(cause)
    step.create_time.FromJsonString(f"2026-03-01T10:00:{version:02}Z")
    return step
