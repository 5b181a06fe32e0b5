"""What is true of this installation as a whole."""

from sqlalchemy import select

from penstock.storage.database import Transaction
from penstock.storage.schema import installation


def signing_key(tx: Transaction) -> bytes:
    """The key that page tokens and cursors are signed with: 32 random bytes, made by the first migration."""
    return bytes(tx.conn.execute(select(installation.c.signing_key)).scalar_one())
