"""What any test may ask for: a clock, and databases of both kinds.

A test that asks for `database`, `engine` or `database_url` runs once on SQLite and once on PostgreSQL. One that is
about a single kind says so: `@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)`.
"""

import os
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from penstock.storage.database import Database, open_engine
from tests.support.databases import KINDS, Databases, Kind
from tests.support.fake_clock import FakeClock

DATABASE_THREADS = 4
# More than threads, so that a test may look into the database beside them.
DATABASE_CONNECTIONS = DATABASE_THREADS + 4


@pytest.fixture
def clock() -> FakeClock:
    """A clock that the test moves by hand."""
    return FakeClock()


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """Fresh databases, for a test that needs more than one, or an unmigrated one. Whoever takes one drops it."""
    pool = Databases(tmp_path_factory.mktemp("databases"), os.environ.get("TEST_DATABASE_URL", ""))
    yield pool
    pool.close()


@pytest.fixture(params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> Kind:
    """On which kind of database the test runs."""
    kind: Kind = request.param
    return kind


@pytest.fixture
def database_url(databases: Databases, database_kind: Kind) -> Iterator[str]:
    """A fresh migrated database, for this test and the processes it starts."""
    url = databases.fresh(database_kind)
    yield url
    databases.drop(url)


@pytest.fixture
def empty_database_url(databases: Databases, database_kind: Kind) -> Iterator[str]:
    """A fresh database without tables."""
    url = databases.fresh(database_kind, migrated=False)
    yield url
    databases.drop(url)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on a fresh migrated database."""
    engine = open_engine(database_url, connections=DATABASE_CONNECTIONS)
    yield engine
    engine.dispose()


@pytest.fixture
def database(engine: Engine, clock: FakeClock) -> Iterator[Database]:
    """A fresh migrated database whose time is the test's `clock`."""
    database = Database(engine, clock, threads=DATABASE_THREADS)
    yield database
    database.close()
