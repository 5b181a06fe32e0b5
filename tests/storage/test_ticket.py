"""The write ticket of a SQLite file, among threads and among real processes."""

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from penstock.domain.errors import Unavailable
from penstock.storage.ticket import WriteTicket

LONG: Final = timedelta(seconds=20)
SHORT: Final = timedelta(milliseconds=20)

# Holds the ticket until it is told to end.
HOLD: Final = """
import sys
from datetime import timedelta
from pathlib import Path
from penstock.storage.ticket import WriteTicket

with WriteTicket(Path(sys.argv[1])).held(timedelta(seconds=20)):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "penstock.db"


@pytest.fixture
def ticket(path: Path) -> Iterator[WriteTicket]:
    ticket = WriteTicket(path)
    yield ticket
    ticket.close()


@contextlib.contextmanager
def another_process_holding(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that holds the ticket, until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process


def release(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()


async def test_one_thread_at_a_time_holds_it(ticket: WriteTicket) -> None:
    """Of many threads that want it, one has it, and each gets it."""
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with ticket.held(LONG):
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    await asyncio.gather(*(asyncio.to_thread(work) for _ in range(50)))

    assert most == [1] * 50


def test_a_thread_that_waits_too_long_is_told(ticket: WriteTicket) -> None:
    """Who does not get it in time is refused and disturbs nobody."""
    refused = threading.Event()

    def want() -> None:
        with pytest.raises(Unavailable, match="busy for too long"), ticket.held(SHORT):
            pass
        refused.set()

    with ticket.held(LONG):
        thread = threading.Thread(target=want)
        thread.start()
        thread.join()

    assert refused.is_set()
    with ticket.held(SHORT):
        pass


def test_it_is_given_back_by_work_that_fails(ticket: WriteTicket, path: Path) -> None:
    """Whatever is raised under it, it is free afterwards, for everybody."""
    with pytest.raises(ZeroDivisionError), ticket.held(SHORT):
        raise ZeroDivisionError

    with ticket.held(SHORT):
        pass
    with another_process_holding(path) as process:
        release(process)


def test_another_process_is_kept_out(ticket: WriteTicket, path: Path) -> None:
    """While one process holds it another does not get it, and is told after a while."""
    with another_process_holding(path) as process:
        with pytest.raises(Unavailable, match="another process has kept the database busy"), ticket.held(SHORT):
            pass
        release(process)


async def test_who_waits_gets_it_when_it_is_free(ticket: WriteTicket, path: Path) -> None:
    """A process that waits for another's ticket has it as soon as that one gives it back."""

    def wait() -> str:
        with ticket.held(LONG):
            return "got it"

    with another_process_holding(path) as process:
        waiting = asyncio.create_task(asyncio.to_thread(wait))
        release(process)

        assert await waiting == "got it"


def test_a_killed_holder_frees_it(ticket: WriteTicket, path: Path) -> None:
    """It dies with the process that holds it, however that one ends."""
    with another_process_holding(path) as process:
        process.kill()

        with ticket.held(LONG):
            pass


def test_who_gave_up_waiting_keeps_nobody_out(ticket: WriteTicket, path: Path) -> None:
    """After a wait in vain the ticket is nobody's, here and elsewhere, once its holder is done."""
    with another_process_holding(path) as process:
        for _ in range(3):
            with pytest.raises(Unavailable), ticket.held(SHORT):
                pass
        release(process)

    with ticket.held(LONG):
        pass
    with another_process_holding(path) as process:
        release(process)
