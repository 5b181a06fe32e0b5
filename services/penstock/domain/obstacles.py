"""Why a run that waits is not handed out: every reason at once, by the rules that the take itself follows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pendulum import DateTime

from penstock.domain.agent import Agent
from penstock.domain.flow import Labels
from penstock.domain.lanes import AGENTLESS, may_take, missing_labels


@dataclass(frozen=True, slots=True)
class NotDue:
    """It is not due before this time."""

    due_time: DateTime


@dataclass(frozen=True, slots=True)
class NoAgent:
    """No connected agent may take it. `nearest` is the one that lacks the fewest of its labels, `missing` are those.

    An agent with labels lacks none of a run without any, and may not take it all the same.
    """

    labels: Labels
    nearest: Agent | None
    missing: Labels


@dataclass(frozen=True, slots=True)
class AgentsBusy:
    """Every connected agent that may take it is at work on all its slots."""

    agents: tuple[Agent, ...]


@dataclass(frozen=True, slots=True)
class Agentless:
    """It waits for the one process that executes it without an agent."""


Obstacle: TypeAlias = NotDue | NoAgent | AgentsBusy | Agentless


@dataclass(frozen=True, slots=True)
class Situation:
    """What decides about a run that waits: whether it is due, what its lane asks for, and who is connected."""

    due: bool
    due_time: DateTime
    labels: Labels
    agents: Sequence[Agent]


def obstacles(situation: Situation) -> tuple[Obstacle, ...]:
    """Every reason why the run is not handed out; none when the next take will have it."""
    return (*_of_time(situation), *_of_agents(situation))


def _of_time(situation: Situation) -> Iterator[Obstacle]:
    if not situation.due:
        yield NotDue(situation.due_time)


def _of_agents(situation: Situation) -> Iterator[Obstacle]:
    if AGENTLESS in situation.labels:
        yield Agentless()
        return
    able = tuple(each for each in situation.agents if may_take(frozenset(each.labels), situation.labels))
    if not able:
        nearest = min(situation.agents, key=lambda each: _distance(each, situation.labels), default=None)
        missing = situation.labels if nearest is None else missing_labels(frozenset(nearest.labels), situation.labels)
        yield NoAgent(situation.labels, nearest, missing)
    elif all(each.slots_used >= each.slots for each in able):
        yield AgentsBusy(able)


def _distance(agent: Agent, labels: Labels) -> tuple[int, int, str]:
    """How far an agent is from being one that may take a run: it lacks labels, else it bears too many."""
    return len(missing_labels(frozenset(agent.labels), labels)), len(agent.labels), str(agent.agent_id)
