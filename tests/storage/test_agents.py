"""Agents as rows, on both databases. Their sessions are in `tests/queue/test_operations.py`."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from penstock.domain.agent import AgentHello
from penstock.domain.ids import AgentId, StreamId, TenantId
from penstock.domain.lease import Phase
from penstock.domain.queries import Page
from penstock.domain.state import State
from penstock.storage import agents, queue
from penstock.storage.database import Database
from tests.queue.scenes import AGENT, OTHER_AGENT, SECOND, TENANT
from tests.support.builders import a_flow_run, an_entry, an_id
from tests.support.fake_clock import NOON, FakeClock

HOUR = timedelta(hours=1)
ONE, TWO = StreamId(an_id()), StreamId(an_id())


def a_hello(agent_id: AgentId = AGENT, **fields: Any) -> AgentHello:
    said: dict[str, Any] = {"agent_id": agent_id, "name": "a", "labels": (), "slots": 1, "version": "1"}
    return AgentHello(**(said | fields))


async def test_a_new_hello_is_written_over_the_old(database: Database, clock: FakeClock) -> None:
    """An agent has one row, which says what it said last."""
    await database.run(agents.connect, TENANT, a_hello(labels=("x", "ü")), ONE)
    clock.advance(SECOND)
    await database.run(agents.connect, TENANT, a_hello(name="b", labels=("y",), slots=9, version="2"), TWO)

    (agent,) = await database.read(agents.list_agents, TENANT, Page(9), proven_within=HOUR)

    assert (agent.agent_id, agent.name, agent.labels, agent.slots, agent.version) == (AGENT, "b", ("y",), 9, "2")
    assert (agent.connect_time, agent.last_seen_time) == (NOON + SECOND, NOON + SECOND)


async def test_who_was_seen_is_written_and_told(database: Database, clock: FakeClock) -> None:
    """With the present stream of each; who is unknown is left out, and others stay as they were."""
    for agent, stream in ((AGENT, ONE), (OTHER_AGENT, TWO)):
        await database.run(agents.connect, TENANT, a_hello(agent), stream)
    clock.advance(SECOND)

    assert await database.run(agents.seen, TENANT, [AGENT, AGENT, AgentId(an_id())]) == {AGENT: ONE}
    assert await database.run(agents.seen, TENANT, []) == {}

    listed = await database.read(agents.list_agents, TENANT, Page(9), proven_within=HOUR)
    assert [(each.agent_id, each.last_seen_time) for each in listed] == [(AGENT, NOON + SECOND), (OTHER_AGENT, NOON)]


async def test_only_its_own_stream_disconnects_an_agent(database: Database) -> None:
    """And only where it has none does a stream take the place."""
    await database.run(agents.connect, TENANT, a_hello(), TWO)

    await database.run(agents.disconnect, TENANT, AGENT, ONE)
    await database.run(agents.reconnect, TENANT, AGENT, ONE)
    assert await database.run(agents.seen, TENANT, [AGENT]) == {AGENT: TWO}
    await database.run(agents.disconnect, TENANT, AGENT, TWO)
    assert await database.run(agents.seen, TENANT, [AGENT]) == {AGENT: None}
    await database.run(agents.reconnect, TENANT, AGENT, ONE)
    assert await database.run(agents.seen, TENANT, [AGENT]) == {AGENT: ONE}


async def test_tenants_have_their_own(database: Database) -> None:
    """The same agent id is another agent elsewhere."""
    other = TenantId(UUID(int=7))
    await database.run(agents.connect, TENANT, a_hello(name="ours"), ONE)
    await database.run(agents.connect, other, a_hello(name="theirs"), TWO)

    for tenant, name in ((TENANT, "ours"), (other, "theirs")):
        listed = await database.read(agents.list_agents, tenant, Page(9), proven_within=HOUR)
        assert [each.name for each in listed] == [name]


async def test_who_is_connected(database: Database, clock: FakeClock) -> None:
    """Who has an open stream and proved to live of late, with what it holds; nobody else."""
    gone, silent = AgentId(an_id()), AgentId(an_id())
    await database.run(agents.connect, TENANT, a_hello(silent), ONE)
    clock.advance(HOUR)
    for agent in (AGENT, OTHER_AGENT, gone):
        await database.run(agents.connect, TENANT, a_hello(agent), StreamId(agent))
    await database.run(agents.disconnect, TENANT, gone, StreamId(gone))
    held = [an_entry(a_flow_run(state), holder=AGENT) for state in (State.RUNNING, State.CANCELLING)]
    offered = an_entry(a_flow_run(), phase=Phase.OFFERED, holder=OTHER_AGENT, grant_time=NOON, lease_expire_time=NOON)
    await database.run(queue.insert, TENANT, [*held, offered, an_entry(a_flow_run())])

    found = await database.read(agents.connected, TENANT, proven_within=HOUR - SECOND)

    assert {AGENT: 2, OTHER_AGENT: 0} == {each.agent_id: each.slots_used for each in found}
    assert all(each.healthy for each in found)
