"""Agents, as both clients see them."""

import pendulum

from flowrun.v1 import agent_pb2
from flowrun.v1 import operator_service_pb2 as verbs
from tests.client.conftest import Speak
from tests.client.scripted import ScriptedServices


async def test_agents_are_listed(speak: Speak, services: ScriptedServices) -> None:
    """An agent comes with its labels, slots and when it was last heard of."""
    agent = agent_pb2.Agent(agent_id="a", name="north", labels=["x"], slots=4, slots_used=1, healthy=True)
    agent.last_seen_time.FromJsonString("2026-03-01T10:00:00Z")
    services.scripts["ListAgents"] = lambda *_: verbs.ListAgentsResponse(agents=[agent])

    (found,) = await speak("list_agents")

    assert ("north", ("x",), 4, 1, True) == (found.name, found.labels, found.slots, found.slots_used, found.healthy)
    assert pendulum.datetime(2026, 3, 1, 10) == found.last_seen_time
