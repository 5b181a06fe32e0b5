"""Two transactions about one run at once, in both orders: exactly one decides, and both callers see which.

The first has done its work and not yet committed when the second begins. On PostgreSQL the second then waits for a row
that the first has locked; on SQLite it waits for the file.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, TypeVar

import pytest

from penstock.domain.errors import FlowRunLive, FlowRunNotFound, Refusal
from penstock.domain.flow_run import (
    Cancelling,
    Failure,
    Finishing,
    FlowRun,
    ParentLease,
    Restarting,
    Starting,
    Succeeded,
)
from penstock.domain.ids import ExecutionId, FlowRunId
from penstock.domain.lease import Lease, LeaseOutcome, LeaseResult
from penstock.domain.limits import HELD_LEASE, OFFER_LEASE
from penstock.domain.log import ProducerKey, Writing
from penstock.domain.state import Cause, State
from penstock.flow_run import operations
from penstock.flow_run.operations import SUPERVISOR, Started
from penstock.keeper.deleted_logs import remove_deleted_logs
from penstock.log import operations as log_operations
from penstock.queue import operations as queue_operations
from penstock.queue.operations import Accepting
from penstock.storage import queue
from penstock.storage.database import Database, Overtaken, Transaction
from tests.log.scenes import a_line
from tests.queue.scenes import (
    AGENT,
    HOLDER,
    SECOND,
    STOPPED,
    TENANT,
    at_work,
    cancel,
    create,
    entry_of,
    everything,
    held,
    offer,
    register,
    restart,
    run_of,
    steps_of,
    until_someone_waits,
)
from tests.storage.gate import Gate
from tests.support.builders import an_id
from tests.support.fake_clock import FakeClock

T = TypeVar("T")
Work = Callable[[Transaction], Any]

on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
both_orders: Final = pytest.mark.parametrize("turned", [False, True], ids=["in order", "turned round"])


async def race(database: Database, *works: Work, turned: bool = False) -> list[Any]:
    """What each of two transactions answers, or is refused with, of which the first commits once the second waits.

    The answers come in the order of the works, whichever began. None of them is repeated.
    """
    gate, calls = Gate(), 0
    first, second = reversed(works) if turned else works

    def holding(tx: Transaction) -> Any:
        nonlocal calls
        calls += 1
        try:
            return first(tx)
        finally:
            gate.stop_here()

    def coming(tx: Transaction) -> Any:
        nonlocal calls
        calls += 1
        return second(tx)

    one = asyncio.create_task(database.run(holding))
    await gate.reached()
    other = asyncio.create_task(database.run(coming))
    await until_someone_waits(database)
    gate.open()
    answers = await asyncio.gather(one, other, return_exceptions=True)
    assert 2 == calls, "a transaction was repeated, as after a deadlock"
    return answers[::-1] if turned else answers


def cancelling(flow_run_id: FlowRunId) -> Work:
    return lambda tx: operations.cancel_flow_runs(tx, TENANT, [Cancelling(flow_run_id)])[0]


def restarting(run: FlowRun) -> Work:
    return lambda tx: operations.restart_flow_run(tx, TENANT, Restarting(run.id, run.version))


def deleting(flow_run_id: FlowRunId) -> Work:
    return lambda tx: operations.delete_flow_run(tx, TENANT, flow_run_id)


def starting(lease: Lease, execution_id: ExecutionId) -> Work:
    asked = [Starting(lease.flow_run_id, lease.fence, execution_id)]
    return lambda tx: operations.start_flow_runs(tx, TENANT, asked, ttl=HELD_LEASE)[0]


def finishing(lease: Lease, execution_id: ExecutionId | None, outcome: Any = Succeeded("7")) -> Work:  # noqa: B008
    asked = [Finishing(lease.flow_run_id, lease.fence, execution_id, outcome)]
    return lambda tx: operations.finish_flow_runs(tx, TENANT, asked)[0]


def accepting(lease: Lease) -> Work:
    asked = [Accepting(lease, AGENT)]
    return lambda tx: queue_operations.accept_flow_runs(tx, TENANT, asked, ttl=HELD_LEASE)[0]


def writing(lease: Lease, sequence: int = 1) -> Work:
    asked = [Writing(ProducerKey(lease.flow_run_id, lease.fence, SUPERVISOR), (a_line(sequence),))]
    return lambda tx: log_operations.write_logs(tx, TENANT, asked)[0]


@both_orders
async def test_of_a_cancel_and_a_finish_one_decides(database: Database, turned: bool) -> None:
    """The one that comes first; a finish after the cancel ends the run as it ended, and both see it."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)

    cancelled, finished = await race(
        database, cancelling(run.id), finishing(work.lease, work.execution_id), turned=turned
    )

    now = await run_of(database, run.id)
    assert now == finished
    assert (State.SUCCEEDED, "7") == (now.state, now.result_json)
    if turned:
        assert finished == cancelled
    else:
        assert State.CANCELLING is cancelled.state
    causes = [each.cause for each in await steps_of(database, run.id)]
    assert (Cause.CANCEL_ASKED in causes) is not turned
    assert await entry_of(database, run.id) is None


@both_orders
async def test_of_a_cancel_and_an_accept_one_decides(database: Database, turned: bool) -> None:
    """An offer of a run that was cancelled has ended; a run that was accepted is asked to stop."""
    run = await create(database, await register(database))
    lease = await offer(database, run.id)

    cancelled, accepted = await race(database, cancelling(run.id), accepting(lease), turned=turned)

    assert isinstance(accepted, LeaseResult)
    assert (State.CANCELLING if turned else State.CANCELLED) is cancelled.state
    assert (LeaseOutcome.HELD if turned else LeaseOutcome.ENDED) is accepted.outcome
    assert cancelled == await run_of(database, run.id)


@both_orders
async def test_of_a_cancel_and_a_start_one_decides(database: Database, turned: bool) -> None:
    """A start after the cancel is told not to begin, one before it runs and is asked to stop."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)

    cancelled, begun = await race(database, cancelling(run.id), starting(lease, ExecutionId(an_id())), turned=turned)

    assert isinstance(begun, Started)
    assert (State.RUNNING if turned else State.CANCELLING) is begun.run.state
    assert cancelled == await run_of(database, run.id)
    assert State.CANCELLING is cancelled.state


async def test_of_two_cancels_one_decides(database: Database) -> None:
    """Both are answered alike, and one step is written."""
    run = await create(database, await register(database))

    one, other = await race(database, cancelling(run.id), cancelling(run.id))

    assert one == other
    assert [1, 2] == [each.version for each in await steps_of(database, run.id)]


async def test_of_two_restarts_one_starts(database: Database) -> None:
    """Both are answered with the one attempt that began."""
    over = await cancelled_run(database)

    one, other = await race(database, restarting(over), restarting(over))

    assert isinstance(one, FlowRun)
    assert one == other == await run_of(database, over.id)
    assert 2 == one.attempt


@both_orders
async def test_of_a_delete_and_a_restart_one_decides(database: Database, turned: bool) -> None:
    """A run that was deleted is not there to be restarted, one that was restarted is live."""
    over = await cancelled_run(database)

    deleted, restarted = await race(database, deleting(over.id), restarting(over), turned=turned)

    if turned:
        assert isinstance(deleted, FlowRunLive)
        assert restarted == await run_of(database, over.id)
    else:
        assert deleted is True
        assert isinstance(restarted, FlowRunNotFound)
        assert () == tuple((await everything(database))["queue_entries"])


async def test_of_two_deletes_one_deletes(database: Database) -> None:
    """The other one finds nothing."""
    over = await cancelled_run(database)

    assert [True, False] == await race(database, deleting(over.id), deleting(over.id))


@both_orders
async def test_a_delete_leaves_no_line_behind(database: Database, turned: bool) -> None:
    """Lines that were written before go with the run; later ones find no run."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    await database.run(finishing(work.lease, work.execution_id))

    deleted, written = await race(database, deleting(run.id), writing(work.lease), turned=turned)

    assert deleted is True
    assert written == 1 if turned else isinstance(written, FlowRunNotFound)
    assert int(turned) == await remove_deleted_logs(database, TENANT)
    rows = await everything(database)
    left = ("log_lines", "log_producers", "log_heads", "deleted_logs", "executions")
    assert [0] * 5 == [len(rows[each]) for each in left]


@both_orders
async def test_of_a_delete_and_a_finish_one_comes_first(database: Database, turned: bool) -> None:
    """A run is live until its end is committed; then it may be deleted."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)

    deleted, finished = await race(database, deleting(run.id), finishing(work.lease, work.execution_id), turned=turned)

    assert isinstance(finished, FlowRun)
    assert deleted is True if turned else isinstance(deleted, FlowRunLive)


@on_postgres
async def test_a_cancel_that_a_restart_overtakes_begins_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found no entry of the finished run, and then a live run: it looks for the entry once more, and cancels it."""
    over = await cancelled_run(database)
    gate, looks = Gate(), 0
    hold_runs = queue.hold_runs

    def held_up(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        entries = hold_runs(*arguments)
        if looks == 1:
            gate.stop_here()
        return entries

    monkeypatch.setattr(queue, "hold_runs", held_up)
    asking = asyncio.create_task(cancel(database, over.id))
    await gate.reached()
    again = await restart(database, over)
    gate.open()
    cancelled = await asking

    assert 2 == looks
    assert isinstance(cancelled, FlowRun)
    assert (State.CANCELLED, again.version + 1) == (cancelled.state, cancelled.version)
    assert await entry_of(database, over.id) is None


async def test_a_child_that_waits_for_its_parents_restart_follows_it(database: Database) -> None:
    """It finds its parent live again, and goes with it."""
    parent, child = await cancelled_family(database)

    again, restarted = await race(database, restarting(parent), restarting(child))

    assert [2, 2] == [again.attempt, restarted.attempt]
    entry = await entry_of(database, child.id)
    assert entry is not None
    assert parent.id == entry.parent_id


@on_postgres
async def test_a_parent_that_its_childs_restart_overtakes_begins_again(database: Database) -> None:
    """The child found its parent cancelled, and was not there when the parent looked for children: it looks again."""
    parent, child = await cancelled_family(database)
    gate, tries = Gate(), 0

    def holding(tx: Transaction) -> FlowRun:
        restarted: FlowRun = restarting(child)(tx)
        gate.stop_here()
        return restarted

    def coming(tx: Transaction) -> FlowRun:
        nonlocal tries
        tries += 1
        again: FlowRun = restarting(parent)(tx)
        return again

    one = asyncio.create_task(database.run(holding))
    await gate.reached()
    other = asyncio.create_task(database.run(coming))
    await until_someone_waits(database)
    gate.open()
    restarted, again = await one, await other

    assert (2, 2, 2) == (restarted.attempt, again.attempt, tries)
    entry = await entry_of(database, child.id)
    assert entry is not None
    assert parent.id == entry.parent_id


async def cancelled_family(database: Database) -> tuple[FlowRun, FlowRun]:
    """A run and its child, both CANCELLED."""
    flow = await register(database)
    parent = await create(database, flow)
    work = await at_work(database, parent.id)
    child = await create(database, flow, parent=ParentLease(parent.id, work.lease.fence))
    await cancel(database, child.id)
    await cancel(database, parent.id)
    await database.run(finishing(work.lease, work.execution_id, STOPPED))
    return await run_of(database, parent.id), await run_of(database, child.id)


async def test_a_storm_of_moves_leaves_every_run_whole(database: Database, clock: FakeClock) -> None:
    """Everybody moves the same few runs at once, and nobody waits in a circle: no fence is granted twice, entries stand
    for live runs alone, and nothing is left of deleted ones."""
    flow = await register(database)
    runs = [(await create(database, flow)).id for _ in range(4)]
    storm = Storm(database, runs)

    for number in range(60):
        await asyncio.gather(*(storm.move_something(deletes=number > 40) for _ in range(6)))
        clock.advance(SECOND)

    assert {"cancel", "restart", "delete", "take", "start", "finish", "write"} == storm.done
    assert len(set(storm.granted)) == len(storm.granted)
    await remove_deleted_logs(database, TENANT)
    rows = await everything(database)
    kept = {each[1] for each in rows["flow_runs"]}
    assert kept < set(runs)
    for table in ("transitions", "executions", "log_heads", "log_producers", "log_lines", "deleted_logs"):
        assert kept >= {each[1] for each in rows[table]}
    live = {each for each in kept if not (await run_of(database, each)).final}
    assert live == {each[1] for each in rows["queue_entries"]}


class Storm:
    """Moves runs at random. Notes what went through, and every lease that was granted."""

    def __init__(self, database: Database, runs: Sequence[FlowRunId]) -> None:
        self.granted: list[Lease] = []
        self.done: set[str] = set()
        self._database = database
        self._runs = runs
        self._executions: dict[Lease, ExecutionId] = {}
        self._random = Random(7)

    async def move_something(self, *, deletes: bool) -> None:
        """One move, which is refused as often as not."""
        name, work = self._choice(await self._a_run(), deletes)
        calls = 0

        def counting(tx: Transaction) -> Any:
            nonlocal calls
            calls += 1
            try:
                return work(tx)
            except Overtaken:
                calls -= 1
                raise

        try:
            answer = await self._database.run(counting)
        except Refusal as refusal:
            answer = refusal
        assert 1 == calls, f"{name} was repeated, as after a deadlock"
        if answer and not isinstance(answer, Refusal):
            self.done.add(name)
        if name == "take":
            self.granted += answer

    async def _a_run(self) -> FlowRun | FlowRunId:
        flow_run_id = self._random.choice(self._runs)
        try:
            return await run_of(self._database, flow_run_id)
        except FlowRunNotFound:
            return flow_run_id

    def _choice(self, known: FlowRun | FlowRunId, deletes: bool) -> tuple[str, Work]:
        moves: dict[str, Work] = {"take": take_and_accept}
        flow_run_id = known.id if isinstance(known, FlowRun) else known
        moves["cancel"] = cancelling(flow_run_id)
        if isinstance(known, FlowRun):
            moves["restart"] = restarting(known)
        if deletes:
            moves["delete"] = deleting(flow_run_id)
        if self.granted:
            # Mostly of a lease that may still be held.
            lease = self._random.choice(self.granted[-6:])
            execution_id = self._executions.setdefault(lease, ExecutionId(an_id()))
            moves["start"] = starting(lease, execution_id)
            moves["finish"] = finishing(lease, execution_id, Failure(message="no"))
            moves["write"] = writing(lease)
        return self._random.choice(sorted(moves.items()))


def take_and_accept(tx: Transaction) -> list[Lease]:
    """Take what is due, for the agent."""
    taken = queue_operations.take(
        tx, TENANT, lambda found: {lane.id: 4 for lane in found}, holder=HOLDER, ttl=OFFER_LEASE
    )
    leases = [grant.held.lease for grant in taken.grants]
    queue_operations.accept_flow_runs(tx, TENANT, [Accepting(each, AGENT) for each in leases], ttl=HELD_LEASE)
    return leases


async def cancelled_run(database: Database) -> FlowRun:
    """A run that was cancelled while it waited."""
    run = await create(database, await register(database), idempotency_key="k", request_id="r")
    over = await cancel(database, run.id)
    assert isinstance(over, FlowRun)
    return over
