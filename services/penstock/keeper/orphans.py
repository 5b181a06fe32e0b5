"""Cancels the live children of runs that were cancelled, those whose policy says that they go with their parent.

Children of runs that are asked to stop are looked for at every sweep, and those of any other run once a hint says that
it moved: it may have been cancelled while it waited. To look at every run with live children costs the more, the more
of them there are: that is done at the start, after hints that may have been missed, and else rarely.
"""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Final

from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.lease import Change, Entry, Lease, Phase, cancelled
from penstock.domain.limits import KEEPER_BATCH_MAX, LEASES_PER_CALL_MAX
from penstock.domain.state import Cause
from penstock.storage import executions, flow_runs, queue
from penstock.storage.database import Database, Transaction
from penstock.storage.queue import Among, Parents
from penstock.storage.wakeups import Hint

ROUNDS_MAX: Final = 1_000
THOROUGH_INTERVAL: Final = timedelta(seconds=10)
# After hints that may have been missed; they may never pause.
THOROUGH_INTERVAL_MIN: Final = timedelta(seconds=1)
MOVED_MAX: Final = 20_000
REASON: Final = "The run that created it was cancelled."


class Orphans:
    """Finds orphans and cancels them. All that it remembers may be lost: the next thorough look finds them too."""

    def __init__(self, database: Database, tenant: TenantId) -> None:
        self._database = database
        self._tenant = tenant
        self._moved: set[FlowRunId] = set()
        self._missed = True
        self._looked_thoroughly_at = float("-inf")

    def hear(self, hint: Hint) -> None:
        """Note what moved. To be called on the event loop's thread."""
        self._moved |= hint.moved
        if hint.anything or len(self._moved) > MOVED_MAX:
            self._missed = True
            self._moved.clear()

    async def look_once(self) -> int:
        """Cancel orphans, in however many generations; return how many."""
        moved, self._moved = sorted(self._moved), set()
        try:
            if self._shall_look_thoroughly():
                # Before the look: what is missed meanwhile asks for another one.
                self._missed = False
                return await cancel_orphans(self._database, self._tenant)
            return await self._cancel_children(moved)
        except BaseException:
            self._missed = True
            raise

    def _shall_look_thoroughly(self) -> bool:
        now = asyncio.get_running_loop().time()
        interval = THOROUGH_INTERVAL_MIN if self._missed else THOROUGH_INTERVAL
        if now - self._looked_thoroughly_at < interval.total_seconds():
            return False
        self._looked_thoroughly_at = now
        return True

    async def _cancel_children(self, of: Sequence[FlowRunId]) -> int:
        """Cancel the children of runs that are asked to stop, and of these; then the children of those, and so on."""
        count, parents = 0, of
        while True:
            done = await _cancel_all(self._database, self._tenant, Among.STOPPING)
            for part in _parts(parents):
                done += await _cancel_all(self._database, self._tenant, part)
            if not done:
                return count
            count, parents = count + len(done), sorted(done)


async def cancel_orphans(database: Database, tenant: TenantId) -> int:
    """Cancel all orphans until there are none, however many and in however many generations; return how many.

    What is cancelled makes orphans of its own children, which the next transaction finds. Each is whole in itself, so
    whatever a keeper leaves undone another one does.
    """
    return len(await _cancel_all(database, tenant, Among.ALL))


def cancel_some_orphans(tx: Transaction, tenant: TenantId, parents: Parents = Among.ALL) -> list[FlowRunId]:
    """Cancel orphans, at most 500 in one transaction; return which. Two keepers at once share the work."""
    orphans = queue.hold_orphans(tx, tenant, parents, KEEPER_BATCH_MAX)
    if not orphans:
        return []
    runs = flow_runs.by_id(tx, tenant, [lease.flow_run_id for lease in orphans])
    at_work = executions.by_lease(tx, tenant, [lease for lease, entry in orphans.items() if entry.phase is Phase.HELD])

    def decide(lease: Lease, entry: Entry) -> Change | None:
        run = runs[lease.flow_run_id]
        return cancelled(entry, run, at_work.get(lease), now=tx.now, cause=Cause.PARENT_CANCELLED, reason=REASON)

    decisions = [decide(lease, entry) for lease, entry in orphans.items()]
    changes = [each for each in decisions if each]
    queue.save(tx, tenant, changes)
    return [each.run.id for each in changes]


async def _cancel_all(database: Database, tenant: TenantId, parents: Parents) -> list[FlowRunId]:
    done: list[FlowRunId] = []
    for _ in range(ROUNDS_MAX):
        # Asked first by reading alone, which on SQLite waits for nobody: nearly always there are none.
        if not await database.read(queue.orphans_exist, tenant, parents):
            break
        some = await database.run(cancel_some_orphans, tenant, parents)
        if not some:
            break  # another keeper has them
        done += some
    return done


def _parts(runs: Sequence[FlowRunId]) -> Iterator[Sequence[FlowRunId]]:
    for start in range(0, len(runs), LEASES_PER_CALL_MAX):
        yield runs[start : start + LEASES_PER_CALL_MAX]
