"""Domain values for tests. Each builder fills in what the test does not name; ids never come twice."""

from dataclasses import replace
from datetime import timedelta
from random import Random
from typing import Any, Final
from uuid import UUID

from pendulum import DateTime

from penstock.domain.flow import Callable, Flow, FlowGroup, Policy, Registration, RunConfig
from penstock.domain.flow_run import Creation, Failure, FlowRun, GroupTarget, move
from penstock.domain.ids import ExecutionId, FlowGroupId, FlowId, FlowRunId, LaneId, ProjectId, new_id
from penstock.domain.lease import Entry, Execution, Phase, first_entry
from penstock.domain.parameters import Parameter, ParameterType
from penstock.domain.state import FINAL, Cause, State
from tests.support.fake_clock import NOON

LEASE: Final = timedelta(seconds=60)

# Seeded, so that a failure looks the same when it is run again; of its own, so that nobody seeds it anew.
RANDOM: Final = Random(2026)

_RUNNING: Final = ((State.SUBMITTED, Cause.ACCEPTED), (State.RUNNING, Cause.STARTED))
_CANCELLING: Final = (*_RUNNING, (State.CANCELLING, Cause.CANCEL_ASKED))

# The shortest life that leads to each state.
_LIVES: Final[dict[State, tuple[tuple[State, Cause], ...]]] = {
    State.SCHEDULED: (),
    State.SUBMITTED: _RUNNING[:1],
    State.RUNNING: _RUNNING,
    State.CANCELLING: _CANCELLING,
    State.SUCCEEDED: (*_RUNNING, (State.SUCCEEDED, Cause.FINISHED)),
    State.FAILED: (*_RUNNING, (State.FAILED, Cause.FINISHED)),
    State.CANCELLED: (*_CANCELLING, (State.CANCELLED, Cause.FINISHED)),
}


def an_id(now: DateTime = NOON) -> UUID:
    """A new id, as if drawn at that time."""
    return new_id(now, RANDOM)


def a_registration(**fields: Any) -> Registration:
    """A request to register a flow with one parameter."""
    defaults: dict[str, Any] = {
        "project_name": "reports",
        "name": "daily report",
        "entry_point": Callable("flows/report.py:report"),
        "parameters": (Parameter("day", ParameterType.STRING, default_json='"today"'),),
        "source_digest": "5f3a",
    }
    return Registration(**(defaults | fields))


def a_group(**fields: Any) -> FlowGroup:
    """A flow group without defaults of its own, whose live flow is its first."""
    defaults: dict[str, Any] = {
        "id": FlowGroupId(an_id()),
        "project_id": ProjectId(an_id()),
        "project_name": "reports",
        "name": "daily report",
        "default_parameters_json": None,
        "labels": None,
        "run_config": None,
        "live_flow_id": FlowId(an_id()),
        "latest_version": 1,
        "create_time": NOON,
    }
    return FlowGroup(**(defaults | fields))


def a_flow(group: FlowGroup | None = None, **fields: Any) -> Flow:
    """The live flow of a group, or of one of its own."""
    group = group or a_group()
    registration: Registration = fields.get("registration") or a_registration(
        project_name=group.project_name, name=group.name
    )
    defaults: dict[str, Any] = {
        "id": group.live_flow_id,
        "group_id": group.id,
        "project_id": group.project_id,
        "version": group.latest_version,
        "digest": registration.digest(),
        "registration": registration,
        "create_time": group.create_time,
        "archive_time": None,
    }
    return Flow(**(defaults | fields))


def a_creation(**fields: Any) -> Creation:
    """A request to create a run of the live flow of a group: name the `target` if it is to be found."""
    defaults: dict[str, Any] = {
        "flow_run_id": FlowRunId(an_id()),
        "target": GroupTarget(FlowGroupId(an_id())),
        "spare_name": "amber-otter",
    }
    return Creation(**(defaults | fields))


def a_flow_run(state: State = State.SCHEDULED, **fields: Any) -> FlowRun:
    """A run that came to `state` by the shortest way, one second a step."""
    created: DateTime = fields.get("create_time", NOON)
    policy: Policy = fields.get("policy", Policy())
    defaults: dict[str, Any] = {
        "id": FlowRunId(an_id(created)),
        "flow_id": FlowId(an_id()),
        "group_id": FlowGroupId(an_id()),
        "flow_name": "daily report",
        "name": "amber-otter",
        "state": State.SCHEDULED,
        "version": 1,
        "attempt": 1,
        "retries_left": policy.max_retries,
        "scheduled_start_time": created,
        "create_time": created,
        "start_time": None,
        "finish_time": None,
        "parameters_json": "{}",
        "context_json": "{}",
        "labels": (),
        "run_config": RunConfig(),
        "policy": policy,
        "idempotency_key": None,
        "parent_id": None,
        "result_json": None,
        "failure": None,
        "traceparent": "",
        "tracestate": "",
        "fence": 0,
    }
    lived = _lived(FlowRun(**defaults), state)
    return replace(lived, **fields)


def an_entry(run: FlowRun, *, lane_id: LaneId | None = None, **fields: Any) -> Entry:
    """The queue entry of a live run: waiting if it is SCHEDULED, else held by somebody for `LEASE`."""
    assert run.state not in FINAL, "a final run has no entry"
    entry = first_entry(run, lane_id or LaneId(an_id()), fence=run.fence)
    if run.state is not State.SCHEDULED:
        phase = Phase.STOPPING if run.state is State.CANCELLING else Phase.HELD
        expiry = run.create_time + LEASE
        held = {"phase": phase, "holder": an_id(), "grant_time": run.create_time, "lease_expire_time": expiry}
        fields = held | fields
    return replace(entry, **fields)


def an_execution(run: FlowRun, **fields: Any) -> Execution:
    """What is done under the present lease of a run."""
    started = run.start_time is not None
    defaults: dict[str, Any] = {
        "flow_run_id": run.id,
        "fence": run.fence,
        "attempt": run.attempt,
        "agent_id": an_id(),
        "grant_time": run.create_time,
        "accept_time": run.create_time,
        "execution_id": ExecutionId(an_id()) if started else None,
        "start_time": run.start_time,
    }
    return Execution(**(defaults | fields))


def _lived(run: FlowRun, state: State) -> FlowRun:
    for step, (onward, cause) in enumerate(_LIVES[state], start=1):
        at = run.create_time + timedelta(seconds=step)
        run, _ = move(run, onward, at=at, cause=cause)
        if onward is State.SUBMITTED:
            run = replace(run, fence=1)
        if onward is State.RUNNING:
            run = replace(run, start_time=at)
    return replace(run, failure=Failure(type="ValueError", message="no")) if state is State.FAILED else run
