"""What the queue does, on both databases: taking due runs, and judging every report of a lease."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from penstock.domain.agent import AgentHello, Joined, Releasing
from penstock.domain.flow import PolicyAsked
from penstock.domain.flow_run import FlowRun
from penstock.domain.ids import AgentId, ExecutionId, FlowRunId, LaneId, ProcessId, StreamId
from penstock.domain.lanes import Lane
from penstock.domain.lease import EndedBy, Lease, LeaseOutcome, Phase
from penstock.domain.limits import (
    DECLINED_DELAY,
    HELD_LEASE,
    OFFER_LEASE,
    PRIORITY_WORTH,
    RELEASE_DELAY_MAX,
    RELEASES_MAX,
)
from penstock.domain.queries import Page
from penstock.domain.state import Cause, State
from penstock.queue import operations
from penstock.queue.operations import Accepting
from penstock.storage.database import Database, Transaction
from tests.queue.scenes import (
    AGENT,
    HOLDER,
    OTHER_AGENT,
    SECOND,
    TENANT,
    accept,
    ask_to_stop,
    at_work,
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
    renew,
    run_of,
    steps_of,
    take,
    take_all,
    until_someone_waits,
)
from tests.storage.gate import Gate
from tests.support.builders import an_id
from tests.support.fake_clock import NOON, FakeClock

on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
OTHER_PROCESS = ProcessId(an_id())


def a_hello(agent_id: AgentId = AGENT, **fields: Any) -> AgentHello:
    said: dict[str, Any] = {"agent_id": agent_id, "name": "a", "labels": (), "slots": 1, "version": "1"}
    return AgentHello(**(said | fields))


async def give_back(database: Database, *leases: Lease, holder: ProcessId = HOLDER) -> int:
    return await database.run(operations.give_back, TENANT, leases, holder=holder)


async def phase_of(database: Database, flow_run_id: FlowRunId) -> tuple[Phase, int] | None:
    entry = await entry_of(database, flow_run_id)
    return None if entry is None else (entry.phase, entry.fence)


# Taking


async def test_a_take_leases_what_is_due(database: Database, clock: FakeClock) -> None:
    """The entry is OFFERED to this process for a while, under the next fence; the run is as it was."""
    flow = await register(database)
    run = await create(database, flow)
    clock.advance(SECOND)

    (grant,) = await take(database)

    assert (run, flow) == (grant.run, grant.flow)
    assert (Lease(run.id, 1), OFFER_LEASE, clock.now() + OFFER_LEASE) == (
        grant.held.lease,
        grant.held.ttl,
        grant.held.expire_time,
    )
    assert grant.entry == await entry_of(database, run.id)
    assert (Phase.OFFERED, HOLDER, clock.now()) == (grant.entry.phase, grant.entry.holder, grant.entry.grant_time)
    assert run == await run_of(database, run.id)
    assert [] == await take(database)


async def test_nothing_is_taken_before_it_is_due(database: Database, clock: FakeClock) -> None:
    """Not a microsecond before, and even the highest priority does not make it earlier; then at once."""
    flow = await register(database)
    due = NOON + timedelta(hours=1)
    run = await create(database, flow, scheduled_start_time=due, policy=PolicyAsked(priority=100))
    clock.advance(timedelta(hours=1) - timedelta(microseconds=1))

    taken = await take_all(database)

    assert [] == taken.grants
    assert timedelta(microseconds=1) == taken.next_due_in
    clock.advance(timedelta(microseconds=1))
    taken = await take_all(database)
    assert [run.id] == [each.run.id for each in taken.grants]
    assert taken.next_due_in is None


async def test_the_best_rank_comes_first(database: Database, clock: FakeClock) -> None:
    """Within a lane the oldest goes first; priority is a head start of bounded length."""
    flow = await register(database)
    old = await create(database, flow)
    clock.advance(PRIORITY_WORTH / 2)
    ranked = await create(database, flow, policy=PolicyAsked(priority=1))
    clock.advance(PRIORITY_WORTH)
    late = await create(database, flow, policy=PolicyAsked(priority=1))
    plain = await create(database, flow)

    order = [(await take(database, 1))[0].run.id for _ in range(4)]

    assert [ranked.id, old.id, late.id, plain.id] == order


async def test_equal_ranks_go_in_the_order_of_their_ids(database: Database) -> None:
    """Grants of one take come in the order in which single ones would have come."""
    flow = await register(database)
    runs = [await create(database, flow) for _ in range(5)]

    grants = await take(database)

    assert sorted(each.id for each in runs) == [each.run.id for each in grants]


async def test_no_more_is_taken_than_there_are_seats(database: Database) -> None:
    """Each lane gives at most what is asked of it, and lanes without seats give nothing."""
    flow = await register(database)
    for label in ("a", "b", "c"):
        for _ in range(4):
            await create(database, flow, labels=(label,))
    lanes: list[Lane] = []

    def note(due: Sequence[Lane]) -> Mapping[LaneId, int]:
        lanes[:] = due
        return {}

    nothing = await database.run(operations.take, TENANT, note, holder=HOLDER, ttl=OFFER_LEASE)
    assert [] == nothing.grants
    assert {("a",), ("b",), ("c",)} == {each.key.labels for each in lanes}

    by_labels = {each.key.labels: each.id for each in lanes}
    grants = await take(database, rooms={by_labels["a",]: 3, by_labels["c",]: 1})

    assert [("a",)] * 3 + [("c",)] == sorted(each.run.labels for each in grants)


async def test_future_runs_hide_nobody(database: Database) -> None:
    """However many wait for later, in lanes before and behind, the due ones are found."""
    flow = await register(database)
    later = {"scheduled_start_time": NOON + timedelta(days=1)}
    for number in range(30):
        await create(database, flow, labels=(f"future {number}",), **later)
        await create(database, flow, labels=("mixed",), policy=PolicyAsked(priority=100), **later)
    due = [await create(database, flow, labels=labels) for labels in ((), ("mixed",), ("z",))]

    taken = await take_all(database)

    assert {each.id for each in due} == {each.run.id for each in taken.grants}
    assert timedelta(days=1) == taken.next_due_in


async def test_takers_at_once_take_each_run_once(database: Database) -> None:
    """Replicas that drain one queue together get different runs, and all of them."""
    flow = await register(database)
    runs = [await create(database, flow, labels=(f"lane {number % 3}",)) for number in range(24)]

    async def drain(holder: ProcessId) -> list[FlowRunId]:
        taken: list[FlowRunId] = []
        while grants := await take(database, 2, holder=holder):
            taken += [each.run.id for each in grants]
        return taken

    shares = await asyncio.gather(*(drain(ProcessId(an_id())) for _ in range(4)))
    taken = [each for share in shares for each in share] + [each.run.id for each in await take(database)]

    assert sorted(each.id for each in runs) == sorted(taken)


@on_postgres
async def test_a_taker_waits_for_no_other(database: Database) -> None:
    """What another transaction is taking is skipped, not waited for."""
    flow = await register(database)
    runs = [await create(database, flow) for _ in range(4)]
    gate = Gate()

    def slowly(tx: Transaction) -> list[FlowRunId]:
        taken = operations.take(
            tx, TENANT, lambda lanes: {each.id: 3 for each in lanes}, holder=OTHER_PROCESS, ttl=OFFER_LEASE
        )
        gate.stop_here()
        return [each.run.id for each in taken.grants]

    first = asyncio.create_task(database.run(slowly))
    await gate.reached()
    rest = [each.run.id for each in await take(database)]
    gate.open()

    assert 1 == len(rest)
    assert {each.id for each in runs} == {*rest, *(await first)}


async def test_an_expired_offer_is_offered_again(database: Database, clock: FakeClock) -> None:
    """Whoever made it: the next take finds it waiting, under a higher fence, and it counts nothing."""
    run = await create(database, await register(database))
    first = await offer(database, run.id)
    clock.advance(OFFER_LEASE - timedelta(microseconds=1))
    assert [] == await take(database, holder=OTHER_PROCESS)

    clock.advance(timedelta(microseconds=1))
    (again,) = await take(database, holder=OTHER_PROCESS)

    assert again.held.lease.fence > first.fence
    assert (0, 0) == (again.entry.releases, again.entry.losses)
    (late,) = await accept(database, first)
    assert LeaseOutcome.LOST is late.outcome
    assert again.entry == await entry_of(database, run.id)


# Giving back


async def test_offers_given_back_wait_at_once(database: Database) -> None:
    """They keep their place, count nothing, and their fence is over; those that were accepted stay held."""
    flow = await register(database)
    kept, accepted, mine = [await create(database, flow) for _ in range(3)]
    leases = {each.run.id: each.held.lease for each in await take(database)}
    await accept(database, leases[accepted.id])

    count = await give_back(database, leases[mine.id], leases[accepted.id], replace(leases[kept.id], fence=99))

    assert 1 == count
    entry = await entry_of(database, mine.id)
    assert entry is not None
    assert (Phase.WAITING, 2, mine.scheduled_start_time, 0) == (
        entry.phase,
        entry.fence,
        entry.due_time,
        entry.releases,
    )
    assert (Phase.HELD, 1) == await phase_of(database, accepted.id)
    assert (Phase.OFFERED, 1) == await phase_of(database, kept.id)
    assert [mine.id] == [each.run.id for each in await take(database)]


async def test_offers_of_another_process_are_not_given_back(database: Database) -> None:
    """Only the holder may."""
    run = await create(database, await register(database))
    lease = await offer(database, run.id)

    assert 0 == await give_back(database, lease, holder=OTHER_PROCESS)
    assert (Phase.OFFERED, 1) == await phase_of(database, run.id)


async def test_strays_are_given_back(database: Database) -> None:
    """Of this process's offers those it does not know of wait again; what is in hand, held or another's stays."""
    flow = await register(database)
    runs = [await create(database, flow) for _ in range(4)]
    leases = {each.run.id: each.held.lease for each in await take(database)}
    in_hand, stray, accepted, foreign = (leases[each.id] for each in runs)
    await accept(database, accepted)
    await give_back(database, foreign)
    await take(database, holder=OTHER_PROCESS)

    count = await database.run(operations.give_back_strays, TENANT, [in_hand], holder=HOLDER)

    assert 1 == count
    phases = [await phase_of(database, each.flow_run_id) for each in (in_hand, stray, accepted, foreign)]
    assert [(Phase.OFFERED, 1), (Phase.WAITING, 2), (Phase.HELD, 1), (Phase.OFFERED, 3)] == phases
    assert 1 == await database.run(operations.give_back_strays, TENANT, [], holder=HOLDER)


async def test_many_offers_are_given_back(database: Database) -> None:
    """More than one statement could name."""
    flow = await register(database)
    creations = 20_000
    run = await create(database, flow)
    lease = await offer(database, run.id)

    leases = [Lease(FlowRunId(an_id()), 1) for _ in range(creations)]

    assert 1 == await give_back(database, *leases, lease)


async def test_giving_back_and_accepting_never_wait_in_a_circle(database: Database) -> None:
    """Entries are locked in one order, whichever order they are named in."""
    flow = await register(database)
    for _ in range(40):
        await create(database, flow)
    calls: list[str] = []

    def give(tx: Transaction, leases: Sequence[Lease]) -> int:
        calls.append("give back")
        return operations.give_back(tx, TENANT, leases, holder=HOLDER)

    def hold(tx: Transaction, leases: Sequence[Lease]) -> int:
        calls.append("accept")
        acceptings = [Accepting(each, AGENT) for each in leases]
        outcomes = operations.accept_flow_runs(tx, TENANT, acceptings, ttl=HELD_LEASE)
        return sum(each.outcome is LeaseOutcome.HELD for each in outcomes)

    for _ in range(5):
        leases = [each.held.lease for each in await take(database)]
        given, got = await asyncio.gather(database.run(give, leases[::-1]), database.run(hold, leases[:8]))
        assert len(leases) == given + got
        await give_back(database, *leases)

    assert 10 == len(calls), "a transaction was repeated after a deadlock"


# Accepting


async def test_accepting_submits_the_run(database: Database, clock: FakeClock) -> None:
    """The run is SUBMITTED, the agent holds the lease, an execution and a log begin."""
    run = await create(database, await register(database))
    clock.advance(SECOND)
    lease = await offer(database, run.id)
    clock.advance(SECOND)

    (result,) = await accept(database, lease)

    assert (LeaseOutcome.HELD, lease) == (result.outcome, result.lease)
    assert result.held is not None
    assert (HELD_LEASE, clock.now() + HELD_LEASE) == (result.held.ttl, result.held.expire_time)
    submitted = await run_of(database, run.id)
    assert (State.SUBMITTED, 2, 1) == (submitted.state, submitted.version, submitted.fence)
    step = (await steps_of(database, run.id))[-1]
    assert (Cause.ACCEPTED, AGENT, clock.now() - SECOND) == (step.cause, step.agent_id, step.lease_grant_time)
    execution = await execution_of(database, lease)
    assert (AGENT, 1, clock.now(), None) == (
        execution.agent_id,
        execution.attempt,
        execution.accept_time,
        execution.execution_id,
    )
    assert [(TENANT, run.id, 1, 0)] == list((await everything(database))["log_heads"])


async def test_a_repeated_accept_is_held_still(database: Database, clock: FakeClock) -> None:
    """The same agent hears what is left of its lease; nothing changes, before the start and after it."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)
    before = await everything(database)
    clock.advance(20 * SECOND)

    (again,) = await accept(database, lease)

    assert again.held is not None
    assert (LeaseOutcome.HELD, HELD_LEASE - 20 * SECOND) == (again.outcome, again.held.ttl)
    assert before == await everything(database)


async def test_an_accepted_offer_is_lost_to_another_agent(database: Database) -> None:
    """The first agent to accept holds it."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)
    before = await everything(database)

    (result,) = await accept(database, lease, agent_id=OTHER_AGENT)

    assert LeaseOutcome.LOST is result.outcome
    assert before == await everything(database)


async def test_accepting_what_is_over(database: Database, clock: FakeClock) -> None:
    """ENDED for a final run, LOST for an unknown one, a stale fence and a lease that expired; nothing changes."""
    flow = await register(database)
    over = await at_work(database, (await create(database, flow)).id)
    await finish(database, over.lease, over.execution_id)
    rescued = await held(database, (await create(database, flow)).id)
    clock.advance(HELD_LEASE)
    await expire(database)
    waiting = Lease((await create(database, flow)).id, 1)
    before = await everything(database)

    results = await accept(database, over.lease, rescued, waiting, Lease(FlowRunId(an_id()), 1))

    assert [LeaseOutcome.ENDED, LeaseOutcome.LOST, LeaseOutcome.LOST, LeaseOutcome.LOST] == [
        each.outcome for each in results
    ]
    assert before == await everything(database)


async def test_accepting_what_is_stopping(database: Database) -> None:
    """Its own agent is told to stop."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)
    await ask_to_stop(database, lease)

    (result,) = await accept(database, lease)

    assert LeaseOutcome.STOPPING is result.outcome


# Renewing


async def test_renewing_prolongs(database: Database, clock: FakeClock) -> None:
    """From now on by the whole length, while it is held and while it is stopping, even if it was late."""
    flow = await register(database)
    running = await at_work(database, (await create(database, flow)).id)
    stopping = await held(database, (await create(database, flow)).id)
    await ask_to_stop(database, stopping)
    clock.advance(HELD_LEASE + SECOND)

    results = await renew(database, running.lease, stopping)

    assert [LeaseOutcome.HELD, LeaseOutcome.STOPPING] == [each.outcome for each in results]
    assert [clock.now() + HELD_LEASE] * 2 == [each.held.expire_time for each in results if each.held]
    assert 0 == await expire(database)


async def test_renewing_never_shortens(database: Database) -> None:
    """A shorter length leaves the expiry where it is."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)
    before = await everything(database)

    (result,) = await renew(database, lease, ttl=SECOND)

    assert result.held is not None
    assert HELD_LEASE == result.held.ttl
    assert before == await everything(database)


async def test_renewing_what_is_over(database: Database) -> None:
    """ENDED for a final run, LOST else, each mention by itself; an offer is not renewed."""
    flow = await register(database)
    over = await at_work(database, (await create(database, flow)).id)
    await finish(database, over.lease, over.execution_id)
    live = await held(database, (await create(database, flow)).id)
    offered = await offer(database, (await create(database, flow)).id)
    before = await everything(database)

    results = await renew(database, over.lease, live, offered, live, replace(live, fence=live.fence - 1))

    assert [LeaseOutcome.ENDED, LeaseOutcome.HELD, LeaseOutcome.LOST, LeaseOutcome.HELD, LeaseOutcome.LOST] == [
        each.outcome for each in results
    ]
    assert before == await everything(database)


# Releasing


async def test_a_declined_offer_waits_a_moment(database: Database, clock: FakeClock) -> None:
    """It counts nothing and leaves no trace in the run's history."""
    run = await create(database, await register(database))
    lease = await offer(database, run.id)

    assert LeaseOutcome.RELEASED is await release(database, lease, delay=timedelta(hours=1))

    entry = await entry_of(database, run.id)
    assert entry is not None
    assert (Phase.WAITING, 2, clock.now() + DECLINED_DELAY, 0) == (
        entry.phase,
        entry.fence,
        entry.due_time,
        entry.releases,
    )
    assert run == await run_of(database, run.id)
    assert LeaseOutcome.LOST is await release(database, lease)


async def test_a_released_run_waits_longer_each_time(database: Database, clock: FakeClock) -> None:
    """A second, doubling up to a minute, or longer if asked; after the tenth release it FAILS as UNDEPLOYABLE."""
    run = await create(database, await register(database))
    waited: list[float] = []

    for _ in range(RELEASES_MAX):
        assert LeaseOutcome.RELEASED is await release(database, await held(database, run.id), reason="no image")
        delay = (await run_of(database, run.id)).scheduled_start_time - clock.now()
        waited.append(delay.total_seconds())
        clock.advance(RELEASE_DELAY_MAX)
    step = (await steps_of(database, run.id))[-1]
    assert (State.SCHEDULED, Cause.RELEASED, "no image") == (step.state, step.cause, step.message)
    last = await held(database, run.id)
    assert LeaseOutcome.RELEASED is await release(database, last, reason="no image")

    assert [1, 2, 4, 8, 16, 32, 60, 60, 60, 60] == waited
    failed = await run_of(database, run.id)
    assert (State.FAILED, 1) == (failed.state, failed.attempt)
    assert failed.failure is not None
    assert "no image" in failed.failure.message
    assert Cause.UNDEPLOYABLE is (await steps_of(database, run.id))[-1].cause
    assert await entry_of(database, run.id) is None
    assert LeaseOutcome.RELEASED is await release(database, last)


async def test_a_release_may_ask_for_more(database: Database, clock: FakeClock) -> None:
    """The longer of the two delays counts; the run's due time says so."""
    run = await create(database, await register(database))

    await release(database, await held(database, run.id), delay=timedelta(hours=1))

    assert clock.now() + timedelta(hours=1) == (await run_of(database, run.id)).scheduled_start_time


async def test_a_repeated_release_is_released_still(database: Database) -> None:
    """The first one counts, also when the run is held again meanwhile, or named twice in one call."""
    flow = await register(database)
    lease = await held(database, (await create(database, flow)).id)
    releasings = [Releasing(lease, timedelta(0), "first"), Releasing(lease, timedelta(hours=1), "second")]

    results = await database.run(operations.release_flow_runs, TENANT, releasings)

    assert [LeaseOutcome.RELEASED] * 2 == [each.outcome for each in results]
    assert "first" == (await steps_of(database, lease.flow_run_id))[-1].message
    before = await everything(database)
    assert LeaseOutcome.RELEASED is await release(database, lease)
    assert before == await everything(database)


async def test_what_was_started_is_not_released(database: Database) -> None:
    """It is told so, and goes on; also while it is stopping."""
    flow = await register(database)
    running = await at_work(database, (await create(database, flow)).id)
    stopping = await at_work(database, (await create(database, flow)).id)
    await ask_to_stop(database, stopping.lease)
    before = await everything(database)

    assert LeaseOutcome.STARTED is await release(database, running.lease)
    assert LeaseOutcome.STARTED is await release(database, stopping.lease)
    assert before == await everything(database)


async def test_releasing_what_stops_unstarted_cancels_it(database: Database) -> None:
    """There is nothing to confirm: the run is CANCELLED."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)
    await ask_to_stop(database, lease)

    assert LeaseOutcome.RELEASED is await release(database, lease)

    cancelled = await run_of(database, run.id)
    assert (State.CANCELLED, lease.fence) == (cancelled.state, cancelled.fence)
    assert await entry_of(database, run.id) is None
    execution = await execution_of(database, lease)
    assert (EndedBy.RELEASE, State.CANCELLED) == (execution.ended_by, execution.outcome)


async def test_releasing_what_is_over(database: Database, clock: FakeClock) -> None:
    """ENDED for a run that finished, LOST for a lease that the keeper ended and for an unknown run."""
    flow = await register(database)
    over = await at_work(database, (await create(database, flow)).id)
    await finish(database, over.lease, over.execution_id)
    lost = await held(database, (await create(database, flow)).id)
    clock.advance(HELD_LEASE)
    await expire(database)
    before = await everything(database)

    assert LeaseOutcome.ENDED is await release(database, over.lease)
    assert LeaseOutcome.LOST is await release(database, lost)
    assert LeaseOutcome.LOST is await release(database, Lease(FlowRunId(an_id()), 1))
    assert before == await everything(database)


@on_postgres
async def test_a_renewal_waits_for_an_end_and_sees_it(database: Database) -> None:
    """A lease that another transaction is ending is judged once that is committed."""
    run = await create(database, await register(database))
    lease = await held(database, run.id)
    gate = Gate()

    def end_slowly(tx: Transaction) -> None:
        operations.release_flow_runs(tx, TENANT, [Releasing(lease)])
        gate.stop_here()

    ending = asyncio.create_task(database.run(end_slowly))
    await gate.reached()
    renewing = asyncio.create_task(renew(database, lease))
    await until_someone_waits(database)
    gate.open()
    await ending

    (result,) = await renewing
    assert LeaseOutcome.LOST is result.outcome
    assert (Phase.WAITING, 2) == await phase_of(database, run.id)


# Agents


async def join(database: Database, hello: AgentHello, stream_id: StreamId) -> Joined:
    return await database.run(operations.join, TENANT, hello, stream_id)


async def test_who_joins_hears_what_is_over(database: Database, clock: FakeClock) -> None:
    """Of the leases an agent says it holds it is told those that it does not; the others bear its name."""
    flow = await register(database)
    running = await at_work(database, (await create(database, flow)).id)
    lost = await held(database, (await create(database, flow)).id)
    await release(database, lost)
    offered = await offer(database, (await create(database, flow)).id)
    said = (running.lease, lost, offered)

    over = await join(database, a_hello(OTHER_AGENT, held=said), StreamId(an_id()))

    assert Joined(lost=(lost, offered)) == over
    entry = await entry_of(database, running.lease.flow_run_id)
    assert entry is not None
    assert (OTHER_AGENT, running.lease.fence) == (entry.holder, entry.fence)
    assert Joined() == await join(database, a_hello(), StreamId(an_id()))


async def test_who_joins_hears_what_shall_stop(database: Database) -> None:
    """In the same breath, so that a stream that was opened anew loses no time."""
    flow = await register(database)
    stopping, running = [await held(database, (await create(database, flow)).id) for _ in range(2)]
    await ask_to_stop(database, stopping)

    judged = await join(database, a_hello(held=(stopping, running)), StreamId(an_id()))

    assert Joined(stopping=(stopping,)) == judged


async def test_what_shall_stop_is_asked_by_holder(database: Database) -> None:
    """For many agents at once; neither what goes on nor what has stopped is named."""
    flow = await register(database)
    mine, going_on, stopped = [await held(database, (await create(database, flow)).id) for _ in range(3)]
    other = await offer(database, (await create(database, flow)).id)
    await accept(database, other, agent_id=OTHER_AGENT)
    for lease in (mine, stopped, other):
        await ask_to_stop(database, lease)
    await release(database, stopped)

    both = await database.read(operations.stopping, TENANT, [AGENT, OTHER_AGENT])

    assert {AGENT: [mine], OTHER_AGENT: [other]} == both
    assert {OTHER_AGENT: [other]} == await database.read(operations.stopping, TENANT, [OTHER_AGENT])
    assert {} == await database.read(operations.stopping, TENANT, [])
    assert mine.flow_run_id != going_on.flow_run_id


async def test_a_newer_stream_replaces_the_older(database: Database, clock: FakeClock) -> None:
    """Both may be heard of in one process; the older one is named, and its leaving changes nothing."""
    older, newer, lonely = (StreamId(an_id()) for _ in range(3))
    await join(database, a_hello(), older)
    await join(database, a_hello(OTHER_AGENT), lonely)
    assert [] == await database.run(operations.replaced, TENANT, {older: AGENT, lonely: OTHER_AGENT})

    await join(database, a_hello(), newer)

    streams = {older: AGENT, newer: AGENT, lonely: OTHER_AGENT}
    assert [older] == await database.run(operations.replaced, TENANT, streams)
    await database.run(operations.leave, TENANT, AGENT, older)
    assert [] == await database.run(operations.replaced, TENANT, {newer: AGENT})


async def test_an_opening_that_came_late_replaces_nobody_for_long(database: Database) -> None:
    """An older stream that was written last and has ended gives its place back to the one that lives."""
    older, newer = StreamId(an_id()), StreamId(an_id())
    await join(database, a_hello(), newer)
    await join(database, a_hello(), older)
    await database.run(operations.leave, TENANT, AGENT, older)

    assert [] == await database.run(operations.replaced, TENANT, {newer: AGENT})
    assert [older] == await database.run(operations.replaced, TENANT, {older: AGENT})


async def test_agents_are_listed(database: Database, clock: FakeClock) -> None:
    """The last seen first, with what they hold; healthy while connected and heard of."""
    flow = await register(database)
    first, second = StreamId(an_id()), StreamId(an_id())
    await join(database, a_hello(labels=("gpu", "x"), slots=5), first)
    clock.advance(SECOND)
    await join(database, a_hello(OTHER_AGENT, name="b"), second)
    await held(database, (await create(database, flow)).id)
    await offer(database, (await create(database, flow)).id)

    async def listed(page: Page | None = None) -> list[Any]:
        found = page or Page(10)
        agents = await database.read(operations.list_agents, TENANT, found, proven_within=10 * SECOND)
        return [(each.name, each.healthy, each.slots_used) for each in agents]

    assert [("b", True, 0), ("a", True, 1)] == await listed()
    assert [("b", True, 0)] == await listed(Page(1))
    assert [("a", True, 1)] == await listed(Page(1, (clock.now(), OTHER_AGENT)))
    clock.advance(10 * SECOND)
    assert [("b", True, 0), ("a", False, 1)] == await listed()
    await database.run(operations.replaced, TENANT, {first: AGENT})
    await database.run(operations.leave, TENANT, OTHER_AGENT, second)
    assert [("a", True, 1), ("b", False, 0)] == await listed()


async def test_a_finished_run_leaves_no_slot_used(database: Database) -> None:
    """Only what an agent holds counts."""
    await join(database, a_hello(), StreamId(an_id()))
    run: FlowRun = await create(database, await register(database))
    work = await at_work(database, run.id)
    await finish(database, work.lease, ExecutionId(work.execution_id))

    (agent,) = await database.read(operations.list_agents, TENANT, Page(1), proven_within=SECOND)

    assert 0 == agent.slots_used
