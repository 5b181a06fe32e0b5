"""Executions: what was done under each lease."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Row, bindparam, delete, select, tuple_, update

from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.lease import Execution, Lease
from penstock.storage import dialect
from penstock.storage.database import Transaction
from penstock.storage.schema import executions

column = executions.c

PROGRESS: Final = ("execution_id", "start_time", "end_time", "outcome", "ended_by")
ADVANCE: Final = (
    update(executions)
    .where(
        column.tenant_id == bindparam("of_tenant"),
        column.flow_run_id == bindparam("of_run"),
        column.fence == bindparam("of_fence"),
    )
    .values({name: bindparam(f"new_{name}") for name in PROGRESS})
)


def begin(tx: Transaction, tenant: TenantId, begun: Sequence[Execution]) -> None:
    """Insert the executions of leases that were just accepted."""
    rows = [{"tenant_id": tenant, **{name: getattr(each, name) for name in Execution.__slots__}} for each in begun]
    dialect.insert_many(tx.conn, executions, rows)


def advance(tx: Transaction, tenant: TenantId, advanced: Sequence[Execution]) -> None:
    """Write how executions started or ended."""
    if not advanced:
        return
    rows = [
        {"of_tenant": tenant, "of_run": each.flow_run_id, "of_fence": each.fence}
        | {f"new_{name}": getattr(each, name) for name in PROGRESS}
        for each in advanced
    ]
    written = tx.conn.execute(ADVANCE, rows).rowcount
    assert written == len(rows), f"{written} of {len(rows)} executions exist"


def remove(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> None:
    """Delete the executions of a run."""
    tx.conn.execute(delete(executions).where(column.tenant_id == tenant, column.flow_run_id == flow_run_id))


def by_lease(tx: Transaction, tenant: TenantId, leases: Iterable[Lease]) -> Mapping[Lease, Execution]:
    """The executions of these leases; the ones that were never accepted are left out."""
    pairs = [(lease.flow_run_id, lease.fence) for lease in leases]
    if not pairs:
        return {}
    found = select(executions).where(column.tenant_id == tenant, tuple_(column.flow_run_id, column.fence).in_(pairs))
    return {Lease(each.flow_run_id, each.fence): each for each in map(_from_row, tx.conn.execute(found))}


def _from_row(row: Row[Any]) -> Execution:
    return Execution(**{name: getattr(row, name) for name in Execution.__slots__})
