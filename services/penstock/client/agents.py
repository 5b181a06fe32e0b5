"""Agents: what they look like to a caller, and how they are listed."""

from dataclasses import dataclass

from pendulum import DateTime

from flowrun.v1 import agent_pb2 as nouns
from flowrun.v1 import operator_service_pb2 as verbs
from penstock.client.calls import Call, Listing, Page, Service
from penstock.wire.times import to_time


@dataclass(frozen=True, slots=True)
class Agent:
    """A process that takes runs and launches them."""

    agent_id: str
    name: str
    labels: tuple[str, ...]
    slots: int
    slots_used: int
    version: str
    healthy: bool
    connect_time: DateTime
    last_seen_time: DateTime


def list_agents(*, page_size: int = 0) -> Listing[Agent]:
    """List agents, the last seen first."""

    def page(token: str) -> Call[Page[Agent]]:
        return Call(
            Service.OPERATOR,
            "ListAgents",
            verbs.ListAgentsRequest(page_size=page_size, page_token=token),
            lambda response: Page([agent_of(each) for each in response.agents], response.next_page_token),
        )

    return Listing(page)


def agent_of(message: nouns.Agent) -> Agent:
    """The agent in a message."""
    return Agent(
        agent_id=message.agent_id,
        name=message.name,
        labels=tuple(message.labels),
        slots=message.slots,
        slots_used=message.slots_used,
        version=message.version,
        healthy=message.healthy,
        connect_time=to_time(message.connect_time),
        last_seen_time=to_time(message.last_seen_time),
    )
