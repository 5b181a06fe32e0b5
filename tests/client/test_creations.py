"""Creations, as both clients make them."""

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from flowrun.v1 import flow_run_pb2, log_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from penstock.client import (
    ChildPolicy,
    FlowRunDeleted,
    InvalidRequest,
    KeyReuse,
    KeyReused,
    LogLevel,
    NewFlowRun,
    Parent,
    RunConfig,
)
from penstock.client.creations import create_flow_run
from penstock.domain.limits import MESSAGE_BYTES_MAX
from tests.client.conftest import Speak
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run


async def test_create_sends_everything_that_is_said(speak: Speak, services: ScriptedServices) -> None:
    """Each argument of a creation reaches its own field of the request."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)

    await speak(
        "create_flow_run",
        flow_group_id="group",
        parameters={"count": 2**70, "names": ["a"]},
        context={"why": "test"},
        flow_run_name="a name",
        labels=["x", "y"],
        run_config=RunConfig(environment={"A": "1"}, working_directory="/tmp"),
        scheduled_start_time=datetime(2030, 1, 1, tzinfo=UTC),
        idempotency_key="once",
        key_reuse=KeyReuse.REFUSE_IF_DIFFERENT,
        priority=7,
        max_retries=2,
        retry_delay=1.5,
        max_lost_restarts=0,
        log_level=LogLevel.DEBUG,
        child_policy=ChildPolicy.ABANDON,
        parent=Parent("parent", 5),
    )

    (request,) = services.requests
    assert "flow_group_id" == request.WhichOneof("target")
    assert "group" == request.flow_group_id
    assert '{"count": 1180591620717411303424, "names": ["a"]}' == request.parameters_json
    assert '{"why": "test"}' == request.context_json
    assert "a name" == request.name
    assert ["x", "y"] == list(request.labels.labels)
    assert {"A": "1"} == dict(request.run_config.environment)
    assert datetime(2030, 1, 1, tzinfo=UTC) == request.scheduled_start_time.ToDatetime(tzinfo=UTC)
    assert "once" == request.idempotency_key
    assert verbs.KEY_REUSE_REFUSE_IF_DIFFERENT == request.key_reuse
    assert (7, 2, 0) == (request.policy.priority, request.policy.max_retries, request.policy.max_lost_restarts)
    assert timedelta(seconds=1.5) == request.policy.retry_delay.ToTimedelta()
    assert log_pb2.LOG_LEVEL_DEBUG == request.policy.log_level
    assert flow_run_pb2.CHILD_POLICY_ABANDON == request.policy.child_policy
    assert ("parent", 5) == (request.parent.flow_run_id, request.parent.fence)


async def test_create_leaves_out_what_is_not_said(speak: Speak, services: ScriptedServices) -> None:
    """Nothing is sent for an argument that is not given, so that the flow's own wishes hold."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)

    await speak("create_flow_run", flow_id="flow")

    (request,) = services.requests
    assert {"flow_id", "key_reuse", "request_id", "policy"} == {field.name for field, _ in request.ListFields()}
    assert [] == request.policy.ListFields()


async def test_each_creation_has_a_request_id_of_its_own(speak: Speak, services: ScriptedServices) -> None:
    """Two creations are never taken for one that was repeated."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)

    await speak("create_flow_run", flow_id="flow")
    await speak("create_flow_run", flow_id="flow")

    first, second = (uuid.UUID(request.request_id) for request in services.requests)
    assert first != second


async def test_a_span_is_counted_by_the_server(speak: Speak, services: ScriptedServices) -> None:
    """A start time may be given as a span; no clock of the caller has a say in it."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)

    await speak("create_flow_run", flow_id="flow", scheduled_start_time=timedelta(hours=1))

    (request,) = services.requests
    assert timedelta(hours=1) == request.start_delay.ToTimedelta()
    assert not request.HasField("scheduled_start_time")


async def test_a_span_that_is_over_means_now(speak: Speak, services: ScriptedServices) -> None:
    """A moment in the past means now, and so does a span that ends there."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)

    await speak("create_flow_run", flow_id="flow", scheduled_start_time=timedelta(hours=-1))

    assert timedelta(0) == services.requests[0].start_delay.ToTimedelta()


async def test_a_created_run_is_a_run_and_more(speak: Speak, services: ScriptedServices) -> None:
    """A creation answers the run itself, and what only this call knows."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(
        flow_run=a_flow_run(), created=False, differing_fields=["labels"]
    )

    run = await speak("create_flow_run", flow_id="flow", idempotency_key="once")

    assert (RUN_ID, False, ("labels",)) == (run.flow_run_id, run.created, run.differing_fields)


async def test_the_key_of_a_deleted_run_is_an_error(speak: Speak, services: ScriptedServices) -> None:
    """A caller that asks for a run never takes a deleted one for it."""
    answer = verbs.CreateFlowRunResponse(flow_run=flow_run_pb2.FlowRun(flow_run_id=RUN_ID))
    answer.delete_time.FromJsonString("2026-03-02T00:00:00Z")
    services.scripts["CreateFlowRun"] = lambda *_: answer

    with pytest.raises(FlowRunDeleted, match=rf"made flow run {RUN_ID}, which was deleted at 2026-03-02T00:00:00Z"):
        await speak("create_flow_run", flow_id="flow", idempotency_key="once")


@pytest.mark.parametrize("target", [{}, {"flow_id": "a", "flow_group_id": "b"}])
async def test_a_creation_has_one_target(target: dict[str, str], speak: Speak) -> None:
    """A creation for no flow, or for two, is refused before it is sent."""
    with pytest.raises(InvalidRequest) as refused:
        await speak("create_flow_run", **target)

    assert ["target"] == [violation.field for violation in refused.value.violations]


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), float("inf"), [object()]])
async def test_a_parameter_that_json_cannot_say_is_named(value: object, speak: Speak) -> None:
    """A value that JSON cannot say is refused by the name of its parameter, before any call."""
    with pytest.raises(InvalidRequest, match=r"parameters\.bad: cannot be written as JSON") as refused:
        await speak("create_flow_run", flow_id="flow", parameters={"good": 1, "bad": value})

    assert ["parameters.bad"] == [violation.field for violation in refused.value.violations]


async def test_a_time_without_zone_is_refused(speak: Speak) -> None:
    """A start time that could mean several moments is refused before any call."""
    with pytest.raises(InvalidRequest, match="scheduled_start_time: has no time zone"):
        await speak("create_flow_run", flow_id="flow", scheduled_start_time=datetime(2030, 1, 1))


async def test_a_start_beyond_all_years_is_refused(speak: Speak) -> None:
    """A moment that UTC puts behind the year 9999 is refused before any call."""
    last = datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-14)))

    with pytest.raises(InvalidRequest, match="scheduled_start_time: is, in UTC, not a moment of the years 1 to 9999"):
        await speak("create_flow_run", flow_id="flow", scheduled_start_time=last)


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e300])
async def test_a_span_that_cannot_be_counted_is_refused(seconds: float, speak: Speak) -> None:
    """A number of seconds that makes no span is refused before any call."""
    with pytest.raises(InvalidRequest, match="retry_delay: is not a span that can be counted"):
        await speak("create_flow_run", flow_id="flow", retry_delay=seconds)


async def test_labels_are_no_text(speak: Speak) -> None:
    """A text in place of a list is refused, rather than taken for its letters."""
    with pytest.raises(InvalidRequest, match="labels: must be a list of texts, not the text 'gpu'"):
        await speak("create_flow_run", flow_id="flow", labels="gpu")


@pytest.mark.parametrize(
    ("field", "word", "words"),
    [
        ("log_level", "debug", "DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("child_policy", "KEEP", "CANCEL, ABANDON"),
        ("key_reuse", "REFUSE", "RETURN_FIRST, REFUSE_IF_DIFFERENT"),
    ],
)
async def test_a_word_that_is_none_is_refused(field: str, word: str, words: str, speak: Speak) -> None:
    """A misspelt wish is never taken for no wish."""
    with pytest.raises(InvalidRequest, match=f"{field}: must be one of {words}, not '{word}'"):
        await speak("create_flow_run", flow_id="flow", **{field: word})


async def test_a_word_may_be_given_as_text(speak: Speak, services: ScriptedServices) -> None:
    """A wish is understood without its enum."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)

    await speak("create_flow_run", flow_id="flow", log_level="DEBUG", child_policy="ABANDON")

    (request,) = services.requests
    assert log_pb2.LOG_LEVEL_DEBUG == request.policy.log_level
    assert flow_run_pb2.CHILD_POLICY_ABANDON == request.policy.child_policy


@pytest.mark.parametrize("wish", [{"priority": 2**40}, {"flow_run_name": "half a \udc80 character"}])
async def test_a_value_that_no_field_holds_is_refused(wish: dict[str, Any], speak: Speak) -> None:
    """What the contract cannot carry is refused in the form in which a server refuses."""
    with pytest.raises(InvalidRequest, match="request: cannot be sent: "):
        await speak("create_flow_run", flow_id="flow", **wish)


async def test_a_batch_answers_each_item_in_order(speak: Speak, services: ScriptedServices) -> None:
    """One call carries all items; each outcome is a run, or the error that a creation of its own would raise."""
    deleted = verbs.CreateFlowRunResponse(flow_run=flow_run_pb2.FlowRun(flow_run_id=RUN_ID))
    deleted.delete_time.FromJsonString("2026-03-02T00:00:00Z")
    reused = verbs.Refusal(code=6, reason="KEY_REUSED", message="It differs.", metadata={"flow_run_id": RUN_ID})
    services.scripts["BatchCreateFlowRuns"] = lambda *_: verbs.BatchCreateFlowRunsResponse(
        outcomes=[
            verbs.BatchCreateFlowRunsOutcome(
                response=verbs.CreateFlowRunResponse(flow_run=a_flow_run(name="first"), created=True)
            ),
            verbs.BatchCreateFlowRunsOutcome(refusal=reused),
            verbs.BatchCreateFlowRunsOutcome(response=deleted),
        ]
    )
    items: list[NewFlowRun] = [
        {"flow_id": "a", "parameters": {"n": 1}, "flow_run_name": "first"},
        {"flow_group_id": "b", "idempotency_key": "k", "key_reuse": KeyReuse.REFUSE_IF_DIFFERENT},
        {"flow_group_id": "c", "idempotency_key": "l", "scheduled_start_time": timedelta(minutes=1)},
    ]

    first, second, third = await speak("batch_create_flow_runs", items)

    (request,) = services.requests
    assert ["a", "b", "c"] == [each.flow_id or each.flow_group_id for each in request.requests]
    assert 3 == len({each.request_id for each in request.requests})
    assert timedelta(minutes=1) == request.requests[2].start_delay.ToTimedelta()
    assert (first.name, first.created) == ("first", True)
    assert isinstance(second, KeyReused)
    assert ("It differs.", "ALREADY_EXISTS", RUN_ID) == (str(second), second.code, second.metadata["flow_run_id"])
    assert isinstance(third, FlowRunDeleted)


async def test_a_batch_that_cannot_be_written_names_its_items(speak: Speak, services: ScriptedServices) -> None:
    """Everything that is wrong before sending is said at once, and nothing is sent."""
    items = [
        {"flow_id": "a", "parameters": {"x": float("nan")}},
        {"flow_id": "a"},
        {"flow_id": "a", "scheduled_start_time": datetime(2030, 1, 1)},
        {"flow_id": "a", "priority": 2**40},
    ]

    with pytest.raises(InvalidRequest) as refused:
        await speak("batch_create_flow_runs", items)

    assert [
        "flow_runs[0].parameters.x",
        "flow_runs[2].scheduled_start_time",
        "flow_runs[3]",
    ] == [violation.field for violation in refused.value.violations]
    assert not services.requests


async def test_a_batch_that_is_too_large_is_refused_before_it_is_sent(speak: Speak, services: ScriptedServices) -> None:
    """The size and the limit are named; the transport would name neither."""
    items = [{"flow_id": "a", "parameters": {"text": "x" * 500_000}}] * 9

    with pytest.raises(InvalidRequest, match=r"request: is 4,50\d,\d{3} bytes long, and 4,194,304 is the most"):
        await speak("batch_create_flow_runs", items)

    assert not services.requests


async def test_a_request_of_just_the_right_size_is_sent(speak: Speak, services: ScriptedServices) -> None:
    """The limit is that of the server, to the byte."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)
    bare = create_flow_run(flow_id="flow", context={"text": "x" * 4_000_000}).request.ByteSize() - 4_000_000
    text = "x" * (MESSAGE_BYTES_MAX - bare)

    await speak("create_flow_run", flow_id="flow", context={"text": text})
    with pytest.raises(InvalidRequest, match="request: is 4,194,305 bytes long"):
        await speak("create_flow_run", flow_id="flow", context={"text": text + "x"})

    assert [MESSAGE_BYTES_MAX] == [request.ByteSize() for request in services.requests]
