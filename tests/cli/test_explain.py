"""`penstock explain`."""

import json

import pytest

from flowrun.v1 import agent_pb2, flow_run_pb2
from flowrun.v1 import flow_run_service_pb2 as run_verbs
from flowrun.v1 import operator_service_pb2 as verbs
from tests.cli.command import Finished, penstock
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run


async def explained(
    services: ScriptedServices, run: flow_run_pb2.FlowRun, *obstacles: verbs.Obstacle, options: tuple[str, ...] = ()
) -> Finished:
    """What the command says about a run that is explained so."""
    services.scripts |= {
        "GetFlowRun": lambda *_: run_verbs.GetFlowRunResponse(flow_run=run),
        "ExplainFlowRun": lambda *_: verbs.ExplainFlowRunResponse(flow_run=run, obstacles=obstacles),
    }
    return await penstock("explain", RUN_ID, *options, PENSTOCK_ADDRESS=services.address, TZ="UTC")


def some_obstacles() -> list[verbs.Obstacle]:
    """Two reasons why a run waits."""
    not_due = verbs.Obstacle()
    not_due.due_time.FromJsonString("2026-03-02T10:00:00Z")
    north = agent_pb2.Agent(agent_id="a", name="north", slots=4, slots_used=4)
    return [not_due, verbs.Obstacle(no_agent=verbs.NoAgent(labels=["gpu", "big"], nearest=north, missing=["gpu"]))]


async def test_each_obstacle_is_one_sentence(services: ScriptedServices) -> None:
    """Everything that keeps the run is said, each in a line."""
    shown = await explained(services, a_flow_run(), *some_obstacles())

    assert (0, "") == (shown.code, shown.err)
    assert [
        "It is not due before 2026-03-02T10:00:00Z.",
        "No connected agent bears all its labels, 'gpu', 'big': the nearest, 'north', lacks 'gpu'.",
    ] == shown.out.splitlines()


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (flow_run_pb2.FLOW_RUN_STATE_SCHEDULED, "Nothing keeps it: it is being handed out."),
        (flow_run_pb2.FLOW_RUN_STATE_SUBMITTED, "It was taken, and is about to run."),
        (flow_run_pb2.FLOW_RUN_STATE_RUNNING, "It runs."),
        (flow_run_pb2.FLOW_RUN_STATE_CANCELLING, "It is being stopped."),
        (flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED, "It ended at 2026-03-01 10:00:05: SUCCEEDED."),
        (flow_run_pb2.FLOW_RUN_STATE_CANCELLED, "It ended at 2026-03-01 10:00:05: CANCELLED."),
    ],
)
async def test_without_obstacles_the_state_is_the_answer(
    state: flow_run_pb2.FlowRunState.ValueType, sentence: str, services: ScriptedServices
) -> None:
    """A run that nothing keeps is told by how far it is."""
    run = a_flow_run(state=state)
    if "ended" in sentence:
        run.finish_time.FromJsonString("2026-03-01T10:00:05Z")

    assert f"{sentence}\n" == (await explained(services, run)).out


async def test_programs_get_kinds_and_details(services: ScriptedServices) -> None:
    """One document holds the run and each obstacle with its kind, its sentence and its data."""
    shown = await explained(services, a_flow_run(), *some_obstacles(), options=("--json",))

    document = json.loads(shown.out)
    due, agent = document["obstacles"]
    assert RUN_ID == document["flow_run"]["flow_run_id"]
    assert ("NOT_DUE", "2026-03-02T10:00:00Z") == (due["kind"], due["due_time"])
    assert ("NO_AGENT", ["gpu"], "north") == (agent["kind"], agent["missing"], agent["nearest"]["name"])
    assert agent["message"].startswith("No connected agent")


async def test_why_a_run_waits_again_is_said_too(services: ScriptedServices) -> None:
    """Not due yet is half the answer for a run that could not be started: the other half is why."""
    step = flow_run_pb2.Transition(
        version=3,
        state=flow_run_pb2.FLOW_RUN_STATE_SCHEDULED,
        cause=flow_run_pb2.TRANSITION_CAUSE_RELEASED,
        message="There is no such directory.",
    )
    services.scripts["ListTransitions"] = lambda *_: run_verbs.ListTransitionsResponse(transitions=[step])

    shown = await explained(services, a_flow_run(version=3), *some_obstacles()[:1])

    assert "It was given back: There is no such directory." == shown.out.splitlines()[-1]
