"""Creating runs, and finding them by the keys that created them, on both databases."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pendulum
import pytest
from sqlalchemy import update

from penstock.domain import flow as domain_flow
from penstock.domain.errors import (
    FlowArchived,
    FlowGroupNotFound,
    FlowNotFound,
    FlowRunNotFound,
    InvalidRequest,
    KeyNotFound,
    KeyReused,
    LeaseLost,
    NoLiveFlow,
    Refusal,
)
from penstock.domain.flow import ChildPolicy, Flow, PolicyAsked, RunConfig
from penstock.domain.flow_run import (
    Created,
    Creation,
    FlowTarget,
    GroupTarget,
    KeyReuse,
    ParentLease,
)
from penstock.domain.ids import FlowGroupId, FlowId, FlowRunId, LaneId, TenantId
from penstock.domain.json_text import parse_object
from penstock.domain.lanes import Lane
from penstock.domain.lease import Phase
from penstock.domain.limits import PRIORITY_MAX, PRIORITY_WORTH, START_DELAY_MAX
from penstock.domain.parameters import Parameter, ParameterType
from penstock.domain.state import Cause, State
from penstock.flow_run.creation import create_flow_runs, create_flow_runs_again, get_flow_run_by_key
from penstock.queue import operations as queue_operations
from penstock.storage import keys, schema
from penstock.storage.database import Database, Transaction
from tests.queue.scenes import (
    HOLDER,
    SECOND,
    TENANT,
    ask_to_stop,
    at_work,
    attempt,
    cancel,
    create,
    delete,
    entry_of,
    everything,
    held,
    register,
    run_of,
    steps_of,
    until_someone_waits,
)
from tests.storage.gate import Gate
from tests.support.builders import a_creation, an_id
from tests.support.fake_clock import NOON, FakeClock

on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)


def asked(flow: Flow, **fields: Any) -> Creation:
    """A request for a run of a group's live flow."""
    return a_creation(target=GroupTarget(flow.group_id), **fields)


async def the_only(database: Database, creation: Creation) -> Created | Refusal:
    (outcome,) = await attempt(database, creation)
    return outcome


async def made(database: Database, creation: Creation) -> Created:
    created = await the_only(database, creation)
    assert isinstance(created, Created), created
    return created


async def change_group(database: Database, flow: Flow, **columns: Any) -> None:
    def work(tx: Transaction) -> None:
        this = schema.flow_groups.c.flow_group_id == flow.group_id
        tx.conn.execute(update(schema.flow_groups).where(this).values(columns))

    await database.run(work)


async def archive(database: Database, flow: Flow) -> None:
    def work(tx: Transaction) -> None:
        tx.conn.execute(update(schema.flows).where(schema.flows.c.flow_id == flow.id).values(archive_time=tx.now))

    await database.run(work)


async def test_a_creation_is_whole(database: Database) -> None:
    """Run, first transition and queue entry are there together, as they were answered."""
    flow = await register(database)

    created = await made(database, asked(flow, idempotency_key="k", request_id="r", traceparent="00-aa-bb-01"))

    run = created.flow_run
    assert run is not None
    assert created.fresh
    assert run == await run_of(database, run.id)
    assert (
        run.state,
        run.version,
        run.attempt,
        run.scheduled_start_time,
        run.name,
    ) == (State.SCHEDULED, 1, 1, NOON, "amber-otter")
    assert [(each.version, each.state, each.cause, each.due_time) for each in await steps_of(database, run.id)] == [
        (1, State.SCHEDULED, Cause.CREATED, NOON)
    ]
    entry = await entry_of(database, run.id)
    assert entry is not None
    assert (entry.phase, entry.fence, entry.due_time, entry.holder) == (Phase.WAITING, 0, NOON, None)
    rows = await everything(database)
    assert len(rows["idempotency_keys"]) == 2


async def test_priority_is_a_head_start(database: Database) -> None:
    """The rank of a run lies before its due time by what its priority is worth."""
    run = await create(database, await register(database), policy=PolicyAsked(priority=7))

    entry = await entry_of(database, run.id)

    assert entry is not None
    assert (entry.due_time, entry.rank_time) == (NOON, NOON - 7 * PRIORITY_WORTH)


async def test_a_start_in_the_past_means_now(database: Database) -> None:
    """A run that should have started long ago is due now; one for later waits."""
    flow = await register(database)

    past = await create(database, flow, scheduled_start_time=NOON - timedelta(days=1))
    later = await create(database, flow, scheduled_start_time=NOON + timedelta(days=1))

    assert (NOON, NOON + timedelta(days=1)) == (past.scheduled_start_time, later.scheduled_start_time)


async def test_what_a_group_says_goes_before_its_flow(database: Database) -> None:
    """Parameters are merged, given before the group's before the flow's; labels and run config are taken whole."""
    declared = tuple(Parameter(name, ParameterType.INTEGER, default_json="1") for name in ("a", "b", "c"))
    flow = await register(database, parameters=declared, labels=("flow",))
    config = RunConfig(image="group")
    await change_group(database, flow, default_parameters_json='{"b":2,"c":2}', labels=("group",), run_config=config)

    of_group = await create(database, flow, parameters=parse_object('{"c":3}'))
    of_run = await create(database, flow, labels=(), run_config=RunConfig(image="run"))

    assert of_group.parameters_json == '{"a":1,"b":2,"c":3}'
    assert (("group",), config) == (of_group.labels, of_group.run_config)
    assert ((), RunConfig(image="run")) == (of_run.labels, of_run.run_config)


async def test_a_repeated_key_returns_the_first_run(database: Database) -> None:
    """The run as it is now comes back, with what was asked differently; nothing is written."""
    flow = await register(database)
    first = await made(database, asked(flow, idempotency_key="k"))
    before = await everything(database)

    same = await made(database, asked(flow, idempotency_key="k", name="another name"))
    other = await made(database, asked(flow, idempotency_key="k", parameters={"day": "monday"}, labels=("gpu",)))

    assert (first.flow_run_id, False, ()) == (same.flow_run_id, same.fresh, same.differing_fields)
    assert first.flow_run == same.flow_run
    assert (first.flow_run_id, ("parameters", "labels")) == (other.flow_run_id, other.differing_fields)
    assert before == await everything(database)


async def test_a_different_repeat_is_refused_if_asked(database: Database) -> None:
    """REFUSE_IF_DIFFERENT names the first run and the fields; an equal repeat is answered."""
    flow = await register(database)
    first = await made(database, asked(flow, idempotency_key="k", context={"who": "me"}))
    before = await everything(database)
    strict = asked(flow, idempotency_key="k", key_reuse=KeyReuse.REFUSE_IF_DIFFERENT)

    refused = await the_only(database, strict)
    equal = await made(database, replace(strict, context={"who": "me"}))

    assert isinstance(refused, KeyReused)
    assert (str(first.flow_run_id), ("context",)) == (refused.flow_run_id, refused.differing_fields)
    assert first.flow_run_id == equal.flow_run_id
    assert before == await everything(database)


async def test_a_key_belongs_to_the_target_as_named(database: Database) -> None:
    """A flow and its group keep their keys apart, and each finds its own."""
    flow = await register(database)

    by_group = await made(database, asked(flow, idempotency_key="k"))
    by_flow = await made(database, a_creation(target=FlowTarget(flow.id), idempotency_key="k"))

    assert by_group.flow_run_id != by_flow.flow_run_id
    assert by_flow.fresh
    again = await made(database, a_creation(target=FlowTarget(flow.id), idempotency_key="k"))
    assert by_flow.flow_run_id == again.flow_run_id


async def test_a_key_outlives_the_version_it_ran(database: Database) -> None:
    """After a new version the same key on the group returns the first run, of the old version."""
    first_flow = await register(database)
    first = await made(database, asked(first_flow, idempotency_key="k"))
    second_flow = await register(database, description="better")

    again = await made(database, asked(second_flow, idempotency_key="k"))

    assert second_flow.group_id == first_flow.group_id
    assert (first.flow_run_id, False) == (again.flow_run_id, again.fresh)
    assert again.flow_run is not None
    assert first_flow.id == again.flow_run.flow_id


async def test_a_key_answers_even_if_its_flow_could_not_run_now(database: Database) -> None:
    """What was archived meanwhile refuses new runs, and answers for the old ones."""
    flow = await register(database)
    first = await made(database, asked(flow, idempotency_key="k"))
    await archive(database, flow)

    again = await made(database, asked(flow, idempotency_key="k", parameters={"wrong": "name"}))
    fresh = await the_only(database, asked(flow, idempotency_key="another"))

    assert (first.flow_run_id, False) == (again.flow_run_id, again.fresh)
    assert isinstance(fresh, NoLiveFlow)


async def test_a_repeated_request_returns_its_run(database: Database) -> None:
    """A request id finds its run whatever the target is called, with or without a key beside it."""
    flow = await register(database)
    first = await made(database, asked(flow, request_id="r"))

    again = await made(database, a_creation(target=FlowTarget(flow.id), request_id="r"))

    assert (first.flow_run_id, False) == (again.flow_run_id, again.fresh)


async def test_a_repeat_claims_nothing(database: Database) -> None:
    """The new request id that comes with a known key, or the new key with a known request, is kept for nobody."""
    flow = await register(database)
    first = await made(database, asked(flow, idempotency_key="k", request_id="r"))
    before = await everything(database)

    by_key = await made(database, asked(flow, idempotency_key="k", request_id="r2"))
    by_request = await made(database, asked(flow, idempotency_key="k2", request_id="r"))

    assert {first.flow_run_id} == {by_key.flow_run_id, by_request.flow_run_id}
    assert before == await everything(database)
    assert (await made(database, asked(flow, idempotency_key="k2"))).fresh


async def test_repeats_within_one_flush_are_as_if_one_came_after_the_other(database: Database) -> None:
    """A repeat is answered with the first run and claims nothing, so the key that came with it makes a run of its own,
    which later repeats find."""
    flow = await register(database)
    asking = [
        asked(flow, idempotency_key="k1", request_id="r1"),
        asked(flow, idempotency_key="k2", request_id="r1"),
        asked(flow, idempotency_key="k2", request_id="r3"),
        asked(flow, idempotency_key="k4", request_id="r3"),
        asked(flow, idempotency_key="k4"),
    ]
    owners = [asking[each].flow_run_id for each in (0, 0, 2, 2, 4)]

    created = [each for each in await attempt(database, *asking) if isinstance(each, Created)]

    assert [(owner, each.flow_run_id == owner) for each, owner in zip(asking, owners, strict=True)] == [
        (each.flow_run_id, each.fresh) for each in created
    ]
    assert owners == [each.flow_run.id for each in created if each.flow_run]
    before = await everything(database)
    assert (3, 5) == (len(before["flow_runs"]), len(before["idempotency_keys"]))
    names = [{"idempotency_key": "k1"}, {"request_id": "r1"}, {"idempotency_key": "k2"}, {"request_id": "r3"}]
    for name, owner in zip([*names, {"idempotency_key": "k4"}], owners, strict=True):
        again = await made(database, asked(flow, **name))
        assert (owner, False) == (again.flow_run_id, again.fresh)
    assert before == await everything(database)


async def test_a_key_that_a_refused_creation_brought_makes_the_run_of_the_next(database: Database) -> None:
    """In the same flush: who shares a request id with an orphan has lost no lease, and gets a run."""
    flow = await register(database)
    nobody = ParentLease(FlowRunId(an_id()), 3)
    orphan = asked(flow, request_id="r", idempotency_key="orphan", parent=nobody)
    repeat = asked(flow, request_id="r", idempotency_key="k")

    refused, created = await attempt(database, orphan, repeat)

    assert isinstance(refused, LeaseLost)
    assert isinstance(created, Created)
    assert (repeat.flow_run_id, True) == (created.flow_run_id, created.fresh)
    for key in ({"request_id": "r"}, {"idempotency_key": "k"}):
        assert repeat.flow_run_id == (await made(database, asked(flow, **key))).flow_run_id
    assert (await made(database, asked(flow, idempotency_key="orphan"))).fresh


async def test_a_run_that_was_made_although_its_flush_failed_is_found(database: Database) -> None:
    """Tried again after a commit whose answer was lost, a creation is answered with its own run, as it is now."""
    flow = await register(database)
    plain, keyed = asked(flow), asked(flow, idempotency_key="k", request_id="r")
    repeat, missing = asked(flow, request_id="r"), asked(flow)
    await attempt(database, plain, keyed, repeat)
    await cancel(database, plain.flow_run_id)
    before = await everything(database)

    found = await database.run(create_flow_runs_again, TENANT, [keyed, repeat, plain])

    assert [
        Created(each.flow_run_id, await run_of(database, each.flow_run_id), fresh=fresh)
        for each, fresh in ((keyed, True), (keyed, False), (plain, True))
    ] == found
    assert before == await everything(database)
    last, first = await database.run(create_flow_runs_again, TENANT, [missing, plain])
    assert [missing.flow_run_id, plain.flow_run_id] == [
        each.flow_run_id for each in (last, first) if isinstance(each, Created) and each.fresh
    ]


async def test_defaults_are_read_once_in_a_flush(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs are made of a flow, and whether it or its group was named."""
    flow = await register(database, parameters=(Parameter("a", default_json="1"), Parameter("b")))
    await change_group(database, flow, default_parameters_json='{"b":2}')
    creations = [asked(flow), a_creation(target=FlowTarget(flow.id)), asked(flow, parameters={"a": "x"})]
    parsed: list[str] = []

    def spying(text: str) -> Any:
        parsed.append(text)
        return parse_object(text)

    monkeypatch.setattr(domain_flow, "parse_object", spying)
    outcomes = await attempt(database, *creations)

    assert ['{"b":2}'] == parsed
    assert ['{"a":1,"b":2}', '{"a":1,"b":2}', '{"a":"x","b":2}'] == [
        each.flow_run.parameters_json for each in outcomes if isinstance(each, Created) and each.flow_run
    ]


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"parameters": {"day": True, "night": ""}}, InvalidRequest),
        ({"target": FlowTarget(FlowId(an_id()))}, FlowNotFound),
        ({"target": GroupTarget(FlowGroupId(an_id()))}, FlowGroupNotFound),
    ],
    ids=["parameters", "flow", "group"],
)
async def test_a_refused_creation_writes_nothing(
    database: Database, fields: dict[str, Any], refusal: type[Refusal]
) -> None:
    """A refusal claims no key: corrected, the same key makes a run. Its neighbours in the flush are created."""
    flow = await register(database)
    wrong = replace(asked(flow, idempotency_key="k", request_id="r"), **fields)
    before = await everything(database)

    assert isinstance(await the_only(database, wrong), refusal)
    assert before == await everything(database)

    refused, neighbour = await attempt(database, wrong, asked(flow))
    assert isinstance(refused, refusal)
    assert isinstance(neighbour, Created)
    corrected = await made(database, asked(flow, idempotency_key="k", request_id="r"))
    assert corrected.fresh


async def test_all_wrong_parameters_are_named_at_once(database: Database) -> None:
    """Missing, unknown and mistyped parameters are violations of one refusal."""
    flow = await register(database, parameters=(Parameter("a", required=True), Parameter("b", ParameterType.BOOLEAN)))

    refused = await the_only(database, asked(flow, parameters={"b": "yes", "c": "?"}))

    assert isinstance(refused, InvalidRequest)
    assert len(refused.violations) == 3


async def test_an_archived_flow_names_the_live_one(database: Database) -> None:
    """A run of an old version is refused, and told which version lives."""
    old = await register(database)
    new = await register(database, description="better")

    refused = await the_only(database, a_creation(target=FlowTarget(old.id)))

    assert isinstance(refused, FlowArchived)
    assert (str(old.id), str(new.id)) == (refused.flow_id, refused.live_flow_id)


async def test_a_child_is_created_under_its_parents_lease(database: Database) -> None:
    """The child names its parent; its entry does too, if it is to be cancelled with it."""
    flow = await register(database)
    parent = await create(database, flow)
    lease = (await at_work(database, parent.id)).lease
    under = ParentLease(lease.flow_run_id, lease.fence)

    child = await create(database, flow, parent=under)
    loose = await create(database, flow, parent=under, policy=PolicyAsked(child_policy=ChildPolicy.ABANDON))

    assert [parent.id, parent.id] == [child.parent_id, loose.parent_id]
    entries = [await entry_of(database, each.id) for each in (child, loose)]
    assert [parent.id, None] == [each.parent_id if each else "final" for each in entries]


async def test_a_lost_parent_creates_nothing(database: Database) -> None:
    """With a stale fence, of a parent that waits, stops or is final, nothing is written; a repeat is answered."""
    flow = await register(database)
    parent = await create(database, flow)
    lease = await held(database, parent.id)
    under = ParentLease(lease.flow_run_id, lease.fence)
    known = await made(database, asked(flow, idempotency_key="known", parent=under))
    await ask_to_stop(database, lease)
    before = await everything(database, "lanes", "lane_labels")

    for fence in (lease.fence, lease.fence + 1):
        orphan = asked(flow, idempotency_key="k", request_id="r", labels=("new",), parent=ParentLease(parent.id, fence))
        refused, neighbour_repeat = await attempt(database, orphan, asked(flow, idempotency_key="known", parent=under))
        assert isinstance(refused, LeaseLost)
        assert (str(parent.id), fence) == (refused.flow_run_id, refused.fence)
        assert isinstance(neighbour_repeat, Created)
        assert known.flow_run_id == neighbour_repeat.flow_run_id
    assert before == await everything(database, "lanes", "lane_labels")
    assert (await made(database, asked(flow, idempotency_key="k", request_id="r"))).fresh


async def test_racing_creations_with_one_key_make_one_run(database: Database) -> None:
    """The second transaction waits for the first one's key and answers with its run."""
    flow = await register(database)
    gate = Gate()

    def slowly(tx: Transaction, creation: Creation) -> Sequence[Created | Refusal]:
        created = create_flow_runs(tx, TENANT, [creation])
        gate.stop_here()
        return created

    first = asyncio.create_task(database.run(slowly, asked(flow, idempotency_key="k", request_id="r1")))
    await gate.reached()
    second = asyncio.create_task(attempt(database, asked(flow, idempotency_key="k", request_id="r2")))
    await until_someone_waits(database)
    gate.open()
    (one,), (other,) = await first, await second

    assert isinstance(one, Created)
    assert isinstance(other, Created)
    assert (one.fresh, other.fresh) == (True, False)
    assert one.flow_run_id == other.flow_run_id
    assert one.flow_run == other.flow_run
    assert len((await everything(database))["flow_runs"]) == 1


async def test_a_key_of_a_creation_that_was_rolled_back_is_free(database: Database) -> None:
    """Who waited for a key of a transaction that failed creates the run."""
    flow = await register(database)
    gate = Gate()

    def in_vain(tx: Transaction, creation: Creation) -> None:
        create_flow_runs(tx, TENANT, [creation])
        gate.stop_here()
        raise FlowRunNotFound(flow_run_id="as if")

    first = asyncio.create_task(database.run(in_vain, asked(flow, idempotency_key="k")))
    await gate.reached()
    second = asyncio.create_task(attempt(database, asked(flow, idempotency_key="k")))
    await until_someone_waits(database)
    gate.open()

    with pytest.raises(FlowRunNotFound):
        await first
    (created,) = await second
    assert isinstance(created, Created)
    assert created.fresh
    assert created.flow_run is not None


async def test_many_creations_share_keys_from_both_ends(database: Database) -> None:
    """Flushes that name the same keys and lanes in opposite orders never wait in a circle."""
    flow = await register(database)
    flushes: list[int] = []

    def flush(tx: Transaction, order: int) -> Sequence[Created | Refusal]:
        flushes.append(order)
        numbers = range(30)[::order]
        creations = [asked(flow, idempotency_key=f"k{each}", labels=(f"l{each}",)) for each in numbers]
        return create_flow_runs(tx, TENANT, creations)

    await asyncio.gather(*(database.run(flush, order) for order in (1, -1) * 5))

    assert len(flushes) == 10, "a transaction was repeated after a deadlock"
    assert len((await everything(database))["flow_runs"]) == 30


async def test_a_group_without_a_live_flow_names_the_latest_ones(database: Database) -> None:
    """At most three, the newest first, whether the group or one of its flows was asked for."""
    versions = [await register(database, description=f"version {number}") for number in range(5)]
    await archive(database, versions[-1])
    latest = tuple(str(each.id) for each in reversed(versions[2:]))

    for target in (GroupTarget(versions[0].group_id), FlowTarget(versions[0].id), FlowTarget(versions[4].id)):
        refused = await the_only(database, a_creation(target=target))
        assert isinstance(refused, NoLiveFlow)
        assert (str(versions[0].group_id), latest) == (refused.flow_group_id, refused.archived)


async def test_a_start_delay_is_counted_by_the_databases_clock(database: Database, clock: FakeClock) -> None:
    """From the moment of the creation, to the microsecond and to the longest."""
    flow = await register(database)
    clock.advance(timedelta(hours=1))

    for delay in (timedelta(0), timedelta(microseconds=1), START_DELAY_MAX):
        run = await create(database, flow, start_delay=delay)
        entry = await entry_of(database, run.id)
        assert entry is not None
        assert [clock.now() + delay] * 3 == [run.scheduled_start_time, entry.due_time, entry.rank_time]


MOMENTS = [
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59+14:00",
    "2028-02-29T23:59:59.999999Z",
    "2400-02-29T00:00:00Z",
    "2030-01-01T00:00:00+14:00",
    "2030-03-31T01:59:59+01:00",
    "2030-03-31T03:00:00+02:00",
    "2030-10-27T02:30:00+02:00",
    "2030-10-27T02:30:00+01:00",
]


@pytest.mark.parametrize("start_time", MOMENTS)
async def test_a_start_time_is_kept_as_a_moment(database: Database, start_time: str) -> None:
    """However far, and from whichever zone, to the microsecond; the run is not due before it."""
    moment = pendulum.instance(datetime.fromisoformat(start_time)).in_timezone("UTC")
    run = await create(database, await register(database), scheduled_start_time=moment)

    entry = await entry_of(database, run.id)
    assert entry is not None
    assert [moment] * 3 == [entry.due_time, entry.rank_time, (await run_of(database, run.id)).scheduled_start_time]
    for now, due in ((NOON, []), (moment.subtract(microseconds=1), []), (moment, [run.id])):
        later = Database(database.engine, FakeClock(now), threads=1)
        taken = await later.run(queue_operations.take, TENANT, room_for_one, holder=HOLDER, ttl=timedelta(0))
        assert due == [grant.run.id for grant in taken.grants]
        assert bool(due) == (taken.next_due_in is None)


def room_for_one(found: Sequence[Lane]) -> Mapping[LaneId, int]:
    return {lane.id: 1 for lane in found}


async def test_the_first_year_means_now(database: Database) -> None:
    """As every other moment that is past, also with the highest priority."""
    policy, first = PolicyAsked(priority=PRIORITY_MAX), pendulum.datetime(1, 1, 1)

    run = await create(database, await register(database), scheduled_start_time=first, policy=policy)

    assert NOON == run.scheduled_start_time


async def test_a_key_finds_the_run_that_it_made(database: Database) -> None:
    """Under the target that its creator named, as it is now; under another one it made nothing."""
    flow = await register(database)
    created = await made(database, asked(flow, idempotency_key="k", request_id="r"))
    await cancel(database, created.flow_run_id)

    found = await database.read(get_flow_run_by_key, TENANT, GroupTarget(flow.group_id), "k")

    assert Created(created.flow_run_id, await run_of(database, created.flow_run_id), fresh=False) == found
    for target, key, named in (
        (FlowTarget(flow.id), "k", f"flow {flow.id}"),
        (GroupTarget(flow.group_id), "r", f"flow group {flow.group_id}"),
        (GroupTarget(FlowGroupId(flow.id)), "k", f"flow group {flow.id}"),
    ):
        with pytest.raises(KeyNotFound) as refused:
            await database.read(get_flow_run_by_key, TENANT, target, key)
        assert (key, named) == (refused.value.idempotency_key, refused.value.target)


async def test_a_key_outlives_its_run(database: Database, clock: FakeClock) -> None:
    """After the deletion a repeat is answered with the id and when that was, and makes no other run."""
    flow = await register(database)
    asking = asked(flow, idempotency_key="k", request_id="r", parameters={"day": "monday"})
    created = await made(database, asking)
    await cancel(database, created.flow_run_id)
    clock.advance(SECOND)
    deleted = clock.now()
    await delete(database, created.flow_run_id)
    clock.advance(SECOND)
    before = await everything(database)

    repeat = await made(database, replace(asking, flow_run_id=FlowRunId(an_id())))
    different = await made(database, asked(flow, idempotency_key="k"))
    strict = await the_only(database, asked(flow, idempotency_key="k", key_reuse=KeyReuse.REFUSE_IF_DIFFERENT))
    found = await database.read(get_flow_run_by_key, TENANT, GroupTarget(flow.group_id), "k")

    gone = Created(created.flow_run_id, None, fresh=False, delete_time=deleted)
    assert [gone, replace(gone, differing_fields=("parameters",)), gone] == [repeat, different, found]
    assert isinstance(strict, KeyReused)
    assert str(created.flow_run_id) == strict.flow_run_id
    assert before == await everything(database)


async def test_a_request_is_forgotten_with_its_run(database: Database) -> None:
    """The same request then makes another run."""
    flow = await register(database)
    first = await made(database, asked(flow, request_id="r"))
    await cancel(database, first.flow_run_id)
    await delete(database, first.flow_run_id)

    second = await made(database, asked(flow, request_id="r"))

    assert second.fresh
    assert first.flow_run_id != second.flow_run_id


@on_postgres
async def test_a_run_deleted_between_two_looks_is_told_as_deleted(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repeat, or a look by key, that found the key and then no run says that the run is deleted, as of now."""
    flow = await register(database)
    find = keys.find

    for number, ask in enumerate((attempt_again, look_again)):
        created = await made(database, asked(flow, idempotency_key=f"k{number}"))
        await cancel(database, created.flow_run_id)
        gate = Gate()

        def found(*arguments: Any, gate: Gate = gate) -> Any:
            claims = find(*arguments)
            gate.stop_here()
            return claims

        with monkeypatch.context() as patched:
            patched.setattr(keys, "find", found)
            asking = asyncio.create_task(ask(database, asked(flow, idempotency_key=f"k{number}")))
            await gate.reached()
            await delete(database, created.flow_run_id)
            gate.open()
            answer = await asking
        assert Created(created.flow_run_id, None, fresh=False, delete_time=clock.now()) == answer


@on_postgres
async def test_a_key_that_is_deleted_while_it_is_looked_for_is_claimed_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request id that was taken when it was claimed, and nobody's when it was looked for, is the new run's."""
    flow = await register(database)
    first = await made(database, asked(flow, request_id="r"))
    await cancel(database, first.flow_run_id)
    gate, looks = Gate(), 0
    find = keys.find

    def held_up(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 1:
            gate.stop_here()
        return find(*arguments)

    monkeypatch.setattr(keys, "find", held_up)
    asking = asyncio.create_task(the_only(database, asked(flow, request_id="r")))
    await gate.reached()
    assert await delete(database, first.flow_run_id)
    gate.open()
    second = await asking
    third = await made(database, asked(flow, request_id="r"))

    assert isinstance(second, Created)
    assert (True, False) == (second.fresh, third.fresh)
    assert first.flow_run_id != second.flow_run_id == third.flow_run_id


async def attempt_again(database: Database, creation: Creation) -> Created | Refusal:
    return await the_only(database, creation)


async def look_again(database: Database, creation: Creation) -> Created:
    assert creation.idempotency_key is not None
    return await database.read(get_flow_run_by_key, TENANT, creation.target, creation.idempotency_key)


async def test_another_tenants_keys_are_its_own(database: Database) -> None:
    """A key that made a run here has made none there."""
    flow = await register(database)
    await made(database, asked(flow, idempotency_key="k"))
    other = TenantId(an_id())

    (refused,) = await database.run(create_flow_runs, other, [asked(flow, idempotency_key="k")])
    assert isinstance(refused, FlowGroupNotFound)
    with pytest.raises(KeyNotFound):
        await database.read(get_flow_run_by_key, other, GroupTarget(flow.group_id), "k")


async def test_every_default_is_kept_on_the_run(database: Database) -> None:
    """Also the ones that look like nothing; given goes before the group's, the group's before the flow's."""
    defaults = {"zero": "0", "empty": '""', "no": "false", "null": "null", "list": "[]", "two": "2", "float": "2.0"}
    declared = tuple(Parameter(name, default_json=text) for name, text in defaults.items())
    flow = await register(database, parameters=(*declared, Parameter("big", required=True)))
    await change_group(database, flow, default_parameters_json='{"big":9007199254740993,"two":1E2,"zero":false}')

    plain = await create(database, flow)
    given = await create(database, flow, parameters=parse_object('{"zero":-0,"no":null,"big":9007199254740993.0}'))

    assert (
        '{"big":9007199254740993,"empty":"","float":2.0,"list":[],"no":false,"null":null,"two":1E2,"zero":false}'
        == plain.parameters_json
    )
    assert (
        '{"big":9007199254740993.0,"empty":"","float":2.0,"list":[],"no":null,"null":null,"two":1E2,"zero":-0}'
        == given.parameters_json
    )
    assert given.parameters_json == (await run_of(database, given.id)).parameters_json
