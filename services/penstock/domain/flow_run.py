"""Flow runs: what one is, what a request to create one asks, and how the two are brought together."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum, auto
from hashlib import sha256
from typing import TypeAlias, TypeVar

from pendulum import DateTime

from penstock.domain.errors import FlowRunLive, KeyReused, VersionStale
from penstock.domain.flow import Labels, Policy, PolicyAsked, RunConfig, Template
from penstock.domain.ids import AgentId, ExecutionId, FlowGroupId, FlowId, FlowRunId
from penstock.domain.json_text import Json, canonical, joined
from penstock.domain.limits import PARAMETERS_BYTES_MAX
from penstock.domain.parameters import check_given, check_size
from penstock.domain.state import FINAL, Cause, State, check_move

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FlowTarget:
    """This version of a flow."""

    flow_id: FlowId


@dataclass(frozen=True, slots=True)
class GroupTarget:
    """The live flow of a group."""

    flow_group_id: FlowGroupId


Target: TypeAlias = FlowTarget | GroupTarget


class KeyReuse(StrEnum):
    """What a repeat of an idempotency key is answered."""

    RETURN_FIRST = auto()
    REFUSE_IF_DIFFERENT = auto()


@dataclass(frozen=True, slots=True)
class ParentLease:
    """The lease under which another run creates this one."""

    flow_run_id: FlowRunId
    fence: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a creation asked, as digests: what a repeat of its key is compared with.

    As asked, so that defaults that change meanwhile make no difference.
    """

    parameters: bytes
    context: bytes
    labels: bytes
    run_config: bytes

    def differing_fields(self, other: "Fingerprint") -> tuple[str, ...]:
        """The names of the parts in which the two differ."""
        return tuple(name for name in self.__slots__ if getattr(self, name) != getattr(other, name))


@dataclass(frozen=True, slots=True)
class Written:
    """What a creation brings, in canonical text, as a fingerprint, and how many bytes these texts are."""

    parameters: Mapping[str, str]
    context_json: str
    fingerprint: Fingerprint
    bytes_count: int


@dataclass(frozen=True, slots=True)
class Creation:
    """A request to create a run, checked, with everything random already drawn, so that it can be repeated."""

    flow_run_id: FlowRunId
    target: Target
    spare_name: str
    idempotency_key: str | None = None
    key_reuse: KeyReuse = KeyReuse.RETURN_FIRST
    request_id: str | None = None
    scheduled_start_time: DateTime | None = None
    start_delay: timedelta | None = None
    name: str | None = None
    parameters: Mapping[str, Json] = field(default_factory=dict)
    context: Mapping[str, Json] = field(default_factory=dict)
    labels: Labels | None = None
    run_config: RunConfig | None = None
    policy: PolicyAsked = field(default_factory=PolicyAsked)
    parent: ParentLease | None = None
    traceparent: str = ""
    tracestate: str = ""
    # Written once, and before the creation waits for its transaction: inside it, the database would wait for that.
    written: Written = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "written", _written(self))


def _written(creation: Creation) -> Written:
    parameters = {name: canonical(value) for name, value in creation.parameters.items()}
    context_json = canonical(creation.context)
    labels = canonical(None if creation.labels is None else list(creation.labels))
    run_config = canonical(None if creation.run_config is None else creation.run_config.as_json())
    parts = [text.encode() for text in (joined(parameters), context_json, labels, run_config)]
    fingerprint = Fingerprint(*(sha256(part).digest() for part in parts))
    return Written(parameters, context_json, fingerprint, sum(map(len, parts)))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed: data about the run, never an error of a call."""

    type: str = ""
    message: str = ""
    traceback: str = ""
    exit_code: int | None = None
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class FlowRun:
    """One execution of a flow through all its attempts."""

    id: FlowRunId
    flow_id: FlowId
    group_id: FlowGroupId
    flow_name: str
    name: str
    state: State
    version: int
    attempt: int
    retries_left: int
    scheduled_start_time: DateTime
    create_time: DateTime
    start_time: DateTime | None
    finish_time: DateTime | None
    parameters_json: str
    context_json: str
    labels: Labels
    run_config: RunConfig
    policy: Policy
    idempotency_key: str | None
    parent_id: FlowRunId | None
    result_json: str | None
    failure: Failure | None
    traceparent: str
    tracestate: str
    fence: int

    @property
    def final(self) -> bool:
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class Transition:
    """One step in the life of a run; `version` is the run's version after it."""

    flow_run_id: FlowRunId
    version: int
    state: State
    cause: Cause
    message: str
    create_time: DateTime
    attempt: int
    fence: int = 0
    agent_id: AgentId | None = None
    due_time: DateTime | None = None
    lease_grant_time: DateTime | None = None


@dataclass(frozen=True, slots=True)
class Created:
    """The answer to a creation. After its deletion only `flow_run_id` is left of a run."""

    flow_run_id: FlowRunId
    flow_run: FlowRun | None
    fresh: bool
    differing_fields: tuple[str, ...] = ()
    delete_time: DateTime | None = None


@dataclass(frozen=True, slots=True)
class Succeeded:
    """An attempt ended well; `result_json` is what it returned, None for nothing."""

    result_json: str | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """An attempt was stopped because its run is CANCELLING."""

    message: str = ""


Outcome: TypeAlias = Succeeded | Failure | Stopped


@dataclass(frozen=True, slots=True)
class Cancelling:
    """A request for a run to stop, and why."""

    flow_run_id: FlowRunId
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Restarting:
    """A request for a new attempt of a run that ended with that version."""

    flow_run_id: FlowRunId
    version: int
    scheduled_start_time: DateTime | None = None
    start_delay: timedelta | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Finishing:
    """A report of how an attempt ended. No execution id means that nothing was started."""

    flow_run_id: FlowRunId
    fence: int
    execution_id: ExecutionId | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Starting:
    """A request to begin, made before any code of the run."""

    flow_run_id: FlowRunId
    fence: int
    execution_id: ExecutionId


def plan(creation: Creation, template: Template, now: DateTime) -> FlowRun:
    """The run that a creation asks for, or a refusal. Given goes before the group's, the group's before the flow's."""
    flow, group = template.flow, template.group
    registration = flow.registration
    check_given(
        registration.parameters,
        registration.accepts_extra_parameters,
        {**template.of_group, **creation.parameters},
        template.of_group.keys() - creation.parameters.keys(),
    )
    parameters_json = joined({**template.defaults, **creation.written.parameters})
    check_size("parameters_json", parameters_json, PARAMETERS_BYTES_MAX)
    policy = creation.policy.over(registration.policy)
    return FlowRun(
        id=creation.flow_run_id,
        flow_id=flow.id,
        group_id=flow.group_id,
        flow_name=flow.name,
        name=creation.name or creation.spare_name,
        state=State.SCHEDULED,
        version=1,
        attempt=1,
        retries_left=policy.max_retries,
        scheduled_start_time=due_time(creation.scheduled_start_time, creation.start_delay, now),
        create_time=now,
        start_time=None,
        finish_time=None,
        parameters_json=parameters_json,
        context_json=creation.written.context_json,
        labels=_first(creation.labels, group.labels, registration.labels),
        run_config=_first(creation.run_config, group.run_config, registration.run_config),
        policy=policy,
        idempotency_key=creation.idempotency_key,
        parent_id=creation.parent.flow_run_id if creation.parent else None,
        result_json=None,
        failure=None,
        traceparent=creation.traceparent,
        tracestate=creation.tracestate,
        fence=0,
    )


def due_time(start_time: DateTime | None, delay: timedelta | None, now: DateTime) -> DateTime:
    """When a run is due that was asked for at a time, or after a delay. The past means now."""
    return max(start_time or now + (delay or timedelta(0)), now)


def birth(run: FlowRun) -> Transition:
    """The first step of a planned run."""
    return Transition(
        flow_run_id=run.id,
        version=run.version,
        state=run.state,
        cause=Cause.CREATED,
        message="",
        create_time=run.create_time,
        attempt=run.attempt,
        due_time=run.scheduled_start_time,
    )


def repeated(creation: Creation, first: Fingerprint, run_id: FlowRunId) -> tuple[str, ...]:
    """In what a repeat of a key differs from the first use of it; a refusal where the caller prefers one."""
    differing = first.differing_fields(creation.written.fingerprint)
    if differing and creation.key_reuse is KeyReuse.REFUSE_IF_DIFFERENT:
        raise KeyReused(
            idempotency_key=creation.idempotency_key or "", flow_run_id=str(run_id), differing_fields=differing
        )
    return differing


def move(run: FlowRun, to: State, *, at: DateTime, cause: Cause, message: str = "") -> tuple[FlowRun, Transition]:
    """The run in state `to`, one version later, and the step it made. Refuses a move that the table does not know."""
    check_move(run.id, run.state, to)
    moved = replace(run, state=to, version=run.version + 1, finish_time=at if to in FINAL else None)
    return moved, Transition(
        flow_run_id=run.id,
        version=moved.version,
        state=to,
        cause=cause,
        message=message,
        create_time=at,
        attempt=run.attempt,
        fence=run.fence,
    )


def restarted(run: FlowRun, restarting: Restarting, *, at: DateTime) -> tuple[FlowRun, Transition]:
    """A finished run before its next attempt, and the step that leads there: the only way out of a final state.

    Refuses a run that is not final, and one that has ended again since the version that is named.
    """
    if not run.final:
        raise FlowRunLive(flow_run_id=str(run.id), present=run.state.name)
    if run.version != restarting.version:
        raise VersionStale(flow_run_id=str(run.id), version=restarting.version, present=run.version)
    due = due_time(restarting.scheduled_start_time, restarting.start_delay, at)
    again = replace(
        run,
        state=State.SCHEDULED,
        version=run.version + 1,
        attempt=run.attempt + 1,
        retries_left=run.policy.max_retries,
        scheduled_start_time=due,
        start_time=None,
        finish_time=None,
        result_json=None,
    )
    return again, Transition(
        flow_run_id=run.id,
        version=again.version,
        state=State.SCHEDULED,
        cause=Cause.RESTARTED,
        message=restarting.reason,
        create_time=at,
        attempt=again.attempt,
        due_time=due,
    )


def _first(*choices: T | None) -> T:
    return next(choice for choice in choices if choice is not None)
