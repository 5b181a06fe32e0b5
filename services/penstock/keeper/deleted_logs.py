"""Removes the lines of deleted logs: there may be millions, so a few at a time, which keeps nobody waiting."""

from typing import Final

from penstock.domain.ids import TenantId
from penstock.domain.limits import KEEPER_BATCH_MAX
from penstock.storage import logs
from penstock.storage.database import Database

ROUNDS_MAX: Final = 1_000


async def remove_deleted_logs(database: Database, tenant: TenantId) -> int:
    """Remove lines of deleted logs, at most 500 in one transaction, until there are none; return how many.

    Each transaction notes how far it came, so whatever a keeper leaves undone another one does.
    """
    count = 0
    for _ in range(ROUNDS_MAX):
        # Asked first by reading alone, which on SQLite waits for nobody: nearly always there are none.
        if not await database.read(logs.deleted_exist, tenant):
            break
        some = await database.run(logs.remove_deleted, tenant, KEEPER_BATCH_MAX)
        if not some:
            break  # another keeper has them
        count += some
    return count
