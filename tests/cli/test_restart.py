"""`penstock restart`."""

import json

import pytest

from flowrun.v1 import flow_run_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from penstock.domain.errors import FlowRunLive
from tests.cli.command import penstock
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run


@pytest.fixture
def ended(services: ScriptedServices) -> ScriptedServices:
    """Services that know a run that failed as version 7, and restart it."""
    run = a_flow_run(state=flow_run_pb2.FLOW_RUN_STATE_FAILED, version=7)
    services.scripts |= {
        "GetFlowRun": lambda *_: verbs.GetFlowRunResponse(flow_run=run),
        "RestartFlowRun": lambda *_: verbs.RestartFlowRunResponse(flow_run=a_flow_run(attempt=2, version=8)),
    }
    return services


async def test_a_run_is_restarted_from_its_end(ended: ScriptedServices) -> None:
    """The version that is restarted is the one that was seen, and what comes next is said."""
    done = await penstock("restart", RUN_ID, "--reason", "rain", PENSTOCK_ADDRESS=ended.address)

    assert 0 == done.code
    assert [
        "Flow run quiet-otter is SCHEDULED again, as attempt 2.",
        f"Follow it with: penstock logs {RUN_ID} --follow",
    ] == done.out.splitlines()
    request = ended.requests[-1]
    assert (RUN_ID, 7, "rain") == (request.flow_run_id, request.version, request.reason)
    assert not request.HasField("scheduled_start_time")
    assert not request.HasField("start_delay")


async def test_it_can_start_later(ended: ScriptedServices) -> None:
    """At a moment, or after a span that the server counts."""
    at = await penstock("restart", RUN_ID, "--start-at", "2030-01-01T00:00:00+02:00", PENSTOCK_ADDRESS=ended.address)
    late = await penstock("restart", RUN_ID, "--in", "1h30m", "--json", PENSTOCK_ADDRESS=ended.address)

    assert (0, 0) == (at.code, late.code)
    assert "It is due at" in at.out
    assert 2 == json.loads(late.out)["attempt"]
    first, second = (each for each in ended.requests if isinstance(each, verbs.RestartFlowRunRequest))
    assert "2029-12-31T22:00:00Z" == first.scheduled_start_time.ToJsonString()
    assert 5_400 == second.start_delay.ToSeconds()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--in", "1h", "--start-at", "2030-01-01T00:00Z"], "Choose one of --start-at and --in."),
        (["--in", "soon"], "--in 'soon' is not a span"),
        (["--start-at", "noon"], "--start-at 'noon' is not a moment"),
    ],
)
async def test_a_start_that_cannot_be_read_is_misuse(options: list[str], message: str, ended: ScriptedServices) -> None:
    """Nothing is asked of the server."""
    refused = await penstock("restart", RUN_ID, *options, PENSTOCK_ADDRESS=ended.address)

    assert 2 == refused.code
    assert message in refused.err
    assert not ended.requests


async def test_a_live_run_is_refused(ended: ScriptedServices) -> None:
    """The server's sentence says in which state it is and what to do."""

    def refuse(*_: object) -> None:
        raise FlowRunLive(RUN_ID, "RUNNING")

    ended.scripts["RestartFlowRun"] = refuse

    refused = await penstock("restart", RUN_ID, PENSTOCK_ADDRESS=ended.address)

    assert (1, f"penstock: Flow run {RUN_ID} is RUNNING; wait for its end, or cancel it first.\n") == (
        refused.code,
        refused.err,
    )
