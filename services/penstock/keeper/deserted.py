"""Ends runs that are executed without an agent and for which nobody comes: the one process that would has gone.

A process that lives takes its run within milliseconds of its being due. Time in which the keeper or its database was
away counts for nothing, because whoever wanted a run then could not ask for it either.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from pendulum import DateTime

from penstock.domain.ids import TenantId
from penstock.domain.lease import deserted
from penstock.domain.limits import AGENTLESS_WAIT_MAX, KEEPER_BATCH_MAX
from penstock.storage import flow_runs, queue
from penstock.storage.database import Database, Transaction

LOOK_INTERVAL: Final = timedelta(seconds=5)
# Between two looks; a longer one means that the keeper, its machine or the database stood still.
GAP_MAX: Final = timedelta(minutes=1)
ROUNDS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Watch:
    """A time in which runs could be asked for, as far as the keeper has seen; by the database's clock."""

    begin: DateTime
    end: DateTime

    def until(self, now: DateTime) -> "Watch":
        """This watch, or a new one if there was a gap in it, or the clock was set back."""
        return Watch(self.begin, now) if timedelta(0) <= now - self.end <= GAP_MAX else Watch(now, now)


@dataclass(frozen=True, slots=True)
class Sight:
    """What a look has found."""

    watch: Watch
    offers_expired: bool
    runs_deserted: bool


class Deserted:
    """Looks for deserted runs, and remembers since when it has done so."""

    def __init__(self, database: Database, tenant: TenantId) -> None:
        self._database = database
        self._tenant = tenant
        self._watch: Watch | None = None

    async def look_once(self) -> int:
        """Fail every run that was due, and could be asked for, for longer than anybody waits; return how many."""
        before, self._watch = self._watch, None
        # By reading alone, which on SQLite waits for nobody: nearly always there is nothing.
        sight = await self._database.read(look, self._tenant, before)
        if sight.offers_expired:
            # Where no agent is connected, nobody else takes back what was offered to a process that has gone.
            await self._database.run(queue.give_back_expired, self._tenant, KEEPER_BATCH_MAX)
        count = await self._fail_all() if sight.runs_deserted else 0
        self._watch = sight.watch
        return count

    async def _fail_all(self) -> int:
        count = 0
        for _ in range(ROUNDS_MAX):
            some = await self._database.run(fail_deserted, self._tenant)
            if not some:
                break
            count += some
        return count


def look(tx: Transaction, tenant: TenantId, watch: Watch | None) -> Sight:
    """Whether there is anything to do, with the time of the watch up to now."""
    watch = watch.until(tx.now) if watch else Watch(tx.now, tx.now)
    due_by = tx.now - AGENTLESS_WAIT_MAX
    return Sight(
        watch,
        offers_expired=queue.expired_offers_exist(tx, tenant),
        runs_deserted=watch.begin <= due_by and queue.deserted_exist(tx, tenant, due_by),
    )


def fail_deserted(tx: Transaction, tenant: TenantId) -> int:
    """Fail runs that have waited too long, at most 500 in one transaction; return how many.

    That a run waits is judged in the statement that locks, so one that is just being taken goes on.
    """
    entries = queue.hold_deserted(tx, tenant, tx.now - AGENTLESS_WAIT_MAX, KEEPER_BATCH_MAX)
    if not entries:
        return 0
    runs = flow_runs.by_id(tx, tenant, [entry.flow_run_id for entry in entries])
    queue.save(tx, tenant, [deserted(entry, runs[entry.flow_run_id], now=tx.now) for entry in entries])
    return len(entries)
