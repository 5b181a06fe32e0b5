"""Why a run is not running, as both clients tell it."""

import pendulum
import pytest

from flowrun.v1 import agent_pb2
from flowrun.v1 import operator_service_pb2 as verbs
from penstock.client import (
    Agentless,
    AgentsBusy,
    Drained,
    LimitReached,
    NoAgent,
    NotDue,
    Obstacle,
    Paused,
)
from penstock.client.explanations import obstacle_of
from tests.client.conftest import Speak
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run


def an_agent(name: str, *labels: str, used: int = 0) -> agent_pb2.Agent:
    return agent_pb2.Agent(agent_id=name, name=name, labels=labels, slots=4, slots_used=used)


def no_agent(*labels: str, nearest: agent_pb2.Agent | None = None, missing: tuple[str, ...] = ()) -> verbs.Obstacle:
    return verbs.Obstacle(no_agent=verbs.NoAgent(labels=labels, nearest=nearest, missing=missing))


def not_due() -> verbs.Obstacle:
    message = verbs.Obstacle()
    message.due_time.FromJsonString("2030-01-01T10:00:00Z")
    return message


def limited(*flow_run_ids: str) -> verbs.Obstacle:
    limit = verbs.ConcurrencyLimit(label="db", slots=2, slots_used=2)
    return verbs.Obstacle(limit_reached=verbs.LimitReached(limit=limit, flow_run_ids=flow_run_ids))


@pytest.mark.parametrize(
    ("message", "kind", "sentence"),
    [
        (not_due(), NotDue, "It is not due before 2030-01-01T10:00:00Z."),
        (no_agent(), NoAgent, "No agent is connected; it needs one without labels."),
        (no_agent("a", "b"), NoAgent, "No agent is connected; it needs one that bears 'a', 'b'."),
        (
            no_agent("a", "b", nearest=an_agent("north", "a"), missing=("b",)),
            NoAgent,
            "No connected agent bears all its labels, 'a', 'b': the nearest, 'north', lacks 'b'.",
        ),
        (
            no_agent(nearest=an_agent("north", "a")),
            NoAgent,
            "Every connected agent bears labels, and it needs one without: the nearest, 'north', bears 'a'.",
        ),
        (
            verbs.Obstacle(agents_busy=verbs.AgentsBusy(agents=[an_agent("north", used=4), an_agent("south", used=4)])),
            AgentsBusy,
            "Every agent that could take it is busy: 'north' (4 of 4 slots), 'south' (4 of 4 slots).",
        ),
        (limited(), LimitReached, "The limit of label 'db' is reached: 2 of 2 slots are taken."),
        (
            limited(*"abcdefg"),
            LimitReached,
            "The limit of label 'db' is reached: 2 of 2 slots are taken, by a, b, c, d, e and 2 more.",
        ),
        (verbs.Obstacle(drain=verbs.Drain(reason="upgrade.")), Drained, "A drain holds back all runs: upgrade."),
        (
            verbs.Obstacle(drain=verbs.Drain(labels=["gpu"])),
            Drained,
            "A drain holds back runs with the labels 'gpu'.",
        ),
        (verbs.Obstacle(pause_reason="audit"), Paused, "Its flow group is paused: audit."),
        (verbs.Obstacle(pause_reason=""), Paused, "Its flow group is paused."),
        (
            verbs.Obstacle(agentless=verbs.Agentless()),
            Agentless,
            "It waits for the one process that executes it without an agent (penstock run --execute).",
        ),
        (
            verbs.Obstacle(),
            Obstacle,
            "The server names a reason that this version of the client has no words for.",
        ),
    ],
)
def test_an_obstacle_is_data_and_a_sentence(message: verbs.Obstacle, kind: type[Obstacle], sentence: str) -> None:
    """Programs tell obstacles apart by class, people read them; one of a later version is no error."""
    found = obstacle_of(message)

    assert kind is type(found)
    assert sentence == str(found)


def test_every_obstacle_of_the_contract_has_a_class() -> None:
    """None of them falls through to the one for later versions."""
    kinds = [field.name for field in verbs.Obstacle.DESCRIPTOR.oneofs_by_name["kind"].fields]

    assert [] == [kind for kind in kinds if type(obstacle_of(_one(kind))) is Obstacle]


async def test_a_run_is_explained(speak: Speak, services: ScriptedServices) -> None:
    """The run comes with everything that keeps it from running, each with what belongs to it."""
    obstacles = [not_due(), no_agent("a", nearest=_connected(), missing=("a",))]
    answer = verbs.ExplainFlowRunResponse(flow_run=a_flow_run(), obstacles=obstacles)
    services.scripts["ExplainFlowRun"] = lambda *_: answer

    found = await speak("explain_flow_run", RUN_ID)

    due, lacking = found.obstacles
    assert [RUN_ID] == [request.flow_run_id for request in services.requests]
    assert RUN_ID == found.flow_run.flow_run_id
    assert pendulum.datetime(2030, 1, 1, 10) == due.due_time
    assert (("a",), ("a",), "north") == (lacking.labels, lacking.missing, lacking.nearest.name)


def _connected() -> agent_pb2.Agent:
    agent = an_agent("north")
    agent.connect_time.FromJsonString("2026-03-01T10:00:00Z")
    return agent


def _one(kind: str) -> verbs.Obstacle:
    message = verbs.Obstacle()
    if kind == "pause_reason":
        message.pause_reason = "x"
    else:
        getattr(message, kind).SetInParent()
    return message
