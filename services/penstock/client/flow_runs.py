"""Flow runs: what they look like to a caller, how they are found and watched, and how they are moved."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pendulum import DateTime

from flowrun.v1 import flow_run_pb2 as nouns
from flowrun.v1 import flow_run_service_pb2 as verbs
from flowrun.v1 import log_pb2
from penstock.client.calls import Call, Following, Listing, Page, Service, Step
from penstock.client.enums import (
    ChildPolicy,
    FlowRunState,
    LogLevel,
    TransitionCause,
    number_of,
    word_of,
)
from penstock.client.errors import FlowRunDeleted, invalid
from penstock.client.times import start_of, time_or_none
from penstock.domain.run_config import RunConfig as RunConfig
from penstock.wire.flows import run_config_to_proto
from penstock.wire.times import to_time


@dataclass(frozen=True, slots=True)
class Policy:
    """How a run is treated."""

    priority: int
    max_retries: int
    retry_delay: timedelta
    max_lost_restarts: int
    log_level: LogLevel
    child_policy: ChildPolicy


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    type: str
    message: str
    traceback: str
    exit_code: int | None
    signal: int | None

    def __str__(self) -> str:
        if self.type or self.message:
            return ": ".join(filter(None, (self.type, self.message)))
        if self.signal is not None:
            return f"It was ended by signal {self.signal}."
        return f"It exited with code {self.exit_code}."


@dataclass(frozen=True, slots=True)
class FlowRun:
    """One execution of a flow, asked for once, through all its attempts.

    JSON is kept as the text that the server holds, digits as written; `parameters`, `context` and `result` parse it.
    """

    flow_run_id: str
    flow_id: str
    flow_group_id: str
    flow_name: str
    name: str
    state: FlowRunState
    version: int
    attempt: int
    fence: int
    scheduled_start_time: DateTime
    create_time: DateTime
    start_time: DateTime | None
    finish_time: DateTime | None
    parameters_json: str
    context_json: str
    result_json: str | None
    failure: Failure | None
    labels: tuple[str, ...]
    run_config: RunConfig
    policy: Policy
    idempotency_key: str | None
    parent_flow_run_id: str
    trace_context: Mapping[str, str]

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters it runs with, defaults included. A LookupError on a run from a list, which leaves them out."""
        return _parsed(self.parameters_json)

    @property
    def context(self) -> dict[str, Any]:
        """What its creator wanted it to know. A LookupError on a run from a list, which leaves it out."""
        return _parsed(self.context_json)

    @property
    def result(self) -> Any:
        """What it returned; None when it returned nothing, or has not succeeded."""
        return None if self.result_json is None else json.loads(self.result_json)


@dataclass(frozen=True, slots=True)
class Transition:
    """One step in the life of a run."""

    version: int
    state: FlowRunState
    cause: TransitionCause
    message: str
    create_time: DateTime
    attempt: int
    fence: int
    agent_id: str
    due_time: DateTime | None
    lease_grant_time: DateTime | None


def get_flow_run(flow_run_id: str) -> Call[FlowRun]:
    """Return a run with its parameters, context and result."""
    request = verbs.GetFlowRunRequest(flow_run_id=flow_run_id)
    return Call(Service.FLOW_RUN, "GetFlowRun", request, lambda response: flow_run_of(response.flow_run))


def get_flow_run_by_key(
    idempotency_key: str, *, flow_id: str | None = None, flow_group_id: str | None = None
) -> Call[FlowRun]:
    """Return the run that this key made of this target, which is to be named as its creation named it."""
    request = verbs.GetFlowRunByKeyRequest(idempotency_key=idempotency_key)
    set_target(request, flow_id, flow_group_id)

    def answer(response: verbs.GetFlowRunByKeyResponse) -> FlowRun:
        raise_if_deleted(response)
        return flow_run_of(response.flow_run)

    return Call(Service.FLOW_RUN, "GetFlowRunByKey", request, answer)


def list_flow_runs(
    *,
    states: Sequence[FlowRunState] = (),
    flow_id: str = "",
    flow_group_id: str = "",
    parent_flow_run_id: str = "",
    name: str = "",
    page_size: int = 0,
) -> Listing[FlowRun]:
    """List runs, newest first, without their parameters, contexts and results. All filters must hold."""
    numbers: Any = [number_of(nouns.FlowRunState, "FLOW_RUN_STATE_", state) for state in states]

    def page(token: str) -> Call[Page[FlowRun]]:
        request = verbs.ListFlowRunsRequest(
            page_size=page_size,
            page_token=token,
            states=numbers,
            flow_id=flow_id,
            flow_group_id=flow_group_id,
            parent_flow_run_id=parent_flow_run_id,
            name=name,
        )
        return Call(
            Service.FLOW_RUN,
            "ListFlowRuns",
            request,
            lambda response: Page([flow_run_of(each) for each in response.flow_runs], response.next_page_token),
        )

    return Listing(page)


def list_transitions(flow_run_id: str, *, page_size: int = 0) -> Listing[Transition]:
    """List the steps in the life of a run, oldest first."""

    def page(token: str) -> Call[Page[Transition]]:
        return Call(
            Service.FLOW_RUN,
            "ListTransitions",
            verbs.ListTransitionsRequest(flow_run_id=flow_run_id, page_size=page_size, page_token=token),
            lambda response: Page([transition_of(each) for each in response.transitions], response.next_page_token),
        )

    return Listing(page)


def cancel_flow_run(flow_run_id: str, reason: str = "") -> Call[FlowRun]:
    """Ask for a run to stop, and return it as it is then.

    It is CANCELLED at once when nobody holds it, CANCELLING until its holder confirms, or final already.
    """
    request = verbs.CancelFlowRunRequest(flow_run_id=flow_run_id, reason=reason)
    return Call(Service.FLOW_RUN, "CancelFlowRun", request, lambda response: flow_run_of(response.flow_run))


def restart_flow_run(
    flow_run_id: str,
    version: int,
    *,
    scheduled_start_time: datetime | timedelta | None = None,
    reason: str = "",
) -> Call[FlowRun]:
    """Make a new attempt of a finished run, and return it as it is then.

    `version` is that of its end, so that a repeat starts nothing twice; VersionStale says that it ended again since.
    """
    at, delay = start_of("scheduled_start_time", scheduled_start_time)
    request = verbs.RestartFlowRunRequest(
        flow_run_id=flow_run_id, version=version, scheduled_start_time=at, start_delay=delay, reason=reason
    )
    return Call(Service.FLOW_RUN, "RestartFlowRun", request, lambda response: flow_run_of(response.flow_run))


def delete_flow_run(flow_run_id: str) -> Call[bool]:
    """Delete a finished run with its history and log; False when there was none. Its key never makes another run."""
    request = verbs.DeleteFlowRunRequest(flow_run_id=flow_run_id)
    return Call(Service.FLOW_RUN, "DeleteFlowRun", request, lambda response: bool(response.deleted))


def watch_flow_run(flow_run_id: str, after_version: int = 0) -> Following[Transition]:
    """Follow a run: each step after that version once and in order, new ones as they happen, until the run is final."""

    def read(response: Any, cursor: str) -> Step[Transition]:
        seen, ended = _watched(response, cursor)
        is_step = response.HasField("transition")
        return Step([transition_of(response.transition)] if is_step else [], seen, ended)

    return _watching(flow_run_id, after_version, read)


def wait_for_flow_run(flow_run_id: str) -> Following[FlowRun]:
    """Wait until a run is final, and return it."""

    def read(response: Any, cursor: str) -> Step[FlowRun]:
        seen, ended = _watched(response, cursor)
        return Step([flow_run_of(response.end.flow_run)] if ended else [], seen, ended)

    return _watching(flow_run_id, 0, read)


def follow_flow_run(flow_run_id: str, after_version: int = 0) -> Following[Transition | FlowRun]:
    """Follow a run as `watch_flow_run` does; the run itself, in its final state, comes last."""

    def read(response: Any, cursor: str) -> Step[Transition | FlowRun]:
        seen, ended = _watched(response, cursor)
        if ended:
            return Step([flow_run_of(response.end.flow_run)], seen, ended)
        return Step([transition_of(response.transition)] if response.HasField("transition") else [], seen)

    return _watching(flow_run_id, after_version, read)


def _watching(flow_run_id: str, after_version: int, read: Any) -> Following[Any]:
    def request(cursor: str) -> verbs.WatchFlowRunRequest:
        return verbs.WatchFlowRunRequest(flow_run_id=flow_run_id, after_version=int(cursor))

    return Following(Service.FLOW_RUN, "WatchFlowRun", str(after_version), request, read)


def _watched(response: verbs.WatchFlowRunResponse, cursor: str) -> tuple[str, bool]:
    if response.HasField("transition"):
        return str(response.transition.version), False
    return cursor, response.HasField("end")


def flow_run_of(message: nouns.FlowRun) -> FlowRun:
    """The run in a message."""
    return FlowRun(
        flow_run_id=message.flow_run_id,
        flow_id=message.flow_id,
        flow_group_id=message.flow_group_id,
        flow_name=message.flow_name,
        name=message.name,
        state=word_of(FlowRunState, nouns.FlowRunState, "FLOW_RUN_STATE_", message.state),
        version=message.version,
        attempt=message.attempt,
        fence=message.fence,
        scheduled_start_time=to_time(message.scheduled_start_time),
        create_time=to_time(message.create_time),
        start_time=time_or_none(message, "start_time"),
        finish_time=time_or_none(message, "finish_time"),
        parameters_json=message.parameters_json,
        context_json=message.context_json,
        result_json=message.result_json if message.HasField("result_json") else None,
        failure=_failure_of(message.failure) if message.HasField("failure") else None,
        labels=tuple(message.labels),
        run_config=run_config_of(message.run_config),
        policy=policy_of(message.policy),
        idempotency_key=message.idempotency_key if message.HasField("idempotency_key") else None,
        parent_flow_run_id=message.parent_flow_run_id,
        trace_context=dict(message.trace_context),
    )


def transition_of(message: nouns.Transition) -> Transition:
    """The transition in a message."""
    return Transition(
        version=message.version,
        state=word_of(FlowRunState, nouns.FlowRunState, "FLOW_RUN_STATE_", message.state),
        cause=word_of(TransitionCause, nouns.TransitionCause, "TRANSITION_CAUSE_", message.cause),
        message=message.message,
        create_time=to_time(message.create_time),
        attempt=message.attempt,
        fence=message.fence,
        agent_id=message.agent_id,
        due_time=time_or_none(message, "due_time"),
        lease_grant_time=time_or_none(message, "lease_grant_time"),
    )


def policy_of(message: nouns.FlowRunPolicy) -> Policy:
    """The policy in a message."""
    return Policy(
        priority=message.priority,
        max_retries=message.max_retries,
        retry_delay=message.retry_delay.ToTimedelta(),
        max_lost_restarts=message.max_lost_restarts,
        log_level=word_of(LogLevel, log_pb2.LogLevel, "LOG_LEVEL_", message.log_level),
        child_policy=word_of(ChildPolicy, nouns.ChildPolicy, "CHILD_POLICY_", message.child_policy),
    )


def run_config_of(message: nouns.RunConfig) -> RunConfig:
    """The run config in a message."""
    return RunConfig(dict(message.environment), message.working_directory, message.image, dict(message.resources))


def run_config_message(run_config: RunConfig | None) -> nouns.RunConfig | None:
    """The run config as the contract carries it."""
    return None if run_config is None else run_config_to_proto(run_config)


def labels_message(field: str, labels: Sequence[str] | None) -> nouns.Labels | None:
    """Labels as the contract carries them, where none given and none wanted differ."""
    # A text is a sequence of texts too, but nobody means its letters.
    if isinstance(labels, str):
        raise invalid(field, f"must be a list of texts, not the text {labels!r}.")
    return None if labels is None else nouns.Labels(labels=labels)


def set_target(request: Any, flow_id: str | None, flow_group_id: str | None) -> None:
    """Name the target in a request; none or two are refused."""
    if (flow_id is None) == (flow_group_id is None):
        raise invalid("target", "exactly one of flow_id and flow_group_id must be given.")
    if flow_id is not None:
        request.flow_id = flow_id
    else:
        request.flow_group_id = flow_group_id


def raise_if_deleted(response: Any) -> None:
    """Refuse to show a run of which only the id is left."""
    if response.HasField("delete_time"):
        flow_run_id, at = response.flow_run.flow_run_id, to_time(response.delete_time)
        raise FlowRunDeleted(
            message=f"This idempotency key made flow run {flow_run_id}, which was deleted at {at.to_iso8601_string()}.",
            code="ALREADY_EXISTS",
            metadata={"flow_run_id": flow_run_id},
        )


def _failure_of(message: nouns.Failure) -> Failure:
    return Failure(
        type=message.type,
        message=message.message,
        traceback=message.traceback,
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        signal=message.signal if message.HasField("signal") else None,
    )


def _parsed(text: str) -> dict[str, Any]:
    if not text:
        raise LookupError("Lists and batches leave parameters and context out; get_flow_run returns the run with them.")
    return dict(json.loads(text))
