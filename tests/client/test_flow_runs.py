"""Flow runs, as both clients see them."""

import uuid
from datetime import UTC, datetime, timedelta

import pendulum
import pytest

from flowrun.v1 import flow_run_pb2, log_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from penstock.client import (
    ChildPolicy,
    FlowRunDeleted,
    FlowRunState,
    InvalidRequest,
    KeyReuse,
    LogLevel,
    Parent,
    RunConfig,
    TransitionCause,
)
from tests.client.conftest import Speak
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run, a_step, the_watch_end


async def test_create_sends_everything_that_is_said(speak: Speak, services: ScriptedServices) -> None:
    """Each argument of a creation reaches its own field of the request."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)

    await speak(
        "create_flow_run",
        flow_group_id="group",
        parameters={"count": 2**70, "names": ["a"]},
        context={"why": "test"},
        name="a name",
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


async def test_a_span_counts_from_now(speak: Speak, services: ScriptedServices) -> None:
    """A start time may be given as a span."""
    services.scripts["CreateFlowRun"] = lambda *_: verbs.CreateFlowRunResponse(flow_run=a_flow_run(), created=True)
    before = pendulum.now("UTC")

    await speak("create_flow_run", flow_id="flow", scheduled_start_time=timedelta(hours=1))

    due = services.requests[0].scheduled_start_time.ToDatetime(tzinfo=UTC)
    assert before + timedelta(hours=1) <= due <= pendulum.now("UTC") + timedelta(hours=1)


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


async def test_a_run_comes_as_it_was_told(speak: Speak, services: ScriptedServices) -> None:
    """Numbers keep all their digits, times are UTC, states are words, and the text of the JSON is kept."""
    failure = flow_run_pb2.Failure(type="ValueError", message="no such river", exit_code=1)
    run = a_flow_run(state=flow_run_pb2.FLOW_RUN_STATE_FAILED, failure=failure, labels=["a"])
    services.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=run)

    found = await speak("get_flow_run", RUN_ID)

    assert FlowRunState.FAILED is found.state
    assert found.state.is_final
    assert {"big": 123456789012345678901234567890, "small": 1.5} == found.parameters
    assert '{"big": 123456789012345678901234567890, "small": 1.50}' == found.parameters_json
    assert pendulum.datetime(2026, 3, 1, 10, 0, 0, 123456) == found.create_time
    assert "UTC" == found.create_time.timezone_name
    assert (None, None, None) == (found.finish_time, found.result, found.idempotency_key)
    assert "ValueError: no such river" == str(found.failure)
    assert ("a",) == found.labels


async def test_a_state_of_a_later_version_is_unknown(speak: Speak, services: ScriptedServices) -> None:
    """An enum may grow: what this version has no word for is no error."""
    services.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=a_flow_run(state=99))

    found = await speak("get_flow_run", RUN_ID)

    assert FlowRunState.UNKNOWN is found.state


async def test_a_list_is_read_page_by_page(speak: Speak, services: ScriptedServices) -> None:
    """Iterating over a list asks for the pages one after the other, each with the same filters."""
    pages = {
        "": verbs.ListFlowRunsResponse(flow_runs=[a_flow_run(name="one"), a_flow_run(name="two")], next_page_token="t"),
        "t": verbs.ListFlowRunsResponse(flow_runs=[a_flow_run(name="three")]),
    }
    services.scripts["ListFlowRuns"] = lambda request, _: pages[request.page_token]

    found = await speak("list_flow_runs", states=[FlowRunState.RUNNING], flow_id="flow")

    assert ["one", "two", "three"] == [run.name for run in found]
    assert [([3], "flow")] * 2 == [(list(request.states), request.flow_id) for request in services.requests]


async def test_a_listed_run_says_that_its_parameters_were_left_out(speak: Speak, services: ScriptedServices) -> None:
    """Parameters that a list leaves out are not taken for none."""
    bare = a_flow_run()
    bare.parameters_json = ""
    services.scripts["ListFlowRuns"] = lambda *_: verbs.ListFlowRunsResponse(flow_runs=[bare])

    (found,) = await speak("list_flow_runs")

    with pytest.raises(LookupError, match="get_flow_run"):
        _ = found.parameters


async def test_transitions_are_listed(speak: Speak, services: ScriptedServices) -> None:
    """A run's history comes with its causes and times."""
    step = a_step(1, flow_run_pb2.FLOW_RUN_STATE_SCHEDULED).transition
    step.cause = flow_run_pb2.TRANSITION_CAUSE_CREATED
    step.due_time.FromJsonString("2026-03-01T11:00:00Z")
    services.scripts["ListTransitions"] = lambda *_: verbs.ListTransitionsResponse(transitions=[step])

    (found,) = await speak("list_transitions", RUN_ID)

    assert (FlowRunState.SCHEDULED, TransitionCause.CREATED) == (found.state, found.cause)
    assert pendulum.datetime(2026, 3, 1, 11) == found.due_time
    assert found.lease_grant_time is None


async def test_a_watch_shows_each_step_and_ends(speak: Speak, services: ScriptedServices) -> None:
    """A watch yields the transitions, passes over signs of life, and ends with the end marker."""

    async def watch(request: verbs.WatchFlowRunRequest, context: object) -> None:
        heartbeat = verbs.WatchFlowRunResponse(heartbeat=verbs.WatchHeartbeat(version=3))
        for message in (a_step(2), a_step(3), heartbeat, a_step(4), the_watch_end()):
            await context.write(message)  # type: ignore[attr-defined]

    services.scripts["WatchFlowRun"] = watch

    found = await speak("watch_flow_run", RUN_ID, after_version=1)

    assert [2, 3, 4] == [step.version for step in found]
    assert [1] == [request.after_version for request in services.requests]


async def test_waiting_returns_the_final_run(speak: Speak, services: ScriptedServices) -> None:
    """Whoever waits for a run gets it in its final state, with its result."""

    async def watch(request: verbs.WatchFlowRunRequest, context: object) -> None:
        await context.write(a_step(1))  # type: ignore[attr-defined]
        await context.write(the_watch_end())  # type: ignore[attr-defined]

    services.scripts["WatchFlowRun"] = watch

    run = await speak("wait_for_flow_run", RUN_ID)

    assert (FlowRunState.SUCCEEDED, {"rows": 3}) == (run.state, run.result)
