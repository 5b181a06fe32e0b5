"""What each rpc of FlowService does, on both databases."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from penstock.domain.errors import (
    FlowGroupNotFound,
    FlowNameAmbiguous,
    FlowNotFound,
    InvalidRequest,
    NoLiveFlow,
    Violation,
)
from penstock.domain.flow import Command, Flow, FlowGroup, GroupDefaults, Policy, RunConfig
from penstock.domain.flow_run import GroupTarget
from penstock.domain.ids import FlowGroupId, FlowId, ProjectId
from penstock.domain.log import LogLevel
from penstock.domain.parameters import Parameter, ParameterType
from penstock.domain.queries import FlowFilter, FlowName, Page
from penstock.flow_run import flow_operations as operations
from penstock.flow_run.flow_operations import FreshIds
from penstock.storage.database import Database
from tests.queue.scenes import SECOND, TENANT, attempt, everything, register
from tests.support.builders import a_creation, a_registration, an_id
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


async def into(database: Database, group_id: FlowGroupId, **fields: Any) -> tuple[Flow, bool]:
    """The same into a group that is given, without names."""
    fresh = FreshIds(ProjectId(an_id()), FlowGroupId(an_id()), FlowId(an_id()))
    asked = a_registration(**({"project_name": "", "name": ""} | fields))
    return await database.run(operations.register_flow, TENANT, fresh, asked, group_id)


async def archive(database: Database, flow: Flow) -> Flow:
    return await database.run(operations.archive_flow, TENANT, flow.id)


async def unarchive(database: Database, flow: Flow) -> Flow:
    return await database.run(operations.unarchive_flow, TENANT, flow.id)


async def update_group(database: Database, flow: Flow, **defaults: Any) -> FlowGroup:
    return await database.run(operations.update_flow_group, TENANT, flow.group_id, GroupDefaults(**defaults))


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


async def test_a_flow_is_registered_into_a_group(database: Database, clock: FakeClock) -> None:
    """The group that is given gets the next version, with its own names; nothing else is made."""
    first, _ = await registered(database)
    clock.advance(SECOND)

    second, created = await into(database, first.group_id, description="newer")

    assert (True, 2, first.group_id) == (created, second.version, second.group_id)
    names = (second.registration.project_name, second.name)
    assert ("reports", "daily report") == names
    assert clock.now() == (await get(database, first)).archive_time
    before = await everything(database)
    assert (second, False) == await into(database, first.group_id, description="newer")
    assert (second, False) == await into(
        database, first.group_id, description="newer", project_name="reports", name="daily report"
    )
    assert (second, False) == await registered(database, description="newer")
    assert before == await everything(database)


async def test_a_group_that_is_given_keeps_its_names(database: Database) -> None:
    """Other names are refused, all at once and naming the group's; so is a group that does not exist."""
    flow, _ = await registered(database)
    before = await everything(database)

    with pytest.raises(InvalidRequest) as refused:
        await into(database, flow.group_id, project_name="other", name="another")
    with pytest.raises(FlowGroupNotFound):
        await into(database, FlowGroupId(an_id()))

    assert (
        Violation("project_name", "is 'other', but the flow group's is 'reports'; leave it out"),
        Violation("name", "is 'another', but the flow group's is 'daily report'; leave it out"),
    ) == refused.value.violations
    assert before == await everything(database)


async def test_a_flow_is_archived_once(database: Database, clock: FakeClock) -> None:
    """A repeat answers with the flow as it was archived, and of others nothing changes."""
    flow, _ = await registered(database)
    other, _ = await registered(database, name="other")
    clock.advance(SECOND)
    archived = await archive(database, flow)
    before = await everything(database)
    clock.advance(SECOND)

    assert NOON + SECOND == archived.archive_time
    assert replace(flow, archive_time=NOON + SECOND) == archived
    assert archived == await archive(database, flow)
    assert before == await everything(database)
    assert (await group_of(database, flow)).live_flow_id is None
    assert other == await get(database, other)


async def test_unarchiving_makes_a_flow_the_live_one(database: Database, clock: FakeClock) -> None:
    """The one that was live is archived in the same transaction; a repeat changes nothing; versions go on counting."""
    first, _ = await registered(database)
    second, _ = await registered(database, description="second")
    clock.advance(SECOND)

    again = await unarchive(database, first)
    before = await everything(database)

    assert first == again
    assert first.id == (await group_of(database, first)).live_flow_id
    assert clock.now() == (await get(database, second)).archive_time
    assert first == await unarchive(database, first)
    assert before == await everything(database)
    assert (first, False) == await registered(database)
    third, created = await registered(database, description="second")
    assert (True, 3) == (created, third.version)
    assert (await archive(database, first)).archive_time == (await get(database, first)).archive_time
    assert third.id == (await group_of(database, first)).live_flow_id


async def test_unarchiving_without_a_live_flow(database: Database) -> None:
    """A group that lost its live flow gets it back."""
    flow, _ = await registered(database)
    await archive(database, flow)

    assert flow == await unarchive(database, flow)


async def test_unarchiving_at_once_leaves_one_live_flow_at_most(database: Database) -> None:
    """Whoever comes last, or none if that was archived last; nobody is refused."""
    flows = [(await registered(database, description=f"{each}"))[0] for each in range(3)]

    await asyncio.gather(
        *(unarchive(database, each) for each in flows),
        registered(database, description="newest"),
        archive(database, flows[0]),
        *(unarchive(database, each) for each in flows),
    )

    live = await database.read(operations.list_flows, TENANT, FlowFilter(), Page(9))
    live_flow_id = (await group_of(database, flows[0])).live_flow_id
    assert ([live_flow_id] if live_flow_id else []) == [each.id for each in live]


async def test_an_unknown_flow_is_neither_archived_nor_unarchived(database: Database) -> None:
    """Nor is an unknown group given defaults."""
    for work in (operations.archive_flow, operations.unarchive_flow):
        with pytest.raises(FlowNotFound):
            await database.run(work, TENANT, FlowId(an_id()))
    with pytest.raises(FlowGroupNotFound):
        await database.run(operations.update_flow_group, TENANT, FlowGroupId(an_id()), GroupDefaults())


async def test_the_defaults_of_a_group_are_replaced_whole(database: Database) -> None:
    """What is left out is removed, what is empty is kept as that, and the group's other parts and groups stay."""
    flow, _ = await registered(database)
    other, _ = await registered(database, name="other")
    plain = await group_of(database, flow)
    config = RunConfig(environment={"A": "é"}, image="i")

    full = await update_group(
        database, flow, default_parameters_json='{"day":"ü"}', labels=("a", "b"), run_config=config
    )
    assert full == await group_of(database, flow)
    assert replace(plain, default_parameters_json='{"day":"ü"}', labels=("a", "b"), run_config=config) == full
    before = await everything(database)
    await update_group(database, flow, default_parameters_json='{"day":"ü"}', labels=("a", "b"), run_config=config)
    assert before == await everything(database)

    empty = await update_group(database, flow, labels=(), run_config=RunConfig())
    assert replace(plain, labels=(), run_config=RunConfig()) == empty
    assert plain == await update_group(database, flow)
    assert (None, None, None) == (
        (await group_of(database, other)).default_parameters_json,
        (await group_of(database, other)).labels,
        (await group_of(database, other)).run_config,
    )


async def test_a_group_default_that_does_not_fit_is_said_of_the_group(database: Database) -> None:
    """It is taken as it is, judged when a run is created, and goes unnoticed where the run gives its own."""
    flow, _ = await registered(database, accepts_extra_parameters=False)
    await update_group(database, flow, default_parameters_json='{"day":1,"nobody":2}')

    (refused,) = await attempt(database, a_creation(target=GroupTarget(flow.group_id), parameters={"day": "x"}))

    assert isinstance(refused, InvalidRequest)
    assert [
        Violation("parameters_json", "'nobody', which the flow group sets, is not a parameter of the flow")
    ] == list(refused.violations)
    (refused,) = await attempt(database, a_creation(target=GroupTarget(flow.group_id)))
    assert isinstance(refused, InvalidRequest)
    assert "'day', which the flow group sets, must be of type string, not integer" in str(refused)


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

    versions = [flow, *[await register(database, description=f"{each}") for each in range(3)]]
    await archive(database, versions[-1])

    for reference in (flow.group_id, FlowName("daily report")):
        with pytest.raises(NoLiveFlow) as refused:
            await look_up(database, reference)
        assert tuple(str(each.id) for each in reversed(versions[1:])) == refused.value.archived


async def test_a_name_that_is_not_there_is_answered_with_names_that_are(database: Database) -> None:
    """Similar names, at most three and each once, or the project in which the very name is."""
    for name in ("daily report", "daily reports", "daily-report", "dayly report", "nothing like it"):
        await register(database, name=name)
    await register(database, name="daily report", project_name="archive")

    with pytest.raises(FlowNotFound) as typo:
        await look_up(database, FlowName("daily repor"))
    with pytest.raises(FlowNotFound) as elsewhere:
        await look_up(database, FlowName("daily report", "nowhere"))
    with pytest.raises(FlowNotFound) as unlike:
        await look_up(database, FlowName("xyz", "reports"))

    assert 3 == len(set(typo.value.similar))
    assert "daily report" == typo.value.similar[0]
    assert "nothing like it" not in typo.value.similar
    assert "There is no flow named 'daily report' in project 'nowhere'; it is in 'archive', 'reports'." == str(
        elsewhere.value
    )
    assert "There is no flow named 'xyz' in project 'reports'." == str(unlike.value)


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
