"""Which flow run a word on the command line means."""

from typing import Any

import pytest

from flowrun.v1 import flow_run_service_pb2 as verbs
from tests.cli.command import penstock
from tests.client.scripted import RUN_ID, ScriptedServices, a_flow_run

OTHER_ID = "00000000-0000-0000-0000-000000000002"


def answering(services: ScriptedServices, *ids: str) -> ScriptedServices:
    """Services that find these runs under any name."""

    def listed(request: Any, _: Any) -> verbs.ListFlowRunsResponse:
        runs = [a_flow_run(flow_run_id=each, name=request.name) for each in ids]
        return verbs.ListFlowRunsResponse(flow_runs=runs)

    services.scripts["ListFlowRuns"] = listed
    services.scripts["GetFlowRun"] = lambda request, _: verbs.GetFlowRunResponse(
        flow_run=a_flow_run(flow_run_id=request.flow_run_id)
    )
    return services


@pytest.mark.parametrize("run", ["", "  "])
@pytest.mark.parametrize("command", [["cancel"], ["restart"], ["delete", "flow-run"], ["explain"], ["logs"]])
async def test_an_empty_word_means_no_run(command: list[str], run: str, services: ScriptedServices) -> None:
    """A variable of a script that was never set must not stand for whichever run there is."""
    refused = await penstock(*command, run, PENSTOCK_ADDRESS=answering(services, RUN_ID).address)

    assert (2, "penstock: RUN is empty: give the id of a flow run, or its name.\n") == (refused.code, refused.err)
    assert [] == list(services.requests)


async def test_an_id_is_asked_for_in_either_case(services: ScriptedServices) -> None:
    """A word of the form of an id is never looked for as a name."""
    other = "0000000A-0000-0000-0000-00000000000B"

    shown = await penstock("get", "flow-run", other, PENSTOCK_ADDRESS=answering(services).address)

    assert 0 == shown.code
    assert ["GetFlowRunRequest"] == [type(request).__name__ for request in services.requests]


async def test_a_name_of_one_run_is_that_run(services: ScriptedServices) -> None:
    """The run is then asked for whole, by its id."""
    shown = await penstock("get", "flow-run", "quiet-otter", PENSTOCK_ADDRESS=answering(services, RUN_ID).address)

    assert 0 == shown.code
    assert RUN_ID == shown.out.splitlines()[1].split()[0]
    by_name, by_id = services.requests
    assert ("quiet-otter", RUN_ID) == (by_name.name, by_id.flow_run_id)


async def test_a_name_of_several_runs_is_refused_with_the_choice(services: ScriptedServices) -> None:
    """Their ids are listed, to be copied; nothing is done to either."""
    ids = [RUN_ID, OTHER_ID]

    refused = await penstock("cancel", "otter", PENSTOCK_ADDRESS=answering(services, *ids).address)

    heading, *lines = refused.err.splitlines()
    assert 1 == refused.code
    assert "penstock: Several flow runs are named 'otter'; say which by its id:" == heading
    assert ids == [line.split()[0] for line in lines]


async def test_of_many_candidates_some_are_listed(services: ScriptedServices) -> None:
    """The list is short however many there are, and says that there are more."""
    ids = [f"00000000-0000-0000-0000-0000000000{number}" for number in range(10, 40)]

    refused = await penstock("logs", "otter", PENSTOCK_ADDRESS=answering(services, *ids).address)

    assert [*ids[:10], "…"] == [line.split()[0] for line in refused.err.splitlines()[1:]]


async def test_an_unknown_word_is_neither(services: ScriptedServices) -> None:
    """An id that lost a digit is told as what was typed."""
    refused = await penstock("explain", RUN_ID[:-1], PENSTOCK_ADDRESS=answering(services).address)

    assert (1, f"penstock: There is no flow run with the id or the name '{RUN_ID[:-1]}'.\n") == (
        refused.code,
        refused.err,
    )
