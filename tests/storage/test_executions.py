"""Executions, on both databases."""

from dataclasses import replace
from uuid import UUID

import pytest
from sqlalchemy.exc import IntegrityError

from penstock.domain.ids import ExecutionId, TenantId
from penstock.domain.lease import EndedBy, Execution, Lease
from penstock.domain.state import State
from penstock.storage import executions
from penstock.storage.database import Database
from tests.queue.scenes import TENANT
from tests.support.builders import a_flow_run, an_execution, an_id
from tests.support.fake_clock import NOON


def lease_of(execution: Execution) -> Lease:
    return Lease(execution.flow_run_id, execution.fence)


async def test_an_execution_comes_back_as_it_went_on(database: Database) -> None:
    """Begun, started and ended; its neighbours under other fences stay as they are."""
    run = a_flow_run(State.SUBMITTED)
    begun = an_execution(run)
    later = replace(begun, fence=begun.fence + 1)
    await database.run(executions.begin, TENANT, [begun, later])
    started = replace(begun, execution_id=ExecutionId(an_id()), start_time=NOON)
    ended = replace(started, end_time=NOON, outcome=State.FAILED, ended_by=EndedBy.FINISH)
    leases = [lease_of(begun), lease_of(later), Lease(run.id, 99)]

    assert await database.read(executions.by_lease, TENANT, leases) == {leases[0]: begun, leases[1]: later}
    for each in (started, ended):
        await database.run(executions.advance, TENANT, [each])
        assert await database.read(executions.by_lease, TENANT, leases) == {leases[0]: each, leases[1]: later}
    assert await database.read(executions.by_lease, TENANT, []) == {}


async def test_a_lease_has_one_execution(database: Database) -> None:
    """A second one for it is our mistake, and so is progress of one that was never begun or is another tenant's."""
    begun = an_execution(a_flow_run(State.SUBMITTED))
    await database.run(executions.begin, TENANT, [begun])

    with pytest.raises(IntegrityError):
        await database.run(executions.begin, TENANT, [begun])
    with pytest.raises(AssertionError):
        await database.run(executions.advance, TENANT, [replace(begun, fence=99)])
    with pytest.raises(AssertionError):
        await database.run(executions.advance, TenantId(UUID(int=7)), [begun])


async def test_the_executions_of_a_run_are_removed(database: Database) -> None:
    """All of them, and nobody else's."""
    run, other = a_flow_run(State.SUBMITTED), a_flow_run(State.SUBMITTED)
    begun = [an_execution(run), replace(an_execution(run), fence=9), an_execution(other)]
    await database.run(executions.begin, TENANT, begun)

    await database.run(executions.remove, TenantId(UUID(int=7)), run.id)
    assert 3 == len(await database.read(executions.by_lease, TENANT, map(lease_of, begun)))
    await database.run(executions.remove, TENANT, run.id)

    assert {lease_of(begun[2]): begun[2]} == await database.read(executions.by_lease, TENANT, map(lease_of, begun))
