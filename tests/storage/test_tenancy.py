"""Work for the items of several tenants in one transaction."""

from collections.abc import Sequence
from uuid import UUID

import pytest

from penstock.domain.ids import TenantId
from penstock.storage.database import Database, Transaction
from penstock.storage.tenancy import flushing

ONE, OTHER = TenantId(UUID(int=1)), TenantId(UUID(int=2))

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)


async def test_outcomes_stay_with_their_items(database: Database) -> None:
    """Each tenant's items are done together, tenant after tenant in one order, in one transaction."""
    calls: list[tuple[TenantId, list[str], Transaction]] = []

    def shout(tx: Transaction, tenant: TenantId, items: list[str]) -> Sequence[str]:
        calls.append((tenant, items, tx))
        return [f"{each.upper()}{tenant.int}" for each in items]

    outcomes = await flushing(database, shout)([(OTHER, "a"), (ONE, "b"), (OTHER, "c")])

    assert list(outcomes) == ["A2", "B1", "C2"]
    assert [(tenant, items) for tenant, items, _ in calls] == [(ONE, ["b"]), (OTHER, ["a", "c"])]
    assert calls[0][2] is calls[1][2]


async def test_as_many_outcomes_as_items(database: Database) -> None:
    """Anything else is our mistake."""

    def forgetful(tx: Transaction, tenant: TenantId, items: list[str]) -> Sequence[str]:
        return items[1:]

    with pytest.raises(ValueError, match="shorter"):
        await flushing(database, forgetful)([(ONE, "a"), (ONE, "b")])
