"""Flow runs, as both clients see them."""

from datetime import UTC, datetime, timedelta

import pendulum
import pytest

from flowrun.v1 import flow_run_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from penstock.client import FlowRunDeleted, FlowRunState, InvalidRequest, TransitionCause
from tests.client.conftest import Speak
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run, a_step, the_watch_end


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


async def test_a_run_is_found_by_its_key(speak: Speak, services: ScriptedServices) -> None:
    """The key is looked for under the target that is named."""
    services.scripts["GetFlowRunByKey"] = lambda *_: verbs.GetFlowRunByKeyResponse(flow_run=a_flow_run())

    found = await speak("get_flow_run_by_key", "once", flow_group_id="group")

    (request,) = services.requests
    assert ("once", "group", "") == (request.idempotency_key, request.flow_group_id, request.flow_id)
    assert RUN_ID == found.flow_run_id


async def test_the_key_of_a_deleted_run_finds_none(speak: Speak, services: ScriptedServices) -> None:
    """A caller that asks for a run never takes a deleted one for it."""
    answer = verbs.GetFlowRunByKeyResponse(flow_run=flow_run_pb2.FlowRun(flow_run_id=RUN_ID))
    answer.delete_time.FromJsonString("2026-03-02T00:00:00Z")
    services.scripts["GetFlowRunByKey"] = lambda *_: answer

    with pytest.raises(FlowRunDeleted, match=f"made flow run {RUN_ID}, which was deleted"):
        await speak("get_flow_run_by_key", "once", flow_id="flow")


async def test_a_key_is_looked_for_under_one_target(speak: Speak) -> None:
    """A key alone says nothing: the same one may have made a run of each target."""
    with pytest.raises(InvalidRequest, match="exactly one of flow_id and flow_group_id"):
        await speak("get_flow_run_by_key", "once")


async def test_a_run_is_cancelled(speak: Speak, services: ScriptedServices) -> None:
    """The reason goes along, and the run comes back as it is then."""
    run = a_flow_run(state=flow_run_pb2.FLOW_RUN_STATE_CANCELLING)
    services.scripts["CancelFlowRun"] = lambda *_: verbs.CancelFlowRunResponse(flow_run=run)

    found = await speak("cancel_flow_run", RUN_ID, "too late")

    assert [verbs.CancelFlowRunRequest(flow_run_id=RUN_ID, reason="too late")] == list(services.requests)
    assert FlowRunState.CANCELLING is found.state


@pytest.mark.parametrize("start", [datetime(2030, 1, 1, tzinfo=UTC), timedelta(minutes=5), None])
async def test_a_run_is_restarted(start: datetime | timedelta | None, speak: Speak, services: ScriptedServices) -> None:
    """The version of its end is named, and when the new attempt is due: a moment, or a span by the server's clock."""
    services.scripts["RestartFlowRun"] = lambda *_: verbs.RestartFlowRunResponse(flow_run=a_flow_run(attempt=2))

    found = await speak("restart_flow_run", RUN_ID, 5, scheduled_start_time=start, reason="again")

    (request,) = services.requests
    assert (RUN_ID, 5, "again") == (request.flow_run_id, request.version, request.reason)
    at = request.scheduled_start_time.ToDatetime(tzinfo=UTC) if request.HasField("scheduled_start_time") else None
    delay = request.start_delay.ToTimedelta() if request.HasField("start_delay") else None
    assert start == (at or delay)
    assert found.attempt >= 2


@pytest.mark.parametrize("deleted", [True, False])
async def test_a_run_is_deleted(deleted: bool, speak: Speak, services: ScriptedServices) -> None:
    """The caller is told whether there was something to delete."""
    services.scripts["DeleteFlowRun"] = lambda *_: verbs.DeleteFlowRunResponse(deleted=deleted)

    assert deleted is await speak("delete_flow_run", RUN_ID)
    assert [verbs.DeleteFlowRunRequest(flow_run_id=RUN_ID)] == list(services.requests)
