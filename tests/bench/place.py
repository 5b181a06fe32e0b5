"""Where a measurement takes place: services as processes with their default settings, beside a bare echo server."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
from sqlalchemy import URL, make_url

from tests.bench.echo import echo_server
from tests.suite.installation import installed


class Unmeasurable(Exception):
    """Figures taken there would mean nothing; says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """The addresses of what is measured, and how thoroughly it shall be."""

    flow_run: str
    queue: str
    log: str
    echo: str
    quick: bool


@contextmanager
def prepared(database: str, *, quick: bool) -> Iterator[Place]:
    """A place with an empty database: a SQLite file of its own, or a database of its own on that PostgreSQL server."""
    with (
        tempfile.TemporaryDirectory(prefix="penstock-bench-") as home,
        _database(database, Path(home)) as url,
        installed(Path(home), url) as (installation, _),
        echo_server() as echo,
    ):
        addresses = {name: installation.environ[f"PENSTOCK_{name.upper()}_ADDRESS"] for name in SERVICES}
        yield Place(**addresses, echo=echo, quick=quick)


SERVICES = ("flow_run", "queue", "log")


def kind_of(database: str) -> str:
    return "PostgreSQL" if database else "SQLite"


@contextmanager
def _database(server: str, home: Path) -> Iterator[str]:
    if not server:
        yield f"sqlite:///{home / 'penstock.db'}"
        return
    url = make_url(server)
    if url.get_backend_name() != "postgresql":
        raise Unmeasurable(f"{server}: name a PostgreSQL server, or none for SQLite.")
    own = url.set(drivername="postgresql+psycopg", database=f"penstock_bench_{uuid4().hex[:8]}")
    with _connected(url) as admin:
        setting = admin.execute("SHOW fsync").fetchone()
        if setting != ("on",):
            raise Unmeasurable("fsync is off on that server: what it calls written is not.")
        admin.execute(f'CREATE DATABASE "{own.database}"'.encode())
    try:
        yield own.render_as_string(hide_password=False)
    finally:
        with _connected(url) as admin:
            admin.execute(f'DROP DATABASE "{own.database}" WITH (FORCE)'.encode())


def _connected(url: URL) -> "psycopg.Connection[tuple[object, ...]]":
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return psycopg.connect(plain, autocommit=True)
