"""Projects, groups and flows as rows, on both databases. The rest is in `tests/flow_run/test_flow_operations.py`."""

from uuid import UUID

import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from penstock.domain.errors import FlowGroupNotFound
from penstock.domain.flow import Callable, Command, GroupDefaults, Policy, Project, Registration, RunConfig
from penstock.domain.ids import FlowGroupId, FlowId, ProjectId, TenantId
from penstock.domain.parameters import Parameter, ParameterType
from penstock.domain.queries import FlowFilter, FlowName, Page
from penstock.storage import flows, schema
from penstock.storage.database import Database, Transaction
from tests.queue.scenes import TENANT, everything, register
from tests.support.builders import a_registration, an_id
from tests.support.fake_clock import FakeClock

OTHER_TENANT = TenantId(UUID(int=7))


def add(tx: Transaction, tenant: TenantId, registration: Registration) -> FlowId:
    """The next version of that flow."""
    project, _ = flows.ensure_project(tx, tenant, ProjectId(an_id()), registration.project_name)
    group = flows.lock_group(tx, tenant, FlowGroupId(an_id()), project.id, registration.name)
    fresh = FlowId(an_id())
    flows.add_version(tx, tenant, fresh, group, registration)
    return fresh


async def test_every_kind_of_parameter_and_entry_point_is_kept(database: Database) -> None:
    """As it was registered, whatever it is called."""
    parameters = tuple(Parameter(f"{kind} é", kind, default_json="null", description="'\"") for kind in ParameterType)
    for entry_point in (Callable("päth/to.py:f"), Command(("a b", "", "ü", "'"))):
        asked = a_registration(entry_point=entry_point, parameters=parameters, policy=Policy(priority=1))
        flow_id = await database.run(add, TENANT, asked)

        assert asked == (await database.read(flows.by_id, TENANT, [flow_id]))[flow_id].registration


async def test_a_group_has_one_live_flow(database: Database) -> None:
    """The schema itself refuses a second one."""
    flow = await register(database)

    def twice(tx: Transaction) -> None:
        tx.conn.execute(update(schema.flows).values(archive_time=None))

    await database.run(add, TENANT, a_registration())
    with pytest.raises(IntegrityError):
        await database.run(twice)
    found = await database.read(flows.groups_by_id, TENANT, [flow.group_id, FlowGroupId(an_id())])
    assert [(each.id, each.latest_version) for each in found.values()] == [(flow.group_id, 2)]


async def test_names_are_unique_within_their_project(database: Database) -> None:
    """A project and a group of a known name are answered as they are, and case makes a difference."""
    first = await register(database)
    before = await everything(database)

    def again(tx: Transaction) -> None:
        project, created = flows.ensure_project(tx, TENANT, ProjectId(an_id()), "reports")
        assert (project.id, created) == (first.project_id, False)
        assert flows.lock_group(tx, TENANT, FlowGroupId(an_id()), project.id, "daily report").id == first.group_id

    await database.run(again)

    assert before == await everything(database)
    assert (await register(database, name="Daily Report")).group_id != first.group_id


async def test_another_tenant_sees_nothing(database: Database) -> None:
    """And may use the same names."""
    flow = await register(database)

    assert await database.read(flows.by_id, OTHER_TENANT, [flow.id]) == {}
    assert await database.read(flows.groups_by_name, OTHER_TENANT, FlowName("daily report")) == []
    assert await database.read(flows.list_flows, OTHER_TENANT, FlowFilter(), Page(9)) == []
    assert await database.read(flows.list_projects, OTHER_TENANT, Page(9)) == []
    with pytest.raises(FlowGroupNotFound):
        await database.read(flows.group_by_id, OTHER_TENANT, flow.group_id)
    theirs = await database.run(add, OTHER_TENANT, a_registration())
    assert (await database.read(flows.by_id, OTHER_TENANT, [theirs]))[theirs].version == 1


async def test_projects_come_oldest_first(database: Database, clock: FakeClock) -> None:
    """Also those of one moment, each once over the pages."""
    for name in ("c", "a", "b"):
        await database.run(flows.ensure_project, TENANT, ProjectId(an_id()), name)
    listed: list[Project] = []
    while page := await database.read(
        flows.list_projects, TENANT, Page(1, (listed[-1].create_time, listed[-1].id) if listed else None)
    ):
        listed += page

    assert sorted(each.name for each in listed) == ["a", "b", "c"]
    assert [each.id for each in listed] == sorted(each.id for each in listed)


async def test_the_latest_archived_flows(database: Database) -> None:
    """Newest first by version, at most as many as asked for, and only archived ones of that group and tenant."""
    ids = [await database.run(add, TENANT, a_registration(description=f"{each}")) for each in range(4)]
    other = await register(database, name="other")
    group_id = (await database.read(flows.by_id, TENANT, ids))[ids[0]].group_id

    assert [ids[2], ids[1]] == await database.read(flows.latest_archived, TENANT, group_id, 2)
    assert [ids[2], ids[1], ids[0]] == await database.read(flows.latest_archived, TENANT, group_id, 9)
    assert [] == await database.read(flows.latest_archived, TENANT, other.group_id, 9)
    assert [] == await database.read(flows.latest_archived, OTHER_TENANT, group_id, 9)


async def test_names_of_groups(database: Database) -> None:
    """Each name once, however many projects use it, and at most as many as asked for."""
    for name, project_name in (("b", "one"), ("b", "two"), ("a", "one"), ("c", "one")):
        await register(database, name=name, project_name=project_name)

    assert ["a", "b", "c"] == await database.read(flows.group_names, TENANT, 9)
    assert ["a", "b"] == await database.read(flows.group_names, TENANT, 2)
    assert [] == await database.read(flows.group_names, OTHER_TENANT, 9)


async def test_a_group_is_held(database: Database) -> None:
    """As it is under the lock; refused if there is none, or if it is another tenant's."""
    flow = await register(database)

    assert flow.id == (await database.run(flows.hold_group, TENANT, flow.group_id)).live_flow_id
    for tenant, group_id in ((TENANT, FlowGroupId(an_id())), (OTHER_TENANT, flow.group_id)):
        with pytest.raises(FlowGroupNotFound):
            await database.run(flows.hold_group, tenant, group_id)


async def test_another_tenant_changes_nothing(database: Database) -> None:
    """Neither the defaults of a group nor which flow is live."""
    flow = await register(database)
    before = await everything(database)

    def work(tx: Transaction) -> None:
        owner = flows.group_by_id(tx, TENANT, flow.group_id)
        flows.archive_live(tx, OTHER_TENANT, owner)
        flows.unarchive(tx, OTHER_TENANT, flow.id)
        flows.update_group(tx, OTHER_TENANT, flow.group_id, GroupDefaults("{}", (), RunConfig()))

    await database.run(work)

    assert before == await everything(database)
