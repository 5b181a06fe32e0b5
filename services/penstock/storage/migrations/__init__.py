"""The versions of the schema, and the way from each to the newest.

A version is one file in `versions/`. Its name says its revision, whether it is applied before or after the release that
brings it is deployed (`pre`, `post`), and what it does. It spells its tables out, so that it stays what it was when
`schema.py` changes, and it deletes no rows of a user.
"""

import shlex
from contextlib import closing
from pathlib import Path
from typing import Final

from sqlalchemy import Column, Engine, MetaData, String, Table, inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from penstock.domain.errors import Unavailable
from penstock.storage.database import Database, DatabaseClock, Transaction, sqlite_path
from penstock.storage.dialect import is_sqlite

VERSIONS: Final = Path(__file__).with_name("versions")
HEAD: Final = max(path.name.partition("_")[0] for path in VERSIONS.glob("[0-9]*.py"))

# As Alembic itself would make it.
applied: Final = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def migrate(engine: Engine) -> None:
    """Bring the database to HEAD; make the file of an SQLite one.

    Any number of processes may do it at once: one migrates, the others find it done. Refuses a database that a newer
    release has migrated.
    """
    if path := sqlite_path(engine):
        path.parent.mkdir(parents=True, exist_ok=True)
    with closing(Database(engine, DatabaseClock(), threads=1)) as database:
        try:
            database.run_here(_keep_versions)
        except DBAPIError as error:
            if not _made_meanwhile(error):
                raise
        database.run_here(_upgrade, engine)


def check_revision(engine: Engine) -> None:
    """Refuse, with a sentence on what to do, a database whose schema is not the one that this release works with."""
    path = sqlite_path(engine)
    with closing(Database(engine, DatabaseClock(), threads=1)) as database:
        # To connect to an SQLite file that is not there would make one.
        revision = None if path and not path.exists() else database.read_here(_revision)
    if revision == HEAD:
        return
    _refuse_newer(engine, revision)
    command = f"python -m penstock.storage.migrations {shlex.quote(_shown(engine))}"
    found = f"has revision {revision} of the schema" if revision else "has no schema"
    raise Unavailable(detail=f"the database {_shown(engine)} {found}, and revision {HEAD} is needed; run: {command}")


def _keep_versions(tx: Transaction) -> None:
    tx.conn.execute(CreateTable(applied, if_not_exists=True))


def _made_meanwhile(error: DBAPIError) -> bool:
    """Whether somebody else made the same table: PostgreSQL's IF NOT EXISTS overlooks one that is being made.

    It is found out where the table, its type or an entry of the catalogue gets its name.
    """
    return getattr(error.orig, "sqlstate", None) in ("42P07", "42710", "23505")


def _upgrade(tx: Transaction, engine: Engine) -> None:
    if not is_sqlite(tx.conn):
        # Whoever else migrates waits here, and readers do not. (On SQLite the write lock is held already.)
        tx.conn.execute(text(f"LOCK TABLE {applied.name} IN EXCLUSIVE MODE"))
    revision = _revision(tx)
    if revision == HEAD:
        return
    _refuse_newer(engine, revision)
    _run_versions(tx)


def _run_versions(tx: Transaction) -> None:
    # Here, because services import this module to check the revision, and should not wait for Alembic to load.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": tx.conn, "now": tx.now})
    config.set_main_option("script_location", str(VERSIONS.parent).replace("%", "%%"))
    command.upgrade(config, HEAD)


def _revision(tx: Transaction) -> str | None:
    if not inspect(tx.conn).has_table(applied.name):
        return None
    return tx.conn.execute(select(applied.c.version_num)).scalar_one_or_none()


def _refuse_newer(engine: Engine, revision: str | None) -> None:
    if revision is not None and revision > HEAD:
        raise Unavailable(
            detail=f"the database {_shown(engine)} has revision {revision} of the schema, made by a newer release; "
            f"this one knows revisions up to {HEAD}, so install the newer one"
        )


def _shown(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=True)
