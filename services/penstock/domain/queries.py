"""What a reader asks for: which flows, runs and lines, and which page of them."""

from dataclasses import dataclass
from typing import TypeAlias
from uuid import UUID

from pendulum import DateTime

from penstock.domain.ids import FlowGroupId, FlowId, FlowRunId
from penstock.domain.log import LogLevel
from penstock.domain.state import State


@dataclass(frozen=True, slots=True)
class FlowName:
    """A flow's name; without a project it is looked for in all of them."""

    name: str
    project_name: str | None = None


FlowReference: TypeAlias = UUID | FlowName  # the id is one of a flow or of a flow group


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """All that is named must hold; None and False leave a condition out."""

    project_name: str | None = None
    group_id: FlowGroupId | None = None
    name: str | None = None
    include_archived: bool = False


@dataclass(frozen=True, slots=True)
class RunFilter:
    """All that is named must hold; None, and no states at all, leave a condition out."""

    states: frozenset[State] = frozenset()
    flow_id: FlowId | None = None
    group_id: FlowGroupId | None = None
    parent_id: FlowRunId | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class LogFilter:
    """All that is named must hold. A level lets output without one pass, and the end of the span is not in it."""

    level: LogLevel | None = None
    contains: str = ""
    start_time: DateTime | None = None
    end_time: DateTime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list that is ordered by a time and an id; `after` is the last key already shown."""

    size: int
    after: tuple[DateTime, UUID] | None = None


@dataclass(frozen=True, slots=True)
class PositionPage:
    """A page of a list that is ordered by a position or a version, which both begin at 1."""

    size: int
    after: int = 0
