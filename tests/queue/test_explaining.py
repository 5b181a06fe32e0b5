"""Why a run is not running, over a real socket and through the real dispatcher, on both databases."""

from collections.abc import Awaitable, Callable
from uuid import uuid4

import grpc
import pytest

from flowrun.v1 import operator_service_pb2 as pb
from penstock.domain.flow_run import FlowRun, Succeeded
from penstock.domain.ids import ExecutionId
from penstock.domain.lanes import AGENTLESS
from penstock.domain.lease import Lease
from penstock.domain.limits import OFFER_LEASE
from penstock.storage.database import Database
from tests.queue.scenes import SECOND, at_work, create, finish, register, start
from tests.queue.served import Agent, QueueProcess, refused, serving
from tests.support.builders import an_id
from tests.support.fake_clock import FakeClock

LABELS = ("a", "b")
Clear = Callable[[], Awaitable[object]]


async def explained(process: QueueProcess, run: FlowRun) -> pb.ExplainFlowRunResponse:
    answer = await process.operator.ExplainFlowRun(pb.ExplainFlowRunRequest(flow_run_id=str(run.id)))
    assert isinstance(answer, pb.ExplainFlowRunResponse)
    assert str(run.id) == answer.flow_run.flow_run_id
    return answer


async def kinds(process: QueueProcess, run: FlowRun) -> set[str]:
    obstacles = (await explained(process, run)).obstacles
    found = [each.WhichOneof("kind") for each in obstacles]
    assert len(found) == len(set(found))
    return set(found)


async def busy_agent(process: QueueProcess, database: Database, *labels: str) -> tuple[Agent, Clear]:
    """An agent at work on its only slot, and what frees it."""
    work = await create(database, await register(database), labels=labels)
    agent = await Agent(process, labels=labels, slots=1).open(credit=1)
    (offered,) = await agent.hear_offers(1)
    await agent.accept(offered)
    lease, execution_id = Lease(work.id, offered.lease.fence), ExecutionId(an_id())
    await start(database, lease, execution_id)

    async def free() -> None:
        await finish(database, lease, execution_id, Succeeded())
        await agent.allow(2)

    return agent, free


AGENT_BLOCKERS = ("no_agent", "agents_busy", "agentless", None)
SETS = [
    (agent_blocker, due, labels, backwards)
    for agent_blocker in AGENT_BLOCKERS
    for due in (True, False)
    for labels in ((), LABELS)
    # Only two that can be cleared have an order.
    for backwards in ((False, True) if agent_blocker in ("no_agent", "agents_busy") and not due else (False,))
    if agent_blocker or not due
]


@pytest.mark.parametrize(("agent_blocker", "due", "labels", "backwards"), SETS)
async def test_every_obstacle_is_told_and_each_can_be_cleared(
    database: Database,
    clock: FakeClock,
    agent_blocker: str | None,
    due: bool,
    labels: tuple[str, ...],
    backwards: bool,
) -> None:
    """Whatever holds a run back, all of it is told at once; cleared one after the other, in whatever order, the rest
    is told; and with nothing left to tell the run starts, not before."""
    borne = (*labels, AGENTLESS) if agent_blocker == "agentless" else labels
    async with serving(database) as process:
        clearing: dict[str, Clear] = {}
        takers: list[Agent] = []
        if agent_blocker == "agents_busy":
            agent, clearing["agents_busy"] = await busy_agent(process, database, *labels)
            takers.append(agent)
        if agent_blocker in ("no_agent", "agentless"):
            await Agent(process, labels=("a", "x")).open(credit=9)  # which may take none of these
        if agent_blocker is None:
            takers.append(await Agent(process, labels=labels).open(credit=1))
        run = await create(
            database, await register(database), labels=borne, start_delay=0 * SECOND if due else 9 * SECOND
        )

        async def connect() -> None:
            takers.append(await Agent(process, labels=labels).open(credit=1))

        async def pass_time() -> None:
            clock.advance(9 * SECOND)
            process.dispatcher.wake()

        async def name_it() -> None:
            assert [] != (await Agent(process).poll(flow_run_id=run.id)).offers

        clearing |= {"no_agent": connect} if agent_blocker == "no_agent" else {}
        clearing |= {} if due else {"due_time": pass_time}
        # Who names an agentless run takes it, so that is always the last thing to do.
        order = sorted(clearing, reverse=backwards)
        clearing |= {"agentless": name_it} if agent_blocker == "agentless" else {}
        order += ["agentless"] if agent_blocker == "agentless" else []

        left = set(order)
        assert left
        for blocker in order:
            await process.dispatcher.run_once()
            assert left == await kinds(process, run)
            assert str(run.id) not in {each.flow_run.flow_run_id for agent in takers for each in agent.offers}
            await clearing[blocker]()
            left.discard(blocker)

        if takers:
            offers = await takers[0].hear_offers(2 if agent_blocker == "agents_busy" else 1)
            assert str(run.id) == offers[-1].flow_run.flow_run_id
        assert set() == await kinds(process, run)


async def test_the_nearest_agent_is_named(database: Database) -> None:
    """The connected one that lacks the fewest labels, and what it lacks; one that is gone does not count."""
    run = await create(database, await register(database), labels=("a", "b", "c"))

    async with serving(database) as process:
        (obstacle,) = (await explained(process, run)).obstacles
        assert pb.NoAgent(labels=["a", "b", "c"], missing=["a", "b", "c"]) == obstacle.no_agent

        await Agent(process, labels=("a",)).open()
        nearest = await Agent(process, labels=("b", "c", "x")).open()
        gone = await Agent(process, labels=("a", "b", "c")).open()
        await gone.half_close()
        (obstacle,) = (await explained(process, run)).obstacles

    assert (nearest.agent_id, ["a"]) == (obstacle.no_agent.nearest.agent_id, list(obstacle.no_agent.missing))
    assert obstacle.no_agent.nearest.healthy


async def test_an_unlabelled_run_needs_an_unlabelled_agent(database: Database) -> None:
    """An agent with labels lacks none of it, and may not take it all the same."""
    run = await create(database, await register(database))

    async with serving(database) as process:
        other = await Agent(process, labels=("a", "b")).open()
        nearest = await Agent(process, labels=("a",)).open()
        (obstacle,) = (await explained(process, run)).obstacles

    assert (nearest.agent_id, [], []) == (
        obstacle.no_agent.nearest.agent_id,
        list(obstacle.no_agent.labels),
        list(obstacle.no_agent.missing),
    )
    assert other.agent_id != nearest.agent_id


async def test_an_agent_that_fell_silent_is_not_connected(database: Database, clock: FakeClock) -> None:
    """By the rule by which agents are listed as healthy."""
    run = await create(database, await register(database), labels=("a",))

    async with serving(database) as process:
        await Agent(process, labels=("a",)).open()
        assert set() == await kinds(process, run)
        clock.advance(10_000 * SECOND)
        assert {"no_agent"} == await kinds(process, run)
        await process.dispatcher.touch_once()
        assert set() == await kinds(process, run)


async def test_busy_agents_are_all_named(database: Database) -> None:
    """As long as none has a slot; those that may not take the run do not count."""
    flow = await register(database)

    async with serving(database) as process:
        busy = [(await busy_agent(process, database, "a"))[0] for _ in range(2)]
        await Agent(process, labels=("b",)).open()
        run = await create(database, flow, labels=("a",))
        (obstacle,) = (await explained(process, run)).obstacles
        assert {each.agent_id for each in busy} == {each.agent_id for each in obstacle.agents_busy.agents}
        assert {1} == {each.slots_used for each in obstacle.agents_busy.agents}

        await Agent(process, labels=("a", "c")).open()
        assert set() == await kinds(process, run)


async def test_what_moves_has_no_obstacle(database: Database, clock: FakeClock) -> None:
    """A run that is offered, runs or is final; one whose offer ran out waits again."""
    flow = await register(database)
    running = await at_work(database, (await create(database, flow)).id)
    over = await at_work(database, (await create(database, flow)).id)
    await finish(database, over.lease, over.execution_id)

    async with serving(database) as process:
        offered = await create(database, flow, labels=("a",))
        assert [] != (await Agent(process, labels=("a",)).poll(flow_run_id=offered.id)).offers
        for run_id, state in ((running.lease.flow_run_id, "RUNNING"), (over.lease.flow_run_id, "SUCCEEDED")):
            answer = await process.operator.ExplainFlowRun(pb.ExplainFlowRunRequest(flow_run_id=str(run_id)))
            assert [] == list(answer.obstacles)
            assert state in str(answer.flow_run)
            assert "" == answer.flow_run.parameters_json
        assert set() == await kinds(process, offered)
        clock.advance(OFFER_LEASE)
        assert {"no_agent"} == await kinds(process, offered)


async def test_what_cannot_be_explained_is_refused(database: Database) -> None:
    """A run that there is not, and what is no id."""
    async with serving(database) as process:
        refusals = [
            await refused(process.operator.ExplainFlowRun(pb.ExplainFlowRunRequest(flow_run_id=text)))
            for text in (str(uuid4()), "", "x")
        ]

    assert [
        (grpc.StatusCode.NOT_FOUND, "FLOW_RUN_NOT_FOUND"),
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"),
    ] == [(each.code, each.reason) for each in refusals]
