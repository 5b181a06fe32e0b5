"""What is true of an installation as a whole, on both databases."""

from penstock.storage import installation
from penstock.storage.database import Database, open_engine
from penstock.storage.migrations import migrate
from tests.support.databases import Databases, Kind


async def test_an_installation_has_a_key_of_its_own(
    database: Database, databases: Databases, database_kind: Kind
) -> None:
    """32 bytes, the same each time; another installation has others."""
    url = databases.fresh(database_kind, migrated=False)
    engine = open_engine(url, connections=1)
    migrate(engine)
    with engine.connect() as conn:
        other = bytes(conn.exec_driver_sql("SELECT signing_key FROM installation").scalar_one())
    engine.dispose()
    databases.drop(url)

    key = await database.read(installation.signing_key)

    assert (len(key), len(other)) == (32, 32)
    assert key == await database.read(installation.signing_key)
    assert key != other
