"""What each rpc of FlowService does, on both databases."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import update

from penstock.domain.errors import FlowGroupNotFound, FlowNameAmbiguous, FlowNotFound, NoLiveFlow
from penstock.domain.flow import Command, Flow, FlowGroup, Policy, RunConfig
from penstock.domain.ids import FlowGroupId, FlowId, ProjectId
from penstock.domain.log import LogLevel
from penstock.domain.parameters import Parameter, ParameterType
from penstock.domain.queries import FlowFilter, FlowName, Page
from penstock.flow_run import flow_operations as operations
from penstock.flow_run.flow_operations import FreshIds
from penstock.storage import schema
from penstock.storage.database import Database, Transaction
from tests.queue.scenes import SECOND, TENANT, everything, register
from tests.support.builders import a_registration, an_id
from tests.support.fake_clock import NOON, FakeClock


async def registered(database: Database, **fields: Any) -> tuple[Flow, bool]:
    fresh = FreshIds(ProjectId(an_id()), FlowGroupId(an_id()), FlowId(an_id()))
    return await database.run(operations.register_flow, TENANT, fresh, a_registration(**fields))


async def get(database: Database, flow: Flow) -> Flow:
    return await database.read(operations.get_flow, TENANT, flow.id)


async def group_of(database: Database, flow: Flow) -> FlowGroup:
    return await database.read(operations.get_flow_group, TENANT, flow.group_id)


async def look_up(database: Database, reference: Any) -> Flow:
    return await database.read(operations.look_up_flow, TENANT, reference)


async def archive(database: Database, flow: Flow) -> None:
    def work(tx: Transaction) -> None:
        tx.conn.execute(update(schema.flows).where(schema.flows.c.flow_id == flow.id).values(archive_time=tx.now))

    await database.run(work)


async def test_a_registration_is_kept_whole(database: Database) -> None:
    """Every part of it comes back as it was given."""
    asked: dict[str, Any] = {
        "entry_point": Command(("sh", "-c", "écho $1")),
        "parameters": (
            Parameter("n", ParameterType.NUMBER, default_json="1.50", description="how many"),
            Parameter("x", required=True),
        ),
        "accepts_extra_parameters": True,
        "labels": ("a", "ü"),
        "run_config": RunConfig({"A": "1"}, "/srv", "image", {"cpu": "2"}),
        "policy": Policy(priority=3, max_retries=2, retry_delay=SECOND / 3, log_level=LogLevel.DEBUG),
        "description": "what it does",
    }

    flow, created = await registered(database, **asked)

    assert created
    assert (1, NOON, None) == (flow.version, flow.create_time, flow.archive_time)
    assert a_registration(**asked) == flow.registration
    assert flow == await get(database, flow)
    group = await group_of(database, flow)
    assert (flow.id, 1, "reports", "daily report") == (
        group.live_flow_id,
        group.latest_version,
        group.project_name,
        group.name,
    )


async def test_an_equal_registration_makes_no_version(database: Database) -> None:
    """The live flow is answered, and nothing is written."""
    flow, _ = await registered(database)
    before = await everything(database)

    again, created = await registered(database)

    assert (flow, False) == (again, created)
    assert before == await everything(database)


async def test_a_different_registration_makes_the_next_version(database: Database, clock: FakeClock) -> None:
    """It is the live one of the group; the one before is archived, and stays."""
    old, _ = await registered(database)
    clock.advance(SECOND)

    new, created = await registered(database, source_digest="another")

    assert created
    assert (2, old.group_id, old.project_id, None) == (new.version, new.group_id, new.project_id, new.archive_time)
    assert clock.now() == (await get(database, old)).archive_time
    assert new.id == (await group_of(database, old)).live_flow_id


async def test_registering_at_once_makes_one_version_each(database: Database) -> None:
    """Equal registrations are one flow; different ones are versions without gap, one of them live."""
    equal = await asyncio.gather(*(registered(database) for _ in range(4)))
    assert 1 == len({flow.id for flow, _ in equal})
    assert [True] == [created for _, created in equal if created]

    different = await asyncio.gather(*(registered(database, description=f"{each}") for each in range(4)))

    assert [2, 3, 4, 5] == sorted(flow.version for flow, _ in different)
    archived = [(await get(database, flow)).archive_time for flow, _ in different]
    assert 1 == archived.count(None)


async def test_a_group_without_live_flow_gets_one_again(database: Database) -> None:
    """After everything was archived, even the same registration is a new version."""
    flow, _ = await registered(database)
    await archive(database, flow)
    assert (await group_of(database, flow)).live_flow_id is None

    again, created = await registered(database)

    assert (True, 2, flow.group_id) == (created, again.version, again.group_id)


async def test_a_flow_is_found_by_what_a_person_has(database: Database) -> None:
    """By its id, its group's, or its name, with the project where several have one of that name."""
    old = await register(database)
    flow = await register(database, description="newer")
    other = await register(database, project_name="another project")
    only = await register(database, name="only")

    assert old.id == (await look_up(database, old.id)).id
    assert flow == await look_up(database, flow.group_id)
    assert only == await look_up(database, FlowName("only"))
    assert other == await look_up(database, FlowName("daily report", "another project"))
    with pytest.raises(FlowNameAmbiguous) as refused:
        await look_up(database, FlowName("daily report"))
    assert ("another project", "reports") == refused.value.projects


async def test_what_is_not_there_is_not_found(database: Database) -> None:
    """Neither a flow, a group nor a name; a group without live flow says so."""
    flow = await register(database)
    with pytest.raises(FlowNotFound):
        await database.read(operations.get_flow, TENANT, FlowId(an_id()))
    with pytest.raises(FlowGroupNotFound):
        await database.read(operations.get_flow_group, TENANT, FlowGroupId(an_id()))
    for reference in (an_id(), FlowName("nothing"), FlowName("daily report", "nowhere")):
        with pytest.raises(FlowNotFound):
            await look_up(database, reference)

    await archive(database, flow)

    for reference in (flow.group_id, FlowName("daily report")):
        with pytest.raises(NoLiveFlow):
            await look_up(database, reference)


async def test_flows_are_listed_newest_first_in_pages(database: Database, clock: FakeClock) -> None:
    """Each once, without the archived unless asked for, narrowed by what all must be."""
    flows: list[Flow] = []
    for number in range(4):
        flows.append(await register(database, name=f"flow {number % 2}", project_name=f"p{number // 2}"))
        if number % 2:
            clock.advance(SECOND)
    newer = await register(database, name="flow 0", project_name="p0", description="newer")

    async def listed(size: int = 10, **wanted: Any) -> list[FlowId]:
        found: list[Flow] = []
        while True:
            after = (found[-1].create_time, found[-1].id) if found else None
            page = await database.read(operations.list_flows, TENANT, FlowFilter(**wanted), Page(size, after))
            found += page
            if len(page) < size:
                return [each.id for each in found]

    by_age = sorted([*flows[1:], newer], key=lambda each: (each.create_time, each.id), reverse=True)
    assert [each.id for each in by_age] == await listed(2)
    assert {flows[0].id, newer.id} == set(await listed(group_id=newer.group_id, include_archived=True))
    assert {newer.id, flows[1].id} == set(await listed(project_name="p0"))
    assert {newer.id, flows[2].id} == set(await listed(name="flow 0"))


async def test_projects_are_made_once_and_listed_oldest_first(database: Database, clock: FakeClock) -> None:
    """A project of a known name is answered as it is; pages go on where the one before ended."""
    made = []
    for name in ("b", "a", "c"):
        made.append(await database.run(operations.create_project, TENANT, ProjectId(an_id()), name))
        clock.advance(SECOND)
    again = await database.run(operations.create_project, TENANT, ProjectId(an_id()), "a")

    first = await database.read(operations.list_projects, TENANT, Page(2))
    rest = await database.read(operations.list_projects, TENANT, Page(2, (first[-1].create_time, first[-1].id)))

    assert [True] * 3 == [created for _, created in made]
    assert (made[1][0], False) == again
    assert [project for project, _ in made] == [*first, *rest]
