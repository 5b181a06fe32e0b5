"""Transactions: what they commit, what they take back, and when they are tried again."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from penstock.domain.errors import FlowRunNotFound, Unavailable
from penstock.domain.ids import DEFAULT_TENANT
from penstock.domain.limits import TRANSACTION_ATTEMPTS_MAX
from penstock.storage.database import Database, DatabaseClock, Overtaken, Transaction, open_engine
from penstock.storage.migrations import migrate
from penstock.storage.schema import concurrency_limits
from penstock.storage.wakeups import Hint
from tests.storage.gate import Gate
from tests.support.fake_clock import NOON, FakeClock
from tests.support.postgres import EmbeddedPostgres

on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)

limit = concurrency_limits.c


@pytest.fixture
def real_time_database(engine: Engine) -> Iterator[Database]:
    """A database that is asked for the time, as in production."""
    database = Database(engine, DatabaseClock(), threads=2)
    yield database
    database.close()


async def test_what_returns_is_committed(database: Database) -> None:
    """The work's answer is handed on, after everybody can see what it wrote."""

    def write(tx: Transaction, label: str, *, slots: int) -> str:
        set_limit(tx, label, slots)
        return f"{label} is {slots}"

    assert await database.run(write, "gpu", slots=3) == "gpu is 3"
    assert await database.read(limits) == {"gpu": 3}


@pytest.mark.parametrize("failure", [FlowRunNotFound("x"), AssertionError("ours"), KeyboardInterrupt()], ids=repr)
async def test_what_raises_is_rolled_back(database: Database, failure: BaseException) -> None:
    """Whatever a work raises reaches its caller, and nothing that it wrote stays."""

    def write(tx: Transaction) -> None:
        set_limit(tx, "gpu", 3)
        raise failure

    with pytest.raises(type(failure)):
        await asyncio.to_thread(database.run_here, write)

    assert await database.read(limits) == {}
    await database.run(set_limit, "gpu", 4)


async def test_a_broken_constraint_is_raised_as_it_is(database: Database) -> None:
    """A mistake of ours is neither repeated nor taken for a database that is away."""
    tries: list[int] = []

    def write(tx: Transaction) -> None:
        tries.append(1)
        set_limit(tx, "gpu", -1)

    with pytest.raises(IntegrityError):
        await database.run(write)

    assert len(tries) == 1


async def test_the_clock_is_asked_inside_each_transaction(database: Database, clock: FakeClock) -> None:
    """A work is told the time; it is the clock's, which a test moves."""
    before = await database.run(lambda tx: tx.now)
    clock.advance(timedelta(hours=1))

    assert before == NOON
    assert await database.read(lambda tx: tx.now) == NOON + timedelta(hours=1)


async def test_the_databases_own_time_is_in_utc_and_goes_on(real_time_database: Database) -> None:
    """In production the time is PostgreSQL's, else the host's: in UTC, and of the moment, not of the commit before."""
    times = [await real_time_database.run(lambda tx: tx.now) for _ in range(3)]

    assert times == sorted(times)
    assert {time.timezone_name for time in times} == {"UTC"}
    assert len(set(times)) == 3


async def test_the_trace_goes_along(database: Database) -> None:
    """What the caller has in its context, a work finds in its thread."""
    trace: ContextVar[str] = ContextVar("trace", default="none")
    trace.set("4bf92f")

    assert await database.run(lambda tx: trace.get()) == "4bf92f"
    assert await database.read(lambda tx: threading.current_thread().name.startswith("database"))


async def test_work_does_not_hold_up_the_loop(database: Database) -> None:
    """While a transaction waits, the event loop goes on."""
    gate = Gate()

    waiting = asyncio.create_task(database.run(lambda tx: gate.stop_here()))
    await gate.reached()
    gate.open()

    await waiting


@on_postgres
@pytest.mark.parametrize("sqlstate", ["40001", "40P01"], ids=["serialization", "deadlock"])
async def test_a_lost_race_is_run_again(database: Database, sqlstate: str) -> None:
    """A transaction that only lost a race is tried again from its beginning, and leaves nothing of the first try."""
    tries: list[int] = []

    def write(tx: Transaction) -> int:
        tries.append(1)
        set_limit(tx, f"try {len(tries)}", 1)
        tx.hint.due = len(tries) == 1
        if len(tries) < 3:
            lose(tx, sqlstate)
        return len(tries)

    assert await database.run(write) == 3
    assert await database.read(limits) == {"try 3": 1}


async def test_who_was_overtaken_begins_again(database: Database) -> None:
    """From the beginning, and nothing of the first try is left, neither rows nor hints."""
    tries: list[int] = []

    def write(tx: Transaction) -> Hint:
        tries.append(1)
        set_limit(tx, f"try {len(tries)}", 1)
        tx.hint.due = len(tries) == 1
        if len(tries) < 3:
            raise Overtaken
        return tx.hint

    assert await database.run(write) == Hint()
    assert await database.read(limits) == {"try 3": 1}


async def test_who_is_overtaken_each_time_is_told_to_come_again(database: Database) -> None:
    """After a bounded number of tries it is UNAVAILABLE, and nothing was written."""
    tries: list[int] = []

    def write(tx: Transaction) -> None:
        tries.append(1)
        set_limit(tx, "mine", 1)
        raise Overtaken

    with pytest.raises(Unavailable):
        await database.run(write)

    assert len(tries) == TRANSACTION_ATTEMPTS_MAX
    assert await database.read(limits) == {}


@on_postgres
async def test_races_are_not_lost_for_ever(database: Database) -> None:
    """After a bounded number of tries the failure is raised."""
    tries: list[int] = []

    def write(tx: Transaction) -> None:
        tries.append(1)
        lose(tx, "40001")

    with pytest.raises(DBAPIError):
        await database.run(write)

    assert len(tries) == TRANSACTION_ATTEMPTS_MAX


@on_postgres
async def test_a_real_deadlock_is_resolved(database: Database) -> None:
    """Two transactions that wait for each other's row both go through in the end."""
    met = threading.Barrier(2, timeout=20)
    tries: list[str] = []

    def add_to_both(tx: Transaction, first: str, second: str) -> None:
        tries.append(first)
        add(tx, first)
        if tries.count(first) == 1:
            met.wait()
        add(tx, second)

    await database.run(set_limit, "a", 0)
    await database.run(set_limit, "b", 0)

    await asyncio.gather(database.run(add_to_both, "a", "b"), database.run(add_to_both, "b", "a"))

    assert await database.read(limits) == {"a": 2, "b": 2}
    assert len(tries) >= 3  # at least one was told to begin again; it may meet the other once more


@on_postgres
async def test_a_connection_that_died_while_idle_is_replaced(real_time_database: Database) -> None:
    """After the database closed all connections, the next transaction goes through, run once."""
    tries: list[int] = []

    def write(tx: Transaction) -> None:
        tries.append(1)
        set_limit(tx, "gpu", 3)

    # Two at once, so that more than one connection is in the pool.
    gate = Gate()
    first = asyncio.create_task(real_time_database.run(lambda tx: gate.stop_here()))
    await gate.reached()
    await real_time_database.read(limits)
    gate.open()
    await first
    end_connections(real_time_database.engine)

    await real_time_database.run(write)

    assert len(tries) == 1
    assert await real_time_database.read(limits) == {"gpu": 3}


@on_postgres
async def test_a_connection_that_dies_in_a_transaction_is_unavailable(real_time_database: Database) -> None:
    """Once a work has begun, nothing is known of what came of it: it is not repeated, and the caller is told."""
    tries: list[int] = []

    def write(tx: Transaction) -> None:
        tries.append(1)
        tx.conn.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    with pytest.raises(Unavailable, match="the database is away"):
        await real_time_database.run(write)

    assert len(tries) == 1
    await real_time_database.run(set_limit, "gpu", 3)


@pytest.mark.slow
async def test_a_server_that_is_away_is_unavailable_until_it_is_back() -> None:
    """While PostgreSQL is stopped calls are refused at once; when it is back they are served, by the same process."""
    server = EmbeddedPostgres()
    server.start()
    engine = open_engine(server.url, connections=2)
    database = Database(engine, DatabaseClock(), threads=2)
    await asyncio.to_thread(migrate, engine)
    await database.run(set_limit, "gpu", 3)

    await asyncio.to_thread(server.stop)
    for work in (database.run, database.read):
        with pytest.raises(Unavailable, match="the database is away"):
            await work(limits)
    await asyncio.to_thread(server.start)

    assert await database.run(limits) == {"gpu": 3}
    database.close()
    server.close()


@on_sqlite
async def test_a_file_is_safe_from_a_loss_of_power(database: Database) -> None:
    """Every connection writes ahead, waits for the disk at each commit, and holds to foreign keys."""

    def settings(tx: Transaction) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [tx.conn.execute(text(f"PRAGMA {name}")).scalar_one() for name in names]

    assert await database.run(settings) == ["wal", 2, 1]
    assert await database.read(settings) == ["wal", 2, 1]


@on_sqlite
async def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    """While a writer holds the file, a reader is answered, with what was there before."""
    gate = Gate()

    def write(tx: Transaction) -> None:
        set_limit(tx, "gpu", 3)
        gate.stop_here()

    writing = asyncio.create_task(database.run(write))
    await gate.reached()
    meanwhile = await database.read(limits)
    gate.open()
    await writing

    assert meanwhile == {}
    assert await database.read(limits) == {"gpu": 3}


@on_sqlite
async def test_a_reader_sees_one_moment(database: Database) -> None:
    """What is committed while a reader is at work is not in what it reads next."""
    gate = Gate()

    def read_twice(tx: Transaction) -> list[dict[str, int]]:
        before = limits(tx)
        gate.stop_here()
        return [before, limits(tx)]

    reading = asyncio.create_task(database.read(read_twice))
    await gate.reached()
    await database.run(set_limit, "gpu", 3)
    gate.open()

    assert await reading == [{}, {}]


@on_sqlite
async def test_writers_come_one_after_the_other(database: Database) -> None:
    """Transactions that read, then write what they read, lose no update."""

    def count(tx: Transaction) -> None:
        tx.conn.execute(update(concurrency_limits).values(slots=limits(tx)["gpu"] + 1))

    await database.run(set_limit, "gpu", 0)

    await asyncio.gather(*(database.run(count) for _ in range(20)))

    assert await database.read(limits) == {"gpu": 20}


@on_sqlite
async def test_a_file_that_a_stranger_locks_is_unavailable(database: Database) -> None:
    """Someone who writes to the file without a ticket keeps us waiting for a while, then the caller is told."""
    event.listen(database.engine, "connect", lambda connection, _: connection.execute("PRAGMA busy_timeout = 20"))
    stranger = sqlite3.connect(database.engine.url.database or "", isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")

    with pytest.raises(Unavailable, match="the database is away"):
        await database.run(set_limit, "gpu", 3)

    stranger.close()
    await database.run(set_limit, "gpu", 3)


@on_sqlite
async def test_who_waits_too_long_for_the_ticket_is_told(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer behind a slow one gives up after a while; a reader does not even notice."""
    monkeypatch.setattr("penstock.storage.database.TICKET_WAIT_MAX", timedelta(milliseconds=20))
    gate = Gate()

    slow = asyncio.create_task(database.run(lambda tx: gate.stop_here()))
    await gate.reached()
    with pytest.raises(Unavailable, match="busy for too long"):
        await database.run(set_limit, "gpu", 3)
    seen = await database.read(limits)
    gate.open()
    await slow

    assert seen == {}
    await database.run(set_limit, "gpu", 3)


async def test_a_file_in_no_directory_is_unavailable(tmp_path: Path) -> None:
    """A path that cannot be opened is a database that is away, not a mistake of ours."""
    database = Database(open_engine(f"sqlite:///{tmp_path}/none/p.db", connections=1), DatabaseClock(), threads=1)

    with pytest.raises(Unavailable, match="the database is away"):
        await database.read(limits)

    database.close()


@on_postgres
def test_sessions_are_as_we_need_them(engine: Engine) -> None:
    """Sessions speak UTC, commit what they read, and say who they are."""
    names = ("TimeZone", "transaction_isolation", "application_name")

    with engine.connect() as conn:
        settings = [conn.execute(text(f"SHOW {name}")).scalar_one() for name in names]

    assert settings == ["UTC", "read committed", "penstock"]


def set_limit(tx: Transaction, label: str, slots: int) -> None:
    tx.conn.execute(insert(concurrency_limits).values(tenant_id=DEFAULT_TENANT, label=label, slots=slots))


def add(tx: Transaction, label: str) -> None:
    tx.conn.execute(update(concurrency_limits).where(limit.label == label).values(slots=limit.slots + 1))


def limits(tx: Transaction) -> dict[str, int]:
    return {row.label: row.slots for row in tx.conn.execute(select(concurrency_limits))}


def lose(tx: Transaction, sqlstate: str) -> None:
    """Fail as PostgreSQL does when it makes one of several transactions give way."""
    tx.conn.execute(text(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{sqlstate}'; END $$"))


def end_connections(engine: Engine) -> None:
    """Have the server end every connection of that pool, and wait until they are gone."""
    others = create_engine(engine.url, isolation_level="AUTOCOMMIT")
    ending = select(func.pg_terminate_backend(text("pid"), 10_000)).select_from(text("pg_stat_activity"))
    mine = text("application_name = 'penstock' AND datname = current_database()")
    with others.connect() as conn:
        assert conn.execute(ending.where(mine)).all()
    others.dispose()
