"""`penstock delete`."""

import json

import pytest

from flowrun.v1 import flow_run_pb2
from flowrun.v1 import flow_run_service_pb2 as verbs
from tests.cli.command import penstock
from tests.cli.terminal import at_a_terminal
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run


@pytest.fixture
def ended(services: ScriptedServices) -> ScriptedServices:
    """Services that know a run that succeeded, and delete it."""
    run = a_flow_run(state=flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED)
    services.scripts |= {
        "GetFlowRun": lambda *_: verbs.GetFlowRunResponse(flow_run=run),
        "DeleteFlowRun": lambda *_: verbs.DeleteFlowRunResponse(deleted=True),
    }
    return services


def was_deleted(services: ScriptedServices) -> bool:
    """Whether the services were asked to delete the run."""
    return any(isinstance(each, verbs.DeleteFlowRunRequest) for each in services.requests)


async def test_who_is_sure_is_not_asked(ended: ScriptedServices) -> None:
    """--yes deletes at once."""
    done = await penstock("delete", "flow-run", RUN_ID, "--yes", PENSTOCK_ADDRESS=ended.address)

    assert (0, "Flow run quiet-otter is deleted.\n") == (done.code, done.out)
    assert was_deleted(ended)


async def test_programs_get_a_document(ended: ScriptedServices) -> None:
    """Whether this call deleted it is said."""
    ended.scripts["DeleteFlowRun"] = lambda *_: verbs.DeleteFlowRunResponse(deleted=False)

    done = await penstock("delete", "flow-run", RUN_ID, "--yes", "--json", PENSTOCK_ADDRESS=ended.address)

    assert {"flow_run_id": RUN_ID, "deleted": False} == json.loads(done.out)


async def test_where_nobody_can_be_asked_nothing_is_deleted(ended: ScriptedServices) -> None:
    """Without a terminal, --yes must be said."""
    refused = await penstock("delete", "flow-run", RUN_ID, PENSTOCK_ADDRESS=ended.address)

    assert (2, "penstock: Nothing was deleted: say --yes where nobody can be asked.\n") == (refused.code, refused.err)
    assert not was_deleted(ended)


async def test_a_live_run_is_refused(ended: ScriptedServices) -> None:
    """It is not even asked about; how to end it is said."""
    live = a_flow_run(state=flow_run_pb2.FLOW_RUN_STATE_RUNNING)
    ended.scripts["GetFlowRun"] = lambda *_: verbs.GetFlowRunResponse(flow_run=live)

    refused = await penstock("delete", "flow-run", RUN_ID, "--yes", PENSTOCK_ADDRESS=ended.address)

    assert 1 == refused.code
    assert f"is RUNNING; wait for its end, or cancel it first: penstock cancel {RUN_ID} --wait" in refused.err
    assert not was_deleted(ended)


@pytest.mark.parametrize(("answer", "code", "deleted"), [("y", 0, True), ("n", 1, False), ("", 1, False)])
async def test_at_a_terminal_its_user_is_asked(answer: str, code: int, deleted: bool, ended: ScriptedServices) -> None:
    """The run is named in the question, and only a yes deletes it."""
    async with at_a_terminal("delete", "flow-run", RUN_ID, PENSTOCK_ADDRESS=ended.address) as terminal:
        await terminal.until("[y/N]")
        terminal.type(f"{answer}\n")

        assert code == await terminal.ended()

    assert f"Delete flow run quiet-otter of flow river ({RUN_ID}), SUCCEEDED" in terminal.shown
    assert deleted is was_deleted(ended)
