"""Creating flow runs: what may be wished, one run or a batch, and what a creation answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypedDict
from uuid import uuid4

from flowrun.v1 import flow_run_pb2 as nouns
from flowrun.v1 import flow_run_service_pb2 as verbs
from flowrun.v1 import lease_pb2, log_pb2
from penstock.client.calls import Call, Service
from penstock.client.enums import ChildPolicy, KeyReuse, LogLevel, number_of
from penstock.client.errors import InvalidRequest, PenstockError, Violation, all_invalid, invalid, refusal_of
from penstock.client.flow_runs import (
    FlowRun,
    RunConfig,
    flow_run_of,
    labels_message,
    raise_if_deleted,
    run_config_message,
    set_target,
)
from penstock.client.json_text import text_of
from penstock.client.times import duration_of, start_of


@dataclass(frozen=True, slots=True)
class Parent:
    """The run that creates another, and the fence of the lease under which it does."""

    flow_run_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class CreatedFlowRun(FlowRun):
    """A run as its creation answered it.

    `created` is False for a repeat; `differing_fields` then names what the repeat asked differently.
    """

    created: bool
    differing_fields: tuple[str, ...]


class NewFlowRun(TypedDict, total=False):
    """One item of a batch: the arguments of `create_flow_run`."""

    flow_id: str | None
    flow_group_id: str | None
    parameters: Mapping[str, Any] | None
    context: Mapping[str, Any] | None
    flow_run_name: str
    labels: Sequence[str] | None
    run_config: RunConfig | None
    scheduled_start_time: datetime | timedelta | None
    idempotency_key: str | None
    key_reuse: KeyReuse
    priority: int | None
    max_retries: int | None
    retry_delay: timedelta | float | None
    max_lost_restarts: int | None
    log_level: LogLevel | None
    child_policy: ChildPolicy | None
    parent: Parent | None


def create_flow_run(
    *,
    flow_id: str | None = None,
    flow_group_id: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    flow_run_name: str = "",
    labels: Sequence[str] | None = None,
    run_config: RunConfig | None = None,
    scheduled_start_time: datetime | timedelta | None = None,
    idempotency_key: str | None = None,
    key_reuse: KeyReuse = KeyReuse.RETURN_FIRST,
    priority: int | None = None,
    max_retries: int | None = None,
    retry_delay: timedelta | float | None = None,
    max_lost_restarts: int | None = None,
    log_level: LogLevel | None = None,
    child_policy: ChildPolicy | None = None,
    parent: Parent | None = None,
) -> Call[CreatedFlowRun]:
    """Create a run of this flow, or of the live flow of this group.

    What is left out is taken from the group and the flow; `labels=[]` makes the run unlabelled. A start time may be a
    moment, or a span that begins when the server creates the run. Under an `idempotency_key` a repeat returns the first
    run; without one, the call is still safe for the machinery below to repeat.
    """
    at, delay = start_of("scheduled_start_time", scheduled_start_time)
    request = verbs.CreateFlowRunRequest(
        idempotency_key=idempotency_key,
        key_reuse=_number_of("key_reuse", verbs.KeyReuse, key_reuse),
        request_id=str(uuid4()),
        scheduled_start_time=at,
        start_delay=delay,
        name=flow_run_name,
        parameters_json=text_of("parameters", parameters),
        context_json=text_of("context", context),
        labels=labels_message("labels", labels),
        run_config=run_config_message(run_config),
        policy=nouns.FlowRunPolicy(
            priority=priority,
            max_retries=max_retries,
            retry_delay=duration_of("retry_delay", retry_delay),
            max_lost_restarts=max_lost_restarts,
            log_level=_number_of("log_level", log_pb2.LogLevel, log_level),
            child_policy=_number_of("child_policy", nouns.ChildPolicy, child_policy),
        ),
        parent=None if parent is None else lease_pb2.Lease(flow_run_id=parent.flow_run_id, fence=parent.fence),
    )
    set_target(request, flow_id, flow_group_id)
    return Call(Service.FLOW_RUN, "CreateFlowRun", request, _created, span="create flow run")


def batch_create_flow_runs(flow_runs: Sequence[NewFlowRun]) -> Call[list[CreatedFlowRun | PenstockError]]:
    """Create up to 1,000 runs, each on its own: in order, each item's run, or the error that refused it.

    Repeating a batch whose items bear idempotency keys completes it. What is wrong before anything is sent, such as a
    value that JSON cannot say, refuses the whole batch and names its items.
    """
    request = verbs.BatchCreateFlowRunsRequest(requests=_requests_of(flow_runs))
    return Call(
        Service.FLOW_RUN,
        "BatchCreateFlowRuns",
        request,
        lambda response: [_outcome_of(each) for each in response.outcomes],
        span="create flow runs",
    )


def _requests_of(flow_runs: Sequence[NewFlowRun]) -> list[verbs.CreateFlowRunRequest]:
    requests: list[Any] = []
    violations: list[Violation] = []
    for index, each in enumerate(flow_runs):
        try:
            requests.append(create_flow_run(**each).request)
        except InvalidRequest as error:
            violations += [replace(one, field=f"flow_runs[{index}].{one.field}") for one in error.violations]
        except ValueError as error:
            violations.append(Violation(f"flow_runs[{index}]", f"cannot be sent: {error}."))
    if violations:
        raise all_invalid(violations)
    return requests


def _outcome_of(outcome: verbs.BatchCreateFlowRunsOutcome) -> CreatedFlowRun | PenstockError:
    if not outcome.HasField("response"):
        return refusal_of(outcome.refusal)
    try:
        return _created(outcome.response)
    except PenstockError as error:
        return error


def _created(response: verbs.CreateFlowRunResponse) -> CreatedFlowRun:
    raise_if_deleted(response)
    flow_run = flow_run_of(response.flow_run)
    return CreatedFlowRun(
        **{each.name: getattr(flow_run, each.name) for each in fields(flow_run)},
        created=response.created,
        differing_fields=tuple(response.differing_fields),
    )


def _number_of(field: str, enum: Any, word: str | None) -> Any:
    if word is None:
        return None
    prefix, known = f"{field.upper()}_", list(enum.keys())
    # A text that only looks like a word of the enum would be taken for no wish at all.
    if not isinstance(word, StrEnum) and prefix + word not in known:
        words = ", ".join(name.removeprefix(prefix) for name in known[1:])
        raise invalid(field, f"must be one of {words}, not {word!r}.")
    return number_of(enum, prefix, word)
