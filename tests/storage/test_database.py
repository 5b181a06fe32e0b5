"""Transactions, on both databases."""

from sqlalchemy import select

from penstock.storage.database import Database, Transaction
from penstock.storage.schema import installation


async def test_fixture(database: Database) -> None:
    """x."""

    def work(tx: Transaction) -> bytes:
        return tx.conn.execute(select(installation.c.signing_key)).scalar_one()

    assert 32 == len(await database.read(work))
