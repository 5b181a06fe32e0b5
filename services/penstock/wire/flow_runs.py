"""Flow runs: what is asked of them, what they are, and the steps they took."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final
from uuid import UUID

from flowrun.v1 import flow_run_pb2, flow_run_service_pb2
from penstock.domain.errors import Refusal
from penstock.domain.flow_run import (
    Cancelling,
    Created,
    Creation,
    Failure,
    Finishing,
    FlowRun,
    FlowTarget,
    GroupTarget,
    KeyReuse,
    Outcome,
    ParentLease,
    Restarting,
    Starting,
    Stopped,
    Succeeded,
    Target,
    Transition,
)
from penstock.domain.ids import ExecutionId, FlowGroupId, FlowId, FlowRunId
from penstock.domain.lanes import AGENTLESS
from penstock.domain.limits import (
    BATCH_CREATE_MAX,
    CONTEXT_BYTES_MAX,
    FAILURE_CHARACTERS_MAX,
    NAME_CHARACTERS_MAX,
    PARAMETERS_BYTES_MAX,
    REASON_CHARACTERS_MAX,
    RESULT_BYTES_MAX,
    START_DELAY_MAX,
)
from penstock.domain.queries import RunFilter
from penstock.domain.state import Cause, State
from penstock.wire.checks import INT64_MAX, Checks, collecting, present
from penstock.wire.errors import refusal_to_proto
from penstock.wire.flows import policy_of, policy_to_proto, run_config_of, run_config_to_proto
from penstock.wire.times import to_timestamp

STATE_TO_PROTO: Final[Mapping[State, flow_run_pb2.FlowRunState.ValueType]] = {
    state: flow_run_pb2.FlowRunState.Value(f"FLOW_RUN_STATE_{state.name}") for state in State
}
STATE_FROM_PROTO: Final[Mapping[int, State]] = {number: state for state, number in STATE_TO_PROTO.items()}
CAUSE_TO_PROTO: Final[Mapping[Cause, flow_run_pb2.TransitionCause.ValueType]] = {
    cause: flow_run_pb2.TransitionCause.Value(f"TRANSITION_CAUSE_{cause.name}") for cause in Cause
}
CAUSE_FROM_PROTO: Final[Mapping[int, Cause]] = {number: cause for cause, number in CAUSE_TO_PROTO.items()}
# States may be repeated in a filter, though nobody has a reason to; more are refused without a look at each.
STATES_LISTED_MAX: Final = 100
KEY_REUSE_TO_PROTO: Final[Mapping[KeyReuse, flow_run_service_pb2.KeyReuse.ValueType]] = {
    reuse: flow_run_service_pb2.KeyReuse.Value(f"KEY_REUSE_{reuse.name}") for reuse in KeyReuse
}
KEY_REUSE_FROM_PROTO: Final[Mapping[int, KeyReuse]] = {number: reuse for reuse, number in KEY_REUSE_TO_PROTO.items()}


def creation_of(
    request: flow_run_service_pb2.CreateFlowRunRequest,
    *,
    new_id: Callable[[], UUID],
    spare_name: Callable[[], str],
    traceparent: str = "",
    tracestate: str = "",
) -> Creation:
    """The run that somebody asks for, with everything random drawn, so that it can be tried again unchanged."""
    with collecting(None) as checks:
        request_id = checks.uuid("request_id", request.request_id, required=False)
        return Creation(
            flow_run_id=FlowRunId(new_id()),
            target=_target_of(checks, request),
            spare_name=spare_name(),
            idempotency_key=checks.key("idempotency_key", request.idempotency_key)
            if request.HasField("idempotency_key")
            else None,
            key_reuse=checks.choice(
                "key_reuse", request.key_reuse, KEY_REUSE_FROM_PROTO, unspecified=KeyReuse.RETURN_FIRST
            ),
            request_id=None if request_id is None else str(request_id),
            scheduled_start_time=checks.time(request, "scheduled_start_time"),
            start_delay=_start_delay_of(checks, request),
            name=checks.name("name", request.name, required=False) or None,
            parameters=checks.json_object("parameters_json", request.parameters_json, PARAMETERS_BYTES_MAX),
            context=checks.json_object("context_json", request.context_json, CONTEXT_BYTES_MAX),
            labels=checks.labels("labels", request.labels.labels, reserved=(AGENTLESS,))
            if request.HasField("labels")
            else None,
            run_config=run_config_of(checks, "run_config", request.run_config)
            if request.HasField("run_config")
            else None,
            policy=policy_of(checks, "policy", request.policy),
            parent=_parent_of(checks, request),
            traceparent=traceparent,
            tracestate=tracestate,
        )


def batch_of(
    request: flow_run_service_pb2.BatchCreateFlowRunsRequest,
) -> Sequence[flow_run_service_pb2.CreateFlowRunRequest]:
    """The items of a batch, each still to be checked by itself; only their number is a matter of the whole."""
    with collecting(None) as checks:
        return checks.several("requests", request.requests, BATCH_CREATE_MAX, low=1)


def key_of(request: flow_run_service_pb2.GetFlowRunByKeyRequest) -> tuple[Target, str]:
    """The target under which a key was used, and the key."""
    with collecting(None) as checks:
        return _target_of(checks, request), checks.key("idempotency_key", request.idempotency_key)


def cancelling_of(request: flow_run_service_pb2.CancelFlowRunRequest) -> Cancelling:
    """Which run shall stop, and why."""
    with collecting(None) as checks:
        return Cancelling(
            flow_run_id=FlowRunId(checks.uuid("flow_run_id", request.flow_run_id)),
            reason=checks.text("reason", request.reason, REASON_CHARACTERS_MAX),
        )


def restarting_of(request: flow_run_service_pb2.RestartFlowRunRequest) -> Restarting:
    """Which finished run shall be attempted again, and when."""
    with collecting(None) as checks:
        return Restarting(
            flow_run_id=FlowRunId(checks.uuid("flow_run_id", request.flow_run_id)),
            version=checks.count("version", request.version, 1, INT64_MAX),
            scheduled_start_time=checks.time(request, "scheduled_start_time"),
            start_delay=_start_delay_of(checks, request),
            reason=checks.text("reason", request.reason, REASON_CHARACTERS_MAX),
        )


def starting_of(request: flow_run_service_pb2.StartFlowRunRequest) -> Starting:
    """Which execution is about to begin, under which lease."""
    with collecting(None) as checks:
        return Starting(
            flow_run_id=FlowRunId(checks.uuid("flow_run_id", request.flow_run_id)),
            fence=checks.fence("fence", request.fence),
            execution_id=ExecutionId(checks.uuid("execution_id", request.execution_id)),
        )


def finishing_of(request: flow_run_service_pb2.FinishFlowRunRequest) -> Finishing:
    """How an attempt ended."""
    with collecting(None) as checks:
        execution_id = checks.uuid("execution_id", request.execution_id, required=False)
        return Finishing(
            flow_run_id=FlowRunId(checks.uuid("flow_run_id", request.flow_run_id)),
            fence=checks.fence("fence", request.fence),
            execution_id=None if execution_id is None else ExecutionId(execution_id),
            outcome=_outcome_of(checks, request),
        )


def run_filter_of(request: flow_run_service_pb2.ListFlowRunsRequest, checks: Checks | None = None) -> RunFilter:
    """Which runs to list. Violations go to `checks` where there are some, whose owner then refuses by them."""
    with collecting(checks) as checks:
        flow_id = checks.uuid("flow_id", request.flow_id, required=False)
        group_id = checks.uuid("flow_group_id", request.flow_group_id, required=False)
        parent_id = checks.uuid("parent_flow_run_id", request.parent_flow_run_id, required=False)
        return RunFilter(
            states=_states_of(checks, request),
            flow_id=None if flow_id is None else FlowId(flow_id),
            group_id=None if group_id is None else FlowGroupId(group_id),
            parent_id=None if parent_id is None else FlowRunId(parent_id),
            name=checks.name("name", request.name, required=False) or None,
        )


def watching_of(request: flow_run_service_pb2.WatchFlowRunRequest) -> tuple[FlowRunId, int]:
    """Which run to watch, and after which version."""
    with collecting(None) as checks:
        flow_run_id = FlowRunId(checks.uuid("flow_run_id", request.flow_run_id))
        return flow_run_id, checks.count("after_version", request.after_version, 0, INT64_MAX)


def flow_run_to_proto(run: FlowRun, *, whole: bool = True) -> flow_run_pb2.FlowRun:
    """The run; not whole, as in lists, without its parameters, context and result."""
    message = _flow_run_in_short(run)
    message.labels.extend(run.labels)
    message.run_config.CopyFrom(run_config_to_proto(run.run_config))
    message.policy.CopyFrom(policy_to_proto(run.policy))
    message.trace_context.update(_trace_context(run))
    if run.idempotency_key is not None:
        message.idempotency_key = run.idempotency_key
    if run.failure is not None:
        message.failure.CopyFrom(failure_to_proto(run.failure))
    if whole:
        message.parameters_json, message.context_json = run.parameters_json, run.context_json
        if run.result_json is not None:
            message.result_json = run.result_json
    return message


def created_to_proto(
    created: Created, to_proto: Callable[[FlowRun], flow_run_pb2.FlowRun] = flow_run_to_proto
) -> flow_run_service_pb2.CreateFlowRunResponse:
    """The answer to a creation; of a run that was deleted only the id is left."""
    run_id, run = created.flow_run_id, created.flow_run
    return flow_run_service_pb2.CreateFlowRunResponse(
        flow_run=flow_run_pb2.FlowRun(flow_run_id=str(run_id)) if run is None else to_proto(run),
        created=created.fresh,
        differing_fields=created.differing_fields,
        delete_time=None if created.delete_time is None else to_timestamp(created.delete_time),
    )


def found_to_proto(found: Created) -> flow_run_service_pb2.GetFlowRunByKeyResponse:
    """The run of a key: what a repeat of its creation would be answered."""
    answer = created_to_proto(found)
    return flow_run_service_pb2.GetFlowRunByKeyResponse(
        flow_run=answer.flow_run, delete_time=present(answer, "delete_time")
    )


def outcome_to_proto(outcome: Created | Refusal) -> flow_run_service_pb2.BatchCreateFlowRunsOutcome:
    """What became of one item of a batch, kept short: a thousand of them travel in one message."""
    if isinstance(outcome, Refusal):
        return flow_run_service_pb2.BatchCreateFlowRunsOutcome(refusal=refusal_to_proto(outcome))
    response = created_to_proto(outcome, _flow_run_in_short)
    return flow_run_service_pb2.BatchCreateFlowRunsOutcome(response=response)


def transition_to_proto(transition: Transition) -> flow_run_pb2.Transition:
    grant_time = transition.lease_grant_time
    return flow_run_pb2.Transition(
        version=transition.version,
        state=STATE_TO_PROTO[transition.state],
        cause=CAUSE_TO_PROTO[transition.cause],
        message=transition.message,
        create_time=to_timestamp(transition.create_time),
        attempt=transition.attempt,
        fence=transition.fence,
        agent_id="" if transition.agent_id is None else str(transition.agent_id),
        due_time=None if transition.due_time is None else to_timestamp(transition.due_time),
        lease_grant_time=None if grant_time is None else to_timestamp(grant_time),
    )


def failure_to_proto(failure: Failure) -> flow_run_pb2.Failure:
    return flow_run_pb2.Failure(
        type=failure.type,
        message=failure.message,
        traceback=failure.traceback,
        exit_code=failure.exit_code,
        signal=failure.signal,
    )


def _flow_run_in_short(run: FlowRun) -> flow_run_pb2.FlowRun:
    """What a run is, where it stands and since when: as much as tells a thousand of them apart."""
    return flow_run_pb2.FlowRun(
        flow_run_id=str(run.id),
        flow_id=str(run.flow_id),
        flow_group_id=str(run.group_id),
        flow_name=run.flow_name,
        name=run.name,
        state=STATE_TO_PROTO[run.state],
        version=run.version,
        attempt=run.attempt,
        scheduled_start_time=to_timestamp(run.scheduled_start_time),
        create_time=to_timestamp(run.create_time),
        start_time=None if run.start_time is None else to_timestamp(run.start_time),
        finish_time=None if run.finish_time is None else to_timestamp(run.finish_time),
        parent_flow_run_id="" if run.parent_id is None else str(run.parent_id),
        fence=run.fence,
    )


def _target_of(
    checks: Checks,
    request: flow_run_service_pb2.CreateFlowRunRequest | flow_run_service_pb2.GetFlowRunByKeyRequest,
) -> Target:
    match request.WhichOneof("target"):
        case "flow_group_id":
            return GroupTarget(FlowGroupId(checks.uuid("flow_group_id", request.flow_group_id)))
        case "flow_id":
            return FlowTarget(FlowId(checks.uuid("flow_id", request.flow_id)))
        case _:
            checks.refuse("target", "is required: flow_id or flow_group_id")
            return FlowTarget(FlowId(UUID(int=0)))


def _start_delay_of(
    checks: Checks,
    request: flow_run_service_pb2.CreateFlowRunRequest | flow_run_service_pb2.RestartFlowRunRequest,
) -> timedelta | None:
    if not request.HasField("start_delay"):
        return None
    if request.HasField("scheduled_start_time"):
        checks.refuse("start_delay", "is given beside scheduled_start_time; give one of them")
    return checks.duration("start_delay", request.start_delay, timedelta(0), START_DELAY_MAX)


def _parent_of(checks: Checks, request: flow_run_service_pb2.CreateFlowRunRequest) -> ParentLease | None:
    if not request.HasField("parent"):
        return None
    return ParentLease(
        flow_run_id=FlowRunId(checks.uuid("parent.flow_run_id", request.parent.flow_run_id)),
        fence=checks.fence("parent.fence", request.parent.fence),
    )


def _outcome_of(checks: Checks, request: flow_run_service_pb2.FinishFlowRunRequest) -> Outcome:
    match request.WhichOneof("outcome"):
        case "succeeded":
            result_json: str | None = present(request.succeeded, "result_json")
            if result_json is not None:
                checks.json("succeeded.result_json", result_json, RESULT_BYTES_MAX)
            return Succeeded(result_json)
        case "failed":
            return _failure_of(request.failed)
        case "stopped":
            return Stopped(_storable(request.stopped.message[:REASON_CHARACTERS_MAX]))
        case _:
            checks.refuse("outcome", "is required: succeeded, failed or stopped")
            return Succeeded()


def _failure_of(failure: flow_run_pb2.Failure) -> Failure:
    return Failure(
        type=_storable(failure.type[:NAME_CHARACTERS_MAX]),
        message=_storable(failure.message[-FAILURE_CHARACTERS_MAX:]),  # its end tells most
        traceback=_storable(failure.traceback[-FAILURE_CHARACTERS_MAX:]),
        exit_code=present(failure, "exit_code"),
        signal=present(failure, "signal"),
    )


def _storable(text: str) -> str:
    """What was said about an end, without what databases cannot keep: no report of an end is refused for its words."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _states_of(checks: Checks, request: flow_run_service_pb2.ListFlowRunsRequest) -> frozenset[State]:
    states: set[State] = set()
    for index, number in enumerate(checks.several("states", request.states, STATES_LISTED_MAX)):
        state = checks.choice(f"states[{index}]", number, STATE_FROM_PROTO, unspecified=None)
        if number == 0:
            checks.refuse(f"states[{index}]", "is unspecified; leave it out to list all states")
        if state is not None:
            states.add(state)
    return frozenset(states)


def _trace_context(run: FlowRun) -> dict[str, str]:
    pair = {"traceparent": run.traceparent, "tracestate": run.tracestate}
    return {name: value for name, value in pair.items() if value}
