"""Agents: who connected, on which stream, and when each was last heard of."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from pendulum import DateTime
from sqlalchemy import Row, Select, func, select, tuple_, update

from penstock.domain.agent import Agent, AgentHello
from penstock.domain.ids import AgentId, StreamId, TenantId
from penstock.domain.queries import Page
from penstock.storage import dialect
from penstock.storage.database import Transaction
from penstock.storage.flows import TIME_AND_ID
from penstock.storage.queue import HOLDING, IS_LEASED
from penstock.storage.schema import agents, queue_entries

column = agents.c


def connect(tx: Transaction, tenant: TenantId, hello: AgentHello, stream_id: StreamId) -> None:
    """Write an agent and the stream that is now its only one."""
    said = {
        "name": hello.name,
        "labels": hello.labels,
        "slots": hello.slots,
        "version": hello.version,
        "stream_id": stream_id,
        "connect_time": tx.now,
        "last_seen_time": tx.now,
    }
    row = {"tenant_id": tenant, "agent_id": hello.agent_id, **said}
    if not dialect.insert_unless_present(tx.conn, agents, [row]):
        this = (column.tenant_id == tenant, column.agent_id == hello.agent_id)
        tx.conn.execute(update(agents).where(*this).values(said))


def reconnect(tx: Transaction, tenant: TenantId, agent_id: AgentId, stream_id: StreamId) -> None:
    """Write that a stream is its agent's present one, unless another one is."""
    this = (column.tenant_id == tenant, column.agent_id == agent_id, column.stream_id.is_(None))
    tx.conn.execute(update(agents).where(*this).values(stream_id=stream_id))


def disconnect(tx: Transaction, tenant: TenantId, agent_id: AgentId, stream_id: StreamId) -> None:
    """Write that a stream ended, unless the agent has opened another since."""
    this = (column.tenant_id == tenant, column.agent_id == agent_id, column.stream_id == stream_id)
    tx.conn.execute(update(agents).where(*this).values(stream_id=None))


def seen(tx: Transaction, tenant: TenantId, agent_ids: Iterable[AgentId]) -> Mapping[AgentId, UUID | None]:
    """Write that these agents live, in one statement; return which stream is each one's present one."""
    ids = sorted(set(agent_ids))
    if not ids:
        return {}
    living = update(agents).where(column.tenant_id == tenant, column.agent_id.in_(ids)).values(last_seen_time=tx.now)
    rows = tx.conn.execute(living.returning(column.agent_id, column.stream_id))
    return {row.agent_id: row.stream_id for row in rows}


def list_agents(tx: Transaction, tenant: TenantId, page: Page, *, proven_within: timedelta) -> list[Agent]:
    """A page of agents, the last seen first. One is healthy if its stream is open and proved to live of late."""
    listed = _with_slots_used(tenant)
    if page.after:
        listed = listed.where(tuple_(column.last_seen_time, column.agent_id) < tuple_(*page.after, types=TIME_AND_ID))
    listed = listed.order_by(column.last_seen_time.desc(), column.agent_id.desc()).limit(page.size)
    since = tx.now - proven_within
    return [_from_row(row, since) for row in tx.conn.execute(listed)]


def connected(tx: Transaction, tenant: TenantId, *, proven_within: timedelta) -> list[Agent]:
    """Every agent that is healthy."""
    since = tx.now - proven_within
    found = _with_slots_used(tenant).where(column.stream_id.is_not(None), column.last_seen_time >= since)
    return [_from_row(row, since) for row in tx.conn.execute(found.order_by(column.agent_id))]


def _with_slots_used(tenant: TenantId) -> Select[Any]:
    """Agents, each with how many leases it holds; counted in one pass over the leases, not in one for each agent."""
    held = queue_entries.c
    used = (
        select(held.holder, func.count().label("slots_used"))
        .where(held.tenant_id == tenant, IS_LEASED, held.phase.in_(HOLDING))
        .group_by(held.holder)
        .subquery()
    )
    counted = func.coalesce(used.c.slots_used, 0).label("slots_used")
    agents_and_used = agents.outerjoin(used, used.c.holder == column.agent_id)
    return select(agents, counted).select_from(agents_and_used).where(column.tenant_id == tenant)


def _from_row(row: Row[Any], proven_since: DateTime) -> Agent:
    return Agent(
        agent_id=row.agent_id,
        name=row.name,
        labels=row.labels,
        slots=row.slots,
        slots_used=row.slots_used,
        version=row.version,
        healthy=row.stream_id is not None and row.last_seen_time >= proven_since,
        connect_time=row.connect_time,
        last_seen_time=row.last_seen_time,
    )
