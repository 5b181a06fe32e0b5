"""The way of a database to the newest revision of the schema, and the refusal of any other."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, Engine, Index, Inspector, MetaData, inspect, select, text

from penstock.domain.errors import Unavailable
from penstock.storage.database import open_engine
from penstock.storage.migrations import HEAD, VERSIONS, applied, check_revision, migrate
from penstock.storage.schema import installation, metadata
from tests.support.databases import Databases, Kind

on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Engine]:
    """A database without tables."""
    engine = open_engine(empty_database_url, connections=4)
    yield engine
    engine.dispose()


def test_a_migrated_database_is_what_the_schema_says(engine: Engine, empty: Engine) -> None:
    """The versions together make the same tables, columns, keys, checks and indexes as `schema.py`."""
    metadata.create_all(empty)

    with engine.connect() as conn:
        differences = compare_metadata(MigrationContext.configure(conn), metadata)

    assert differences == []
    assert shape_of(empty) == shape_of(engine)


def test_the_comparison_sees_conditions_and_checks(engine: Engine, empty: Engine) -> None:
    """An index condition or a check that differs from the schema's does not go unnoticed."""
    changed = MetaData()
    for table in metadata.sorted_tables:
        table.to_metadata(changed)
    heads, entries = changed.tables["log_heads"], changed.tables["queue_entries"]
    heads.constraints = {each for each in heads.constraints if not isinstance(each, CheckConstraint)}
    entries.indexes = {each for each in entries.indexes if each.name != "queue_entries_due_index"}
    Index("queue_entries_due_index", entries.c.tenant_id, entries.c.due_time)

    changed.create_all(empty)

    found, wanted = shape_of(empty), shape_of(engine)
    differing = {
        (table, part) for table in wanted for part in wanted[table] if found[table][part] != wanted[table][part]
    }
    assert differing == {("log_heads", "checks"), ("queue_entries", "indexes")}


def test_the_first_version_makes_one_signing_key(databases: Databases, database_kind: Kind, engine: Engine) -> None:
    """Each installation signs its page tokens with 32 random bytes of its own."""
    other_url = databases.fresh(database_kind, migrated=False)
    other = open_engine(other_url, connections=1)
    migrate(other)

    keys = [signing_keys(engine), signing_keys(other)]
    other.dispose()
    databases.drop(other_url)

    assert [list(map(len, each)) for each in keys] == [[32], [32]]
    assert keys[0] != keys[1]


def test_migrating_again_changes_nothing(engine: Engine) -> None:
    """A database at the newest revision stays as it is, with its signing key."""
    before = shape_of(engine), signing_keys(engine)

    migrate(engine)

    assert before == (shape_of(engine), signing_keys(engine))


def test_the_command_knows_the_database_of_the_services(tmp_path: Path) -> None:
    """Without a URL it takes the one in the environment, so that no password stands in a command line."""
    url = f"sqlite:///{tmp_path}/penstock.db"
    environment = {"PYTHONPATH": ":".join(sys.path), "PENSTOCK_DATABASE": url}

    subprocess.run([sys.executable, "-m", "penstock.storage.migrations"], env=environment, check=True)

    engine = open_engine(url, connections=1)
    check_revision(engine)
    engine.dispose()


async def test_processes_may_migrate_at_once(empty_database_url: str) -> None:
    """Of several processes that migrate one empty database, all succeed, and one installation comes of it."""
    command = [sys.executable, "-m", "penstock.storage.migrations", empty_database_url]
    environment = {"PYTHONPATH": ":".join(sys.path)}

    processes = [
        await asyncio.create_subprocess_exec(*command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    outputs = [await process.communicate() for process in processes]

    assert [(each.returncode, errors) for each, (_, errors) in zip(processes, outputs, strict=True)] == [(0, b"")] * 3
    assert f"The database is at revision {HEAD} of the schema.\n" == outputs[0][0].decode()
    engine = open_engine(empty_database_url, connections=1)
    check_revision(engine)
    assert len(signing_keys(engine)) == 1
    engine.dispose()


async def test_migrations_may_begin_at_the_same_moment(empty_database_url: str) -> None:
    """However closely they follow each other, one migrates and the others find it done."""
    engines = [open_engine(empty_database_url, connections=1) for _ in range(4)]

    await asyncio.gather(*(asyncio.to_thread(migrate, each) for each in engines))

    assert len(signing_keys(engines[0])) == 1
    for each in engines:
        check_revision(each)
        each.dispose()


def test_a_failed_migration_leaves_nothing(empty: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that fails half-way takes back all that it and those before it made."""
    with empty.begin() as conn:
        conn.execute(text("CREATE TABLE log_lines (in_the_way INTEGER)"))

    with pytest.raises(Exception, match="already exists"):
        migrate(empty)

    assert {"alembic_version", "log_lines"} == set(inspect(empty).get_table_names())


def test_a_database_without_schema_is_refused(empty: Engine) -> None:
    """The refusal says what is needed, and the command that brings it about."""
    with pytest.raises(Unavailable, match=rf"has no schema, and revision {HEAD} is needed") as refusal:
        check_revision(empty)

    assert f"run: python -m penstock.storage.migrations {empty.url!r}" in str(refusal.value).replace("'", "")


def test_an_older_revision_is_refused(engine: Engine) -> None:
    """A service does not work on a schema that lacks what it needs."""
    with engine.begin() as conn:
        conn.execute(applied.update().values(version_num="0000"))

    with pytest.raises(Unavailable, match=rf"has revision 0000 of the schema, and revision {HEAD} is needed"):
        check_revision(engine)


def test_a_newer_revision_is_refused(engine: Engine) -> None:
    """Neither services nor migrations touch what a newer release has made."""
    with engine.begin() as conn:
        conn.execute(applied.update().values(version_num="9999"))

    with pytest.raises(Unavailable, match="has revision 9999 of the schema, made by a newer release"):
        check_revision(engine)
    with pytest.raises(Unavailable, match="install the newer one"):
        migrate(engine)


@on_postgres
def test_the_refusal_keeps_the_password(database_url: str) -> None:
    """What is printed about a database names its address without the password."""
    engine = open_engine(database_url.replace("postgres@", "postgres:secret@"), connections=1)
    with engine.begin() as conn:
        conn.execute(applied.update().values(version_num="0000"))

    with pytest.raises(Unavailable, match="is needed") as refusal:
        check_revision(engine)

    engine.dispose()
    assert "secret" not in str(refusal.value)


def test_to_check_makes_no_file(tmp_path: Path) -> None:
    """A service that is pointed at an SQLite file that is not there says so, and leaves the place as it was."""
    engine = open_engine(f"sqlite:///{tmp_path}/penstock.db", connections=1)

    with pytest.raises(Unavailable, match="has no schema"):
        check_revision(engine)

    assert list(tmp_path.iterdir()) == []


def test_the_directory_of_a_file_is_made(tmp_path: Path) -> None:
    """The first migration of an SQLite database makes the directories above it."""
    path = tmp_path / "some where" / "data" / "penstock.db"
    engine = open_engine(f"sqlite:///{path}", connections=1)

    migrate(engine)

    check_revision(engine)
    engine.dispose()
    assert path.exists()


def test_it_may_be_installed_anywhere(tmp_path: Path, empty: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The versions are found wherever the package lies, be there a percent sign in its path."""
    place = tmp_path / "100% %(here)s"
    shutil.copytree(VERSIONS.parent, place)
    monkeypatch.setattr("penstock.storage.migrations.VERSIONS", place / VERSIONS.name)

    migrate(empty)

    check_revision(empty)


def test_the_command_explains_a_database_that_is_away(tmp_path: Path) -> None:
    """What went wrong is one line on stderr, and the exit code says that it did."""
    url = f"postgresql+psycopg://postgres@/penstock?host={tmp_path}"
    command = [sys.executable, "-m", "penstock.storage.migrations", url]

    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}, check=False)

    assert done.returncode == 1
    assert done.stderr == "penstock: This process cannot serve now: the database is away.\n"


def test_every_version_says_when_it_is_applied() -> None:
    """A file of a version is named after its revision, `pre` or `post`, and what it does; the newest is HEAD."""
    names = sorted(path.stem for path in VERSIONS.glob("*.py") if path.stem != "__init__")

    assert [f"{number:04}" for number in range(1, len(names) + 1)] == [name.split("_")[0] for name in names]
    assert {"pre", "post"} >= {name.split("_")[1] for name in names}
    assert names[-1][:4] == HEAD


def signing_keys(engine: Engine) -> list[bytes]:
    with engine.connect() as conn:
        return list(conn.scalars(select(installation.c.signing_key)))


def shape_of(engine: Engine) -> dict[str, Any]:
    """All that the database itself says about its tables, but for the order in which it says it."""
    inspector = inspect(engine)
    names = set(inspector.get_table_names()) - {applied.name}
    return {name: _table_shape(inspector, name) for name in names}


def _table_shape(inspector: Inspector, name: str) -> dict[str, Any]:
    """Types and conditions are given as objects that equal only themselves, so all is compared as text."""
    return {
        "columns": {each["name"]: texts_of(each) for each in inspector.get_columns(name)},
        "primary key": texts_of(inspector.get_pk_constraint(name)),
        "unique": {each["name"]: texts_of(each) for each in inspector.get_unique_constraints(name)},
        "foreign keys": {each["name"]: texts_of(each) for each in inspector.get_foreign_keys(name)},
        "checks": {each["name"]: texts_of(each) for each in inspector.get_check_constraints(name)},
        "indexes": {each["name"]: texts_of(each) for each in inspector.get_indexes(name)},
    }


def texts_of(value: Any) -> Any:
    return {name: texts_of(each) for name, each in value.items()} if isinstance(value, Mapping) else str(value)
