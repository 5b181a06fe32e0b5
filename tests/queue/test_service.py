"""QueueService over a real socket, on both databases."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import grpc
import pytest

from flowrun.v1 import lease_pb2
from flowrun.v1 import queue_service_pb2 as pb
from flowrun.v1.operator_service_pb2 import ListAgentsRequest
from penstock.domain.flow_run import GroupTarget
from penstock.domain.lease import Phase
from penstock.domain.limits import HELD_LEASE, LEASES_PER_CALL_MAX, MESSAGE_BYTES_MAX, OFFER_LEASE
from penstock.storage.database import Database
from penstock.wire.errors import Explained
from tests.queue.scenes import (
    SECOND,
    ask_to_stop,
    at_work,
    attempt,
    create,
    entry_of,
    everything,
    finish,
    held,
    offer,
    register,
    release,
)
from tests.queue.served import (
    Agent,
    due_runs,
    phases,
    queue_locked,
    refused,
    serving,
    to_proto,
    until,
    until_blocked,
)
from tests.support.builders import a_creation
from tests.support.fake_clock import FakeClock

NOBODY = str(UUID(int=1))
SOON = timedelta(milliseconds=50)
OUTCOME = lease_pb2.LeaseOutcome


# Hello


async def test_hello_is_welcomed(database: Database) -> None:
    """With the interval of heartbeats and the leases that are over; the agent is known from then on."""
    flow = await register(database)
    kept = await held(database, (await create(database, flow)).id)
    lost = await held(database, (await create(database, flow)).id)
    await release(database, lost)

    async with serving(database) as process:
        agent = await Agent(process, labels=("gpu",)).open(to_proto(kept), to_proto(lost))

        assert [to_proto(lost)] == list(agent.welcome.lost)
        assert timedelta(hours=1) == agent.welcome.heartbeat_interval.ToTimedelta()
        row = (await everything(database))["agents"][0]
        assert {UUID(agent.agent_id), "agent", ("gpu",), 10, "1"} <= set(row)
        entry = await entry_of(database, kept.flow_run_id)
        assert entry is not None
        assert UUID(agent.agent_id) == entry.holder


async def test_hello_comes_first_and_once(database: Database) -> None:
    """Anything else first, nothing at all, a second one, an empty message and a wrong Hello are refused by name."""
    async with serving(database) as process:

        async def said(*messages: pb.StreamFlowRunsRequest) -> Explained:
            agent = Agent(process)
            agent.call = process.queue.StreamFlowRuns()
            for message in messages:
                await agent.call.write(message)
            if not messages:
                await agent.call.done_writing()
            return await agent.refused()

        hello = pb.StreamFlowRunsRequest(hello=Agent(process).hello())
        credit = pb.StreamFlowRunsRequest(credit=pb.Credit(granted_total=1))
        wrong = pb.StreamFlowRunsRequest(hello=pb.Hello(agent_id="x", slots=0, labels=[" "]))
        refusals = [
            await said(credit),
            await said(),
            await said(hello, hello),
            await said(hello, pb.StreamFlowRunsRequest()),
            await said(wrong),
        ]

    assert {(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")} == {(each.code, each.reason) for each in refusals}
    fields = [{violation.field for violation in each.violations} for each in refusals]
    assert [{"hello"}, {"hello"}, {"hello"}, {"message"}, {"agent_id", "name", "labels[0]", "slots"}] == fields


# Credit and offers


async def test_an_offer_is_whole(database: Database) -> None:
    """It bears the run, its flow, the lease and the trace in which the run was created."""
    flow = await register(database)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    run = await create(database, flow, traceparent=f"00-{trace_id}-b7ad6b7169203331-01", parameters={"day": "x"})

    async with serving(database) as process:
        (offered,) = await (await Agent(process).open(credit=1)).hear_offers(1)

    assert (str(run.id), run.parameters_json) == (offered.flow_run.flow_run_id, offered.flow_run.parameters_json)
    assert (str(flow.id), "flows/report.py:report") == (offered.flow.flow_id, offered.flow.entry_point.python)
    assert (str(run.id), 1, OFFER_LEASE) == (
        offered.lease.flow_run_id,
        offered.lease.fence,
        offered.lease.ttl.ToTimedelta(),
    )
    assert trace_id == offered.trace_context["traceparent"].split("-")[1]


async def test_no_more_is_offered_than_was_allowed(database: Database) -> None:
    """Credit is a running total: repeated or smaller it changes nothing; larger, the difference is offered."""
    await due_runs(database, 8)

    async with serving(database) as process:
        agent = await Agent(process).open()
        await agent.hear_echo()
        assert [] == agent.offers
        await agent.allow(2)
        await agent.hear_offers(2)
        for total in (2, 1, 0, -5, 2):
            await agent.allow(total)
            await agent.hear_echo()
        process.dispatcher.wake()
        await process.dispatcher.run_once()
        await agent.hear_echo()
        assert 2 == len(agent.offers)

        await agent.allow(5)
        await agent.hear_offers(5)
        await process.dispatcher.run_once()
        await agent.hear_echo()

    assert 5 == len(agent.offers) == len({each.lease.flow_run_id for each in agent.offers})


async def test_what_is_due_comes_in_one_message(database: Database) -> None:
    """Best rank first."""
    runs = await due_runs(database, 20)

    async with serving(database) as process:
        agent = await Agent(process).open(credit=50)
        message = await agent.hear()

    assert sorted(str(each.id) for each in runs) == [each.flow_run.flow_run_id for each in message.offers.offers]


async def test_a_new_run_is_offered_at_once(database: Database) -> None:
    """By the hint of its creation: nobody sweeps here."""
    flow = await register(database)

    async with serving(database) as process:
        agent = await Agent(process).open(credit=3)
        await agent.hear_echo()
        for count in (1, 2, 3):
            await create(database, flow)
            await agent.hear_offers(count)

    assert 3 == len(agent.offers)


async def test_a_run_is_offered_when_it_becomes_due(database: Database, clock: FakeClock) -> None:
    """Never before; the dispatcher then waits for nothing else."""
    flow = await register(database)
    await create(database, flow, scheduled_start_time=clock.now() + 10 * SECOND)

    async with serving(database) as process:
        agent = await Agent(process).open(credit=1)
        await agent.hear_echo()
        assert 10 == await process.dispatcher.run_once()
        clock.advance(10 * SECOND)
        process.dispatcher.wake()

        assert 1 == len(await agent.hear_offers(1))


async def test_labels_decide(database: Database) -> None:
    """An agent takes what bears no other labels than its own; unlabelled runs are for agents without labels."""
    flow = await register(database)
    runs = {
        labels: str((await create(database, flow, labels=labels)).id) for labels in ((), ("a",), ("a", "b"), ("c",))
    }

    async with serving(database) as process:
        taken = {}
        for labels in ((), ("a", "x"), ("a", "b", "c")):
            agent = await Agent(process, labels=labels).open(credit=10)
            await agent.hear_echo()
            await process.dispatcher.run_once()
            await agent.hear_echo()
            taken[labels] = {each.flow_run.flow_run_id for each in agent.offers}

    assert {(): {runs[()]}, ("a", "x"): {runs["a",]}, ("a", "b", "c"): {runs["a", "b"], runs["c",]}} == taken


async def test_lanes_take_turns(database: Database) -> None:
    """However many wait in one lane, and however old, the others get their share."""
    flow = await register(database)
    for label, count in (("a", 20), ("b", 3), ("c", 3)):
        await due_runs(database, count, label, flow=flow)

    async with serving(database) as process:
        agent = await Agent(process, labels=("a", "b", "c")).open()
        for total in range(1, 7):
            await agent.allow(total)
            await agent.hear_offers(total)

    assert ["a", "a", "b", "b", "c", "c"] == sorted(each.flow_run.labels[0] for each in agent.offers)


async def test_agents_share_by_their_room(database: Database) -> None:
    """Who has more room gets more."""
    flow = await register(database)

    async with serving(database) as process:
        agents = [await Agent(process).open(credit=credit) for credit in (6, 2)]
        for agent in agents:
            await agent.hear_echo()
        await attempt(database, *(a_creation(target=GroupTarget(flow.group_id)) for _ in range(8)))
        for agent, count in zip(agents, (6, 2), strict=True):
            await agent.hear_offers(count)

    assert [6, 2] == [len(agent.offers) for agent in agents]


async def test_offers_are_cut_by_bytes(database: Database) -> None:
    """Of runs that would not fit into one message all come, in several, also where a character takes three bytes."""
    flow = await register(database)
    large = "\N{CJK UNIFIED IDEOGRAPH-6C34}" * 170_000
    for _ in range(14):
        await create(database, flow, parameters={"day": large})

    async with serving(database) as process:
        agent = await Agent(process).open(credit=14)
        await agent.hear_offers(14)

    sizes = [each.ByteSize() for each in agent.messages if each.HasField("offers")]
    assert 14 == len({each.flow_run.flow_run_id for each in agent.offers})
    assert len(sizes) >= 2
    assert max(sizes) <= MESSAGE_BYTES_MAX


async def test_an_offer_that_is_not_accepted_comes_again(database: Database, clock: FakeClock) -> None:
    """Once its time has run out, under a higher fence; the late acceptance is lost, the new one is held."""
    await due_runs(database, 1)

    async with serving(database) as process:
        agent = await Agent(process).open(credit=2)
        await agent.hear_offers(1)
        clock.advance(OFFER_LEASE)
        process.dispatcher.wake()
        first, second = await agent.hear_offers(2)

        assert second.lease.fence > first.lease.fence
        assert [OUTCOME.LEASE_OUTCOME_LOST, OUTCOME.LEASE_OUTCOME_HELD] == await agent.accept(first, second)


async def test_processes_share_one_queue(database: Database) -> None:
    """Two dispatchers offer every run once."""
    flow = await register(database)

    async with serving(database) as one, serving(database) as other:
        agents = [await Agent(process).open(credit=30) for process in (one, other)]
        runs = await due_runs(database, 30, flow=flow)
        readers = [asyncio.create_task(agent.hear_all()) for agent in agents]
        await until(lambda: sum(len(agent.offers) for agent in agents) >= 30)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)

    offered = [each.flow_run.flow_run_id for agent in agents for each in agent.offers]
    assert sorted(str(each.id) for each in runs) == sorted(offered)


# The end of a stream


async def test_half_closing_ends_with_ok(database: Database) -> None:
    """What was not accepted is waiting before the status arrives; what was stays held; nothing more is offered."""
    flow = await register(database)
    await due_runs(database, 3, flow=flow)

    async with serving(database) as process:
        agent = await Agent(process).open(credit=10)
        await agent.hear_offers(3)
        await agent.accept(agent.offers[0])

        code = await agent.half_close()
        await create(database, flow)
        await process.dispatcher.run_once()

        assert grpc.StatusCode.OK is code
        assert [Phase.HELD, Phase.WAITING, Phase.WAITING] == await phases(database, *agent.offers)
        assert 3 == len(agent.offers)
        agents = (await everything(database))["agents"]
        assert None in agents[0]


async def test_a_grant_under_way_at_half_close_is_given_back(database: Database) -> None:
    """It is not written to that stream, and waits again before anybody has to wait for its ttl."""
    flow = await register(database)

    async with serving(database) as process:
        agent = await Agent(process).open()
        run = await create(database, flow)
        async with queue_locked(database):
            await agent.allow(1)
            await agent.hear_echo()
            await until_blocked(database)
            closing = asyncio.create_task(agent.half_close())
            await agent.call.done_writing()
        assert grpc.StatusCode.OK is await closing
        await process.dispatcher.run_once()

        entry = await entry_of(database, run.id)
        assert entry is not None
        assert Phase.WAITING is entry.phase
        assert [] == agent.offers
        other = await Agent(process).open(credit=1)
        assert [str(run.id)] == [each.flow_run.flow_run_id for each in await other.hear_offers(1)]


async def test_an_agent_that_vanishes_keeps_no_offer(database: Database) -> None:
    """Its offers go to another agent at once."""
    await due_runs(database, 3)

    async with serving(database) as process:
        gone = await Agent(process).open(credit=3)
        await gone.hear_offers(3)
        other = await Agent(process).open(credit=3)
        await other.hear_echo()
        assert [] == other.offers

        gone.call.cancel()
        await other.hear_offers(3)

    fences = {each.lease.fence for each in other.offers}
    assert min(fences) > max(each.lease.fence for each in gone.offers)


async def test_an_agent_that_vanishes_while_it_joins_leaves_no_trace(database: Database) -> None:
    """An opening that is committed after its agent has gone is not its present stream."""
    async with serving(database) as process:
        agent = Agent(process)
        async with queue_locked(database):
            agent.call = process.queue.StreamFlowRuns()
            await agent.say(hello=agent.hello())
            await until_blocked(database)
            agent.call.cancel()
            # The server learns of it while the opening still waits for the lock.
            await process.operator.ListAgents(ListAgentsRequest())
        await process.dispatcher.drain()

    assert {None} >= {row[6] for row in (await everything(database))["agents"]}


async def test_a_silent_agent_loses_its_stream(database: Database) -> None:
    """After two and a half intervals: DEADLINE_EXCEEDED, and its offers wait again."""
    (run,) = await due_runs(database, 1)

    async with serving(database, heartbeat=6 * SOON) as process:
        agent = await Agent(process).open(credit=1)
        refusal = await agent.refused()

        assert (grpc.StatusCode.DEADLINE_EXCEEDED, "AGENT_SILENT") == (refusal.code, refusal.reason)
        assert {"agent_id": agent.agent_id} == refusal.metadata
        entry = await entry_of(database, run.id)
        assert entry is not None
        assert Phase.WAITING is entry.phase


async def test_an_agent_that_says_nothing_at_all_is_silent_too(database: Database) -> None:
    """Not even Hello."""
    async with serving(database, heartbeat=SOON) as process:
        agent = Agent(process)
        agent.call = process.queue.StreamFlowRuns()
        await agent.call.wait_for_connection()

        assert "AGENT_SILENT" == (await agent.refused()).reason


async def test_an_agent_that_does_not_echo_is_silent(database: Database) -> None:
    """It speaks, but shows no sign that it hears: after the third heartbeat without an echo the stream ends."""
    async with serving(database, heartbeat=4 * SOON) as process:
        agent = await Agent(process).open()
        heard = 0

        async def speak_without_echo() -> None:
            nonlocal heard
            while True:
                heard += (await agent.hear()).heartbeat.number > 0
                await agent.say(heartbeat=pb.Heartbeat(number=heard))

        with pytest.raises(grpc.aio.AioRpcError):
            await speak_without_echo()
        # Asked of the call: what a word meets that is just being said when the stream ends is not how it ended.
        code = await agent.call.code()

    assert grpc.StatusCode.DEADLINE_EXCEEDED is code
    assert heard >= 3


async def test_an_agent_that_echoes_lives(database: Database) -> None:
    """For many intervals; the server's heartbeats are numbered from one."""
    async with serving(database, heartbeat=6 * SOON) as process:
        agent = await Agent(process).open()
        numbers: list[int] = []
        while len(numbers) < 4:
            number = (await agent.hear()).heartbeat.number
            numbers.append(number)
            await agent.say(heartbeat=pb.Heartbeat(number=-number))

        assert grpc.StatusCode.OK is await agent.half_close()
    assert numbers[:4] == list(range(1, 5))


async def test_an_old_stream_is_ended(database: Database) -> None:
    """UNAVAILABLE, with a time to wait, so that agents spread over the replicas; its offers wait again."""
    await due_runs(database, 1)

    async with serving(database, age=4 * SOON) as process:
        agent = await Agent(process).open(credit=1)
        refusal = await agent.refused()

        assert grpc.StatusCode.UNAVAILABLE is refusal.code
        assert "old" in refusal.message
        assert refusal.retry_after is not None
        assert Phase.OFFERED not in await phases(database, *agent.offers)


async def test_draining_ends_every_stream(database: Database) -> None:
    """UNAVAILABLE with a time to wait; unaccepted offers wait again, held runs stay held, nobody may join."""
    await due_runs(database, 3)

    async with serving(database) as process:
        agents = [await Agent(process).open() for _ in range(2)]
        for agent, count in zip(agents, (1, 2), strict=True):
            await agent.allow(count)
            await agent.hear_offers(count)
        await agents[0].accept(*agents[0].offers)

        await process.dispatcher.drain()

        assert [Phase.HELD] == await phases(database, *agents[0].offers)
        assert [Phase.WAITING] * 2 == await phases(database, *agents[1].offers)
        refusals = [await each.refused() for each in agents]
        late = Agent(process)
        late.call = process.queue.StreamFlowRuns()
        await late.say(hello=late.hello())
        refusals.append(await late.refused())
        assert [grpc.StatusCode.UNAVAILABLE] * 3 == [each.code for each in refusals]
        assert all(each.retry_after for each in refusals)
        await process.dispatcher.run_once()
        assert [Phase.WAITING] * 2 == await phases(database, *agents[1].offers)


async def test_draining_gives_back_a_take_under_way(database: Database) -> None:
    """What was just being leased waits again when the drain is over, not when it expires."""
    flow = await register(database)

    async with serving(database) as process:
        agent = await Agent(process).open()
        run = await create(database, flow)
        async with queue_locked(database):
            await agent.allow(1)
            await agent.hear_echo()
            await until_blocked(database)
            draining = asyncio.create_task(process.dispatcher.drain())
            await asyncio.sleep(0)
        await draining

        entry = await entry_of(database, run.id)
        assert entry is not None
        assert Phase.WAITING is entry.phase
        assert [] == agent.offers


async def test_a_newer_stream_replaces_the_older_at_once(database: Database) -> None:
    """In one process: ABORTED / SESSION_REPLACED, and its offers go to the newer one."""
    await due_runs(database, 1)

    async with serving(database) as process:
        older = await Agent(process).open(credit=1)
        await older.hear_offers(1)
        newer = await Agent(process, agent_id=older.agent_id).open(credit=1)
        refusal = await older.refused()
        await newer.hear_offers(1)
        await process.dispatcher.touch_once()
        await newer.hear_echo()

    assert (grpc.StatusCode.ABORTED, "SESSION_REPLACED") == (refusal.code, refusal.reason)
    assert {"agent_id": older.agent_id} == refusal.metadata


async def test_a_newer_stream_replaces_the_older_elsewhere(database: Database) -> None:
    """In another process: with its next heartbeat the older one learns of it from the database."""
    async with serving(database) as one, serving(database) as other:
        older = await Agent(one).open()
        bystander = await Agent(one).open()
        await one.dispatcher.touch_once()
        await older.hear_echo()
        newer = await Agent(other, agent_id=older.agent_id).open()

        await one.dispatcher.touch_once()
        await other.dispatcher.touch_once()

        assert "SESSION_REPLACED" == (await older.refused()).reason
        await newer.hear_echo()
        await bystander.hear_echo()


# Leases


async def test_leases_are_accepted_renewed_and_released(database: Database, clock: FakeClock) -> None:
    """One result per lease, in order, with what is left of it."""
    flow = await register(database)
    runs = await due_runs(database, 3, flow=flow)

    async with serving(database) as process:
        agent = await Agent(process).open(credit=3)
        offers = await agent.hear_offers(3)
        accepted = await agent.accept(*offers[:2])
        again = await agent.accept(*offers[:2])
        clock.advance(20 * SECOND)
        leases = [each.lease for each in offers]
        renewed = await process.queue.RenewLeases(pb.RenewLeasesRequest(leases=leases[:2]))
        released = await process.queue.ReleaseFlowRuns(
            pb.ReleaseFlowRunsRequest(releases=[pb.Release(lease=each, reason="no room") for each in leases])
        )
        late = await process.queue.RenewLeases(pb.RenewLeasesRequest(leases=leases))

    held_outcome = OUTCOME.LEASE_OUTCOME_HELD
    assert [held_outcome] * 2 == accepted == again
    assert [(held_outcome, HELD_LEASE)] * 2 == [
        (each.outcome, each.lease.ttl.ToTimedelta()) for each in renewed.results
    ]
    assert {clock.now()} == {
        each.lease.expire_time.ToDatetime(clock.now().tzinfo) - HELD_LEASE for each in renewed.results
    }
    assert [OUTCOME.LEASE_OUTCOME_RELEASED] * 3 == [each.outcome for each in released.results]
    assert [OUTCOME.LEASE_OUTCOME_LOST] * 3 == [each.outcome for each in late.results]
    assert [each.lease.flow_run_id for each in offers] == [each.lease.flow_run_id for each in late.results]
    assert 3 == len(runs)


async def test_outcomes_say_what_became_of_a_lease(database: Database) -> None:
    """STOPPING, ENDED, LOST and STARTED reach the agent as such, however often a lease is named."""
    flow = await register(database)
    over = await at_work(database, (await create(database, flow)).id)
    await finish(database, over.lease, over.execution_id)
    running = await at_work(database, (await create(database, flow)).id)
    stopping = await held(database, (await create(database, flow)).id)
    await ask_to_stop(database, stopping)
    offered = await offer(database, (await create(database, flow)).id)
    leases = list(map(to_proto, (over.lease, running.lease, stopping, offered, running.lease)))

    async with serving(database) as process:
        renewed = await process.queue.RenewLeases(pb.RenewLeasesRequest(leases=leases))
        released = await process.queue.ReleaseFlowRuns(
            pb.ReleaseFlowRunsRequest(releases=[pb.Release(lease=each) for each in [*leases, leases[3]]])
        )

    assert ["ENDED", "HELD", "STOPPING", "LOST", "HELD"] == names_of(renewed.results)
    assert ["ENDED", "STARTED", "RELEASED", "RELEASED", "STARTED", "RELEASED"] == names_of(released.results)


def names_of(results: list[lease_pb2.LeaseResult]) -> list[str]:
    return [OUTCOME.Name(each.outcome).removeprefix("LEASE_OUTCOME_") for each in results]


async def test_a_lease_named_often_is_accepted_once(database: Database) -> None:
    """Within one call, and by calls at once."""
    await due_runs(database, 1)

    async with serving(database) as process:
        agent = await Agent(process).open(credit=1)
        (offered,) = await agent.hear_offers(1)
        outcomes = await asyncio.gather(*(agent.accept(offered, offered) for _ in range(5)))
        thief = Agent(process)
        assert [OUTCOME.LEASE_OUTCOME_LOST] == await thief.accept(offered)

    assert [[OUTCOME.LEASE_OUTCOME_HELD] * 2] * 5 == outcomes
    assert 1 == len((await everything(database))["executions"])


async def test_as_many_leases_as_a_call_may_name(database: Database) -> None:
    """The limit is served, one more is refused; so is none, and one that is wrong in itself."""
    some = [lease_pb2.Lease(flow_run_id=str(uuid4()), fence=1) for _ in range(LEASES_PER_CALL_MAX)]

    async with serving(database) as process:
        queue = process.queue
        accepted = await queue.AcceptFlowRuns(pb.AcceptFlowRunsRequest(agent_id=NOBODY, leases=some))
        renewed = await queue.RenewLeases(pb.RenewLeasesRequest(leases=some))
        releases = [pb.Release(lease=each) for each in some]
        released = await queue.ReleaseFlowRuns(pb.ReleaseFlowRunsRequest(releases=releases))
        refusals = [
            await refused(queue.AcceptFlowRuns(pb.AcceptFlowRunsRequest(leases=[*some, some[0]]))),
            await refused(queue.RenewLeases(pb.RenewLeasesRequest())),
            await refused(queue.RenewLeases(pb.RenewLeasesRequest(leases=[lease_pb2.Lease()]))),
            await refused(queue.ReleaseFlowRuns(pb.ReleaseFlowRunsRequest(releases=[*releases, releases[0]]))),
        ]

    for answer in (accepted, renewed, released):
        assert ["LOST"] * LEASES_PER_CALL_MAX == names_of(answer.results)
    fields = [{violation.field for violation in each.violations} for each in refusals]
    assert [
        {"agent_id", "leases"},
        {"leases"},
        {"leases[0].flow_run_id", "leases[0].fence"},
        {"releases"},
    ] == fields
