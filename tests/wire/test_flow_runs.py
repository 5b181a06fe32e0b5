"""Tests of `penstock.wire.flow_runs`."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from flowrun.v1 import flow_run_pb2, lease_pb2, log_pb2
from flowrun.v1 import flow_run_service_pb2 as pb
from penstock.domain import limits
from penstock.domain.errors import KeyReused
from penstock.domain.flow import PolicyAsked, RunConfig
from penstock.domain.flow_run import (
    Cancelling,
    Created,
    Creation,
    Failure,
    Finishing,
    FlowTarget,
    GroupTarget,
    KeyReuse,
    Outcome,
    ParentLease,
    Restarting,
    Starting,
    Stopped,
    Succeeded,
    Transition,
)
from penstock.domain.json_text import Number
from penstock.domain.log import LogLevel
from penstock.domain.queries import RunFilter
from penstock.domain.state import Cause, State
from penstock.wire import flow_runs
from penstock.wire.checks import Checks
from penstock.wire.flow_runs import (
    batch_of,
    cancelling_of,
    created_to_proto,
    creation_of,
    finishing_of,
    flow_run_to_proto,
    found_to_proto,
    key_of,
    outcome_to_proto,
    restarting_of,
    run_filter_of,
    starting_of,
    transition_to_proto,
    watching_of,
)
from penstock.wire.times import to_duration
from tests.domain.builders import AGENT_ID, EXECUTION_ID, FLOW_ID, GROUP_ID, RUN_ID, TRACEPARENT, a_flow_run
from tests.support.fake_clock import NOON
from tests.wire.refusing import wrong, wrong_fields

SECOND = timedelta(seconds=1)


def created_from(request: pb.CreateFlowRunRequest) -> Creation:
    """The creation, with nothing random in it."""
    return creation_of(
        request,
        new_id=lambda: RUN_ID,
        spare_name=lambda: "brave otter",
        traceparent=TRACEPARENT,
        tracestate="a=1",
    )


def a_request(**fields: Any) -> pb.CreateFlowRunRequest:
    return pb.CreateFlowRunRequest(**({"flow_id": str(FLOW_ID)} | fields))


def a_finish(**fields: Any) -> pb.FinishFlowRunRequest:
    plain: dict[str, Any] = {"flow_run_id": str(RUN_ID), "fence": 7, "execution_id": str(EXECUTION_ID)}
    return pb.FinishFlowRunRequest(**(plain | fields))


def object_of(size: int) -> str:
    """The text of a JSON object of exactly so many bytes."""
    return f'{{"a":"{"x" * (size - 8)}"}}'


def test_a_plain_creation() -> None:
    """What a request leaves out is left to the group and the flow."""
    expected = Creation(
        flow_run_id=RUN_ID,
        target=FlowTarget(FLOW_ID),
        spare_name="brave otter",
        traceparent=TRACEPARENT,
        tracestate="a=1",
    )

    assert expected == created_from(a_request())


def test_a_full_creation() -> None:
    """Everything that a request says arrives."""
    request = pb.CreateFlowRunRequest(
        flow_group_id=str(GROUP_ID),
        idempotency_key=" key ",
        key_reuse=pb.KEY_REUSE_REFUSE_IF_DIFFERENT,
        request_id=str(UUID(int=1)).upper(),
        scheduled_start_time=Timestamp(seconds=NOON.int_timestamp),
        name="noon",
        parameters_json='{"depth": 1.50}',
        context_json='{"who": null}',
        labels=flow_run_pb2.Labels(labels=["b", "a", "b"]),
        run_config=flow_run_pb2.RunConfig(image="levels:1"),
        policy=flow_run_pb2.FlowRunPolicy(priority=0, log_level=log_pb2.LOG_LEVEL_ERROR),
        parent=lease_pb2.Lease(flow_run_id=str(UUID(int=2)), fence=3),
    )

    creation = created_from(request)

    assert (GroupTarget(GROUP_ID), " key ", KeyReuse.REFUSE_IF_DIFFERENT) == (
        creation.target,
        creation.idempotency_key,
        creation.key_reuse,
    )
    assert (str(UUID(int=1)), NOON, "noon") == (creation.request_id, creation.scheduled_start_time, creation.name)
    assert ({"depth": Number("1.50")}, {"who": None}) == (creation.parameters, creation.context)
    assert (("a", "b"), RunConfig(image="levels:1")) == (creation.labels, creation.run_config)
    assert PolicyAsked(priority=0, log_level=LogLevel.ERROR) == creation.policy
    assert ParentLease(UUID(int=2), 3) == creation.parent  # type: ignore[arg-type]


@pytest.mark.parametrize("span", [timedelta(0), timedelta(microseconds=1), limits.START_DELAY_MAX], ids=str)
def test_a_start_delay(span: timedelta) -> None:
    """From nothing to ten years, of a creation and of a restart; no delay at all is none."""
    again = pb.RestartFlowRunRequest(flow_run_id=str(RUN_ID), version=4)

    assert span == created_from(a_request(start_delay=to_duration(span))).start_delay
    assert (None, None) == (created_from(a_request()).start_delay, restarting_of(again).start_delay)
    again.start_delay.CopyFrom(to_duration(span))
    assert Restarting(RUN_ID, 4, start_delay=span) == restarting_of(again)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"start_delay": Duration(seconds=-1)}, "is -1 s; at least 0 s are required"),
        ({"start_delay": Duration(seconds=315_360_001)}, "is 315360001 s; at most 315360000 s are allowed"),
        (
            {"start_delay": Duration(), "scheduled_start_time": Timestamp()},
            "is given beside scheduled_start_time; give one of them",
        ),
    ],
    ids=["negative", "too long", "two"],
)
def test_a_wrong_start_delay(fields: dict[str, Any], sentence: str) -> None:
    """Out of range, or beside a start time, be they empty or not."""
    again = pb.RestartFlowRunRequest(flow_run_id=str(RUN_ID), version=4, **fields)

    assert [("start_delay", sentence)] == wrong(created_from, a_request(**fields))
    assert [("start_delay", sentence)] == wrong(restarting_of, again)


def test_restart() -> None:
    """Which run, after which version, when and why."""
    request = pb.RestartFlowRunRequest(
        flow_run_id=str(RUN_ID),
        version=2**63 - 1,
        scheduled_start_time=Timestamp(seconds=NOON.int_timestamp),
        reason="the disk was full",
    )

    assert Restarting(RUN_ID, 2**63 - 1, NOON, None, "the disk was full") == restarting_of(request)


def test_a_wrong_restart() -> None:
    """A run and its final version are required; words have their limit."""
    request = pb.RestartFlowRunRequest(reason="x" * (limits.REASON_CHARACTERS_MAX + 1))

    assert ["flow_run_id", "version", "reason"] == wrong_fields(restarting_of, request)


def test_cancel() -> None:
    """Which run, and why, as far as that is told."""
    reason = "x" * limits.REASON_CHARACTERS_MAX

    assert Cancelling(RUN_ID) == cancelling_of(pb.CancelFlowRunRequest(flow_run_id=str(RUN_ID)))
    assert Cancelling(RUN_ID, reason) == cancelling_of(pb.CancelFlowRunRequest(flow_run_id=str(RUN_ID), reason=reason))
    assert ["flow_run_id", "reason"] == wrong_fields(cancelling_of, pb.CancelFlowRunRequest(reason=reason + "x"))


def test_a_key_with_its_target() -> None:
    """As the creation named it; both are required."""
    by_flow = pb.GetFlowRunByKeyRequest(flow_id=str(FLOW_ID), idempotency_key="k")
    by_group = pb.GetFlowRunByKeyRequest(flow_group_id=str(GROUP_ID), idempotency_key=" k ")

    assert (FlowTarget(FLOW_ID), "k") == key_of(by_flow)
    assert (GroupTarget(GROUP_ID), " k ") == key_of(by_group)
    assert ["target", "idempotency_key"] == wrong_fields(key_of, pb.GetFlowRunByKeyRequest())


def test_a_batch() -> None:
    """Its items are taken as they are, wrong ones too; only their number counts."""
    items = [a_request(name="\0"), pb.CreateFlowRunRequest()]

    assert items == list(batch_of(pb.BatchCreateFlowRunsRequest(requests=items)))
    assert limits.BATCH_CREATE_MAX == len(
        batch_of(pb.BatchCreateFlowRunsRequest(requests=items * (limits.BATCH_CREATE_MAX // 2)))
    )
    assert [("requests", "is required")] == wrong(batch_of, pb.BatchCreateFlowRunsRequest())
    assert [("requests", "holds 1002; at most 1000 are allowed")] == wrong(
        batch_of, pb.BatchCreateFlowRunsRequest(requests=items * (limits.BATCH_CREATE_MAX // 2 + 1))
    )


def test_an_outcome_is_short() -> None:
    """Of a run its ids, names, state, version, attempt, fence and times; of a deleted one its id; a refusal is told."""
    run = a_flow_run(State.SUCCEEDED, result_json="1", context_json='{"a":1}', labels=("x",), idempotency_key="k")
    short = flow_run_to_proto(run)
    for name in ("parameters_json", "context_json", "result_json", "labels", "run_config", "policy", "idempotency_key"):
        short.ClearField(name)  # type: ignore[arg-type]
    short.trace_context.clear()

    created = outcome_to_proto(Created(RUN_ID, run, fresh=True)).response
    gone = outcome_to_proto(Created(RUN_ID, None, fresh=False, delete_time=NOON)).response
    refused = outcome_to_proto(KeyReused("k", str(RUN_ID), ("labels",))).refusal

    assert pb.CreateFlowRunResponse(flow_run=short, created=True) == created
    assert (flow_run_pb2.FlowRun(flow_run_id=str(RUN_ID)), True) == (gone.flow_run, gone.HasField("delete_time"))
    assert "KEY_REUSED" == refused.reason


def test_a_run_found_by_its_key() -> None:
    """It is told whole; of a deleted one the id and the time are left."""
    run = a_flow_run()

    found = found_to_proto(Created(RUN_ID, run, fresh=False))
    gone = found_to_proto(Created(RUN_ID, None, fresh=False, delete_time=NOON))

    assert (flow_run_to_proto(run), False) == (found.flow_run, found.HasField("delete_time"))
    assert (flow_run_pb2.FlowRun(flow_run_id=str(RUN_ID)), NOON.int_timestamp) == (
        gone.flow_run,
        gone.delete_time.seconds,
    )


def test_empty_is_not_absent() -> None:
    """Empty labels and an empty run config are choices; absent ones are none."""
    creation = created_from(a_request(labels=flow_run_pb2.Labels(), run_config=flow_run_pb2.RunConfig()))

    assert ((), RunConfig()) == (creation.labels, creation.run_config)


def test_everything_wrong_is_said_at_once() -> None:
    """Every violation of a creation is in one refusal, by the path that the proto spells."""
    request = pb.CreateFlowRunRequest(
        idempotency_key="",
        key_reuse=9,  # type: ignore[arg-type]
        request_id="x",
        scheduled_start_time=Timestamp(nanos=-1),
        name=" ",
        parameters_json="[]",
        context_json="{",
        labels=flow_run_pb2.Labels(labels=["a", "b", "c", "\0"]),
        run_config=flow_run_pb2.RunConfig(image="\0"),
        policy=flow_run_pb2.FlowRunPolicy(max_retries=-1, log_level=99, child_policy=99),  # type: ignore[arg-type]
        parent=lease_pb2.Lease(),
    )

    assert {
        "target",
        "idempotency_key",
        "key_reuse",
        "request_id",
        "scheduled_start_time",
        "name",
        "parameters_json",
        "context_json",
        "labels[3]",
        "run_config.image",
        "policy.max_retries",
        "policy.log_level",
        "policy.child_policy",
        "parent.flow_run_id",
        "parent.fence",
    } == set(wrong_fields(created_from, request))


def test_a_target_is_an_id() -> None:
    """A target that is named but malformed is refused by its own name."""
    assert wrong(created_from, pb.CreateFlowRunRequest(flow_id="levels")) == [("flow_id", "is not a UUID")]
    assert wrong(created_from, pb.CreateFlowRunRequest(flow_group_id="")) == [("flow_group_id", "is required")]


@pytest.mark.parametrize(
    ("field", "text_of", "high"),
    [
        ("idempotency_key", "é".__mul__, limits.IDEMPOTENCY_KEY_CHARACTERS_MAX),
        ("name", "é".__mul__, limits.NAME_CHARACTERS_MAX),
        ("parameters_json", object_of, limits.PARAMETERS_BYTES_MAX),
        ("context_json", object_of, limits.CONTEXT_BYTES_MAX),
    ],
)
def test_a_creation_at_its_limits(field: str, text_of: Callable[[int], str], high: int) -> None:
    """Texts are taken at their limit and refused beyond it."""
    created_from(a_request(**{field: text_of(high)}))

    ((place, sentence),) = wrong(created_from, a_request(**{field: text_of(high + 1)}))

    assert field == place
    assert sentence.startswith(f"is {high + 1} ")
    assert sentence.endswith(f"at most {high} are allowed")


@pytest.mark.parametrize("key", [" ", "\t\n", "a\0"])
def test_what_is_no_key(key: str) -> None:
    """A key that nobody could tell from none, or that cannot be kept, is refused."""
    assert wrong_fields(created_from, a_request(idempotency_key=key)) == ["idempotency_key"]


def test_start() -> None:
    """A start names the run, the fence and the execution."""
    request = pb.StartFlowRunRequest(flow_run_id=str(RUN_ID), fence=7, execution_id=str(EXECUTION_ID))

    assert Starting(RUN_ID, 7, EXECUTION_ID) == starting_of(request)
    assert wrong_fields(starting_of, pb.StartFlowRunRequest()) == ["flow_run_id", "fence", "execution_id"]


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"succeeded": pb.Succeeded()}, Succeeded(None)),
        ({"succeeded": pb.Succeeded(result_json=' {"a": 1.0} ')}, Succeeded(' {"a": 1.0} ')),
        ({"stopped": pb.Stopped(message="bye")}, Stopped("bye")),
        ({"failed": flow_run_pb2.Failure()}, Failure()),
        (
            {"failed": flow_run_pb2.Failure(type="E", message="m", traceback="t", exit_code=0, signal=9)},
            Failure("E", "m", "t", 0, 9),
        ),
    ],
)
def test_finish(fields: dict[str, Any], outcome: Outcome) -> None:
    """Each way to end arrives as it was reported."""
    assert Finishing(RUN_ID, 7, EXECUTION_ID, outcome) == finishing_of(a_finish(**fields))


def test_a_finish_without_execution() -> None:
    """Where nothing was started, no execution is named."""
    assert finishing_of(a_finish(execution_id="", failed=flow_run_pb2.Failure())).execution_id is None


def test_a_wrong_finish() -> None:
    """A report without an outcome is refused, with everything else that is wrong."""
    request = pb.FinishFlowRunRequest(execution_id="x")

    assert {"execution_id", "flow_run_id", "fence", "outcome"} == set(wrong_fields(finishing_of, request))


def test_results_at_their_limit() -> None:
    """A result is JSON of bounded size."""
    high = limits.RESULT_BYTES_MAX
    finishing_of(a_finish(succeeded=pb.Succeeded(result_json=object_of(high))))

    for text in (object_of(high + 1), "", "nonsense"):
        request = a_finish(succeeded=pb.Succeeded(result_json=text))
        assert wrong_fields(finishing_of, request) == ["succeeded.result_json"]


def test_what_a_failure_said_is_cut_at_the_front() -> None:
    """A text at the limit is kept whole; of a longer one the end is kept."""
    high = limits.FAILURE_CHARACTERS_MAX
    whole = "é" * high

    finishing = finishing_of(a_finish(failed=flow_run_pb2.Failure(message=whole, traceback=f"first{whole[1:]}!")))

    assert Failure(message=whole, traceback=f"{whole[1:]}!") == finishing.outcome


def test_a_nul_in_an_end() -> None:
    """A report of an end is never refused for a NUL in what was said about it."""
    failed = finishing_of(a_finish(failed=flow_run_pb2.Failure(type="\0E", message="a\0b", traceback="\0")))
    stopped = finishing_of(a_finish(stopped=pb.Stopped(message="by\0e")))

    assert Failure(type="\ufffdE", message="a\ufffdb", traceback="\ufffd") == failed.outcome
    assert Stopped("by\ufffde") == stopped.outcome


def test_short_texts_of_an_end_are_cut_at_the_end() -> None:
    """The name of a failure and the word of a stop are kept whole at their limits; of a longer one the beginning is."""
    name, word = "é" * limits.NAME_CHARACTERS_MAX, "é" * limits.REASON_CHARACTERS_MAX

    for more in ("", "!", "\0"):
        failed = finishing_of(a_finish(failed=flow_run_pb2.Failure(type=name + more)))
        stopped = finishing_of(a_finish(stopped=pb.Stopped(message=word + more)))
        assert (Failure(type=name), Stopped(word)) == (failed.outcome, stopped.outcome)


def test_filters() -> None:
    """What a filter leaves empty is no condition; states may repeat."""
    request = pb.ListFlowRunsRequest(
        states=[flow_run_pb2.FLOW_RUN_STATE_FAILED, flow_run_pb2.FLOW_RUN_STATE_FAILED],
        flow_id=str(FLOW_ID),
        flow_group_id=str(GROUP_ID),
        parent_flow_run_id=str(RUN_ID),
        name="noon",
    )

    assert RunFilter() == run_filter_of(pb.ListFlowRunsRequest())
    assert RunFilter(frozenset({State.FAILED}), FLOW_ID, GROUP_ID, RUN_ID, "noon") == run_filter_of(request)


def test_wrong_filters() -> None:
    """Unknown and unspecified states are refused by their places, and join what else is wrong."""
    checks = Checks()
    checks.refuse("page_size", "is negative")

    run_filter_of(pb.ListFlowRunsRequest(states=[1, 0, 99], flow_id="x"), checks)  # type: ignore[list-item]

    assert {"page_size", "flow_id", "states[1]", "states[2]"} == set(wrong_fields(checks.done))


def test_watching() -> None:
    """A watch begins after a version, which is not negative."""
    assert watching_of(pb.WatchFlowRunRequest(flow_run_id=str(RUN_ID), after_version=5)) == (RUN_ID, 5)
    assert wrong_fields(watching_of, pb.WatchFlowRunRequest(after_version=-1)) == ["flow_run_id", "after_version"]


def test_a_run_is_answered_whole() -> None:
    """Everything that a run is can be read from the answer."""
    run = a_flow_run(
        State.FAILED,
        start_time=NOON + SECOND,
        finish_time=NOON + 2 * SECOND,
        idempotency_key="k",
        parent_id=RUN_ID,
        result_json="1",
        failure=Failure("E", "m", "t", 0, 9),
        tracestate="a=1",
        run_config=RunConfig(image="i"),
    )

    message = flow_run_to_proto(run)

    assert {field.name for field in message.DESCRIPTOR.fields} == {field.name for field, _ in message.ListFields()}
    assert (str(RUN_ID), str(FLOW_ID), str(GROUP_ID)) == (message.flow_run_id, message.flow_id, message.flow_group_id)
    assert (
        message.flow_name,
        message.name,
        message.version,
        message.attempt,
        message.fence,
    ) == ("levels", "brave otter", 3, 1, 7)
    assert message.state == flow_run_pb2.FLOW_RUN_STATE_FAILED
    assert [
        time.seconds - NOON.int_timestamp
        for time in (message.scheduled_start_time, message.create_time, message.start_time, message.finish_time)
    ] == [0, 0, 1, 2]
    assert (message.parameters_json, message.context_json, message.result_json) == ('{"river":"Aare"}', "{}", "1")
    assert (["gpu"], "i", "k", str(RUN_ID)) == (
        list(message.labels),
        message.run_config.image,
        message.idempotency_key,
        message.parent_flow_run_id,
    )
    assert flow_run_pb2.Failure(type="E", message="m", traceback="t", exit_code=0, signal=9) == message.failure
    assert dict(message.trace_context) == {"traceparent": TRACEPARENT, "tracestate": "a=1"}


def test_what_a_young_run_does_not_have() -> None:
    """What has not happened yet is absent."""
    message = flow_run_to_proto(a_flow_run(traceparent=""))

    optional = {"start_time", "finish_time", "idempotency_key", "result_json", "failure"}
    assert not optional & {field.name for field, _ in message.ListFields()}
    assert (message.parent_flow_run_id, dict(message.trace_context)) == ("", {})


def test_a_failure_without_a_number() -> None:
    """An exit code of zero is not the same as none."""
    message = flow_run_to_proto(a_flow_run(State.FAILED, failure=Failure("E"))).failure

    assert (message.HasField("exit_code"), message.HasField("signal")) == (False, False)


def test_a_run_in_a_list() -> None:
    """In lists a run comes without its parameters, context and result, and is otherwise the same."""
    run = a_flow_run(State.SUCCEEDED, result_json="1", context_json='{"a":1}')
    bare = flow_run_to_proto(run)
    for name in ("parameters_json", "context_json", "result_json"):
        bare.ClearField(name)

    assert bare == flow_run_to_proto(run, whole=False)


def test_a_created_run() -> None:
    """The answer to a creation says whether it created, and in what a repeat differed."""
    run = a_flow_run()

    answer = created_to_proto(Created(RUN_ID, run, fresh=False, differing_fields=("labels",)))

    assert flow_run_to_proto(run) == answer.flow_run
    assert (
        answer.created,
        list(answer.differing_fields),
        answer.HasField("delete_time"),
    ) == (False, ["labels"], False)
    assert created_to_proto(Created(RUN_ID, run, fresh=True)).created


def test_a_deleted_run() -> None:
    """Of a run that was deleted its id and the time of its deletion are left."""
    answer = created_to_proto(Created(RUN_ID, None, fresh=False, delete_time=NOON))

    assert flow_run_pb2.FlowRun(flow_run_id=str(RUN_ID)) == answer.flow_run
    assert NOON.int_timestamp == answer.delete_time.seconds


def test_transitions() -> None:
    """A step is answered whole, and what it does not have is absent."""
    bare = Transition(RUN_ID, 1, State.SCHEDULED, Cause.CREATED, "", NOON, 1)
    full = Transition(RUN_ID, 2, State.SUBMITTED, Cause.ACCEPTED, "so", NOON, 2, 7, AGENT_ID, NOON + SECOND, NOON)

    message = transition_to_proto(full)

    assert {field.name for field in message.DESCRIPTOR.fields} == {field.name for field, _ in message.ListFields()}
    assert (2, "so", 2, 7, str(AGENT_ID)) == (
        message.version,
        message.message,
        message.attempt,
        message.fence,
        message.agent_id,
    )
    assert (
        message.state,
        message.cause,
    ) == (flow_run_pb2.FLOW_RUN_STATE_SUBMITTED, flow_run_pb2.TRANSITION_CAUSE_ACCEPTED)
    assert [time.seconds - NOON.int_timestamp for time in (message.due_time, message.lease_grant_time)] == [1, 0]
    sparse = transition_to_proto(bare)
    assert (sparse.agent_id, sparse.HasField("due_time"), sparse.HasField("lease_grant_time")) == ("", False, False)


def test_enums_are_total() -> None:
    """Every value of the domain has its number and every number its value, but for the unspecified ones."""
    assert set(State) == set(flow_runs.STATE_TO_PROTO) == set(flow_runs.STATE_FROM_PROTO.values())
    assert set(flow_run_pb2.FlowRunState.values()) - {0} == set(flow_runs.STATE_FROM_PROTO)
    assert set(Cause) == set(flow_runs.CAUSE_TO_PROTO) == set(flow_runs.CAUSE_FROM_PROTO.values())
    assert set(flow_run_pb2.TransitionCause.values()) - {0} == set(flow_runs.CAUSE_FROM_PROTO)
    assert set(KeyReuse) == set(flow_runs.KEY_REUSE_TO_PROTO) == set(flow_runs.KEY_REUSE_FROM_PROTO.values())
    assert set(pb.KeyReuse.values()) - {0} == set(flow_runs.KEY_REUSE_FROM_PROTO)
