"""Fresh databases for tests: copies of one migrated template per kind.

PostgreSQL is the server that is given, or one of our own that is started when the first test wants it.
"""

import shutil
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from uuid import uuid4

import psycopg
from sqlalchemy import URL, make_url

from penstock.storage.database import open_engine
from penstock.storage.migrations import migrate
from penstock.storage.schema import installation, metadata
from penstock.storage.wakeups import street
from tests.support.postgres import EmbeddedPostgres

Kind: TypeAlias = Literal["sqlite", "postgres"]

KINDS: Final[tuple[Kind, ...]] = ("sqlite", "postgres")


class Databases:
    """Gives out fresh databases of either kind, and takes them down again."""

    def __init__(self, home: Path, server_url: str = "") -> None:
        self._files = _Files(home)
        self._server_url = server_url
        self._server: _Server | None = None
        self._templates: dict[Kind, URL] = {}
        self._count = 0

    def fresh(self, kind: Kind, *, migrated: bool = True) -> str:
        """The URL of a new database, which any number of processes may use. Unmigrated it is empty."""
        self._count += 1
        template = self._template(kind) if migrated else None
        return self._of(kind).create(f"{self._count}", template).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        """Take a database down, with whoever is still connected to it."""
        parsed = make_url(url)
        self._of("sqlite" if parsed.get_backend_name() == "sqlite" else "postgres").drop(parsed)

    def close(self) -> None:
        """Take down the templates, and the server if it is ours."""
        for kind, template in self._templates.items():
            self._of(kind).drop(template)
        if self._server is not None:
            self._server.close()

    def _template(self, kind: Kind) -> URL:
        """A migrated database to which nobody is connected."""
        if kind not in self._templates:
            template = self._of(kind).create("template", None)
            engine = open_engine(template.render_as_string(hide_password=False), connections=1)
            migrate(engine)
            engine.dispose()
            self._templates[kind] = template
        return self._templates[kind]

    def _of(self, kind: Kind) -> "_Files | _Server":
        if kind == "sqlite":
            return self._files
        if self._server is None:
            self._server = _Server(self._server_url)
        return self._server


class _Files:
    """SQLite databases, each in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def create(self, name: str, template: URL | None) -> URL:
        path = self._home / name / "penstock.db"
        path.parent.mkdir()
        if template is not None:
            shutil.copyfile(template.database or "", path)
        return make_url(f"sqlite:///{path}")

    def drop(self, url: URL) -> None:
        path = Path(url.database or "")
        shutil.rmtree(street(path))
        shutil.rmtree(path.parent)


class _Server:
    """The databases of one PostgreSQL server.

    To copy a template takes half a second, to empty a database a hundredth: one that was taken down as it was given
    out, but for its rows, is given out again.
    """

    def __init__(self, url: str) -> None:
        self._embedded: EmbeddedPostgres | None = None
        if not url:
            self._embedded = EmbeddedPostgres()
            self._embedded.start()
            url = self._embedded.url
        self._url = make_url(url).set(drivername="postgresql+psycopg")
        self._prefix = f"penstock_test_{uuid4().hex[:8]}"
        self._admin = _connect(self._url)
        self._pristine: object = None
        self._copies: set[str] = set()
        self._spare: list[URL] = []

    def create(self, name: str, template: URL | None) -> URL:
        if template is not None and self._spare:
            return self._spare.pop()
        name = f"{self._prefix}_{name}"
        origin = f'TEMPLATE "{template.database}"' if template else ""
        self._admin.execute(f'CREATE DATABASE "{name}" {origin}'.encode())
        url = self._url.set(database=name)
        if template is not None:
            self._copies.add(name)
            if self._pristine is None:
                with _connect(url) as conn:
                    self._pristine = conn.execute(SHAPE).fetchone()
        return url

    def drop(self, url: URL) -> None:
        if url.database in self._copies and self._emptied(url):
            self._spare.append(url)
        else:
            self._remove(url)

    def close(self) -> None:
        for each in self._spare:
            self._remove(each)
        self._admin.close()
        if self._embedded is not None:
            self._embedded.close()

    def _emptied(self, url: URL) -> bool:
        """Whether the database is now as it was when it was copied."""
        with _connect(url) as conn:
            conn.execute(DISCONNECT_OTHERS)
            if conn.execute(SHAPE).fetchone() != self._pristine:
                return False
            conn.execute(EMPTY)
        return True

    def _remove(self, url: URL) -> None:
        self._admin.execute(f'DROP DATABASE "{url.database}" WITH (FORCE)'.encode())


SHAPE: Final = b"""
SELECT (SELECT array_agg(row(relname, attname, attnotnull) ORDER BY relname, attnum)::text
        FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace),
       (SELECT array_agg(conname ORDER BY conname) FROM pg_constraint WHERE connamespace = 'public'::regnamespace),
       (SELECT array_agg(version_num) FROM alembic_version),
       (SELECT array_agg(signing_key) FROM installation)
"""
# The milliseconds are how long it waits for each of them to be gone.
DISCONNECT_OTHERS: Final = b"""
SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
EMPTY: Final = "".join(
    f"DELETE FROM {table.name};" for table in reversed(metadata.sorted_tables) if table is not installation
).encode()


def _connect(url: URL) -> psycopg.Connection[Any]:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)
