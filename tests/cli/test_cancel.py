"""`penstock cancel`."""

import json
from typing import Any

import pytest

from flowrun.v1 import flow_run_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from penstock.domain.errors import InvalidRequest, Violation
from tests.cli.command import Finished, penstock
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run, the_watch_end

SCHEDULED = flow_run_pb2.FLOW_RUN_STATE_SCHEDULED
RUNNING = flow_run_pb2.FLOW_RUN_STATE_RUNNING
CANCELLING = flow_run_pb2.FLOW_RUN_STATE_CANCELLING
SUCCEEDED = flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED
CANCELLED = flow_run_pb2.FLOW_RUN_STATE_CANCELLED


async def cancelled(
    services: ScriptedServices, before: int, after: int, *options: str, end: int | None = None
) -> Finished:
    """What the command says about a run in these states before and after, and perhaps at its end."""

    def run(state: int) -> flow_run_pb2.FlowRun:
        return a_flow_run(state=flow_run_pb2.FlowRunState.ValueType(state))

    async def watch(request: object, context: Any) -> None:
        assert end is not None
        last = the_watch_end()
        last.end.flow_run.state = flow_run_pb2.FlowRunState.ValueType(end)
        await context.write(last)

    services.scripts |= {
        "GetFlowRun": lambda *_: verbs.GetFlowRunResponse(flow_run=run(before)),
        "CancelFlowRun": lambda *_: verbs.CancelFlowRunResponse(flow_run=run(after)),
        "WatchFlowRun": watch,
    }
    return await penstock("cancel", RUN_ID, *options, PENSTOCK_ADDRESS=services.address)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (SCHEDULED, CANCELLED, "Flow run quiet-otter is cancelled."),
        (RUNNING, CANCELLING, "Flow run quiet-otter is being stopped."),
        (CANCELLING, CANCELLING, "Flow run quiet-otter is being stopped."),
        (SUCCEEDED, SUCCEEDED, "Flow run quiet-otter had ended already: SUCCEEDED."),
        (CANCELLED, CANCELLED, "Flow run quiet-otter had ended already: CANCELLED."),
        (RUNNING, SUCCEEDED, "Flow run quiet-otter ended before it could be stopped: SUCCEEDED."),
    ],
)
async def test_what_happened_is_said(before: int, after: int, said: str, services: ScriptedServices) -> None:
    """Each outcome has its sentence, and exit code 0: the run will do no more."""
    done = await cancelled(services, before, after, "--reason", "no water")

    assert (0, f"{said}\n", "") == (done.code, done.out, done.err)
    assert "no water" == services.requests[-1].reason


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (CANCELLED, "Flow run quiet-otter is cancelled."),
        (SUCCEEDED, "Flow run quiet-otter ended before it could be stopped: SUCCEEDED."),
    ],
)
async def test_the_end_can_be_waited_for(end: int, said: str, services: ScriptedServices) -> None:
    """With --wait both the asking and the end are told."""
    done = await cancelled(services, RUNNING, CANCELLING, "--wait", end=end)

    assert (0, ["Flow run quiet-otter is being stopped.", said]) == (done.code, done.out.splitlines())


async def test_programs_get_the_run_as_it_ended(services: ScriptedServices) -> None:
    """With --json the run is one document, after the wait."""
    done = await cancelled(services, RUNNING, CANCELLING, "--wait", "--json", end=CANCELLED)

    assert (RUN_ID, "CANCELLED") == tuple(json.loads(done.out)[name] for name in ("flow_run_id", "state"))


async def test_a_reason_that_is_too_long_is_named_as_typed(services: ScriptedServices) -> None:
    """What is wrong is told in the words of the command."""

    def refuse(*_: object) -> None:
        raise InvalidRequest((Violation("reason", "is 2000 characters; at most 1000 are allowed"),))

    services.scripts |= {
        "GetFlowRun": lambda *_: verbs.GetFlowRunResponse(flow_run=a_flow_run()),
        "CancelFlowRun": refuse,
    }

    refused = await penstock("cancel", RUN_ID, "--reason", "x", PENSTOCK_ADDRESS=services.address)

    assert (1, "penstock: The request is invalid: --reason: is 2000 characters; at most 1000 are allowed\n") == (
        refused.code,
        refused.err,
    )
