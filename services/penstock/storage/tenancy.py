"""Work for one tenant, done for the items of several in one transaction."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from penstock.domain.ids import TenantId
from penstock.storage.database import Database, Transaction

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def per_tenant(
    work: Callable[[Transaction, TenantId, list[Item]], Sequence[Outcome]],
) -> Callable[[Transaction, Sequence[tuple[TenantId, Item]]], list[Outcome]]:
    """`work` for items that name their tenant, tenant after tenant in one order; the outcomes stay with their items."""

    def all_tenants(tx: Transaction, items: Sequence[tuple[TenantId, Item]]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        for tenant in sorted({tenant for tenant, _ in items}):
            places = [place for place, (owner, _) in enumerate(items) if owner == tenant]
            done = work(tx, tenant, [items[place][1] for place in places])
            outcomes.update(zip(places, done, strict=True))
        return [outcomes[place] for place in range(len(items))]

    return all_tenants


def flushing(
    database: Database, work: Callable[[Transaction, TenantId, list[Item]], Sequence[Outcome]]
) -> Callable[[Sequence[tuple[TenantId, Item]]], Awaitable[Sequence[Outcome]]]:
    """What a committer runs: `work` for the items of every tenant, in one transaction of its own."""

    async def flush(items: Sequence[tuple[TenantId, Item]]) -> Sequence[Outcome]:
        return await database.run(per_tenant(work), items)

    return flush
