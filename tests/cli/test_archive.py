"""`penstock archive` and `penstock unarchive`."""

import json
from typing import Any

import pytest

from flowrun.v1 import flow_pb2
from flowrun.v1 import flow_service_pb2 as verbs
from penstock.domain.errors import FlowNameAmbiguous, NoLiveFlow
from tests.cli.command import penstock
from tests.client.scripted import ScriptedServices

GROUP_ID = "00000000-0000-0000-0000-0000000000f0"
FIRST_ID = "00000000-0000-0000-0000-0000000000f1"
SECOND_ID = "00000000-0000-0000-0000-0000000000f2"


@pytest.fixture
def known(services: ScriptedServices) -> ScriptedServices:
    """Services that know two versions of a flow, of which the second is live."""
    flows = {
        each: flow_pb2.Flow(flow_id=each, flow_group_id=GROUP_ID, name="river", project_name="water", version=version)
        for version, each in enumerate((FIRST_ID, SECOND_ID), start=1)
    }
    group = flow_pb2.FlowGroup(flow_group_id=GROUP_ID, live_flow_id=SECOND_ID)
    services.scripts |= {
        "LookUpFlow": lambda request, _: verbs.LookUpFlowResponse(flow=flows.get(request.id, flows[SECOND_ID])),
        "ArchiveFlow": lambda request, _: verbs.ArchiveFlowResponse(flow=flows[request.flow_id]),
        "UnarchiveFlow": lambda request, _: verbs.UnarchiveFlowResponse(flow=flows[request.flow_id]),
        "GetFlowGroup": lambda *_: verbs.GetFlowGroupResponse(flow_group=group),
        "GetFlow": lambda request, _: verbs.GetFlowResponse(flow=flows[request.flow_id]),
        "ListFlows": lambda *_: verbs.ListFlowsResponse(flows=[flows[SECOND_ID], flows[FIRST_ID]]),
    }
    return services


@pytest.mark.parametrize(
    ("named", "version"), [(["river", "--project", "water"], 2), ([FIRST_ID], 1)], ids=["by name", "by id"]
)
async def test_a_version_is_archived(named: list[str], version: int, known: ScriptedServices) -> None:
    """A name means the live version, an id the version itself."""
    done = await penstock("archive", *named, PENSTOCK_ADDRESS=known.address)

    said = f"Version {version} of flow river in project water is archived: no run of it can be created any more.\n"
    assert (0, said) == (done.code, done.out)
    assert (FIRST_ID, SECOND_ID)[version - 1] == known.requests[-1].flow_id


async def test_a_version_is_made_live_again(known: ScriptedServices) -> None:
    """Which version is archived instead is said."""
    done = await penstock("unarchive", FIRST_ID, PENSTOCK_ADDRESS=known.address)

    assert (
        "Version 1 of flow river in project water is the live one; version 2 is archived instead.\n",
        FIRST_ID,
    ) == (done.out, next(each.flow_id for each in known.requests if isinstance(each, verbs.UnarchiveFlowRequest)))


async def test_a_name_without_a_live_version_means_the_latest(known: ScriptedServices) -> None:
    """What was archived by its name can be had back by its name."""

    def refuse(*_: Any) -> None:
        raise NoLiveFlow(GROUP_ID)

    known.scripts["LookUpFlow"] = refuse
    known.scripts["GetFlowGroup"] = lambda *_: verbs.GetFlowGroupResponse(
        flow_group=flow_pb2.FlowGroup(flow_group_id=GROUP_ID)
    )

    done = await penstock("unarchive", "river", "--json", PENSTOCK_ADDRESS=known.address)

    assert (0, SECOND_ID) == (done.code, json.loads(done.out)["flow_id"])


async def test_an_ambiguous_name_is_refused_with_its_projects(known: ScriptedServices) -> None:
    """The server's sentence names the projects to choose from."""

    def refuse(*_: Any) -> None:
        raise FlowNameAmbiguous("river", ("water", "wine"))

    known.scripts["LookUpFlow"] = refuse

    refused = await penstock("archive", "river", PENSTOCK_ADDRESS=known.address)

    assert (1, "penstock: More than one flow is named 'river'; say which project: water, wine.\n") == (
        refused.code,
        refused.err,
    )
