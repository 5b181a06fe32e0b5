"""Why a run is not running: each obstacle as data, and in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pendulum import DateTime

from flowrun.v1 import operator_service_pb2 as verbs
from penstock.client.agents import Agent, agent_of
from penstock.client.calls import Call, Service
from penstock.client.flow_runs import FlowRun, flow_run_of
from penstock.wire.times import to_time

_NAMED_MAX = 5


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One reason why a run is not running. Told apart by class; as text it is a sentence."""

    def __str__(self) -> str:
        return "The server names a reason that this version of the client has no words for."


@dataclass(frozen=True, slots=True)
class NotDue(Obstacle):
    """It is not due yet."""

    due_time: DateTime

    def __str__(self) -> str:
        return f"It is not due before {self.due_time.to_iso8601_string()}."


@dataclass(frozen=True, slots=True)
class NoAgent(Obstacle):
    """No connected agent bears its labels; the nearest lacks the fewest of them."""

    labels: tuple[str, ...]
    nearest: Agent | None
    missing: tuple[str, ...]

    def __str__(self) -> str:
        if self.nearest is None:
            return f"No agent is connected; it needs {_an_agent_with(self.labels)}."
        nearest = f"the nearest, {self.nearest.name!r},"
        if not self.labels:
            borne = _quoted(self.nearest.labels)
            return f"Every connected agent bears labels, and it needs one without: {nearest} bears {borne}."
        return (
            f"No connected agent bears all its labels, {_quoted(self.labels)}: {nearest} lacks {_quoted(self.missing)}."
        )


@dataclass(frozen=True, slots=True)
class AgentsBusy(Obstacle):
    """Every agent that bears its labels is at work on all its slots."""

    agents: tuple[Agent, ...]

    def __str__(self) -> str:
        busy = [f"{agent.name!r} ({agent.slots_used} of {agent.slots} slots)" for agent in self.agents]
        return f"Every agent that could take it is busy: {_some(busy)}."


@dataclass(frozen=True, slots=True)
class LimitReached(Obstacle):
    """As many runs with one of its labels are leased as a concurrency limit allows."""

    label: str
    slots: int
    slots_used: int
    flow_run_ids: tuple[str, ...]

    def __str__(self) -> str:
        holders = f", by {_some(self.flow_run_ids)}" if self.flow_run_ids else ""
        return (
            f"The limit of label {self.label!r} is reached: {self.slots_used} of {self.slots} slots are taken{holders}."
        )


@dataclass(frozen=True, slots=True)
class Drained(Obstacle):
    """A drain of runs with these labels holds it back; one without labels holds back all runs."""

    drain_id: str
    labels: tuple[str, ...]
    reason: str
    create_time: DateTime

    def __str__(self) -> str:
        whose = f"runs with the labels {_quoted(self.labels)}" if self.labels else "all runs"
        return f"A drain holds back {whose}{_because(self.reason)}"


@dataclass(frozen=True, slots=True)
class Paused(Obstacle):
    """Its flow group is paused."""

    reason: str

    def __str__(self) -> str:
        return f"Its flow group is paused{_because(self.reason)}"


@dataclass(frozen=True, slots=True)
class Agentless(Obstacle):
    """It is for one process, which executes it without an agent."""

    def __str__(self) -> str:
        return "It waits for the one process that executes it without an agent (penstock run --execute)."


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a run is not running. Without obstacles it runs, has ended, or is just being handed out."""

    flow_run: FlowRun
    obstacles: tuple[Obstacle, ...]


def explain_flow_run(flow_run_id: str) -> Call[Explanation]:
    """Tell every reason why a run is not running, by the rules that the queue itself follows."""
    request = verbs.ExplainFlowRunRequest(flow_run_id=flow_run_id)
    return Call(Service.OPERATOR, "ExplainFlowRun", request, _explained)


def _explained(response: verbs.ExplainFlowRunResponse) -> Explanation:
    return Explanation(flow_run_of(response.flow_run), tuple(map(obstacle_of, response.obstacles)))


def obstacle_of(message: verbs.Obstacle) -> Obstacle:
    """The obstacle in a message; a bare `Obstacle` for one of a later version."""
    kind = message.WhichOneof("kind")
    return Obstacle() if kind is None else _OBSTACLES[kind](getattr(message, kind))


def _no_agent_of(message: verbs.NoAgent) -> NoAgent:
    nearest = agent_of(message.nearest) if message.HasField("nearest") else None
    return NoAgent(tuple(message.labels), nearest, tuple(message.missing))


def _limit_of(message: verbs.LimitReached) -> LimitReached:
    limit = message.limit
    return LimitReached(limit.label, limit.slots, limit.slots_used, tuple(message.flow_run_ids))


def _drain_of(message: verbs.Drain) -> Drained:
    return Drained(message.drain_id, tuple(message.labels), message.reason, to_time(message.create_time))


_OBSTACLES: dict[str, Any] = {
    "due_time": lambda message: NotDue(to_time(message)),
    "no_agent": _no_agent_of,
    "agents_busy": lambda message: AgentsBusy(tuple(map(agent_of, message.agents))),
    "limit_reached": _limit_of,
    "drain": _drain_of,
    "pause_reason": Paused,
    "agentless": lambda _: Agentless(),
}


def _an_agent_with(labels: Sequence[str]) -> str:
    return f"one that bears {_quoted(labels)}" if labels else "one without labels"


def _because(reason: str) -> str:
    return f": {reason.rstrip('.')}." if reason else "."


def _quoted(texts: Sequence[str]) -> str:
    return _some([repr(text) for text in texts])


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED_MAX
    return ", ".join(texts[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
