"""Hints that something is due, moved or written. A hint may be lost or come twice: whoever gets one looks for itself.

On PostgreSQL a hint travels by NOTIFY, one per transaction, delivered with its commit. On SQLite every process has a
doorbell, a datagram socket that writers ring after their commit; behind it the file's `data_version` is polled.
"""

import contextlib
import hashlib
import json
import os
import select
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import UUID, uuid4

import psycopg
from sqlalchemy import Connection, Engine, text

from penstock.domain.ids import FlowRunId

# A database host that vanished without a word is given up within seconds, not when the kernel loses patience.
PROMPTLY: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}
CHANNEL: Final = "penstock"
PAYLOAD_BYTES_MAX: Final = 7_900
POLL_SECONDS: Final = 0.02
LISTEN_SECONDS: Final = 0.5
# A socket's path ends at 104 bytes on macOS; the part below the temporary directory takes the rest.
TEMPORARY_BYTES_MAX: Final = 50


@dataclass(slots=True)
class Hint:
    """What may have changed: whether something became due or shall stop, and which runs moved or had lines written."""

    due: bool = False
    stop: bool = False
    moved: set[FlowRunId] = field(default_factory=set)
    written: set[FlowRunId] = field(default_factory=set)
    anything: bool = False

    def __bool__(self) -> bool:
        return self.due or self.stop or self.anything or bool(self.moved) or bool(self.written)


def encode(hint: Hint) -> str:
    """A hint as text; one that would be too long says only that anything may have changed."""
    payload = json.dumps(
        {
            "due": hint.due,
            "stop": hint.stop,
            "moved": [run.hex for run in hint.moved],
            "written": [run.hex for run in hint.written],
        },
        separators=(",", ":"),
    )
    return payload if len(payload) <= PAYLOAD_BYTES_MAX and not hint.anything else ""


def decode(payload: str) -> Hint:
    """A hint from text; text that is not one says that anything may have changed."""
    try:
        members = json.loads(payload)
        return Hint(
            due=bool(members["due"]),
            stop=bool(members["stop"]),
            moved={FlowRunId(UUID(run)) for run in members["moved"]},
            written={FlowRunId(UUID(run)) for run in members["written"]},
        )
    except (ValueError, KeyError, TypeError):
        return Hint(anything=True)


def notify(conn: Connection, hint: Hint) -> None:
    """Give a hint with the commit of this PostgreSQL transaction."""
    if hint:
        conn.execute(NOTIFY, {"channel": CHANNEL, "payload": encode(hint)})


NOTIFY: Final = text("SELECT pg_notify(:channel, :payload)")


class Bells:
    """The doorbells of every process that listens on one SQLite file."""

    def __init__(self, database: Path) -> None:
        self._street = street(database)
        self._socket: socket.socket | None = None

    def ring(self, hint: Hint) -> None:
        """Ring every doorbell. One that nobody answers any more is taken down.

        Never fails: what it tells of is committed, and an error now would make its caller believe that it is not. The
        poll behind the doorbells finds what a ring that went astray would have told.
        """
        if not hint:
            return
        with contextlib.suppress(OSError):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._socket.setblocking(False)
            payload = encode(hint).encode()
            for bell in self._street.glob("*.bell"):
                self._ring_one(self._socket, bell, payload)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @staticmethod
    def _ring_one(ringing: socket.socket, bell: Path, payload: bytes) -> None:
        try:
            ringing.sendto(payload, str(bell))
        except ConnectionRefusedError:
            bell.unlink(missing_ok=True)
        except OSError:
            return  # full, or gone meanwhile


class Listener(Protocol):
    """Waits for hints, in a thread of its own."""

    def hints(self) -> Iterator[Hint]:
        """Yield hints as they come, and an empty one every now and then, so that the caller can stop."""
        ...

    def close(self) -> None: ...


def listen(engine: Engine, listen_url: str = "") -> Listener:
    """A listener on this database. `listen_url` is for PostgreSQL behind a pooler that cannot LISTEN."""
    if engine.dialect.name == "sqlite":
        return _SqliteListener(Path(engine.url.database or ""))
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return _PostgresListener(listen_url or url)


class _PostgresListener:
    """LISTEN on a connection of its own. After a broken connection anything may have changed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: psycopg.Connection[Any] | None = None

    def hints(self) -> Iterator[Hint]:
        while True:
            try:
                if self._conn is None:
                    self._conn = psycopg.connect(self._url, autocommit=True, **PROMPTLY)
                    self._conn.execute(f"LISTEN {CHANNEL}")
                    yield Hint(anything=True)
                for notice in self._conn.notifies(timeout=LISTEN_SECONDS):
                    yield decode(notice.payload)
                yield Hint()
            except psycopg.Error:
                self.close()
                select.select([], [], [], LISTEN_SECONDS)
                yield Hint()

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()
            self._conn = None


class _SqliteListener:
    """A doorbell, and a look at `data_version` every 20 ms for writers that did not ring it."""

    def __init__(self, database: Path) -> None:
        self._path = street(database) / f"{uuid4().hex[:12]}.bell"
        self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bell.bind(str(self._path))
        self._bell.setblocking(False)
        self._database = database
        self._looking: sqlite3.Connection | None = None

    def hints(self) -> Iterator[Hint]:
        seen = self._data_version()
        while True:
            rung, _, _ = select.select([self._bell], [], [], POLL_SECONDS)
            version = self._data_version()
            if rung:
                yield from map(decode, self._answer())
            elif version != seen:
                yield Hint(anything=True)
            else:
                yield Hint()
            seen = version

    def close(self) -> None:
        self._bell.close()
        self._path.unlink(missing_ok=True)
        if self._looking is not None:
            self._looking.close()
            self._looking = None

    def _data_version(self) -> int:
        if self._looking is None:
            self._looking = sqlite3.connect(self._database, isolation_level=None, check_same_thread=False)
        return int(self._looking.execute("PRAGMA data_version").fetchone()[0])

    def _answer(self) -> Iterator[str]:
        while True:
            try:
                yield self._bell.recv(65_536).decode()
            except BlockingIOError:
                return


def street(database: Path) -> Path:
    """The directory of the doorbells of one file: short, because a socket's path is, and nobody else's."""
    name = hashlib.sha256(str(database.resolve()).encode()).hexdigest()[:16]
    home = _temporary() / f"penstock-{os.getuid()}"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise PermissionError(f"{home} belongs to another user; remove it, or set TMPDIR")
    bells = home / name
    bells.mkdir(mode=0o700, exist_ok=True)
    return bells


def _temporary() -> Path:
    """Where sockets may be made: as configured, unless their paths would become longer than a socket's may be."""
    configured = Path(tempfile.gettempdir())
    return configured if len(os.fsencode(configured)) <= TEMPORARY_BYTES_MAX else Path("/tmp")  # noqa: S108
