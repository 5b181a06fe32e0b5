"""The watch that ends a process group with the process above it."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.runtime.lifeline import WATCH
from tests.agent.waiting import is_alive, is_gone, number_in

Start = Callable[[str], "Watched"]


class Watched:
    """A program whose group is watched, and the end of the pipe that only the process above holds."""

    def __init__(self, program: str) -> None:
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec 3<&0 </dev/null; {WATCH}; exec 3<&-; {program}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def let_go(self) -> None:
        """End as the process above does, whatever ends it."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def say(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def printed(self) -> bytes:
        """All that the program prints, once nobody can print any more."""
        assert self.process.stdout is not None
        return self.process.stdout.read()

    def close(self) -> None:
        self.let_go()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Watched] = []

    def start(program: str) -> Watched:
        started.append(Watched(program))
        return started[-1]

    yield start
    for each in started:
        each.close()


async def test_the_group_ends_with_the_process_above(start: Start, tmp_path: Path) -> None:
    """The program and what it started, even if both ignore every polite request."""
    witness = tmp_path / "witness"
    watched = start(f"trap '' TERM INT HUP; sleep 60 & echo $! > {witness}; wait")
    child = await number_in(witness)

    watched.let_go()

    assert -signal.SIGKILL == watched.process.wait(20)
    assert await is_gone(child)


async def test_a_polite_end_of_the_group_does_not_end_the_watch(start: Start, tmp_path: Path) -> None:
    """Who survives being asked is still ended with the process above."""
    witness = tmp_path / "witness"
    watched = start(f"trap '' TERM INT; echo $$ > {witness}; while :; do sleep 1; done")
    await number_in(witness)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.killpg(watched.process.pid, number)

    watched.let_go()

    assert -signal.SIGKILL == watched.process.wait(20)


async def test_what_is_said_on_the_line_ends_nothing(start: Start, tmp_path: Path) -> None:
    """Only its end does."""
    witness = tmp_path / "witness"
    watched = start(f"echo $$ > {witness}; while ! [ -e {witness}.go ]; do sleep 0.01; done")
    pid = await number_in(witness)

    watched.say(b"still here\nand here")

    assert is_alive(pid)
    (tmp_path / "witness.go").touch()
    assert 0 == watched.process.wait(20)


def test_a_program_that_ends_first_is_not_held_up(start: Start) -> None:
    """The watch holds none of its descriptors: whoever reads what it prints sees the end."""
    watched = start("echo done")

    assert b"done\n" == watched.printed()
    assert 0 == watched.process.wait(20)


def test_the_watch_is_no_child_of_the_program(start: Start) -> None:
    """Nor does it hold up a program that waits for all of its children."""
    watched = start("wait; echo alone")

    assert b"alone\n" == watched.printed()
