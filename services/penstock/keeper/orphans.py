"""Cancels the live children of runs that were cancelled, those whose policy says that they go with their parent."""

from typing import Final

from penstock.domain.ids import TenantId
from penstock.domain.lease import Change, Entry, Lease, Phase, cancelled
from penstock.domain.limits import KEEPER_BATCH_MAX
from penstock.domain.state import Cause
from penstock.storage import executions, flow_runs, queue
from penstock.storage.database import Database, Transaction

ROUNDS_MAX: Final = 1_000
REASON: Final = "The run that created it was cancelled."


async def cancel_orphans(database: Database, tenant: TenantId) -> int:
    """Cancel orphans until there are none, however many and in however many generations; return how many.

    What is cancelled makes orphans of its own children, which the next transaction finds. Each is whole in itself, so
    whatever a keeper leaves undone another one does.
    """
    count = 0
    for _ in range(ROUNDS_MAX):
        # Asked first by reading alone, which on SQLite waits for nobody: nearly always there are none.
        if not await database.read(queue.orphans_exist, tenant):
            break
        some = await database.run(cancel_some_orphans, tenant)
        if not some:
            break  # another keeper has them
        count += some
    return count


def cancel_some_orphans(tx: Transaction, tenant: TenantId) -> int:
    """Cancel orphans, at most 500 in one transaction; return how many. Two keepers at once share the work."""
    orphans = queue.hold_orphans(tx, tenant, KEEPER_BATCH_MAX)
    if not orphans:
        return 0
    runs = flow_runs.by_id(tx, tenant, [lease.flow_run_id for lease in orphans])
    at_work = executions.by_lease(tx, tenant, [lease for lease, entry in orphans.items() if entry.phase is Phase.HELD])

    def decide(lease: Lease, entry: Entry) -> Change | None:
        run = runs[lease.flow_run_id]
        return cancelled(entry, run, at_work.get(lease), now=tx.now, cause=Cause.PARENT_CANCELLED, reason=REASON)

    decisions = [decide(lease, entry) for lease, entry in orphans.items()]
    changes = [each for each in decisions if each]
    queue.save(tx, tenant, changes)
    return len(changes)
