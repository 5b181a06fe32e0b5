"""Hints: they come with a commit and only then, on both databases, and losing one costs time, never truth."""

import asyncio
import contextlib
import errno
import itertools
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import Engine, insert, text

from penstock.domain.errors import Overloaded
from penstock.domain.ids import DEFAULT_TENANT, FlowRunId
from penstock.storage.database import Database, Transaction, open_engine
from penstock.storage.schema import concurrency_limits
from penstock.storage.wakeups import PAYLOAD_BYTES_MAX, Bells, Hint, Listener, decode, encode, listen, street
from tests.support.builders import an_id

on_postgres = pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
on_sqlite = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)

HEARING_SECONDS_MAX: Final = 20

# Listens until it is killed.
LISTEN: Final = """
import sys
from penstock.storage.database import open_engine
from penstock.storage.wakeups import listen

for hint in listen(open_engine(sys.argv[1], connections=1)).hints():
    print("listening", flush=True)
"""


@contextlib.contextmanager
def listening(engine: Engine) -> Iterator[Listener]:
    """A listener that misses nothing from now on."""
    listener = listen(engine)
    try:
        if engine.dialect.name != "sqlite":
            heard(listener, lambda hint: hint.anything)
        yield listener
    finally:
        listener.close()


def heard(listener: Listener, last: Callable[[Hint], object]) -> list[Hint]:
    """The hints that come, up to the one that `last` is true for."""
    hints = []
    deadline = time.monotonic() + HEARING_SECONDS_MAX
    for hint in listener.hints():
        if hint:
            hints.append(hint)
        if last(hint):
            break
        assert time.monotonic() < deadline, f"only {hints} came"
    return hints


def move(tx: Transaction, run: FlowRunId) -> None:
    """Write something, and say that this run moved."""
    row = {"tenant_id": DEFAULT_TENANT, "label": str(run), "slots": 1}
    tx.conn.execute(insert(concurrency_limits).values(row))
    tx.hint.moved.add(run)


def a_run() -> FlowRunId:
    return FlowRunId(an_id())


@pytest.mark.parametrize(
    "hint",
    [Hint(), Hint(due=True), Hint(moved={a_run(), a_run()}, written={a_run()}), Hint(anything=True)],
    ids=["nothing", "due", "runs", "anything"],
)
def test_a_hint_survives_its_journey(hint: Hint) -> None:
    """What is put into text comes out of it."""
    assert decode(encode(hint)) == hint


@pytest.mark.parametrize("runs", [100, 300])
def test_a_hint_that_is_too_long_says_anything(runs: int) -> None:
    """Text stays within what PostgreSQL carries; beyond it only that something happened is said."""
    hint = Hint(moved={a_run() for _ in range(runs)})

    payload = encode(hint)

    assert len(payload) <= PAYLOAD_BYTES_MAX < 8_000
    assert decode(payload) == (hint if runs == 100 else Hint(anything=True))


@pytest.mark.parametrize("payload", ["", "x", "[]", "{}", '{"due": 1, "moved": ["x"], "written": []}', "null"])
def test_text_that_is_no_hint_says_anything(payload: str) -> None:
    """Whoever wrote it meant something."""
    assert decode(payload) == Hint(anything=True)


async def test_a_hint_comes_with_the_commit(database: Database) -> None:
    """Every listener hears what a transaction hinted at, all of it, once it can see what was written."""
    run, other = a_run(), a_run()

    def write(tx: Transaction) -> None:
        move(tx, run)
        tx.hint.written.add(other)
        tx.hint.due = True

    with listening(database.engine) as first, listening(database.engine) as second:
        await database.run(write)
        told = [await asyncio.to_thread(heard, each, lambda hint: hint.moved) for each in (first, second)]

    assert [hints[-1] for hints in told] == [Hint(due=True, moved={run}, written={other})] * 2


async def test_a_rollback_hints_at_nothing(database: Database) -> None:
    """What was taken back is not told."""
    taken_back, committed = a_run(), a_run()

    def fail(tx: Transaction) -> None:
        move(tx, taken_back)
        raise Overloaded(wait=timedelta(0))

    with listening(database.engine) as listener:
        with pytest.raises(Overloaded):
            await database.run(fail)
        await database.run(move, committed)
        hints = await asyncio.to_thread(heard, listener, lambda hint: committed in hint.moved)

    assert set().union(*(hint.moved for hint in hints)) == {committed}


@on_postgres
async def test_a_try_that_lost_a_race_hints_at_nothing(database: Database) -> None:
    """Of a transaction that was tried twice, only what the second try did is told."""
    lost, committed = a_run(), a_run()
    tries = iter((lost, committed))

    def write(tx: Transaction) -> None:
        run = next(tries)
        move(tx, run)
        if run == lost:
            tx.conn.execute(text("DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"))

    with listening(database.engine) as listener:
        await database.run(write)
        hints = await asyncio.to_thread(heard, listener, lambda hint: committed in hint.moved)

    assert hints == [Hint(moved={committed})]


async def test_only_hints_that_say_something_are_given(database: Database) -> None:
    """A transaction that changed nothing of interest wakes nobody."""
    run = a_run()

    with listening(database.engine) as listener:
        await database.run(lambda tx: None)
        await database.run(move, run)
        hints = await asyncio.to_thread(heard, listener, lambda hint: run in hint.moved)

    assert [hint for hint in hints if not hint.anything] == [Hint(moved={run})]


@on_postgres
async def test_after_a_broken_connection_anything_may_have_happened(database: Database) -> None:
    """A listener that was cut off comes back by itself and says so; then it hears again."""
    run = a_run()
    cut = text("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")

    with listening(database.engine) as listener:
        await database.read(lambda tx: tx.conn.execute(cut).all())
        meanwhile = await asyncio.to_thread(heard, listener, lambda hint: hint.anything)
        await database.run(move, run)
        hints = await asyncio.to_thread(heard, listener, lambda hint: hint.moved)

    assert meanwhile == [Hint(anything=True)]
    assert hints == [Hint(moved={run})]


@on_postgres
async def test_another_address_may_be_listened_on(database: Database, database_url: str) -> None:
    """Where statements go through a pooler, hints come by an address of their own."""
    pooler = open_engine("postgresql+psycopg://postgres@/penstock?host=/nowhere", connections=1)
    listener = listen(pooler, database_url.replace("+psycopg", ""))

    assert await asyncio.to_thread(heard, listener, lambda hint: hint.anything) == [Hint(anything=True)]

    listener.close()
    pooler.dispose()


@on_sqlite
async def test_a_commit_that_rings_no_bell_is_found(database: Database) -> None:
    """A writer that knows nothing of bells is noticed by what it changed."""
    with listening(database.engine) as listener:
        listened = asyncio.create_task(asyncio.to_thread(heard, listener, lambda hint: hint))
        await asyncio.to_thread(write_until, listened.done, database.engine.url.database or "")

        assert await listened == [Hint(anything=True)]


@on_sqlite
async def test_the_bell_of_a_killed_process_is_taken_down(database: Database, database_url: str) -> None:
    """A process that ended without a word leaves its bell; the next ring removes it, and no other."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LISTEN, database_url, env={"PYTHONPATH": ":".join(sys.path)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"listening\n"
    process.kill()
    await process.communicate()
    left_behind = set(bells_of(database))

    with listening(database.engine):
        alive = set(bells_of(database)) - left_behind
        await database.run(move, a_run())

        assert len(left_behind) == 1
        assert set(bells_of(database)) == alive


@on_sqlite
async def test_a_bell_that_nobody_answers_for_now_holds_up_nobody(database: Database) -> None:
    """A listener that is busy may miss hints, but stays; the writers go on."""
    with listening(database.engine) as listener:
        for _ in range(500):
            await database.run(lambda tx: setattr(tx.hint, "due", True))

        hints = await asyncio.to_thread(heard, listener, lambda hint: hint.due)

    assert hints[-1] == Hint(due=True)


@on_sqlite
async def test_a_listener_takes_its_own_bell_down(database: Database) -> None:
    """One that closes leaves nothing behind."""
    with listening(database.engine):
        assert len(bells_of(database)) == 1

    assert bells_of(database) == []


def test_bells_hang_where_only_their_owner_reaches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else may ring, and nobody else's directory is trusted."""
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        bells = street(tmp_path / "penstock.db")
        assert [path.stat().st_mode & 0o777 for path in (bells, bells.parent)] == [0o700] * 2

        # Somebody else's number, and a directory of that name that is ours.
        stranger = os.getuid() + 1
        (Path(temporary) / f"penstock-{stranger}").mkdir()
        monkeypatch.setattr(os, "getuid", lambda: stranger)

        with pytest.raises(PermissionError, match="belongs to another user"):
            street(tmp_path / "penstock.db")


def test_bells_hang_elsewhere_when_the_temporary_directory_is_too_deep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long TMPDIR costs no process its start: a socket is made where its path is short enough."""
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))

    bells = street(tmp_path / "penstock.db")

    assert bells.is_relative_to("/tmp")
    bells.rmdir()


@on_sqlite
def test_the_path_of_a_bell_is_short(database: Database) -> None:
    """A socket's path ends after 104 bytes on macOS, whose temporary directory takes 49 of them."""
    with listening(database.engine):
        (bell,) = bells_of(database)

    assert len(str(bell.relative_to(tempfile.gettempdir()))) < 104 - 49


async def test_a_ring_that_cannot_be_made_fails_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed stays answered as committed, even when no descriptor is left to ring with."""

    def exhausted(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    bells = Bells(tmp_path / "penstock.db")
    monkeypatch.setattr(socket, "socket", exhausted)

    bells.ring(Hint(due=True))

    street(tmp_path / "penstock.db").rmdir()


async def test_ringing_where_nobody_lives_is_nothing(tmp_path: Path) -> None:
    """A writer without listeners, and one with nothing to say, go on."""
    bells = Bells(tmp_path / "penstock.db")

    bells.ring(Hint())
    bells.ring(Hint(due=True))

    bells.close()
    street(tmp_path / "penstock.db").rmdir()


def bells_of(database: Database) -> list[Path]:
    return list(street(Path(database.engine.url.database or "")).iterdir())


def write_until(done: Callable[[], bool], path: str) -> None:
    """Commit again and again as a stranger: one that comes before the listener's first look is not seen."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        for number in itertools.count():
            if done():
                return
            stranger.execute(f"PRAGMA user_version = {number}")
            time.sleep(0.01)
