"""Projects, flow groups and flows: what can be run, in which version, and how by default."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum, auto
from typing import TypeAlias

from pendulum import DateTime

from penstock.domain.errors import FlowArchived, NoLiveFlow
from penstock.domain.ids import FlowGroupId, FlowId, ProjectId
from penstock.domain.json_text import Json, Number, canonical, digest, parse, parse_object
from penstock.domain.limits import LOST_RESTARTS_DEFAULT
from penstock.domain.log import LogLevel
from penstock.domain.parameters import Parameter
from penstock.domain.run_config import RunConfig as RunConfig

Labels: TypeAlias = tuple[str, ...]  # sorted, without repeats


@dataclass(frozen=True, slots=True)
class Callable:
    """A Python callable, "path/to/file.py:function" or "package.module:function". Never imported by a service."""

    path: str


@dataclass(frozen=True, slots=True)
class Command:
    """A program and its arguments; no shell is involved."""

    arguments: tuple[str, ...]


EntryPoint: TypeAlias = Callable | Command


class ChildPolicy(StrEnum):
    """What becomes of a run when its parent is cancelled. The values are what rows hold."""

    CANCEL = auto()
    ABANDON = auto()


@dataclass(frozen=True, slots=True)
class Policy:
    """How a run is treated."""

    priority: int = 0
    max_retries: int = 0
    retry_delay: timedelta = timedelta(0)
    max_lost_restarts: int = LOST_RESTARTS_DEFAULT
    log_level: LogLevel = LogLevel.INFO
    child_policy: ChildPolicy = ChildPolicy.CANCEL


@dataclass(frozen=True, slots=True)
class PolicyAsked:
    """The part of a policy that somebody named; None leaves a field to whoever comes next."""

    priority: int | None = None
    max_retries: int | None = None
    retry_delay: timedelta | None = None
    max_lost_restarts: int | None = None
    log_level: LogLevel | None = None
    child_policy: ChildPolicy | None = None

    def over(self, base: Policy) -> Policy:
        """`base` with every field that was named replaced."""
        named = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return replace(base, **named)


@dataclass(frozen=True, slots=True)
class Registration:
    """What somebody asks to be registered: a version of a flow, before it has an identity."""

    project_name: str
    name: str
    entry_point: EntryPoint
    parameters: tuple[Parameter, ...] = ()
    accepts_extra_parameters: bool = False
    labels: Labels = ()
    run_config: RunConfig = field(default_factory=RunConfig)
    policy: Policy = field(default_factory=Policy)
    description: str = ""
    source_digest: str = ""

    def digest(self) -> str:
        """In hexadecimal; equal registrations of equal sources are one flow."""
        return digest(
            {
                "entry_point": _entry_point_json(self.entry_point),
                "parameters": [_parameter_json(each) for each in self.parameters],
                "accepts_extra_parameters": self.accepts_extra_parameters,
                "labels": list(self.labels),
                "run_config": self.run_config.as_json(),
                "policy": {
                    "priority": Number(self.policy.priority),
                    "max_retries": Number(self.policy.max_retries),
                    "retry_delay": Number(self.policy.retry_delay // timedelta(microseconds=1)),
                    "max_lost_restarts": Number(self.policy.max_lost_restarts),
                    "log_level": self.policy.log_level.name,
                    "child_policy": self.policy.child_policy,
                },
                "description": self.description,
                "source_digest": self.source_digest,
            }
        ).hex()


@dataclass(frozen=True, slots=True)
class Project:
    id: ProjectId
    name: str
    create_time: DateTime


@dataclass(frozen=True, slots=True)
class FlowGroup:
    """All versions of one flow, and defaults that go before the flow's own; None where the group has none."""

    id: FlowGroupId
    project_id: ProjectId
    project_name: str
    name: str
    default_parameters_json: str | None
    labels: Labels | None
    run_config: RunConfig | None
    live_flow_id: FlowId | None
    latest_version: int
    create_time: DateTime


@dataclass(frozen=True, slots=True)
class GroupDefaults:
    """The defaults that somebody wants a flow group to have; None for none."""

    default_parameters_json: str | None = None
    labels: Labels | None = None
    run_config: RunConfig | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """One registered version. It never changes, but for being archived."""

    id: FlowId
    group_id: FlowGroupId
    project_id: ProjectId
    version: int
    digest: str
    registration: Registration
    create_time: DateTime
    archive_time: DateTime | None

    @property
    def name(self) -> str:
        return self.registration.name


def runnable(flow: Flow, group: FlowGroup) -> Flow:
    """Return the flow if runs of it may be created; refuse an archived one, naming the one that is live.

    The two may have been read one after the other. A flow that was the live one when the group was read was live.
    """
    if flow.archive_time is None or flow.id == group.live_flow_id:
        return flow
    if group.live_flow_id is None:
        raise NoLiveFlow(flow_group_id=str(group.id))
    raise FlowArchived(flow_id=str(flow.id), live_flow_id=str(group.live_flow_id))


@dataclass(frozen=True, slots=True)
class Template:
    """A flow of which runs may be made, with its defaults: read once, however many runs are made of it together."""

    flow: Flow
    group: FlowGroup
    of_group: Mapping[str, Json]
    # The canonical text of every default by its name, the group's before the flow's.
    defaults: Mapping[str, str]

    @classmethod
    def of(cls, flow: Flow, group: FlowGroup) -> "Template":
        """Refuses a flow that is archived."""
        parameters = runnable(flow, group).registration.parameters
        of_group = parse_object(group.default_parameters_json or "")
        of_flow = {each.name: parse(each.default_json) for each in parameters if each.default_json is not None}
        defaults = {name: canonical(value) for name, value in {**of_flow, **of_group}.items()}
        return cls(flow, group, of_group, defaults)


def _entry_point_json(entry_point: EntryPoint) -> Json:
    match entry_point:
        case Callable(path):
            return {"python": path}
        case Command(arguments):
            return {"command": list(arguments)}


def _parameter_json(parameter: Parameter) -> Json:
    return {
        "name": parameter.name,
        "type": parameter.type,
        "required": parameter.required,
        "default": [] if parameter.default_json is None else [parse(parameter.default_json)],
        "description": parameter.description,
    }
