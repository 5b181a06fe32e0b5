"""Long polls over a real socket, on both databases."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from sqlalchemy import Engine

from flowrun.v1 import lease_pb2
from flowrun.v1 import queue_service_pb2 as pb
from flowrun.v1.operator_service_pb2 import ListAgentsRequest
from penstock.domain.agent import AgentHello, Polling
from penstock.domain.flow import PolicyAsked
from penstock.domain.flow_run import Failure, FlowTarget
from penstock.domain.ids import AgentId, FlowRunId
from penstock.domain.lanes import AGENTLESS
from penstock.domain.lease import Lease, Phase
from penstock.domain.limits import OFFER_LEASE
from penstock.domain.state import State
from penstock.queue import operations
from penstock.queue.dispatcher import Dispatcher
from penstock.queue.operations import Watch
from penstock.queue.polling import Polls
from penstock.runtime.clock import SystemClock
from penstock.runtime.drawing import Drawing
from penstock.storage import flow_runs, queue
from penstock.storage.database import Database, DatabaseClock, Transaction
from penstock.storage.wakeups import Hint
from tests.queue.scenes import (
    SECOND,
    TENANT,
    accept,
    ask_to_stop,
    at_work,
    attempt,
    create,
    entry_of,
    finish,
    held,
    offer,
    register,
    release,
)
from tests.queue.served import (
    Agent,
    QueueProcess,
    due_runs,
    phases,
    queue_locked,
    refused,
    serving,
    to_proto,
    until,
    until_blocked,
)
from tests.support.builders import a_creation, a_flow_run, an_entry, an_id
from tests.support.fake_clock import FakeClock

NOTHING = timedelta(0)
SOON = timedelta(milliseconds=20)
HELD = lease_pb2.LEASE_OUTCOME_HELD


async def polling(process: QueueProcess, agent: Agent, *held: lease_pb2.Lease, **asked: Any) -> asyncio.Task[Any]:
    """A poll that is under way, and has found nothing so far."""
    before = set(process.polls._polls)
    task = asyncio.create_task(agent.poll(*held, **asked))
    await until(lambda: before < process.polls._polls)
    (poll,) = process.polls._polls - before
    if asked.get("flow_run_id"):
        await until(lambda: poll.seen is not None)
    else:
        await until(lambda: any(each.hello == poll.polling.hello for each in process.dispatcher._streams.values()))
        await process.dispatcher.all_handed_out(TENANT)
    assert not task.done()
    return task


def offered(answer: pb.LeaseFlowRunsResponse) -> list[str]:
    return [each.flow_run.flow_run_id for each in answer.offers]


# A named run


async def test_a_poll_may_name_one_run(database: Database) -> None:
    """That run is offered, whole, whoever else waits before it; the others go on waiting."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    flow = await register(database)
    runs = [await create(database, flow, traceparent=f"00-{trace_id}-b7ad6b7169203331-01") for _ in range(3)]

    async with serving(database) as process:
        agent = Agent(process)
        answer = await agent.poll(flow_run_id=runs[1].id)

        assert [str(runs[1].id)] == offered(answer)
        (the_offer,) = answer.offers
        assert (runs[1].parameters_json, str(runs[1].flow_id), OFFER_LEASE) == (
            the_offer.flow_run.parameters_json,
            the_offer.flow.flow_id,
            the_offer.lease.ttl.ToTimedelta(),
        )
        assert trace_id == the_offer.trace_context["traceparent"].split("-")[1]
        entries = [await entry_of(database, run.id) for run in runs]
        assert [Phase.WAITING, Phase.OFFERED, Phase.WAITING] == [entry.phase for entry in entries if entry]
        assert [HELD] == await agent.accept(the_offer)


async def test_an_agentless_run_is_taken_by_name_only(database: Database) -> None:
    """Neither a stream nor a poll for any run is offered it, with labels or without; whoever names it is."""
    (run,) = await due_runs(database, 1, "gpu", AGENTLESS)

    async with serving(database) as process:
        for labels in ((), ("gpu",)):
            stream = await Agent(process, labels=labels).open(credit=5)
            await process.dispatcher.run_once()
            await stream.hear_echo()
            assert [] == stream.offers
            assert [] == offered(await Agent(process, labels=labels).poll(wait=NOTHING))

        assert [str(run.id)] == offered(await Agent(process).poll(flow_run_id=run.id))


async def test_an_offer_to_a_poll_outlives_it(database: Database) -> None:
    """Neither the end of the call nor a drain takes it back; it waits again when its time is over."""
    named, other = await due_runs(database, 2)

    async with serving(database) as process:
        agent = Agent(process)
        answers = [await agent.poll(flow_run_id=named.id), await agent.poll(offers_max=1)]
        assert [[str(named.id)], [str(other.id)]] == list(map(offered, answers))
        offers = [each for answer in answers for each in answer.offers]
        process.dispatcher._unsure.add(TENANT)
        await process.dispatcher.run_once()
        await process.polls.drain()
        await process.dispatcher.drain()

        assert [Phase.OFFERED] * 2 == await phases(database, *offers)
        assert [HELD] * 2 == await agent.accept(*offers)


async def test_a_poll_is_never_early(database: Database, clock: FakeClock) -> None:
    """By the database's clock: not a microsecond before the run is due, however often it is looked for."""
    run = await create(database, await register(database), scheduled_start_time=clock.now() + SECOND)

    async with serving(database) as process:
        task = await polling(process, Agent(process), flow_run_id=run.id)
        clock.advance(SECOND - timedelta(microseconds=1))
        for _ in range(3):
            process.polls.hear(Hint(due=True))
            await process.polls.look_once()
        entry = await entry_of(database, run.id)
        assert entry is not None
        assert Phase.WAITING is entry.phase

        clock.advance(timedelta(microseconds=1))
        process.polls.hear(Hint(due=True))

        assert [str(run.id)] == offered(await task)


async def test_a_poll_is_woken_when_its_run_is_due(engine: Engine) -> None:
    """By nothing but the time: no hint comes, and nobody sweeps."""
    database = Database(engine, DatabaseClock(), threads=4)
    run = await create(database, await register(database), start_delay=15 * SOON)

    async with serving(database, deaf=True) as process:
        answer = await Agent(process).poll(flow_run_id=run.id)

    entry = await entry_of(database, run.id)
    database.close()
    assert [str(run.id)] == offered(answer)
    assert entry is not None
    assert entry.grant_time is not None
    assert entry.due_time <= entry.grant_time


async def test_a_poll_waits_for_the_next_attempt(database: Database) -> None:
    """While somebody else executes the run; by the hint of its end."""
    run = await create(database, await register(database), policy=PolicyAsked(max_retries=1))
    work = await at_work(database, run.id)

    async with serving(database) as process:
        task = await polling(process, Agent(process), flow_run_id=run.id)
        await finish(database, work.lease, work.execution_id, Failure(message="no"))

        (the_offer,) = (await task).offers
    assert 2 == the_offer.flow_run.attempt


async def test_an_offer_that_ran_out_is_made_anew(database: Database, clock: FakeClock) -> None:
    """Also when no stream is there to take it back."""
    (run,) = await due_runs(database, 1)
    first = await offer(database, run.id)

    async with serving(database) as process:
        assert [] == offered(await Agent(process).poll(flow_run_id=run.id, wait=NOTHING))
        clock.advance(OFFER_LEASE)
        (the_offer,) = (await Agent(process).poll(flow_run_id=run.id, wait=NOTHING)).offers

    assert first.fence < the_offer.lease.fence


async def test_who_may_not_have_a_run_is_told_why(database: Database) -> None:
    """There is none, it is final, or it asks for labels that the caller lacks; also when it ends meanwhile."""
    flow = await register(database)
    over, ending = [await at_work(database, (await create(database, flow)).id) for _ in range(2)]
    await finish(database, over.lease, over.execution_id)
    labelled = await create(database, flow, labels=("b", "a", "c"))

    async with serving(database) as process:
        agent = Agent(process, labels=("b",))
        task = await polling(process, Agent(process), flow_run_id=ending.lease.flow_run_id)
        await finish(database, ending.lease, ending.execution_id)
        refusals = [
            await refused(agent.poll(flow_run_id=uuid4())),
            await refused(agent.poll(flow_run_id=over.lease.flow_run_id)),
            await refused(agent.poll(flow_run_id=labelled.id)),
            await refused(task),
        ]

    not_found, precondition = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION
    assert [
        (not_found, "FLOW_RUN_NOT_FOUND"),
        (precondition, "FLOW_RUN_FINAL"),
        (precondition, "LABELS_MISSING"),
        (precondition, "FLOW_RUN_FINAL"),
    ] == [(each.code, each.reason) for each in refusals]
    assert "SUCCEEDED" == refusals[1].metadata["present"]
    assert "a" in refusals[2].metadata["missing"]
    assert "b" not in refusals[2].metadata["missing"]


async def test_one_run_is_offered_once(database: Database) -> None:
    """However many name it, and streams would take it too."""
    flow = await register(database)

    async with serving(database) as one, serving(database) as other:
        run = await create(database, flow, labels=("x",))
        tasks = [
            asyncio.create_task(Agent(process, labels=("x",)).poll(flow_run_id=run.id, wait=20 * SOON))
            for process in (one, other)
            for _ in range(4)
        ]
        streams = [await Agent(process, labels=("x",)).open(credit=1) for process in (one, other)]
        found = [offers for task in tasks for offers in offered(await task)]
        for stream in streams:
            await stream.hear_echo()
            found += [each.flow_run.flow_run_id for each in stream.offers]
        entry = await entry_of(database, run.id)

    assert [str(run.id)] == found
    assert entry is not None
    assert (Phase.OFFERED, 1) == (entry.phase, entry.fence)


# Any run


async def test_a_poll_takes_the_first_batch(database: Database) -> None:
    """Best rank first, no more than it asks for, of lanes that it may take; what it accepts is held."""
    flow = await register(database)
    runs = sorted(await due_runs(database, 3, "a", flow=flow), key=lambda run: run.id)
    await due_runs(database, 1, "b", flow=flow)

    async with serving(database) as process:
        agent = Agent(process, labels=("a",))
        answer = await agent.poll(offers_max=2)
        assert [str(each.id) for each in runs[:2]] == offered(answer)
        assert [HELD] * 2 == await agent.accept(*answer.offers)

        assert [str(runs[2].id)] == offered(await agent.poll(offers_max=1_000, wait=NOTHING))
        assert [] == offered(await agent.poll(wait=NOTHING))
        assert [] == offered(await Agent(process, labels=("b",)).poll(offers_max=0, wait=NOTHING))


async def test_a_poll_without_patience_sees_more_than_one_take(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A take has a bound, and serves first whoever has most room; a poll that does not wait is served all the same."""
    monkeypatch.setattr("penstock.queue.dispatcher.OFFERS_PER_TAKE_MAX", 1)
    flow, due = await register(database), clock.now() + timedelta(hours=1)
    target = FlowTarget(flow.id)
    await attempt(database, *(a_creation(target=target, scheduled_start_time=due) for _ in range(30)))

    async with serving(database, deaf=True) as process:
        others = [await Agent(process).open(credit=2) for _ in range(10)]
        for each in others:
            await each.hear_echo()
        await process.dispatcher.all_handed_out(TENANT)
        clock.advance(timedelta(hours=1))

        assert 1 == len(offered(await Agent(process).poll(offers_max=1, wait=NOTHING)))


async def test_a_poll_is_answered_as_soon_as_something_is_due(database: Database) -> None:
    """By the hint of its creation, for polls as for streams."""
    flow = await register(database)

    async with serving(database) as process:
        task = await polling(process, Agent(process))
        run = await create(database, flow)

        assert [str(run.id)] == offered(await task)


async def test_a_poll_that_finds_nothing_ends(database: Database) -> None:
    """When its wait is over, named or not, empty."""
    later = await create(database, await register(database), labels=("x",), start_delay=SECOND)

    async with serving(database) as process:
        for flow_run_id in ("", later.id):
            answer = await Agent(process, labels=("x",)).poll(wait=SOON, flow_run_id=flow_run_id)
            assert pb.LeaseFlowRunsResponse() == answer


async def test_a_poll_is_answered_before_its_deadline(database: Database) -> None:
    """However long it would wait: an answer that comes too late could bear offers that nobody gets."""
    async with serving(database) as process:
        answer = await Agent(process).poll(wait=30 * SECOND, timeout=1.5)

    assert pb.LeaseFlowRunsResponse() == answer


async def test_who_polls_is_connected(database: Database, clock: FakeClock) -> None:
    """While it polls and for a while after; not when it went away."""
    async with serving(database) as process:
        agent, gone = Agent(process), Agent(process)
        await agent.poll(wait=NOTHING)
        call = await polling(process, gone)
        call.cancel()
        await until(lambda: not process.polls._polls)
        await process.dispatcher.drain()

        agents = (await process.operator.ListAgents(ListAgentsRequest())).agents
        assert {agent.agent_id: True, gone.agent_id: False} == {each.agent_id: each.healthy for each in agents}


async def test_a_newer_poll_replaces_the_older(database: Database) -> None:
    """Of one agent: ABORTED / SESSION_REPLACED, as for streams."""
    async with serving(database) as process:
        agent = Agent(process)
        older = await polling(process, agent)
        await agent.poll(wait=NOTHING)

        assert "SESSION_REPLACED" == (await refused(older)).reason


# What is held


@pytest.mark.parametrize("named", [False, True])
async def test_a_poll_says_what_is_over(database: Database, named: bool) -> None:
    """At once, of what it says it holds: the leases that are lost, and those whose runs are CANCELLING."""
    flow = await register(database)
    kept, stopping, lost = [await held(database, (await create(database, flow)).id) for _ in range(3)]
    await ask_to_stop(database, stopping)
    await release(database, lost)
    waited_for = await create(database, flow, start_delay=SECOND)

    async with serving(database) as process:
        answer = await Agent(process).poll(
            *map(to_proto, (kept, stopping, lost)), flow_run_id=waited_for.id if named else ""
        )

    assert ([to_proto(stopping)], [to_proto(lost)]) == (list(answer.stopping), list(answer.lost))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("hinted", [False, True])
async def test_a_poll_hears_of_it_meanwhile(database: Database, named: bool, hinted: bool) -> None:
    """By a hint, or by the sweep; a lease that was lost as well as one that shall stop."""
    flow = await register(database)
    waited_for = await create(database, flow, start_delay=SECOND)
    asked: dict[str, Any] = {"offers_max": 0, "flow_run_id": waited_for.id if named else ""}
    how: dict[str, Any] = {} if hinted else {"sweep": SOON, "deaf": True}

    async with serving(database, **how) as process:
        agent = Agent(process)
        for end in (ask_to_stop, release):
            lease = await held(database, (await create(database, flow)).id)
            task = await polling(process, agent, to_proto(lease), **asked)
            await end(database, lease)  # type: ignore[operator]
            answer = await task
            told = answer.stopping if end is ask_to_stop else answer.lost
            assert [to_proto(lease)] == list(told)
            assert 1 == len(answer.stopping) + len(answer.lost)


# The end of a poll


async def test_draining_answers_every_poll(database: Database) -> None:
    """With what it has, which is nothing; nobody may poll any more."""
    later = await create(database, await register(database), start_delay=SECOND)

    async with serving(database) as process:
        tasks = [await polling(process, Agent(process), flow_run_id=each) for each in ("", later.id)]

        await process.polls.drain()

        assert [pb.LeaseFlowRunsResponse()] * 2 == [await task for task in tasks]
        refusal = await refused(Agent(process).poll())
        assert (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE") == (refusal.code, refusal.reason)


async def test_a_dispatcher_that_drains_first_harms_no_poll(database: Database) -> None:
    """It is answered as well, with nothing."""
    async with serving(database) as process:
        task = await polling(process, Agent(process))

        await process.dispatcher.drain()

        assert pb.LeaseFlowRunsResponse() == await task


@pytest.mark.parametrize("named", [False, True])
async def test_a_caller_that_goes_away_keeps_nothing(database: Database, named: bool) -> None:
    """Neither what becomes due afterwards, nor what was just being offered when it went."""
    flow = await register(database)
    run = await create(database, flow, start_delay=SECOND)

    async with serving(database) as process:
        task = await polling(process, Agent(process), flow_run_id=run.id if named else "")
        task.cancel()
        await until(lambda: not process.polls._polls and not process.polls._watching)

        due = await create(database, flow)
        async with queue_locked(database):
            task = asyncio.create_task(Agent(process).poll(flow_run_id=due.id if named else ""))
            await until(lambda: bool(process.polls._polls))
            if named or database.engine.dialect.name == "postgresql":
                await until_blocked(database)
            task.cancel()
            await until(lambda: not process.polls._polls or not named)
        await process.polls.drain()
        await process.dispatcher.drain()

        entry = await entry_of(database, due.id)
        assert entry is not None
        assert Phase.WAITING is entry.phase


async def test_there_are_so_many_polls_and_no_more(database: Database) -> None:
    """RESOURCE_EXHAUSTED with a time to wait; one that has ended makes room."""
    async with serving(database, polls_max=1) as process:
        first = await polling(process, Agent(process))

        refusal = await refused(Agent(process).poll(wait=NOTHING))

        assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED") == (refusal.code, refusal.reason)
        assert refusal.retry_after is not None
        first.cancel()
        await until(lambda: not process.polls._polls)
        await Agent(process).poll(wait=NOTHING)


async def test_a_poll_that_is_wrong_in_itself_is_refused(database: Database) -> None:
    """Everything wrong is said at once, by its place."""
    wrong = pb.LeaseFlowRunsRequest(hello=pb.Hello(slots=1), offers_max=1_001, flow_run_id="x")
    wrong.wait.FromSeconds(31)

    async with serving(database) as process:
        refusals = [
            await refused(process.queue.LeaseFlowRuns(pb.LeaseFlowRunsRequest())),
            await refused(process.queue.LeaseFlowRuns(wrong)),
        ]

    fields = [{each.field for each in refusal.violations} for refusal in refusals]
    assert [{"hello"}, {"hello.agent_id", "hello.name", "offers_max", "wait", "flow_run_id"}] == fields


# What is asked of the database


class Counting:
    """A database that notes what it is asked."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked: list[Callable[..., Any]] = []
        self.watches: list[int] = []
        self.after_a_look: Callable[[], None] | None = None

    async def read(self, work: Callable[..., Any], *args: Any) -> Any:
        self.asked.append(work)
        answer = await self._database.read(work, *args)
        if work is operations.look:
            self.watches.append(len(args[1]))
            after, self.after_a_look = self.after_a_look, None
            if after:
                after()
        return answer

    async def run(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.asked.append(work)
        return await self._database.run(work, *args, **kwargs)


@contextlib.asynccontextmanager
async def waiting_polls(
    counting: Any, count: int, flow_run_id: FlowRunId, holding: tuple[Lease, ...] = ()
) -> AsyncIterator[Polls]:
    """So many polls for one run, which have looked for it once; each says that it holds these leases."""
    drawing, hour = Drawing(SystemClock()), timedelta(hours=1)
    dispatcher = Dispatcher(counting, drawing, offer_lease=OFFER_LEASE, sweep_interval=hour, heartbeat_interval=hour)
    polls = Polls(counting, dispatcher, drawing, offer_lease=OFFER_LEASE, sweep_interval=hour)
    serving_them = asyncio.create_task(polls.serve())
    hellos = [AgentHello(AgentId(an_id()), "agent", (), 1, "1", holding) for _ in range(count)]
    tasks = [asyncio.create_task(polls.lease(TENANT, Polling(hello, 1, 30 * SECOND, flow_run_id))) for hello in hellos]
    await until(lambda: 2 * count == len(counting.asked))
    counting.asked.clear()
    counting.watches.clear()
    yield polls
    await polls.drain()
    serving_them.cancel()
    await asyncio.wait([serving_them, *tasks])


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_polls_ask_together(database: Database, clock: FakeClock) -> None:
    """One question per hint that concerns any of them, and none in between."""
    run = await create(database, await register(database), scheduled_start_time=clock.now() + 60 * SECOND)
    counting = Counting(database)

    async with waiting_polls(counting, 20, run.id) as polls:
        for hint in (Hint(written={run.id}), Hint(moved={FlowRunId(an_id())}), Hint(due=True), Hint(stop=True)):
            polls.hear(hint)
        await asyncio.sleep(SOON.total_seconds())
        assert [] == counting.asked
        for count, hint in enumerate((Hint(moved={run.id}), Hint(anything=True)), 1):
            polls.hear(hint)
            await until(lambda wanted=count: len(counting.asked) == wanted)  # type: ignore[misc]

    assert ([operations.look] * 2, [20, 20]) == (counting.asked, counting.watches)


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_what_is_due_concerns_those_whose_run_was_on_offer(database: Database) -> None:
    """It may be given back without moving; any other run becomes due by moving, or at a time that is known."""
    (run,) = await due_runs(database, 1)
    lease = await offer(database, run.id)
    counting = Counting(database)

    async with waiting_polls(counting, 2, run.id) as polls:
        polls.hear(Hint(due=True))
        await until(lambda: [2] == counting.watches)
        assert [operations.look] == counting.asked
        await accept(database, lease)
        polls.hear(Hint(moved={run.id}))
        await until(lambda: [2, 2] == counting.watches)
        polls.hear(Hint(due=True))
        await asyncio.sleep(SOON.total_seconds())

    assert [2, 2] == counting.watches


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("holding", "slices"), [(0, [8, 8, 4]), (2, [2] * 10), (9, [1] * 20)])
async def test_a_sweep_goes_by_slices(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch, holding: int, slices: list[int]
) -> None:
    """No question is about more runs than one statement asks for, or about one poll; and everybody is asked for."""
    monkeypatch.setattr("penstock.queue.polling.LEASES_PER_CALL_MAX", 8)
    flow = await register(database)
    leases = [await held(database, (await create(database, flow)).id) for _ in range(holding)]
    run = await create(database, flow, scheduled_start_time=clock.now() + 60 * SECOND)
    counting = Counting(database)

    async with waiting_polls(counting, 20, run.id, tuple(leases)) as polls:
        polls.hear(Hint(anything=True))
        await until(lambda: 20 == sum(counting.watches))
        await asyncio.sleep(SOON.total_seconds())

    assert slices == counting.watches


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_a_hint_does_not_wait_for_a_sweep(
    database: Database, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those whom it concerns are asked for with the next slice."""
    monkeypatch.setattr("penstock.queue.polling.LEASES_PER_CALL_MAX", 1)
    run = await create(database, await register(database), scheduled_start_time=clock.now() + 60 * SECOND)
    counting = Counting(database)

    async with waiting_polls(counting, 10, run.id) as polls:
        counting.after_a_look = lambda: polls.hear(Hint(moved={run.id}))
        polls.hear(Hint(anything=True))
        await until(lambda: 10 in counting.watches)

    assert [1, 10] == counting.watches[:2]


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_looking_costs_as_much_as_there_are_polls(database: Database) -> None:
    """Four times as many cost four times as much, not sixteen times."""
    runs = [a_flow_run(State.RUNNING) for _ in range(800)]

    def insert(tx: Transaction) -> None:
        flow_runs.insert(tx, TENANT, runs)
        queue.insert(tx, TENANT, [an_entry(run) for run in runs])

    await database.run(insert)
    watches = [Watch(None, (Lease(run.id, run.fence),)) for run in runs]

    def calls(count: int) -> int:
        made = 0

        def count_one(*_: object) -> None:
            nonlocal made
            made += 1

        def look(tx: Transaction) -> None:
            sys.setprofile(count_one)
            try:
                operations.look(tx, TENANT, watches[:count])
            finally:
                sys.setprofile(None)

        database.read_here(look)
        return made

    calls(1)  # whatever is done only once
    assert calls(800) < 6 * calls(200)
