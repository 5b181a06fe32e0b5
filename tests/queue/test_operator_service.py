"""OperatorService over a real socket, on both databases."""

import grpc
import pytest

from flowrun.v1 import operator_service_pb2 as pb
from penstock.storage.database import Database
from tests.queue.scenes import SECOND, create, register
from tests.queue.served import Agent, refused, serving
from tests.support.fake_clock import FakeClock


async def test_agents_are_listed_in_pages(database: Database, clock: FakeClock) -> None:
    """The last seen first, over three pages, each with what it is and holds."""
    flow = await register(database)
    await create(database, flow, labels=("a",))

    async with serving(database) as process:
        agents = []
        for number in range(5):
            agents.append(await Agent(process, labels=("a",)).open(credit=int(number == 4)))
            clock.advance(SECOND)
        (offered,) = await agents[4].hear_offers(1)
        await agents[4].accept(offered)
        listed: list[str] = []
        request = pb.ListAgentsRequest(page_size=2)
        pages = 0
        while not pages or request.page_token:
            page = await process.operator.ListAgents(request)
            listed += [each.agent_id for each in page.agents]
            request.page_token = page.next_page_token
            pages += 1
        first = (await process.operator.ListAgents(pb.ListAgentsRequest(page_size=1))).agents[0]
        refusal = await refused(process.operator.ListAgents(pb.ListAgentsRequest(page_token="x")))
        invalid = await refused(process.operator.ListAgents(pb.ListAgentsRequest(page_size=-1)))

    assert [each.agent_id for each in reversed(agents)] == listed
    assert pages == 3
    assert ("agent", ["a"], 10, 1, True) == (
        first.name,
        list(first.labels),
        first.slots,
        first.slots_used,
        first.healthy,
    )
    assert (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID") == (refusal.code, refusal.reason)
    assert ["page_size"] == [each.field for each in invalid.violations]


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_what_is_not_served_yet_says_so(database: Database) -> None:
    """UNIMPLEMENTED, whatever is asked."""
    calls = {
        "GetQueueStats": pb.GetQueueStatsRequest(),
        "SetConcurrencyLimit": pb.SetConcurrencyLimitRequest(),
        "ListConcurrencyLimits": pb.ListConcurrencyLimitsRequest(),
        "DeleteConcurrencyLimit": pb.DeleteConcurrencyLimitRequest(),
        "CreateDrain": pb.CreateDrainRequest(),
        "ListDrains": pb.ListDrainsRequest(),
        "DeleteDrain": pb.DeleteDrainRequest(),
        "PauseFlowGroup": pb.PauseFlowGroupRequest(),
        "ResumeFlowGroup": pb.ResumeFlowGroupRequest(),
    }
    async with serving(database) as process:
        for name, request in calls.items():
            refusal = await refused(getattr(process.operator, name)(request))
            assert grpc.StatusCode.UNIMPLEMENTED is refusal.code
