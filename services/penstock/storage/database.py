"""Runs transactions. Each is one plain function, in one thread, that waits for nothing but the database."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

import pendulum
import psycopg
from pendulum import DateTime
from psycopg.types.array import ListBinaryDumper
from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import QueuePool

from penstock.domain.errors import Unavailable
from penstock.domain.limits import TICKET_WAIT_MAX, TRANSACTION_ATTEMPTS_MAX
from penstock.storage.ticket import WriteTicket
from penstock.storage.types import UtcTime
from penstock.storage.wakeups import PROMPTLY, Bells, Hint, notify

P = ParamSpec("P")
T = TypeVar("T")

LOST_RACES: Final = frozenset({"40001", "40P01"})  # serialization failure, deadlock
AWAY: Final = frozenset({"57P01", "57P02", "57P03", "53300"})  # shutting down, crashed, starting, too many connections


@dataclass(frozen=True, slots=True)
class Transaction:
    """What an operation works with: a connection, the time, and the hint to give once it commits."""

    conn: Connection
    now: DateTime
    hint: Hint = field(default_factory=Hint)


class StoreClock(Protocol):
    """Tells the database's time, inside a transaction."""

    def now(self, conn: Connection) -> DateTime: ...


class DatabaseClock:
    """PostgreSQL's own clock; on SQLite, which has none, the host's."""

    def now(self, conn: Connection) -> DateTime:
        if conn.dialect.name == "sqlite":
            return pendulum.now("UTC")
        return conn.execute(NOW).scalar_one()


NOW: Final = select(func.clock_timestamp(type_=UtcTime))


class Overtaken(Exception):
    """Raised by work that met what it should have locked before, because another transaction came between two of its
    statements: nothing of it is kept, and it begins again."""


class Database:
    """The only place that opens transactions, and the only one that repeats them."""

    def __init__(self, engine: Engine, clock: StoreClock, *, threads: int) -> None:
        self._reading = engine
        self._writing = engine.execution_options(writes=True)
        self._clock = clock
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="database")
        path = sqlite_path(engine)
        self._ticket = WriteTicket(path) if path else None
        self._bells = Bells(path) if path else None

    @property
    def engine(self) -> Engine:
        return self._reading

    async def run(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work(tx, ...)` inside a transaction; commit if it returns, roll back if it raises.

        `work` may be called again when the transaction lost a race, so it has no effect outside the database.
        Raises Unavailable when the database is away: then nothing is known of a commit that was under way.
        """
        return await self._in_thread(lambda: self.run_here(work, *args, **kwargs))

    async def read(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same for work that only reads: on SQLite it waits for no writer."""
        return await self._in_thread(lambda: self.read_here(work, *args, **kwargs))

    def run_here(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`run`, in the calling thread."""
        with self._ticket.held(TICKET_WAIT_MAX) if self._ticket else nullcontext():
            tx, answer = self._transact(self._writing, work, *args, **kwargs)
        if self._bells:
            self._bells.ring(tx.hint)
        return answer

    def read_here(self, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`read`, in the calling thread."""
        return self._transact(self._reading, work, *args, **kwargs)[1]

    def close(self) -> None:
        """Wait for the transactions under way, then close every connection."""
        self._threads.shutdown()
        self._reading.dispose()
        for each in (self._ticket, self._bells):
            if each:
                each.close()

    async def aclose(self) -> None:
        """`close`, from an event loop."""
        await asyncio.to_thread(self.close)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        here = contextvars.copy_context()  # so that the trace goes along
        return await asyncio.get_running_loop().run_in_executor(self._threads, here.run, call)

    def _transact(
        self, engine: Engine, work: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[Transaction, T]:
        for attempt in range(1, TRANSACTION_ATTEMPTS_MAX + 1):
            last = attempt == TRANSACTION_ATTEMPTS_MAX
            begun = False
            try:
                with engine.begin() as conn:
                    tx = Transaction(conn, self._clock.now(conn))
                    begun = True
                    answer = work(tx, *args, **kwargs)
                    if conn.dialect.name != "sqlite":
                        notify(conn, tx.hint)
                return tx, answer
            except Overtaken as overtaken:
                if last:
                    raise Unavailable(detail="others came first each time that it tried") from overtaken
            except DBAPIError as error:
                if lost_a_race(error) and not last:
                    continue
                if not is_away(error):
                    raise
                # A connection that broke while it was idle shows it in its first statement: nothing was done yet.
                if begun or last or not error.connection_invalidated:
                    raise Unavailable(detail="the database is away") from error
        raise AssertionError("unreachable")


def open_engine(url: str, *, connections: int) -> Engine:
    """An engine on PostgreSQL (`postgresql+psycopg://…`) or SQLite (`sqlite:///path`), set up as we need it."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(url, connections)
    return _open_postgresql(parsed, connections)


def sqlite_path(engine: Engine) -> Path | None:
    """The database file, None on PostgreSQL."""
    return Path(engine.url.database or "") if engine.dialect.name == "sqlite" else None


def lost_a_race(error: DBAPIError) -> bool:
    """Whether the same transaction would go through when tried again at once."""
    return getattr(error.orig, "sqlstate", None) in LOST_RACES


def is_away(error: DBAPIError) -> bool:
    """Whether the database did not answer, rather than refuse."""
    if error.connection_invalidated or getattr(error.orig, "sqlstate", None) in AWAY:
        return True
    if not isinstance(error, OperationalError):
        return False
    busy = "locked" in str(error.orig) or "unable to open" in str(error.orig)
    unanswered = "sqlite" not in type(error.orig).__module__ and getattr(error.orig, "sqlstate", None) is None
    return busy or unanswered


def _open_postgresql(url: URL, connections: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=connections,
        max_overflow=0,
        pool_timeout=TICKET_WAIT_MAX.total_seconds(),
        isolation_level="READ COMMITTED",
        connect_args={"options": "-c timezone=UTC", "application_name": "penstock", **PROMPTLY},
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: psycopg.Connection, _record: object) -> None:
        # As text, every quote in an element of an array would be escaped by a call: half a megabyte of JSON has many.
        connection.adapters.register_dumper(list, ListBinaryDumper)

    return engine


def _open_sqlite(url: str, connections: int) -> Engine:
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"isolation_level": None, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: "_Cursors", _record: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "busy_timeout = 5000", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        # A transaction that will write says so at once: one that turns from reading to writing could be refused.
        writes = conn.get_execution_options().get("writes")
        conn.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


class _Cursors(Protocol):
    def cursor(self) -> "_Cursor": ...


class _Cursor(Protocol):
    def execute(self, statement: str, /) -> object: ...

    def close(self) -> None: ...
