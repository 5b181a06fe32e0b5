"""What each rpc of FlowRunService does to runs that exist, on both databases."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pendulum
import pytest
from sqlalchemy import event

from penstock.domain.errors import (
    ChildrenLive,
    ExecutionRefused,
    FlowRunLive,
    FlowRunNotFound,
    LeaseLost,
    MoveRefused,
    Refusal,
    VersionStale,
)
from penstock.domain.flow import ChildPolicy, Flow, PolicyAsked
from penstock.domain.flow_run import (
    Cancelling,
    Failure,
    Finishing,
    FlowRun,
    FlowTarget,
    ParentLease,
    Restarting,
    Starting,
    Succeeded,
    Transition,
)
from penstock.domain.ids import ExecutionId, FlowRunId, TenantId
from penstock.domain.lease import EndedBy, Lease, LeaseOutcome, Phase
from penstock.domain.limits import HELD_LEASE, PAGE_SIZE_MAX
from penstock.domain.log import ProducerKey, Writing
from penstock.domain.queries import LogFilter, Page, PositionPage, RunFilter
from penstock.domain.state import FINAL, Cause, State
from penstock.flow_run import operations
from penstock.flow_run.operations import SUPERVISOR, Sight, Started
from penstock.flow_run.service import Watches, look
from penstock.keeper.deleted_logs import remove_deleted_logs
from penstock.keeper.orphans import cancel_orphans
from penstock.log import operations as log_operations
from penstock.queue import operations as queue_operations
from penstock.runtime import follow
from penstock.storage import flow_runs, logs, schema
from penstock.storage.database import Database, Transaction
from penstock.storage.wakeups import Hint
from tests.log.scenes import a_line
from tests.queue.scenes import (
    AGENT,
    HOLDER,
    SECOND,
    STOPPED,
    TENANT,
    AtWork,
    accept,
    ask_to_stop,
    at_work,
    attempt,
    cancel,
    create,
    delete,
    entry_of,
    everything,
    execution_of,
    expire,
    finish,
    held,
    offer,
    register,
    release,
    renew,
    restart,
    run_of,
    start,
    steps_of,
    take,
    until_someone_waits,
)
from tests.storage.gate import Gate
from tests.support.builders import a_creation, a_flow_run, an_id
from tests.support.fake_clock import NOON, FakeClock

NEVER = timedelta(hours=1)
FAILED = Failure(type="ValueError", message="no such day", traceback="Traceback", exit_code=1)
on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)


async def ended(database: Database, state: State, **fields: Any) -> FlowRun:
    """A run that ended so."""
    run = await create(database, await register(database), **fields)
    work = await at_work(database, run.id)
    outcome = Succeeded("7") if state is State.SUCCEEDED else FAILED
    if state is State.CANCELLED:
        await cancel(database, run.id)
        outcome = STOPPED
    over = await finish(database, work.lease, work.execution_id, outcome)
    assert isinstance(over, FlowRun)
    assert state is over.state
    return over


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


# Cancelling


@pytest.mark.parametrize("offered", [False, True], ids=["waiting", "offered"])
async def test_a_run_that_nobody_holds_is_cancelled_at_once(
    database: Database, clock: FakeClock, offered: bool
) -> None:
    """It is final in one transaction, with the reason, its fence is kept, and it is offered to nobody any more."""
    run = await create(database, await register(database))
    if offered:
        await offer(database, run.id)
    entry = await entry_of(database, run.id)
    assert entry is not None
    clock.advance(SECOND)

    cancelled = await cancel(database, run.id, "no longer wanted")

    assert isinstance(cancelled, FlowRun)
    assert cancelled == await run_of(database, run.id)
    assert (State.CANCELLED, clock.now(), entry.fence) == (cancelled.state, cancelled.finish_time, cancelled.fence)
    step = (await steps_of(database, run.id))[-1]
    assert (State.CANCELLED, Cause.CANCEL_ASKED, "no longer wanted", entry.fence) == (
        step.state,
        step.cause,
        step.message,
        step.fence,
    )
    assert await entry_of(database, run.id) is None
    assert [] == await take(database)


async def test_an_offer_of_a_cancelled_run_has_ended(database: Database) -> None:
    """The agent that accepts it is told so, and declining it changes nothing."""
    run = await create(database, await register(database))
    lease = await offer(database, run.id)
    await cancel(database, run.id)
    before = await everything(database)

    (accepted,) = await accept(database, lease)

    assert LeaseOutcome.ENDED is accepted.outcome
    assert LeaseOutcome.ENDED is await release(database, lease)
    assert before == await everything(database)


@pytest.mark.parametrize("started", [False, True], ids=["submitted", "running"])
async def test_a_run_that_is_held_is_asked_to_stop(database: Database, started: bool) -> None:
    """It is CANCELLING under the same lease, its dispatchers are told, and its holder with its next renewal."""
    run = await create(database, await register(database))
    lease = (await at_work(database, run.id)).lease if started else await held(database, run.id)
    before = await run_of(database, run.id)

    def asking(tx: Transaction) -> tuple[Sequence[FlowRun | Refusal], Hint]:
        return operations.cancel_flow_runs(tx, TENANT, [Cancelling(run.id, "enough")]), tx.hint

    (cancelling,), hint = await database.run(asking)

    assert isinstance(cancelling, FlowRun)
    assert replace(before, state=State.CANCELLING, version=before.version + 1) == cancelling
    assert cancelling == await run_of(database, run.id)
    assert (True, {run.id}) == (hint.stop, hint.moved)
    entry = await entry_of(database, run.id)
    assert entry is not None
    assert (Phase.STOPPING, lease.fence, AGENT) == (entry.phase, entry.fence, entry.holder)
    step = (await steps_of(database, run.id))[-1]
    assert (Cause.CANCEL_ASKED, "enough", lease.fence, AGENT) == (step.cause, step.message, step.fence, step.agent_id)
    (renewed,) = await renew(database, lease)
    assert LeaseOutcome.STOPPING is renewed.outcome


async def test_a_cancelled_deployment_never_begins(database: Database) -> None:
    """Start answers CANCELLING; given back, or finished as never started, the run is CANCELLED."""
    flow = await register(database)
    leases = [await held(database, (await create(database, flow)).id) for _ in range(2)]
    for lease in leases:
        await cancel(database, lease.flow_run_id)

    begun = [await start(database, lease, ExecutionId(an_id())) for lease in leases]
    finished = await finish(database, leases[0], None, STOPPED)

    assert [State.CANCELLING] * 2 == [each.run.state for each in begun if isinstance(each, Started)]
    assert isinstance(finished, FlowRun)
    assert State.CANCELLED is finished.state
    assert LeaseOutcome.RELEASED is await release(database, leases[1])
    assert State.CANCELLED is (await run_of(database, leases[1].flow_run_id)).state


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(STOPPED, State.CANCELLED), (Succeeded("1"), State.SUCCEEDED), (FAILED, State.FAILED)],
    ids=["stopped", "succeeded", "failed"],
)
async def test_a_cancelled_execution_ends_as_it_ends(database: Database, outcome: Any, state: State) -> None:
    """What its holder reports counts; nothing is retried."""
    run = await create(database, await register(database), policy=PolicyAsked(max_retries=3))
    work = await at_work(database, run.id)
    await cancel(database, run.id)

    finished = await finish(database, work.lease, work.execution_id, outcome)

    assert isinstance(finished, FlowRun)
    assert state is finished.state
    assert finished == await cancel(database, run.id)


async def test_a_repeated_cancel_changes_nothing(database: Database) -> None:
    """A run that is CANCELLING or final is answered as it is, an unknown one is not found, each by itself."""
    flow = await register(database)
    over = await ended(database, State.SUCCEEDED)
    stopping = await create(database, flow)
    await at_work(database, stopping.id)
    waiting = await create(database, flow)
    for run in (waiting, stopping):
        await cancel(database, run.id, "first")
    nobody = FlowRunId(an_id())
    asked = [Cancelling(each, "second") for each in (stopping.id, nobody, over.id, waiting.id)]
    before = await everything(database)

    answers = await database.run(operations.cancel_flow_runs, TENANT, asked)

    assert before == await everything(database)
    assert [State.CANCELLING, None, State.SUCCEEDED, State.CANCELLED] == [
        each.state if isinstance(each, FlowRun) else None for each in answers
    ]
    refused = answers[1]
    assert isinstance(refused, FlowRunNotFound)
    assert str(nobody) == refused.flow_run_id


async def test_a_run_that_is_cancelling_has_no_more_children(database: Database) -> None:
    """A creation under its lease is refused as lost."""
    flow = await register(database)
    parent = await create(database, flow)
    lease = (await at_work(database, parent.id)).lease
    await cancel(database, parent.id)

    (refused,) = await attempt(
        database, a_creation(target=FlowTarget(flow.id), parent=ParentLease(parent.id, lease.fence))
    )

    assert isinstance(refused, LeaseLost)


# Restarting


@pytest.mark.parametrize("state", sorted(FINAL))
async def test_a_finished_run_is_attempted_again(database: Database, clock: FakeClock, state: State) -> None:
    """With the same id and history, all its retries before it again, and a fence that goes on."""
    over = await ended(database, state)
    clock.advance(SECOND)

    again = await restart(database, over, reason="once more")

    assert again == await run_of(database, over.id)
    assert (State.SCHEDULED, over.version + 1, 2, clock.now()) == (
        again.state,
        again.version,
        again.attempt,
        again.scheduled_start_time,
    )
    assert (None, None, None) == (again.start_time, again.finish_time, again.result_json)
    steps = await steps_of(database, over.id)
    assert list(range(1, again.version + 1)) == [each.version for each in steps]
    assert (State.SCHEDULED, Cause.RESTARTED, "once more", 2, clock.now()) == (
        steps[-1].state,
        steps[-1].cause,
        steps[-1].message,
        steps[-1].attempt,
        steps[-1].due_time,
    )
    entry = await entry_of(database, over.id)
    assert entry is not None
    assert (Phase.WAITING, over.fence + 1, clock.now(), 0, 0) == (
        entry.phase,
        entry.fence,
        entry.due_time,
        entry.releases,
        entry.losses,
    )
    work = await at_work(database, over.id)
    done = await finish(database, work.lease, work.execution_id, Succeeded("8"))
    assert isinstance(done, FlowRun)
    assert (State.SUCCEEDED, "8", None, 2) == (done.state, done.result_json, done.failure, done.attempt)


async def test_all_retries_are_before_it_again(database: Database) -> None:
    """A run that used its retries up has as many again."""
    over = await ended(database, State.SUCCEEDED, policy=PolicyAsked(max_retries=2))

    again = await restart(database, replace(over, retries_left=0))

    assert 2 == again.retries_left


async def test_fences_rise_across_restarts(database: Database) -> None:
    """However a run ended, no lease that was ever granted on it is valid again."""
    flow = await register(database)
    run_id = (await create(database, flow)).id
    old: list[AtWork] = []

    async def by_cancelling_while_it_waits() -> None:
        await cancel(database, run_id)

    async def by_cancelling_an_offer() -> None:
        lease = await offer(database, run_id)
        old.append(AtWork(lease, ExecutionId(an_id())))
        await cancel(database, run_id)

    async def by_finishing() -> None:
        old.append(await at_work(database, run_id))
        await finish(database, old[-1].lease, old[-1].execution_id)

    async def by_stopping() -> None:
        old.append(await at_work(database, run_id))
        await cancel(database, run_id)
        await finish(database, old[-1].lease, old[-1].execution_id, STOPPED)

    for end in (by_cancelling_while_it_waits, by_cancelling_an_offer, by_finishing, by_stopping) * 2:
        await end()
        await restart(database, await run_of(database, run_id))
    fences = [each.lease.fence for each in old]
    assert sorted(set(fences)) == fences
    new = await at_work(database, run_id)
    assert new.lease.fence > fences[-1]

    before = await everything(database)
    for each in old:
        assert isinstance(await start(database, each.lease, each.execution_id), LeaseLost)
        (accepted,), (renewed,) = await accept(database, each.lease), await renew(database, each.lease)
        assert [LeaseOutcome.LOST] * 2 == [accepted.outcome, renewed.outcome]
        assert LeaseOutcome.LOST is await release(database, each.lease)
        assert not isinstance(await finish(database, each.lease, ExecutionId(an_id())), FlowRun)
    assert before == await everything(database)


async def test_a_repeated_restart_returns_the_run_as_it_is(database: Database) -> None:
    """Waiting, at work, or ended again: what names the version that was restarted starts nothing twice."""
    over = await ended(database, State.FAILED)
    again = await restart(database, over)

    assert again == await restart(database, over)
    work = await at_work(database, over.id)
    before = await everything(database)
    assert State.RUNNING is (await restart(database, over)).state
    assert before == await everything(database)
    finished = await finish(database, work.lease, work.execution_id)
    before = await everything(database)
    assert finished == await restart(database, over)
    assert before == await everything(database)


async def test_a_restart_names_the_final_version(database: Database) -> None:
    """Another one is stale, of a live run it is refused as live, and nothing is written."""
    over = await ended(database, State.FAILED, labels=("gpu",))
    live = await create(database, await register(database))
    before = await everything(database)

    for version in (1, over.version - 1, over.version + 1, 2**63 - 1):
        with pytest.raises(VersionStale) as stale:
            await restart(database, over, version=version)
        assert (version, over.version) == (stale.value.version, stale.value.present)
    for version in (1, 2):
        with pytest.raises(FlowRunLive) as refused:
            await restart(database, live, version=version)
        assert "SCHEDULED" == refused.value.present
    with pytest.raises(FlowRunNotFound):
        await restart(database, replace(over, id=FlowRunId(an_id())))
    assert before == await everything(database)


async def test_a_restart_is_due_when_it_is_asked_for(database: Database, clock: FakeClock) -> None:
    """At a time, after a delay by the database's clock, or now where that is past."""
    hour = timedelta(hours=1)
    when = {
        clock.now() + hour: {"scheduled_start_time": clock.now() + hour},
        clock.now() + 2 * hour: {"start_delay": 2 * hour},
        clock.now(): {"scheduled_start_time": pendulum.datetime(1, 1, 1)},
        pendulum.datetime(9999, 12, 31): {"scheduled_start_time": pendulum.datetime(9999, 12, 31)},
    }

    for due_time, fields in when.items():
        again = await restart(database, await ended(database, State.FAILED), **fields)
        entry = await entry_of(database, again.id)
        assert entry is not None
        assert (due_time, due_time) == (again.scheduled_start_time, entry.due_time)
        await cancel(database, again.id)


@pytest.mark.parametrize(
    ("of_parent", "kept"),
    [("running", True), ("succeeded", True), ("cancelling", False), ("cancelled", False), ("deleted", False)],
)
async def test_a_restarted_child_follows_its_parent_while_that_may_go_on(
    database: Database, of_parent: str, kept: bool
) -> None:
    """A parent that was cancelled, or is gone, does not take it along at once; the run still names it."""
    flow = await register(database)
    parent = await create(database, flow)
    work = await at_work(database, parent.id)
    child = await create(database, flow, parent=ParentLease(parent.id, work.lease.fence))
    over = await cancel(database, child.id)
    assert isinstance(over, FlowRun)
    if of_parent in ("cancelling", "cancelled"):
        await cancel(database, parent.id)
    if of_parent in ("succeeded", "cancelled", "deleted"):
        await finish(database, work.lease, work.execution_id, STOPPED if of_parent == "cancelled" else None)
    if of_parent == "deleted":
        await delete(database, parent.id)

    again = await restart(database, over)

    entry = await entry_of(database, child.id)
    assert entry is not None
    assert parent.id == again.parent_id
    assert (parent.id if kept else None) == entry.parent_id


async def test_a_restarted_parent_takes_its_children_along_again(database: Database) -> None:
    """Those that were restarted after it was cancelled, and should go with it; the others go on, or stay ended."""
    flow = await register(database)
    parent, work, (child, loose, over) = await a_cancelled_family(database, flow)
    live = [await restart(database, each) for each in (child, loose)]
    await finish(database, work.lease, work.execution_id, STOPPED)
    again = await restart(database, await run_of(database, parent.id))
    assert not any([(await run_of(database, each.id)).final for each in live])

    await cancel(database, again.id)

    assert 1 == await cancel_orphans(database, TENANT)
    assert State.CANCELLED is (await run_of(database, child.id)).state
    assert not (await run_of(database, loose.id)).final
    assert over == await run_of(database, over.id)


async def test_a_repeated_restart_leaves_children_alone_that_were_restarted_since(database: Database) -> None:
    """A child that was restarted after its parent was cancelled again is not cancelled for the parent's first restart,
    come late."""
    flow = await register(database)
    parent, work, (child, _, _) = await a_cancelled_family(database, flow)
    await finish(database, work.lease, work.execution_id, STOPPED)
    first = await run_of(database, parent.id)
    again = await restart(database, first)
    await cancel(database, again.id)
    await restart(database, child)

    assert State.CANCELLED is (await restart(database, first)).state

    assert 0 == await cancel_orphans(database, TENANT)
    assert State.SCHEDULED is (await run_of(database, child.id)).state


async def a_cancelled_family(database: Database, flow: Flow) -> tuple[FlowRun, AtWork, list[FlowRun]]:
    """A run that is CANCELLING, and three children that are CANCELLED, the second of which it leaves alone."""
    parent = await create(database, flow)
    work = await at_work(database, parent.id)
    under = ParentLease(parent.id, work.lease.fence)
    policies = (PolicyAsked(), PolicyAsked(child_policy=ChildPolicy.ABANDON), PolicyAsked())
    born = [await create(database, flow, parent=under, policy=policy) for policy in policies]
    await cancel(database, born[1].id)
    await cancel(database, parent.id)
    assert 2 == await cancel_orphans(database, TENANT)
    return parent, work, [await run_of(database, each.id) for each in born]


async def test_a_run_of_an_archived_flow_is_restarted(database: Database) -> None:
    """It runs the version that it ran, also when its lane was cleared away meanwhile."""
    over = await ended(database, State.FAILED, labels=("gpu",))
    newer = await register(database, description="newer")
    assert newer.id != over.flow_id

    def clear(tx: Transaction) -> None:
        for table in (schema.lanes, schema.lane_labels):
            tx.conn.execute(table.delete())

    await database.run(clear)

    again = await restart(database, over)

    assert over.flow_id == again.flow_id
    assert [again.id] == [grant.run.id for grant in await take(database)]


async def test_children_follow_before_their_parent_goes_on(database: Database) -> None:
    """A cancelled run is neither restarted nor deleted while children are still to be cancelled with it."""
    flow = await register(database)
    parent = await create(database, flow, policy=PolicyAsked(max_retries=1))
    work = await at_work(database, parent.id)
    under = ParentLease(parent.id, work.lease.fence)
    child = await create(database, flow, parent=under)
    loose = await create(database, flow, parent=under, policy=PolicyAsked(child_policy=ChildPolicy.ABANDON))
    await finish(database, work.lease, work.execution_id, FAILED)
    over = await cancel(database, parent.id)
    assert isinstance(over, FlowRun)
    assert State.CANCELLED is over.state
    before = await everything(database)

    for attempted in (restart(database, over), delete(database, parent.id)):
        with pytest.raises(ChildrenLive, match=f"^Children of flow run {parent.id} are still to be ") as refused:
            await attempted
        assert refused.value.retry_after() is not None
    assert before == await everything(database)

    await cancel_orphans(database, TENANT)
    assert State.CANCELLED is (await run_of(database, child.id)).state
    assert not (await run_of(database, loose.id)).final
    over = await cancel(database, (await restart(database, over)).id)
    assert isinstance(over, FlowRun)
    assert await delete(database, parent.id)


# Deleting


async def test_a_deleted_run_leaves_only_its_key(database: Database, clock: FakeClock) -> None:
    """Its steps, executions and log go with it; its key says when, its request id is free, its neighbours stay."""
    flow = await register(database)
    neighbour = await create(database, flow, idempotency_key="other", request_id="other")
    await write_a_line(database, await at_work(database, neighbour.id))
    kept = await everything(database)
    run = await create(database, flow, idempotency_key="k", request_id="r")
    work = await at_work(database, run.id)
    await write_a_line(database, work)
    await finish(database, work.lease, work.execution_id)
    clock.advance(SECOND)

    def deleting(tx: Transaction) -> tuple[bool, Hint]:
        return operations.delete_flow_run(tx, TENANT, run.id), tx.hint

    deleted, hint = await database.run(deleting)

    assert deleted
    assert ({run.id}, {run.id}) == (hint.moved, hint.written)
    assert 1 == await remove_deleted_logs(database, TENANT)
    now = await everything(database)
    (key,) = set(now["idempotency_keys"]) - set(kept["idempotency_keys"])
    assert (run.id, clock.now()) == (key[4], key[-1])
    assert {**kept, "idempotency_keys": now["idempotency_keys"]} == now
    clock.advance(SECOND)
    assert await delete(database, run.id) is False
    assert now == await everything(database)


async def test_a_live_run_is_not_deleted(database: Database) -> None:
    """Whatever it is about; once it is final it may be."""
    flow = await register(database)
    waiting, offered, submitted, running, stopping = runs = [await create(database, flow) for _ in range(5)]
    grants = {grant.run.id: grant.held.lease for grant in await take(database)}
    await database.run(queue_operations.give_back, TENANT, [grants[waiting.id]], holder=HOLDER)
    await accept(database, *(grants[each.id] for each in (submitted, running, stopping)))
    await start(database, grants[running.id], ExecutionId(an_id()))
    await cancel(database, stopping.id)
    before = await everything(database)

    present = []
    for run in runs:
        with pytest.raises(FlowRunLive) as refused:
            await delete(database, run.id)
        assert str(run.id) == refused.value.flow_run_id
        present.append(refused.value.present)

    assert ["SCHEDULED", "SCHEDULED", "SUBMITTED", "RUNNING", "CANCELLING"] == present
    assert before == await everything(database)
    await cancel(database, offered.id)
    assert await delete(database, offered.id)


async def test_nothing_is_known_of_a_deleted_run(database: Database) -> None:
    """Whoever still works on it, writes or reads its log, cancels, restarts or reads it is told that it is not there,
    though lines of it are yet to be removed."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    await write_a_line(database, work)
    over = await finish(database, work.lease, work.execution_id)
    assert isinstance(over, FlowRun)
    await delete(database, run.id)
    before = await everything(database)

    writing = Writing(ProducerKey(run.id, work.lease.fence, SUPERVISOR), (), closed=True)
    answers = [
        await start(database, work.lease, work.execution_id),
        await finish(database, work.lease, work.execution_id),
        await cancel(database, run.id),
        *await database.run(log_operations.write_logs, TENANT, [writing]),
        (await database.read(operations.look_at_flow_runs, TENANT, {run.id: 4}))[run.id],
        (await database.read(log_operations.tail_pages, TENANT, {run.id: 0}))[run.id],
    ]
    (accepted,), (renewed,) = await accept(database, work.lease), await renew(database, work.lease)

    assert 1 == len(before["log_lines"])
    assert [FlowRunNotFound] * 6 == [type(each) for each in answers]
    assert [LeaseOutcome.LOST] * 2 == [accepted.outcome, renewed.outcome]
    log = database.read(log_operations.list_logs, TENANT, run.id, LogFilter(), PositionPage(1))
    for read in (restart(database, over), run_of(database, run.id), list_steps(database, run.id), log):
        with pytest.raises(FlowRunNotFound):
            await read
    assert before == await everything(database)


async def test_a_deletion_does_not_wait_for_a_long_log(database: Database) -> None:
    """Of however many lines, the deletion touches none; the keeper removes them, a few in each transaction."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    await write_a_line(database, work)
    await finish(database, work.lease, work.execution_id)

    with statements_on(database) as said:
        assert await delete(database, run.id)

    assert [] == [each for each in said if "log_lines" in each]
    assert 1 == await remove_deleted_logs(database, TENANT)
    assert not await database.read(logs.deleted_exist, TENANT)


@contextmanager
def statements_on(database: Database) -> Iterator[list[str]]:
    """Every statement that the database is given meanwhile."""
    said: list[str] = []

    def hear(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    event.listen(database.engine, "before_cursor_execute", hear)
    try:
        yield said
    finally:
        event.remove(database.engine, "before_cursor_execute", hear)


async def write_a_line(database: Database, work: AtWork) -> None:
    """Write a line of that execution."""
    writing = Writing(ProducerKey(work.lease.flow_run_id, work.lease.fence, SUPERVISOR), (a_line(1),))
    assert [1] == await database.run(log_operations.write_logs, TENANT, [writing])


async def list_steps(database: Database, flow_run_id: FlowRunId) -> list[Transition]:
    return await database.read(operations.list_transitions, TENANT, flow_run_id, PositionPage(1))


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


async def test_whether_a_run_exists_is_seen_without_reading_it(database: Database) -> None:
    """Its parameters and results may be large; its history, its watches and refusals to start it ask for none of it."""
    run = await create(database, await register(database))
    stale = Lease(run.id, 99)

    with statements_on(database) as said:
        assert 1 == len(await list_steps(database, run.id))
        await database.read(operations.check_flow_run, TENANT, run.id)
        assert isinstance(await start(database, stale, ExecutionId(an_id())), LeaseLost)
        await database.read(operations.look_at_flow_runs, TENANT, {run.id: 0})

    assert [] == [each for each in said if "parameters_json" in each and "finish_time IS NOT NULL" not in each]
    with pytest.raises(FlowRunNotFound):
        await database.read(operations.check_flow_run, TENANT, FlowRunId(an_id()))


async def test_another_tenants_run_does_not_exist(database: Database) -> None:
    """It is neither read, cancelled, restarted nor deleted."""
    run = await create(database, await register(database), idempotency_key="k")
    await cancel(database, run.id)
    other = TenantId(an_id())
    before = await everything(database)

    with pytest.raises(FlowRunNotFound):
        await database.read(operations.get_flow_run, other, run.id)
    assert await database.run(operations.delete_flow_run, other, run.id) is False
    (refused,) = await database.run(operations.cancel_flow_runs, other, [Cancelling(run.id)])
    assert isinstance(refused, FlowRunNotFound)
    with pytest.raises(FlowRunNotFound):
        await database.run(operations.restart_flow_run, other, Restarting(run.id, 2))
    assert before == await everything(database)


async def test_watched_runs_are_looked_at_together(database: Database) -> None:
    """Each run shows its own later steps, and itself once these show it final."""
    flow = await register(database)
    waiting = await create(database, flow)
    over = await at_work(database, (await create(database, flow)).id)
    await finish(database, over.lease, over.execution_id)
    ended = over.lease.flow_run_id

    async def look(versions: dict[FlowRunId, int]) -> dict[FlowRunId, tuple[list[int], bool]]:
        found = await database.read(operations.look_at_flow_runs, TENANT, versions)
        shown = {each: sight for each, sight in found.items() if isinstance(sight, Sight)}
        return {each: ([step.version for step in sight.steps], bool(sight.ended)) for each, sight in shown.items()}

    assert {waiting.id: ([1], False), ended: ([3, 4], True)} == await look({waiting.id: 0, ended: 2})
    assert {waiting.id: ([], False), ended: ([], True)} == await look({waiting.id: 1, ended: 4})


def a_history(run: FlowRun) -> list[Transition]:
    """A step for every version of that run."""
    moves = [Transition(run.id, version, State.SCHEDULED, Cause.LOST, "", NOON, 1) for version in range(1, run.version)]
    return [*moves, Transition(run.id, run.version, run.state, Cause.LOST, "", NOON, 1)]


async def test_a_long_history_is_watched_in_pages(database: Database) -> None:
    """No look reads more than a page for all watched runs together, and yet every step of each is shown, in order."""
    runs = [a_flow_run(State.FAILED, version=version) for version in (2_500, 40, 3)]

    def insert(tx: Transaction) -> None:
        flow_runs.insert(tx, TENANT, runs)
        flow_runs.insert_transitions(tx, TENANT, [step for run in runs for step in a_history(run)])

    await database.run(insert)
    read: list[int] = []

    async def counting(versions: Mapping[FlowRunId, int]) -> Mapping[FlowRunId, follow.Page[Transition, FlowRun]]:
        pages = await look(database, TENANT, versions)
        read.append(sum(len(page.items) for page in pages.values()))
        return pages

    watches: Watches = follow.Follower(counting, sweep=NEVER, heartbeat=NEVER)

    async def watch(run: FlowRun) -> tuple[list[int], FlowRun | None]:
        shown: list[int] = []
        async with aclosing(watches.follow(run.id, 0)) as pages:
            async for page in pages:
                shown += [step.version for _, step in page.items]
                if page.ended:
                    return shown, page.ended
        return shown, None

    serving = asyncio.create_task(watches.serve())
    async with asyncio.timeout(60):
        seen = await asyncio.gather(*map(watch, runs))
    serving.cancel()

    assert [(list(range(1, run.version + 1)), run) for run in runs] == seen
    assert max(read) <= PAGE_SIZE_MAX


@pytest.mark.parametrize(("most", "shown"), [(8, [[1, 2, 3, 4], [4, 5], []]), (3, [[1], [4], []]), (1, [[1], [4], []])])
async def test_looks_are_shared_out(
    database: Database, monkeypatch: pytest.MonkeyPatch, most: int, shown: list[list[int]]
) -> None:
    """Of the steps that one look may read each run that moved has as many, the oldest, and never none."""
    monkeypatch.setattr(operations, "PAGE_SIZE_MAX", most)
    runs = [a_flow_run(State.SCHEDULED, version=5) for _ in range(3)]

    def insert(tx: Transaction) -> None:
        flow_runs.insert(tx, TENANT, runs)
        flow_runs.insert_transitions(tx, TENANT, [step for run in runs for step in a_history(run)])

    await database.run(insert)
    seen = dict(zip([run.id for run in runs], (0, 3, 5), strict=True))
    found = await database.read(operations.look_at_flow_runs, TENANT, seen)

    assert shown == [[step.version for step in found[run.id].steps] for run in runs]


async def test_only_what_was_not_seen_is_read(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who watches a run from its beginning lets nothing be read again that others have seen of theirs."""
    fresh, old, further = a_flow_run(), a_flow_run(version=400), a_flow_run(version=401)

    def insert(tx: Transaction) -> None:
        flow_runs.insert(tx, TENANT, [fresh, old, further])
        flow_runs.insert_transitions(tx, TENANT, [step for run in (fresh, old, further) for step in a_history(run)])

    await database.run(insert)
    read: list[int] = []
    from_row = flow_runs._step_from_row

    def noting(row: Any) -> Transition:
        read.append(row.version)
        return from_row(row)

    monkeypatch.setattr(flow_runs, "_step_from_row", noting)
    versions = {fresh.id: 0, old.id: 400, further.id: 400}
    found = await database.read(operations.look_at_flow_runs, TENANT, versions)

    assert [[1], [], [401]] == [[step.version for step in found[each].steps] for each in versions]
    assert [1, 401] == sorted(read)
