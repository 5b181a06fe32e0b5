"""Flow runs and transitions, on both databases."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pendulum
import pytest

from penstock.domain.errors import FlowRunNotFound
from penstock.domain.flow import ChildPolicy, Policy, RunConfig
from penstock.domain.flow_run import Failure, FlowRun, birth, move
from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.limits import PAGE_SIZE_MAX
from penstock.domain.log import LogLevel
from penstock.domain.queries import PositionPage
from penstock.domain.state import Cause, State
from penstock.storage import flow_runs
from penstock.storage.database import Database, Transaction
from penstock.storage.flow_runs import Standing
from tests.queue.scenes import TENANT, everything, until_someone_waits
from tests.storage.gate import Gate
from tests.support.builders import a_flow_run, an_id
from tests.support.fake_clock import NOON

OTHER_TENANT = TenantId(UUID(int=7))
FAR = pendulum.datetime(9999, 12, 31, 23, 59, 59, 999_999, tz="UTC")
FULL = a_flow_run(
    State.FAILED,
    name="ünïcode 🜁 'quoted'",
    scheduled_start_time=FAR,
    parameters_json='{"n":1.50,"big":9007199254740993}',
    context_json='{"who":"Zoë"}',
    labels=("a,b", "ü"),
    run_config=RunConfig({"A": "1"}, "/srv", "image", {"cpu": "2"}),
    policy=Policy(5, 3, timedelta(microseconds=1), 0, LogLevel.ERROR, ChildPolicy.ABANDON),
    idempotency_key="k",
    parent_id=FlowRunId(an_id()),
    result_json="null",
    failure=Failure("ValueError", "nö", "Traceback\n", exit_code=0, signal=9),
    traceparent="00-aa-bb-01",
    tracestate="x=y",
    fence=2**62,
)


async def insert(database: Database, *runs: FlowRun) -> None:
    await database.run(flow_runs.insert, TENANT, runs)


async def test_a_run_comes_back_whole(database: Database) -> None:
    """Every field, at its extremes and absent."""
    plain = a_flow_run()
    await insert(database, FULL, plain)

    found = await database.read(flow_runs.by_id, TENANT, [FULL.id, plain.id, FlowRunId(an_id())])

    assert found == {FULL.id: FULL, plain.id: plain}
    assert await database.read(flow_runs.get, TENANT, FULL.id) == FULL


async def test_nothing_is_inserted_of_nothing(database: Database) -> None:
    """Empty calls are no mistakes."""
    await insert(database)
    await database.run(flow_runs.insert_transitions, TENANT, [])
    await database.run(flow_runs.save_moves, TENANT, [])
    assert await database.read(flow_runs.by_id, TENANT, []) == {}


async def test_final_runs_are_found_apart(database: Database) -> None:
    """Those that are not are left out."""
    live = a_flow_run(State.RUNNING)
    await insert(database, FULL, live)

    assert await database.read(flow_runs.final_by_id, TENANT, [FULL.id, live.id]) == {FULL.id: FULL}


async def test_a_move_is_saved(database: Database) -> None:
    """What a move may change is changed, of that run alone."""
    run, other = a_flow_run(State.RUNNING), a_flow_run(State.RUNNING)
    await insert(database, run, other)
    ended = replace(run, result_json='{"a":1}', failure=Failure(message="x"), fence=9, attempt=2, retries_left=0)
    moved, _ = move(ended, State.SUCCEEDED, at=NOON, cause=Cause.FINISHED)

    await database.run(flow_runs.save_moves, TENANT, [(run, moved)])

    assert await database.read(flow_runs.by_id, TENANT, [run.id, other.id]) == {run.id: moved, other.id: other}


async def test_a_move_from_another_version_is_our_mistake(database: Database) -> None:
    """Nothing of the transaction stays, also of the moves that were right."""
    right, wrong = a_flow_run(State.SUBMITTED), a_flow_run(State.SUBMITTED)
    await insert(database, right, wrong)
    before = await everything(database)
    moves = [(each, move(each, State.RUNNING, at=NOON, cause=Cause.STARTED)[0]) for each in (right, wrong)]
    moves[1] = (replace(wrong, version=1), moves[1][1])

    with pytest.raises(AssertionError):
        await database.run(flow_runs.save_moves, TENANT, moves)

    assert before == await everything(database)


async def test_runs_are_held_as_they_are_now(database: Database) -> None:
    """Those that exist, whole; nobody else can hold them meanwhile."""
    other = a_flow_run()
    await insert(database, FULL, other)

    assert await database.run(flow_runs.hold, TENANT, [other.id, FlowRunId(an_id()), FULL.id]) == {
        FULL.id: FULL,
        other.id: other,
    }
    assert await database.run(flow_runs.hold_one, TENANT, FULL.id) == FULL
    assert await database.run(flow_runs.hold_one, OTHER_TENANT, FULL.id) is None
    assert await database.run(flow_runs.hold, TENANT, []) == {}
    assert await database.run(flow_runs.hold, OTHER_TENANT, [FULL.id]) == {}


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
async def test_who_waits_for_a_run_finds_it_moved(database: Database) -> None:
    """A run is answered as it is once it is held, not as it was when it was asked for."""
    run = a_flow_run(State.RUNNING)
    await insert(database, run)
    moved, _ = move(run, State.SUCCEEDED, at=NOON, cause=Cause.FINISHED)
    gate = Gate()

    def moving(tx: Transaction) -> None:
        flow_runs.save_moves(tx, TENANT, [(run, moved)])
        gate.stop_here()

    one = asyncio.create_task(database.run(moving))
    await gate.reached()
    other = asyncio.create_task(database.run(flow_runs.hold, TENANT, [run.id]))
    await until_someone_waits(database)
    gate.open()
    await one

    assert {run.id: moved} == await other


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
async def test_moves_are_written_in_one_order(database: Database) -> None:
    """In that of the runs, whatever the order in which they are given: nobody waits in a circle."""
    first, second = runs = sorted([a_flow_run(State.RUNNING) for _ in range(2)], key=lambda run: run.id)
    await insert(database, *runs)
    moves = [(run, move(run, State.SUCCEEDED, at=NOON, cause=Cause.FINISHED)[0]) for run in reversed(runs)]
    gate, tries = Gate(), 0

    def holding(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        flow_runs.hold(tx, TENANT, [first.id])
        gate.stop_here()
        flow_runs.hold(tx, TENANT, [second.id])

    def moving(tx: Transaction) -> None:
        nonlocal tries
        tries += 1
        flow_runs.save_moves(tx, TENANT, moves)

    one = asyncio.create_task(database.run(holding))
    await gate.reached()
    other = asyncio.create_task(database.run(moving))
    await until_someone_waits(database)
    gate.open()
    await asyncio.gather(one, other)

    assert 2 == tries, "a transaction was repeated, as after a deadlock"


async def test_a_run_is_removed_with_its_steps(database: Database) -> None:
    """Its neighbours stay, and whoever watches it is told."""
    other = a_flow_run()
    await insert(database, other)
    await database.run(flow_runs.insert_transitions, TENANT, [birth(other)])
    before = await everything(database)
    await insert(database, FULL)
    await database.run(flow_runs.insert_transitions, TENANT, [birth(FULL)])

    def removing(tx: Transaction, tenant: TenantId) -> set[FlowRunId]:
        flow_runs.remove(tx, tenant, FULL.id)
        return tx.hint.moved

    await database.run(removing, OTHER_TENANT)
    assert before != await everything(database)
    assert await database.run(removing, TENANT) == {FULL.id}

    assert before == await everything(database)
    assert await database.read(flow_runs.existing, TENANT, [FULL.id, other.id]) == {other.id}


async def test_a_step_is_found_by_its_version(database: Database) -> None:
    """The one that led to it; None where there is none."""
    step = birth(FULL)
    await database.run(flow_runs.insert_transitions, TENANT, [step])

    assert step == await database.read(flow_runs.step_at, TENANT, FULL.id, FULL.version)
    assert await database.read(flow_runs.step_at, TENANT, FULL.id, 1) is None
    assert await database.read(flow_runs.step_at, OTHER_TENANT, FULL.id, FULL.version) is None


async def test_steps_are_found_by_their_versions(database: Database) -> None:
    """Of each run its own, in order; versions without a step, and runs without any, are left out."""
    runs = [a_flow_run() for _ in range(3)]
    steps = [replace(birth(run), version=version, state=State.SCHEDULED) for run in runs for version in (2, 1, 3)]
    await database.run(flow_runs.insert_transitions, TENANT, steps)

    versions = {runs[0].id: range(1, 4), runs[1].id: range(3, 9), runs[2].id: range(4, 9), FlowRunId(an_id()): range(9)}
    found = await database.read(flow_runs.steps_at, TENANT, versions)
    page = await database.read(flow_runs.list_transitions, TENANT, runs[0].id, PositionPage(1, 1))

    assert {runs[0].id: [steps[1], steps[0], steps[2]], runs[1].id: [steps[5]]} == found
    assert page == [steps[0]]
    assert await database.read(flow_runs.steps_at, TENANT, {}) == {}
    assert await database.read(flow_runs.steps_at, OTHER_TENANT, versions) == {}


async def test_many_steps_are_found_at_once(database: Database) -> None:
    """More than a statement could ask for."""
    runs = [a_flow_run() for _ in range(PAGE_SIZE_MAX + 1)]
    await database.run(flow_runs.insert_transitions, TENANT, [birth(run) for run in runs])

    found = await database.read(flow_runs.steps_at, TENANT, {run.id: range(1, 4) for run in runs})

    assert {run.id: [birth(run)] for run in runs} == found


async def test_a_run_is_looked_for_without_being_read(database: Database) -> None:
    """How far each has come, and a refusal of one that is not there."""
    other = a_flow_run(State.RUNNING)
    await insert(database, FULL, other)
    asked = [FULL.id, other.id, FlowRunId(an_id())]

    standings = {FULL.id: Standing(FULL.version, final=True), other.id: Standing(3, final=False)}
    assert standings == await database.read(flow_runs.standings, TENANT, asked)
    assert {} == await database.read(flow_runs.standings, OTHER_TENANT, asked)
    await database.read(flow_runs.check, TENANT, FULL.id)
    with pytest.raises(FlowRunNotFound):
        await database.read(flow_runs.check, OTHER_TENANT, FULL.id)


async def test_steps_hint_at_their_runs(database: Database) -> None:
    """Whoever watches them is told with the commit."""

    def work(tx: Transaction) -> set[FlowRunId]:
        flow_runs.insert_transitions(tx, TENANT, [birth(FULL)])
        return tx.hint.moved

    assert await database.run(work) == {FULL.id}


async def test_another_tenant_sees_nothing(database: Database) -> None:
    """Neither a run nor its steps."""
    await insert(database, FULL)
    await database.run(flow_runs.insert_transitions, TENANT, [birth(FULL)])

    with pytest.raises(FlowRunNotFound):
        await database.read(flow_runs.get, OTHER_TENANT, FULL.id)
    assert await database.read(flow_runs.list_transitions, OTHER_TENANT, FULL.id, PositionPage(9)) == []
    with pytest.raises(AssertionError):
        await database.run(flow_runs.save_moves, OTHER_TENANT, [(FULL, FULL)])
