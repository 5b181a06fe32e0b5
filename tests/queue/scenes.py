"""Flows and runs in a database, brought as far through the queue as a test needs."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, TypeVar

from sqlalchemy import text

from penstock.domain.agent import Releasing
from penstock.domain.errors import Refusal
from penstock.domain.flow import Flow
from penstock.domain.flow_run import (
    Cancelling,
    Created,
    Creation,
    Finishing,
    FlowRun,
    FlowTarget,
    Outcome,
    Restarting,
    Starting,
    Stopped,
    Succeeded,
    Transition,
)
from penstock.domain.ids import (
    DEFAULT_TENANT,
    AgentId,
    ExecutionId,
    FlowGroupId,
    FlowId,
    FlowRunId,
    LaneId,
    ProcessId,
    ProjectId,
)
from penstock.domain.lanes import Lane
from penstock.domain.lease import Change, Entry, Lease, LeaseOutcome, LeaseResult, Phase
from penstock.domain.limits import HELD_LEASE, OFFER_LEASE
from penstock.domain.queries import PositionPage
from penstock.domain.state import Cause, State
from penstock.flow_run import creation, flow_operations
from penstock.flow_run import operations as flow_run_operations
from penstock.flow_run.flow_operations import FreshIds
from penstock.flow_run.operations import Started
from penstock.keeper.expired_leases import expire_leases
from penstock.queue import operations
from penstock.queue.operations import Accepting, Grant, Taken
from penstock.storage import executions, flow_runs, queue
from penstock.storage.database import Database, Transaction
from penstock.storage.schema import metadata, queue_entries
from tests.support.builders import a_creation, a_registration, an_id

TENANT: Final = DEFAULT_TENANT
HOLDER: Final = ProcessId(an_id())
AGENT: Final = AgentId(an_id())
OTHER_AGENT: Final = AgentId(an_id())
SECOND: Final = timedelta(seconds=1)
ROOM: Final = 100

T = TypeVar("T")
Rows = Mapping[str, Sequence[tuple[Any, ...]]]


@dataclass(frozen=True)
class AtWork:
    """A lease on a run that was started, and the execution that started it."""

    lease: Lease
    execution_id: ExecutionId


async def register(database: Database, **fields: Any) -> Flow:
    """The live flow of its group, registered if that is not what is live."""
    fresh = FreshIds(ProjectId(an_id()), FlowGroupId(an_id()), FlowId(an_id()))
    flow, _ = await database.run(flow_operations.register_flow, TENANT, fresh, a_registration(**fields))
    return flow


async def attempt(database: Database, *creations: Creation) -> list[Created | Refusal]:
    """Ask for runs in one transaction; one outcome each."""
    return await database.run(creation.create_flow_runs, TENANT, creations)


async def create(database: Database, flow: Flow, **fields: Any) -> FlowRun:
    """A new run of a flow."""
    (created,) = await attempt(database, a_creation(**({"target": FlowTarget(flow.id)} | fields)))
    assert isinstance(created, Created), created
    assert created.flow_run is not None
    return created.flow_run


async def take_all(
    database: Database,
    room: int = ROOM,
    *,
    rooms: Mapping[LaneId, int] | None = None,
    holder: ProcessId = HOLDER,
    ttl: timedelta = OFFER_LEASE,
) -> Taken:
    """Take what is due, `room` of each lane, or as `rooms` says."""

    def rooms_of(lanes: Sequence[Lane]) -> Mapping[LaneId, int]:
        return {lane.id: room for lane in lanes} if rooms is None else rooms

    return await database.run(operations.take, TENANT, rooms_of, holder=holder, ttl=ttl)


async def take(database: Database, room: int = ROOM, **asked: Any) -> list[Grant]:
    return list((await take_all(database, room, **asked)).grants)


async def offer(database: Database, flow_run_id: FlowRunId) -> Lease:
    """The lease of an offer of that run, which must be due."""
    leases = {grant.run.id: grant.held.lease for grant in await take(database)}
    return leases[flow_run_id]


async def accept(database: Database, *leases: Lease, agent_id: AgentId = AGENT) -> list[LeaseResult]:
    acceptings = [Accepting(lease, agent_id) for lease in leases]
    return await database.run(operations.accept_flow_runs, TENANT, acceptings, ttl=HELD_LEASE)


async def renew(database: Database, *leases: Lease, ttl: timedelta = HELD_LEASE) -> list[LeaseResult]:
    return await database.run(operations.renew_leases, TENANT, leases, ttl=ttl)


async def release(database: Database, lease: Lease, delay: timedelta = timedelta(0), reason: str = "") -> LeaseOutcome:
    (result,) = await database.run(operations.release_flow_runs, TENANT, [Releasing(lease, delay, reason)])
    assert lease == result.lease
    return result.outcome


async def start(database: Database, lease: Lease, execution_id: ExecutionId) -> Started | Refusal:
    starting = Starting(lease.flow_run_id, lease.fence, execution_id)
    (started,) = await database.run(flow_run_operations.start_flow_runs, TENANT, [starting], ttl=HELD_LEASE)
    return started


async def finish(
    database: Database, lease: Lease, execution_id: ExecutionId | None, outcome: Outcome | None = None
) -> FlowRun | Refusal:
    finishing = Finishing(lease.flow_run_id, lease.fence, execution_id, outcome or Succeeded())
    (finished,) = await database.run(flow_run_operations.finish_flow_runs, TENANT, [finishing])
    return finished


async def cancel(database: Database, flow_run_id: FlowRunId, reason: str = "") -> FlowRun | Refusal:
    cancelling = Cancelling(flow_run_id, reason)
    (answer,) = await database.run(flow_run_operations.cancel_flow_runs, TENANT, [cancelling])
    return answer


async def restart(database: Database, run: FlowRun, **fields: Any) -> FlowRun:
    """Another attempt of that run, which ended with its version."""
    restarting = Restarting(run.id, **({"version": run.version} | fields))
    return await database.run(flow_run_operations.restart_flow_run, TENANT, restarting)


async def delete(database: Database, flow_run_id: FlowRunId) -> bool:
    return await database.run(flow_run_operations.delete_flow_run, TENANT, flow_run_id)


async def expire(database: Database) -> int:
    return await database.run(expire_leases, TENANT, ttl=HELD_LEASE)


async def held(database: Database, flow_run_id: FlowRunId) -> Lease:
    """A lease on that run, accepted."""
    lease = await offer(database, flow_run_id)
    (result,) = await accept(database, lease)
    assert result.outcome is LeaseOutcome.HELD
    return lease


async def at_work(database: Database, flow_run_id: FlowRunId) -> AtWork:
    """That run, RUNNING."""
    work = AtWork(await held(database, flow_run_id), ExecutionId(an_id()))
    assert isinstance(await start(database, work.lease, work.execution_id), Started)
    return work


def asking_to_stop(tx: Transaction, lease: Lease) -> None:
    """Let a held run be CANCELLING, as a cancellation will."""
    (entry,) = queue.hold(tx, TENANT, [lease]).values()
    run = flow_runs.get(tx, TENANT, lease.flow_run_id)
    stopping = replace(run, state=State.CANCELLING, version=run.version + 1)
    step = Transition(run.id, stopping.version, stopping.state, Cause.CANCEL_ASKED, "", tx.now, run.attempt)
    queue.save(tx, TENANT, [Change(run, entry, stopping, replace(entry, phase=Phase.STOPPING), step)])


async def ask_to_stop(database: Database, lease: Lease) -> None:
    await database.run(asking_to_stop, lease)


async def run_of(database: Database, flow_run_id: FlowRunId) -> FlowRun:
    return await database.read(flow_run_operations.get_flow_run, TENANT, flow_run_id)


async def steps_of(database: Database, flow_run_id: FlowRunId) -> list[Transition]:
    return await database.read(flow_runs.list_transitions, TENANT, flow_run_id, PositionPage(1_000))


async def entry_of(database: Database, flow_run_id: FlowRunId) -> Entry | None:
    """The queue entry of a run; None once it is final."""

    def read(tx: Transaction) -> Entry | None:
        found = queue_entries.select().where(queue.entry.flow_run_id == flow_run_id)
        row = tx.conn.execute(found).one_or_none()
        return None if row is None else Entry(**{name: getattr(row, name) for name in Entry.__slots__})

    return await database.read(read)


async def execution_of(database: Database, lease: Lease) -> Any:
    return (await database.read(executions.by_lease, TENANT, [lease])).get(lease)


async def everything(database: Database, *leaving_out: str) -> Rows:
    """Every row of every table: what a call that changes nothing leaves as it is."""

    def read(tx: Transaction) -> Rows:
        return {
            table.name: sorted(map(tuple, tx.conn.execute(table.select())), key=repr)
            for table in metadata.sorted_tables
            if table.name not in leaving_out
        }

    return await database.read(read)


async def until_someone_waits(database: Database) -> None:
    """On PostgreSQL, until a transaction waits for another's lock. On SQLite a second writer cannot even begin."""

    def waiting(tx: Transaction) -> int:
        if tx.conn.dialect.name == "sqlite":
            return 1
        found = text(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
            "WHERE NOT l.granted AND a.datname = current_database()"
        )
        return int(tx.conn.execute(found).scalar_one())

    async with asyncio.timeout(20):
        while True:
            if await database.read(waiting):
                return
            await asyncio.sleep(0.01)


STOPPED: Final = Stopped("stopped as asked")
