"""Moves on runs whose holder fell silent: waiting again, FAILED or CANCELLED, as the run's policy and state say."""

from datetime import timedelta

from penstock.domain.ids import TenantId
from penstock.domain.lease import expired
from penstock.domain.limits import KEEPER_BATCH_MAX
from penstock.storage import executions, flow_runs, queue
from penstock.storage.database import Transaction


def expire_leases(tx: Transaction, tenant: TenantId, *, ttl: timedelta) -> int:
    """End every lease whose time has run out, at most 500 in one transaction; return how many.

    Expiry is judged in the statement that locks, so a lease that is renewed meanwhile lives, and two keepers at once
    share the work. An expiry further ahead than `ttl`, the longest that a lease lasts, is cut to that first, so that a
    clock which was set back freezes no run.
    """
    queue.cut_expiries(tx, tenant, ttl, KEEPER_BATCH_MAX)
    held = queue.hold_expired(tx, tenant, queue.HOLDING, KEEPER_BATCH_MAX)
    if not held:
        return 0
    runs = flow_runs.by_id(tx, tenant, [lease.flow_run_id for lease in held])
    done = executions.by_lease(tx, tenant, held)
    changes = [expired(entry, runs[lease.flow_run_id], done[lease], now=tx.now) for lease, entry in held.items()]
    queue.save(tx, tenant, changes)
    executions.advance(tx, tenant, [each.execution for each in changes if each.execution])
    return len(changes)
