"""Moving on runs whose holder fell silent, on both databases."""

import asyncio
from datetime import timedelta

import pytest

from penstock.domain.flow import PolicyAsked
from penstock.domain.lease import EndedBy, LeaseOutcome, Phase
from penstock.domain.limits import HELD_LEASE, RELEASE_DELAY_MAX, RELEASES_MAX
from penstock.domain.state import Cause, State
from penstock.keeper.expired_leases import expire_leases
from penstock.queue import operations
from penstock.storage.database import Database, Transaction
from tests.queue.scenes import (
    SECOND,
    TENANT,
    ask_to_stop,
    at_work,
    create,
    entry_of,
    everything,
    execution_of,
    expire,
    held,
    offer,
    register,
    renew,
    run_of,
    steps_of,
    take,
    until_someone_waits,
)
from tests.storage.gate import Gate
from tests.support.fake_clock import FakeClock

on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)


async def test_a_lease_lives_until_it_expires(database: Database, clock: FakeClock) -> None:
    """Not a moment less; an offer is not the keeper's to end."""
    flow = await register(database)
    await at_work(database, (await create(database, flow)).id)
    clock.advance(HELD_LEASE - timedelta(microseconds=1))
    await offer(database, (await create(database, flow)).id)
    before = await everything(database)

    assert 0 == await expire(database)
    assert before == await everything(database)
    clock.advance(HELD_LEASE)
    assert 1 == await expire(database)


async def test_a_lost_run_is_due_again(database: Database, clock: FakeClock) -> None:
    """At once, under a new fence, as the same attempt; its history says that it was lost."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    clock.advance(HELD_LEASE)

    assert 1 == await expire(database)

    lost = await run_of(database, run.id)
    assert (State.SCHEDULED, 1, clock.now(), None) == (
        lost.state,
        lost.attempt,
        lost.scheduled_start_time,
        lost.start_time,
    )
    entry = await entry_of(database, run.id)
    assert entry is not None
    assert (Phase.WAITING, work.lease.fence + 1, 1, 0) == (entry.phase, entry.fence, entry.losses, entry.releases)
    step = (await steps_of(database, run.id))[-1]
    assert (Cause.LOST, State.SCHEDULED, clock.now()) == (step.cause, step.state, step.due_time)
    execution = await execution_of(database, work.lease)
    assert (EndedBy.EXPIRY, clock.now()) == (execution.ended_by, execution.end_time)
    assert [run.id] == [each.run.id for each in await take(database)]
    assert 0 == await expire(database)


async def test_a_run_is_lost_only_so_often(database: Database, clock: FakeClock) -> None:
    """Beyond its policy it FAILS with cause LOST."""
    run = await create(database, await register(database), policy=PolicyAsked(max_lost_restarts=1, max_retries=5))

    for expected in (State.SCHEDULED, State.FAILED):
        work = await at_work(database, run.id)
        clock.advance(HELD_LEASE)
        await expire(database)
        assert expected is (await run_of(database, run.id)).state

    lost = await run_of(database, run.id)
    assert (1, 5, work.lease.fence) == (lost.attempt, lost.retries_left, lost.fence)
    assert lost.failure is not None
    assert "Lost" == lost.failure.type
    assert Cause.LOST is (await steps_of(database, run.id))[-1].cause
    assert await entry_of(database, run.id) is None


async def test_what_never_started_counts_as_released(database: Database, clock: FakeClock) -> None:
    """It waits longer each time and fails as UNDEPLOYABLE in the end, however few losses its policy allows."""
    run = await create(database, await register(database), policy=PolicyAsked(max_lost_restarts=0))

    for _ in range(RELEASES_MAX):
        await held(database, run.id)
        clock.advance(HELD_LEASE)
        assert 1 == await expire(database)
        assert State.SCHEDULED is (await run_of(database, run.id)).state
        clock.advance(RELEASE_DELAY_MAX)
    entry = await entry_of(database, run.id)
    assert entry is not None
    assert (0, RELEASES_MAX) == (entry.losses, entry.releases)
    await held(database, run.id)
    clock.advance(HELD_LEASE)
    await expire(database)

    assert State.FAILED is (await run_of(database, run.id)).state
    assert Cause.UNDEPLOYABLE is (await steps_of(database, run.id))[-1].cause


async def test_a_silent_stop_is_cancelled_unconfirmed(database: Database, clock: FakeClock) -> None:
    """Whether it had started or not."""
    flow = await register(database)
    started = (await at_work(database, (await create(database, flow)).id)).lease
    unstarted = await held(database, (await create(database, flow)).id)
    for lease in (started, unstarted):
        await ask_to_stop(database, lease)
    clock.advance(HELD_LEASE)

    assert 2 == await expire(database)

    for lease in (started, unstarted):
        assert State.CANCELLED is (await run_of(database, lease.flow_run_id)).state
        assert Cause.UNCONFIRMED is (await steps_of(database, lease.flow_run_id))[-1].cause
        assert await entry_of(database, lease.flow_run_id) is None


async def test_two_keepers_end_each_lease_once(database: Database, clock: FakeClock) -> None:
    """They share the work; together they do it all, and nothing twice."""
    flow = await register(database)
    for _ in range(12):
        await at_work(database, (await create(database, flow)).id)
    clock.advance(HELD_LEASE)

    counts = await asyncio.gather(*(expire(database) for _ in range(4)))
    counts.append(await expire(database))

    assert 12 == sum(counts)
    steps = (await everything(database))["transitions"]
    assert 12 * 4 == len(steps)


@on_postgres
async def test_a_lease_that_is_renewed_meanwhile_lives(database: Database, clock: FakeClock) -> None:
    """A renewal that is not committed yet is not waited for, and one that is counts."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    clock.advance(HELD_LEASE)
    gate = Gate()

    def renew_slowly(tx: Transaction) -> None:
        operations.renew_leases(tx, TENANT, [work.lease], ttl=HELD_LEASE)
        gate.stop_here()

    renewing = asyncio.create_task(database.run(renew_slowly))
    await gate.reached()
    assert 0 == await expire(database)
    gate.open()
    await renewing

    assert 0 == await expire(database)
    assert State.RUNNING is (await run_of(database, run.id)).state


@on_postgres
async def test_a_renewal_that_comes_too_late_is_lost(database: Database, clock: FakeClock) -> None:
    """It waits for the keeper's transaction and then sees that its lease is over."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    clock.advance(HELD_LEASE)
    gate = Gate()

    def expire_slowly(tx: Transaction) -> None:
        expire_leases(tx, TENANT, ttl=HELD_LEASE)
        gate.stop_here()

    expiring = asyncio.create_task(database.run(expire_slowly))
    await gate.reached()
    renewing = asyncio.create_task(renew(database, work.lease))
    await until_someone_waits(database)
    gate.open()
    await expiring

    (result,) = await renewing
    assert LeaseOutcome.LOST is result.outcome
    assert State.SCHEDULED is (await run_of(database, run.id)).state


async def test_a_clock_that_was_set_back_freezes_nothing(database: Database, clock: FakeClock) -> None:
    """No lease lasts longer than a lease lasts from when the keeper first sees it."""
    run = await create(database, await register(database))
    work = await at_work(database, run.id)
    clock.set_back(timedelta(days=1))

    assert 0 == await expire(database)
    clock.advance(HELD_LEASE - SECOND)
    assert 0 == await expire(database)
    (renewed,) = await renew(database, work.lease)
    assert renewed.held is not None
    assert clock.now() + HELD_LEASE == renewed.held.expire_time

    clock.advance(HELD_LEASE)
    assert 1 == await expire(database)
    assert State.SCHEDULED is (await run_of(database, run.id)).state
