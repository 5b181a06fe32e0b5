"""What each rpc of FlowRunService does, on both databases."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from penstock.domain.errors import (
    ExecutionRefused,
    FlowArchived,
    FlowGroupNotFound,
    FlowNotFound,
    FlowRunNotFound,
    InvalidRequest,
    KeyReused,
    LeaseLost,
    MoveRefused,
    NoLiveFlow,
    Refusal,
)
from penstock.domain.flow import ChildPolicy, Flow, PolicyAsked, RunConfig
from penstock.domain.flow_run import (
    Created,
    Creation,
    Failure,
    Finishing,
    FlowRun,
    FlowTarget,
    GroupTarget,
    KeyReuse,
    ParentLease,
    Starting,
    Succeeded,
)
from penstock.domain.ids import ExecutionId, FlowGroupId, FlowId, FlowRunId
from penstock.domain.json_text import parse_object
from penstock.domain.lease import EndedBy, Lease, LeaseOutcome, Phase
from penstock.domain.limits import HELD_LEASE, PRIORITY_WORTH
from penstock.domain.parameters import Parameter, ParameterType
from penstock.domain.queries import Page, PositionPage, RunFilter
from penstock.domain.state import Cause, State
from penstock.flow_run import operations
from penstock.flow_run.operations import SUPERVISOR, Started
from penstock.storage import schema
from penstock.storage.database import Database, Transaction
from tests.queue.scenes import (
    AGENT,
    SECOND,
    STOPPED,
    TENANT,
    ask_to_stop,
    at_work,
    attempt,
    create,
    entry_of,
    everything,
    execution_of,
    expire,
    finish,
    held,
    offer,
    register,
    release,
    run_of,
    start,
    steps_of,
    until_someone_waits,
)
from tests.storage.gate import Gate
from tests.support.builders import a_creation, an_id
from tests.support.databases import Kind
from tests.support.fake_clock import NOON, FakeClock

FAILED = Failure(type="ValueError", message="no such day", traceback="Traceback", exit_code=1)
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


# Creation


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


async def test_repeats_within_one_flush_lead_to_the_first(database: Database) -> None:
    """Creations that share keys in a chain are all the first one's; every answer holds its run."""
    flow = await register(database)
    chain = [
        asked(flow, idempotency_key="k1", request_id="r1"),
        asked(flow, idempotency_key="k2", request_id="r1"),
        asked(flow, idempotency_key="k2", request_id="r3"),
    ]

    outcomes = await attempt(database, *chain)

    created = [each for each in outcomes if isinstance(each, Created)]
    assert [each.fresh for each in created] == [True, False, False]
    assert {chain[0].flow_run_id} == {each.flow_run_id for each in created}
    assert all(each.flow_run is not None for each in created)
    assert len((await everything(database))["idempotency_keys"]) == 2


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
        created = operations.create_flow_runs(tx, TENANT, [creation])
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
        operations.create_flow_runs(tx, TENANT, [creation])
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
        return operations.create_flow_runs(tx, TENANT, creations)

    await asyncio.gather(*(database.run(flush, order) for order in (1, -1) * 5))

    assert len(flushes) == 10, "a transaction was repeated after a deadlock"
    assert len((await everything(database))["flow_runs"]) == 30


# Starting


async def test_start_makes_it_run(database: Database, clock: FakeClock) -> None:
    """The run is RUNNING, its lease is renewed, its execution is known and its supervisor's log is expected."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)
    clock.advance(20 * SECOND)
    execution_id = ExecutionId(an_id())

    started = await start(database, lease, execution_id)

    assert isinstance(started, Started)
    assert (State.RUNNING, clock.now()) == (started.run.state, started.run.start_time)
    assert (lease, HELD_LEASE, clock.now() + HELD_LEASE) == (
        started.held.lease,
        started.held.ttl,
        started.held.expire_time,
    )
    assert started.run == await run_of(database, run.id)
    execution = await execution_of(database, lease)
    assert (execution_id, clock.now(), None) == (execution.execution_id, execution.start_time, execution.end_time)
    rows = await everything(database)
    assert [(TENANT, run.id, lease.fence, SUPERVISOR, 0, False)] == rows["log_producers"]


async def test_a_repeated_start_changes_nothing_but_the_lease(database: Database, clock: FakeClock) -> None:
    """The same execution is told RUNNING again; one token still starts code once."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    before = await everything(database, "queue_entries")
    clock.advance(SECOND)

    again = await start(database, work.lease, work.execution_id)

    assert isinstance(again, Started)
    assert State.RUNNING is again.run.state
    assert clock.now() + HELD_LEASE == again.held.expire_time
    assert before == await everything(database, "queue_entries")


async def test_a_second_execution_is_refused(database: Database) -> None:
    """One lease starts one execution; another one changes nothing."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    before = await everything(database)

    refused = await start(database, work.lease, ExecutionId(an_id()))

    assert isinstance(refused, ExecutionRefused)
    assert before == await everything(database)


async def test_two_starts_at_once_start_one_execution(database: Database) -> None:
    """Of executions that race for one lease one begins."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)

    outcomes = await asyncio.gather(*(start(database, lease, ExecutionId(an_id())) for _ in range(4)))

    assert len([each for each in outcomes if isinstance(each, Started)]) == 1
    assert len([each for each in outcomes if isinstance(each, ExecutionRefused)]) == 3


async def test_a_run_that_is_cancelling_does_not_begin(database: Database) -> None:
    """It is answered as it is, and no execution is noted, so that it may be finished as never started."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)
    await ask_to_stop(database, lease)

    started = await start(database, lease, ExecutionId(an_id()))

    assert isinstance(started, Started)
    assert State.CANCELLING is started.run.state
    assert (await execution_of(database, lease)).execution_id is None
    assert tuple((await everything(database))["log_producers"]) == ()
    finished = await finish(database, lease, None, STOPPED)
    assert isinstance(finished, FlowRun)
    assert State.CANCELLED is finished.state


async def test_a_start_without_the_lease_is_refused(database: Database, clock: FakeClock) -> None:
    """Of an offer, a stale fence, a lease that the keeper ended, or a final run; an unknown run is not found."""
    flow = await register(database)
    offered = await offer(database, (await create(database, flow)).id)
    lost = await held(database, (await create(database, flow)).id)
    clock.advance(HELD_LEASE)
    assert await expire(database) == 1
    over = await at_work(database, (await create(database, flow)).id)
    await finish(database, over.lease, over.execution_id)
    before = await everything(database)

    for lease in (offered, lost, over.lease, replace(over.lease, fence=99)):
        refused = await start(database, lease, over.execution_id)
        assert isinstance(refused, LeaseLost)
        assert (str(lease.flow_run_id), lease.fence) == (refused.flow_run_id, refused.fence)
    unknown = await start(database, Lease(FlowRunId(an_id()), 1), over.execution_id)
    assert isinstance(unknown, FlowRunNotFound)
    assert before == await everything(database)


async def test_a_rescued_run_refuses_its_old_execution(database: Database, clock: FakeClock) -> None:
    """The repeat of a start that once succeeded is judged only while its lease is held."""
    run = await create(database, await register(database))
    old = await at_work(database, run.id)
    clock.advance(HELD_LEASE)
    await expire(database)
    new = await at_work(database, run.id)

    refused = await start(database, old.lease, old.execution_id)

    assert isinstance(refused, LeaseLost)
    assert new.lease.fence > old.lease.fence
    assert State.RUNNING is (await run_of(database, run.id)).state


async def test_a_flush_starts_each_run_by_itself(database: Database) -> None:
    """One that is refused leaves its neighbours alone, and the outcomes keep their order."""
    flow = await register(database)
    leases = [await held(database, (await create(database, flow)).id) for _ in range(3)]
    leases[1] = replace(leases[1], fence=leases[1].fence + 1)
    startings = [Starting(each.flow_run_id, each.fence, ExecutionId(an_id())) for each in leases]

    outcomes = await database.run(operations.start_flow_runs, TENANT, startings, ttl=HELD_LEASE)

    assert [Started, LeaseLost, Started] == [type(each) for each in outcomes]
    assert [leases[0].flow_run_id, leases[2].flow_run_id] == [
        each.run.id for each in outcomes if isinstance(each, Started)
    ]


# Finishing


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(Succeeded('{"n":1.50}'), State.SUCCEEDED), (Succeeded(), State.SUCCEEDED), (FAILED, State.FAILED)],
    ids=["result", "nothing", "failure"],
)
async def test_an_end_is_final(
    database: Database, clock: FakeClock, outcome: Succeeded | Failure, state: State
) -> None:
    """The run is final with its result or failure, its entry is gone, its fence is kept, its execution ended."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    clock.advance(SECOND)

    finished = await finish(database, work.lease, work.execution_id, outcome)

    assert isinstance(finished, FlowRun)
    assert finished == await run_of(database, run.id)
    assert (state, clock.now(), work.lease.fence) == (finished.state, finished.finish_time, finished.fence)
    assert (outcome.result_json if isinstance(outcome, Succeeded) else None) == finished.result_json
    assert (outcome if isinstance(outcome, Failure) else None) == finished.failure
    assert await entry_of(database, run.id) is None
    execution = await execution_of(database, work.lease)
    assert (state, clock.now(), EndedBy.FINISH) == (execution.outcome, execution.end_time, execution.ended_by)
    assert [each.version for each in await steps_of(database, run.id)] == [1, 2, 3, 4]


async def test_a_stopped_run_is_cancelled(database: Database) -> None:
    """A CANCELLING run whose execution confirms is CANCELLED, in its words."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    await ask_to_stop(database, work.lease)

    finished = await finish(database, work.lease, work.execution_id, STOPPED)

    assert isinstance(finished, FlowRun)
    assert State.CANCELLED is finished.state
    assert (lambda step: (step.cause, step.message))((await steps_of(database, run.id))[-1]) == (
        Cause.FINISHED,
        "stopped as asked",
    )
    assert await entry_of(database, run.id) is None


async def test_a_failure_with_retries_left_waits_for_its_next_attempt(database: Database, clock: FakeClock) -> None:
    """The run is SCHEDULED, one attempt on, due after the delay, under a new fence; then it fails for good."""
    delay = timedelta(minutes=5)
    policy = PolicyAsked(max_retries=1, retry_delay=delay)
    run = await create(database, await register(database), policy=policy)
    work = await at_work(database, run.id)

    retried = await finish(database, work.lease, work.execution_id, FAILED)

    assert isinstance(retried, FlowRun)
    assert (State.SCHEDULED, 2, 0, clock.now() + delay) == (
        retried.state,
        retried.attempt,
        retried.retries_left,
        retried.scheduled_start_time,
    )
    assert retried == await run_of(database, run.id)
    entry = await entry_of(database, run.id)
    assert entry is not None
    assert (Phase.WAITING, work.lease.fence + 1, clock.now() + delay, None, None) == (
        entry.phase,
        entry.fence,
        entry.due_time,
        entry.holder,
        entry.lease_expire_time,
    )
    clock.advance(delay)
    again = await at_work(database, run.id)
    failed = await finish(database, again.lease, again.execution_id, FAILED)
    assert isinstance(failed, FlowRun)
    assert (failed.state, failed.attempt) == (State.FAILED, 2)


async def test_a_repeated_finish_gets_the_run(database: Database) -> None:
    """The first report counts; its repeat is answered with the run as it is now, and changes nothing."""
    flow = await register(database)
    over = await at_work(database, (await create(database, flow)).id)
    retried = await at_work(database, (await create(database, flow, policy=PolicyAsked(max_retries=1))).id)
    await finish(database, over.lease, over.execution_id, Succeeded("1"))
    await finish(database, retried.lease, retried.execution_id, FAILED)
    before = await everything(database)

    first = await finish(database, over.lease, over.execution_id, FAILED)
    second = await finish(database, retried.lease, retried.execution_id, FAILED)

    assert isinstance(first, FlowRun)
    assert isinstance(second, FlowRun)
    assert [(each.state, each.result_json) for each in (first, second)] == [
        (State.SUCCEEDED, "1"),
        (State.SCHEDULED, None),
    ]
    assert before == await everything(database)


async def test_another_execution_cannot_finish_it(database: Database) -> None:
    """Not while it runs, and not as a repeat afterwards; nor may one without an id."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    before = await everything(database)

    for execution_id in (ExecutionId(an_id()), None):
        assert isinstance(await finish(database, work.lease, execution_id), ExecutionRefused)
    assert before == await everything(database)

    await finish(database, work.lease, work.execution_id)
    for execution_id in (ExecutionId(an_id()), None):
        assert isinstance(await finish(database, work.lease, execution_id), LeaseLost)


async def test_what_was_never_started_may_fail(database: Database) -> None:
    """A failed deployment is reported without an execution, and so is its repeat; it cannot have succeeded."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)
    before = await everything(database)

    for outcome in (Succeeded(), STOPPED):
        assert isinstance(await finish(database, lease, None, outcome), MoveRefused)
    assert before == await everything(database)

    failed, again = [await finish(database, lease, None, FAILED) for _ in range(2)]
    assert isinstance(failed, FlowRun)
    assert State.FAILED is failed.state
    assert failed == again


async def test_an_execution_that_the_keeper_ended_is_over(database: Database, clock: FakeClock) -> None:
    """Its report is refused and changes nothing, whether the run waits again, runs elsewhere or is final."""
    run = await create(database, await register(database))
    old = await at_work(database, run.id)
    clock.advance(HELD_LEASE)
    await expire(database)

    assert isinstance(await finish(database, old.lease, old.execution_id), LeaseLost)
    new = await at_work(database, run.id)
    before = await everything(database)
    assert isinstance(await finish(database, old.lease, old.execution_id), LeaseLost)
    assert before == await everything(database)
    await finish(database, new.lease, new.execution_id, Succeeded("2"))
    assert isinstance(await finish(database, old.lease, old.execution_id), LeaseLost)
    assert (await run_of(database, run.id)).result_json == "2"


async def test_a_released_lease_finishes_nothing(database: Database) -> None:
    """A holder that gave its lease back cannot end the run with it."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)
    assert LeaseOutcome.RELEASED is await release(database, lease)

    assert isinstance(await finish(database, lease, None, FAILED), LeaseLost)


async def test_an_unknown_run_cannot_finish(database: Database) -> None:
    """It is not found, rather than lost."""
    assert isinstance(await finish(database, Lease(FlowRunId(an_id()), 1), None), FlowRunNotFound)


@on_postgres
async def test_a_finish_waits_for_whoever_holds_the_entry(database: Database) -> None:
    """While another transaction ends the lease, a finish waits, and then sees that it is over."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    gate = Gate()

    def end_slowly(tx: Transaction) -> None:
        operations.finish_flow_runs(
            tx, TENANT, [Finishing(run.id, work.lease.fence, work.execution_id, Succeeded("1"))]
        )
        gate.stop_here()

    first = asyncio.create_task(database.run(end_slowly))
    await gate.reached()
    second = asyncio.create_task(finish(database, work.lease, ExecutionId(an_id()), FAILED))
    await until_someone_waits(database)
    gate.open()
    await first

    assert isinstance(await second, LeaseLost)
    assert (await run_of(database, run.id)).result_json == "1"


# Reading


async def test_an_unknown_run_is_not_found(database: Database) -> None:
    """Neither it nor its history."""
    nobody = FlowRunId(an_id())
    with pytest.raises(FlowRunNotFound):
        await run_of(database, nobody)
    with pytest.raises(FlowRunNotFound):
        await database.read(operations.list_transitions, TENANT, nobody, PositionPage(1))


async def test_runs_are_listed_newest_first_in_pages(database: Database, clock: FakeClock) -> None:
    """Every run comes once, also those of one moment, without what may be large."""
    flow = await register(database)
    for _ in range(4):
        await create(database, flow, context={"large": "x"})
        await create(database, flow)
        clock.advance(SECOND)
    listed: list[FlowRun] = []

    while True:
        after = (listed[-1].create_time, listed[-1].id) if listed else None
        page = await database.read(operations.list_flow_runs, TENANT, RunFilter(), Page(3, after))
        listed += page
        if len(page) < 3:
            break

    assert 8 == len({each.id for each in listed}) == len(listed)
    assert sorted(listed, key=lambda each: (each.create_time, each.id), reverse=True) == listed
    assert {("", "", "")} == {(each.parameters_json, each.context_json, each.result_json) for each in listed}


async def test_runs_are_listed_by_what_they_are(database: Database) -> None:
    """States, flow, group, parent and name each narrow the list, and all must hold."""
    flow, other = await register(database), await register(database, name="other")
    parent = await create(database, flow, name="parent")
    lease = await held(database, parent.id)
    child = await create(database, other, parent=ParentLease(parent.id, lease.fence), name="child")
    plain = await create(database, flow, name="plain")

    async def listed(**wanted: Any) -> set[FlowRunId]:
        found = await database.read(operations.list_flow_runs, TENANT, RunFilter(**wanted), Page(10))
        return {each.id for each in found}

    assert {parent.id} == await listed(states=frozenset({State.SUBMITTED, State.RUNNING}))
    assert {parent.id, plain.id} == await listed(flow_id=flow.id)
    assert {child.id} == await listed(group_id=other.group_id)
    assert {child.id} == await listed(parent_id=parent.id)
    assert {plain.id} == await listed(name="plain", group_id=flow.group_id)
    assert set() == await listed(name="plain", group_id=other.group_id)


async def test_steps_are_listed_in_pages(database: Database) -> None:
    """From any version on, oldest first."""
    run = await create(database, await register(database))
    await at_work(database, run.id)

    page = await database.read(operations.list_transitions, TENANT, run.id, PositionPage(2, 1))

    assert [(each.version, each.state, each.agent_id) for each in page] == [
        (2, State.SUBMITTED, AGENT),
        (3, State.RUNNING, AGENT),
    ]


async def test_watched_runs_are_looked_at_together(database: Database) -> None:
    """Each run shows its own later steps, and itself once these show it final."""
    flow = await register(database)
    waiting = await create(database, flow)
    over = await at_work(database, (await create(database, flow)).id)
    await finish(database, over.lease, over.execution_id)
    ended = over.lease.flow_run_id

    async def look(versions: dict[FlowRunId, int]) -> dict[FlowRunId, tuple[list[int], bool]]:
        found = await database.read(operations.look_at_flow_runs, TENANT, versions)
        return {each: ([step.version for step in steps], run is not None) for each, (steps, run) in found.items()}

    assert {waiting.id: ([1], False), ended: ([3, 4], True)} == await look({waiting.id: 0, ended: 2})
    assert {waiting.id: ([], False), ended: ([], True)} == await look({waiting.id: 1, ended: 4})


async def test_tenants_see_nothing_of_each_other(database: Database, database_kind: Kind) -> None:
    """Another tenant's run is not found, and its key makes a run of its own."""
    flow = await register(database)
    run = await create(database, flow, idempotency_key="k")
    other = replace_tenant()

    with pytest.raises(FlowRunNotFound):
        await database.read(operations.get_flow_run, other, run.id)
    (refused,) = await database.run(operations.create_flow_runs, other, [asked(flow, idempotency_key="k")])
    assert isinstance(refused, FlowGroupNotFound)


def replace_tenant() -> Any:
    return an_id()
