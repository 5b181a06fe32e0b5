"""Failing runs that are executed without an agent and for which nobody comes, on both databases."""

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest

from penstock.domain.errors import Unavailable
from penstock.domain.flow import PolicyAsked
from penstock.domain.flow_run import Failure, FlowRun, FlowTarget
from penstock.domain.lanes import AGENTLESS
from penstock.domain.lease import Phase
from penstock.domain.limits import AGENTLESS_WAIT_MAX, KEEPER_BATCH_MAX, OFFER_LEASE, PRIORITY_MAX
from penstock.domain.state import Cause, State
from penstock.keeper.deserted import GAP_MAX, Deserted, fail_deserted
from penstock.queue import operations
from penstock.storage.database import Database, Transaction
from tests.queue.scenes import (
    HOLDER,
    SECOND,
    TENANT,
    at_work,
    attempt,
    create,
    entry_of,
    everything,
    finish,
    held,
    register,
    run_of,
    steps_of,
)
from tests.storage.gate import Gate
from tests.support.builders import a_creation
from tests.support.fake_clock import FakeClock

LITTLE = timedelta(microseconds=1)
FAILURE = Failure(type="Deserted", message="No process asked to execute it.")
on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)


async def wait(clock: FakeClock, deserted: Deserted, span: timedelta) -> int:
    """Let time pass while the keeper looks every now and then; how many it has failed."""
    count, left = 0, span
    while left > timedelta(0):
        step = min(left, GAP_MAX)
        clock.advance(step)
        left -= step
        count += await deserted.look_once()
    return count


async def states_of(database: Database, runs: Sequence[FlowRun]) -> list[State]:
    return [(await run_of(database, run.id)).state for run in runs]


async def test_a_run_for_which_nobody_comes_fails(database: Database, clock: FakeClock) -> None:
    """Five minutes after it was due, not before; whatever its labels, priority and retries; and it says why."""
    flow, deserted = await register(database), Deserted(database, TENANT)
    await deserted.look_once()
    due = clock.now() + SECOND
    policy = PolicyAsked(priority=PRIORITY_MAX, max_retries=3)
    run = await create(database, flow, labels=("gpu", AGENTLESS), policy=policy, scheduled_start_time=due)

    assert 0 == await wait(clock, deserted, SECOND + AGENTLESS_WAIT_MAX - LITTLE)
    assert 1 == await wait(clock, deserted, LITTLE)

    failed = await run_of(database, run.id)
    assert (State.FAILED, FAILURE, clock.now()) == (failed.state, failed.failure, failed.finish_time)
    (_, step) = await steps_of(database, run.id)
    assert (State.FAILED, Cause.LOST, FAILURE.message) == (step.state, step.cause, step.message)
    assert await entry_of(database, run.id) is None
    assert 0 == await wait(clock, deserted, SECOND)


async def test_a_run_between_attempts_is_deserted_too(database: Database, clock: FakeClock) -> None:
    """Its first attempt failed, and the process that executed it did not come for the next one."""
    deserted = Deserted(database, TENANT)
    await deserted.look_once()
    flow = await register(database)
    run = await create(database, flow, labels=(AGENTLESS,), policy=PolicyAsked(max_retries=1))
    work = await at_work(database, run.id)
    await finish(database, work.lease, work.execution_id, Failure(message="no"))
    assert [State.SCHEDULED] == await states_of(database, [run])

    assert 1 == await wait(clock, deserted, AGENTLESS_WAIT_MAX)

    failed = await run_of(database, run.id)
    assert (State.FAILED, FAILURE, 2) == (failed.state, failed.failure, failed.attempt)


async def test_others_go_on(database: Database, clock: FakeClock) -> None:
    """Those that wait for an agent or for their time, and those that somebody holds."""
    flow, deserted = await register(database), Deserted(database, TENANT)
    await deserted.look_once()
    submitted = await create(database, flow, labels=(AGENTLESS,))
    await held(database, submitted.id)
    running = await create(database, flow, labels=(AGENTLESS,))
    await at_work(database, running.id)
    for_an_agent = await create(database, flow, labels=("gpu",))
    later = await create(database, flow, labels=(AGENTLESS,), start_delay=2 * AGENTLESS_WAIT_MAX)
    runs = [for_an_agent, later, submitted, running]
    before = await states_of(database, runs)

    assert 0 == await wait(clock, deserted, AGENTLESS_WAIT_MAX + SECOND)

    assert [State.SCHEDULED, State.SCHEDULED, State.SUBMITTED, State.RUNNING] == before
    assert before == await states_of(database, runs)


async def test_time_without_a_keeper_counts_for_nothing(database: Database, clock: FakeClock) -> None:
    """Runs that were due long before it started, or while it or the database stood still, are waited for anew."""
    deserted = Deserted(database, TENANT)
    run = await create(database, await register(database), labels=(AGENTLESS,))
    clock.advance(10 * AGENTLESS_WAIT_MAX)
    assert 0 == await deserted.look_once()
    assert 0 == await wait(clock, deserted, AGENTLESS_WAIT_MAX - LITTLE)

    clock.advance(GAP_MAX + LITTLE)
    assert 0 == await deserted.look_once()
    assert 0 == await wait(clock, deserted, AGENTLESS_WAIT_MAX - LITTLE)

    clock.set_back(timedelta(days=365))
    assert 0 == await deserted.look_once()
    clock.advance(timedelta(days=365))
    assert 0 == await deserted.look_once()
    assert 0 == await wait(clock, deserted, AGENTLESS_WAIT_MAX - LITTLE)

    assert [State.SCHEDULED] == await states_of(database, [run])
    assert 1 == await wait(clock, deserted, LITTLE)


class Away:
    """A database that can be away."""

    def __init__(self, database: Database) -> None:
        self.run = database.run
        self._read = database.read
        self.away = False

    async def read(self, work: Callable[..., Any], *args: Any) -> Any:
        if self.away:
            raise Unavailable(detail="the database is away")
        return await self._read(work, *args)


async def test_a_database_that_was_away_begins_the_time_anew(database: Database, clock: FakeClock) -> None:
    """However short it was away: nobody could ask for a run meanwhile."""
    away: Any = Away(database)
    deserted = Deserted(away, TENANT)
    await create(database, await register(database), labels=(AGENTLESS,))
    await deserted.look_once()
    assert 0 == await wait(clock, deserted, AGENTLESS_WAIT_MAX - LITTLE)
    away.away = True
    with pytest.raises(Unavailable):
        await deserted.look_once()
    away.away = False
    clock.advance(LITTLE)

    assert 0 == await deserted.look_once()
    assert 1 == await wait(clock, deserted, AGENTLESS_WAIT_MAX)


async def test_who_died_with_an_offer_deserts_its_run(database: Database, clock: FakeClock) -> None:
    """Its offer is taken back though no agent is connected, and nobody comes again."""
    run = await create(database, await register(database), labels=(AGENTLESS,))
    asked = {"holder": HOLDER, "ttl": OFFER_LEASE}
    assert await database.run(operations.offer_flow_run, TENANT, run.id, **asked)  # type: ignore[arg-type]
    deserted = Deserted(database, TENANT)
    await deserted.look_once()

    assert 0 == await wait(clock, deserted, OFFER_LEASE)
    entry = await entry_of(database, run.id)
    assert entry is not None
    assert (Phase.WAITING, run.scheduled_start_time) == (entry.phase, entry.due_time)

    assert 1 == await wait(clock, deserted, AGENTLESS_WAIT_MAX)
    assert [State.FAILED] == await states_of(database, [run])


async def test_however_many_are_deserted(database: Database, clock: FakeClock) -> None:
    """They fail at most 500 in a transaction, each once, also by two keepers at once."""
    target = FlowTarget((await register(database)).id)
    count = KEEPER_BATCH_MAX + 10
    await attempt(database, *(a_creation(target=target, labels=(AGENTLESS,)) for _ in range(count)))
    keepers = [Deserted(database, TENANT) for _ in range(2)]
    for each in keepers:
        await each.look_once()
    for _ in range(5):
        clock.advance(GAP_MAX - LITTLE)
        assert [0, 0] == [await each.look_once() for each in keepers]
    clock.advance(SECOND)

    assert KEEPER_BATCH_MAX == await database.run(fail_deserted, TENANT)
    assert 10 == sum(await asyncio.gather(*(each.look_once() for each in keepers)))

    steps = (await everything(database, "agents"))["transitions"]
    assert 2 * count == len(steps)
    assert not (await everything(database))["queue_entries"]


@on_postgres
async def test_a_run_that_is_just_being_taken_goes_on(database: Database, clock: FakeClock) -> None:
    """It is not waited for, and what was decided about it stands."""
    run = await create(database, await register(database), labels=(AGENTLESS,))
    clock.advance(AGENTLESS_WAIT_MAX)
    gate = Gate()

    def take(tx: Transaction) -> None:
        assert operations.offer_flow_run(tx, TENANT, run.id, holder=HOLDER, ttl=OFFER_LEASE)
        gate.stop_here()

    taking = asyncio.create_task(database.run(take))
    await gate.reached()
    assert 0 == await database.run(fail_deserted, TENANT)
    gate.open()
    await taking

    assert 0 == await database.run(fail_deserted, TENANT)
    entry = await entry_of(database, run.id)
    assert entry is not None
    assert Phase.OFFERED is entry.phase


async def test_the_keeper_looks_for_them(database: Database, database_url: str, clock: FakeClock) -> None:
    """A real process, that waits a moment instead of five minutes."""
    clock.set_back(timedelta(days=365))
    run = await create(database, await register(database), labels=(AGENTLESS,))
    told = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PENSTOCK_DATABASE": database_url,
        "PENSTOCK_PORT": "0",
    }
    program = (
        "from datetime import timedelta; from penstock.keeper import deserted; from penstock.runtime import process\n"
        "deserted.AGENTLESS_WAIT_MAX = deserted.LOOK_INTERVAL = timedelta(milliseconds=50)\n"
        "from penstock.keeper.__main__ import main\n"
        "process.run(main())"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=dict(os.environ) | told, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(60):
            while (await run_of(database, run.id)).state is not State.FAILED:
                assert process.returncode is None, "it has ended"
                await asyncio.sleep(0.02)
    finally:
        process.terminate()
        await process.communicate()

    assert FAILURE == (await run_of(database, run.id)).failure
