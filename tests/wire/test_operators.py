"""Tests of `penstock.wire.operators`."""

from penstock.domain.agent import Agent
from penstock.domain.obstacles import Agentless, AgentsBusy, NoAgent, NotDue
from penstock.wire.leases import agent_to_proto
from penstock.wire.operators import obstacle_to_proto
from penstock.wire.pages import PAGE_BYTES_MAX
from tests.domain.builders import AGENT_ID
from tests.support.fake_clock import NOON

MILL = Agent(AGENT_ID, "mill", ("a",), 4, 4, "1.0", True, NOON, NOON)


def test_obstacles() -> None:
    """Each is told as its own kind, whole."""
    due, none, lacking, busy, agentless = map(
        obstacle_to_proto,
        (
            NotDue(NOON),
            NoAgent(("a", "b"), None, ("a", "b")),
            NoAgent(("a", "b"), MILL, ("b",)),
            AgentsBusy((MILL,)),
            Agentless(),
        ),
    )

    assert NOON.timestamp() == due.due_time.seconds
    assert (["a", "b"], ["a", "b"], False) == (
        list(none.no_agent.labels),
        list(none.no_agent.missing),
        none.no_agent.HasField("nearest"),
    )
    assert (agent_to_proto(MILL), ["b"]) == (lacking.no_agent.nearest, list(lacking.no_agent.missing))
    assert [agent_to_proto(MILL)] == list(busy.agents_busy.agents)
    assert "agentless" == agentless.WhichOneof("kind")


def test_very_many_busy_agents() -> None:
    """Of those as many are told as fit into a message."""
    large = Agent(AGENT_ID, "mill", tuple(f"{number:0255}" for number in range(64)), 1, 1, "", True, NOON, NOON)

    message = obstacle_to_proto(AgentsBusy((large,) * 1_000))

    assert 0 < message.ByteSize() <= PAGE_BYTES_MAX * 1.01
