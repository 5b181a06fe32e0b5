"""Whose terminal it is, and who is handed what is typed there."""

import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.agent.terminal import has_foreground
from tests.agent.waiting import until

PROBE = "from penstock.agent.terminal import own_terminal; print(own_terminal() and 'attached')"
AS_A_SHELL = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PROBE!r}], process_group=0)"
OWNS_A_TERMINAL = "import pty, sys; pty.spawn(sys.argv[1:])"
AT_A_TERMINAL = "import pty, sys; pty.spawn([sys.executable, '-c', sys.argv[1]])"

# A command that lends its terminal to some code, and then does something itself.
LENDING = """
import asyncio, os, signal, subprocess, sys
from penstock.agent.terminal import own_terminal

CODE = '''
import sys
from penstock.authoring.terminal import attach
attach(int(sys.argv[1]))
try:
    answer = "answered " + input("What? ")
except EOFError as error:
    answer = str(error)
with open(sys.argv[2], "w") as file:
    file.write(answer + "\\\\n")
'''

async def lend(witness, then=lambda: None):
    terminal = own_terminal()
    with terminal.lent() as line:
        process = subprocess.Popen([sys.executable, "-c", CODE, str(line), witness], pass_fds=[line])
    then()
    await asyncio.to_thread(process.wait)
    terminal.close()
"""
TAKES_THE_REST = "asyncio.run(lend(sys.argv[1]))\nprint('left:', sys.stdin.readline())\n"
# Another program has the foreground for a while, and reads nothing.
GOES_AWAY = """
def away():
    os.tcsetpgrp(0, other.pid)
    print("away", flush=True)
    asyncio.get_running_loop().call_later(2, os.tcsetpgrp, 0, os.getpgrp())

signal.signal(signal.SIGTTOU, signal.SIG_IGN)
other = subprocess.Popen(["sleep", "60"], process_group=0)
asyncio.run(lend(sys.argv[1], away))
other.kill()
"""
OUTLIVES_IT = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nsignal.alarm(60)\nasyncio.run(lend(sys.argv[1]))\n"


class Person:
    """Sits at a terminal, whose foreground some code has."""

    def __init__(self, code: str, witness: Path) -> None:
        self._witness = witness
        self.shown = ""
        self._terminal = subprocess.Popen(
            [sys.executable, "-c", OWNS_A_TERMINAL, sys.executable, "-c", LENDING + code, str(witness)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def type(self, keys: str) -> None:
        assert self._terminal.stdin is not None
        self._terminal.stdin.write(keys.encode())

    def until(self, words: str) -> None:
        assert self._terminal.stdout is not None
        while words not in self.shown:
            readable, _, _ = select.select([self._terminal.stdout], [], [], 30)
            more = self._terminal.stdout.read(1024) if readable else b""
            assert more, f"it did not say {words!r}:\n{self.shown}"
            self.shown += more.decode()

    def leave(self) -> None:
        """Close the terminal."""
        self._terminal.kill()
        self._terminal.communicate()

    async def answer(self) -> str:
        """What became of the question."""
        assert await until(lambda: self._witness.exists() and self._witness.read_text().endswith("\n"))
        return self._witness.read_text().rstrip("\n")


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Callable[[str], Person]]:
    sat: list[Person] = []

    def sit(code: str) -> Person:
        sat.append(Person(code, tmp_path / "witness"))
        return sat[-1]

    yield sit
    for each in sat:
        each.leave()


@pytest.mark.parametrize(("program", "found"), [(PROBE, "attached"), (AS_A_SHELL, "None")])
def test_the_terminal_is_that_of_the_foreground(program: str, found: str) -> None:
    """A command that a shell runs in its background leaves what is typed to the shell."""
    command = [sys.executable, "-c", AT_A_TERMINAL, program]
    shown = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)

    assert found == shown.stdout.strip()


@pytest.mark.parametrize("missing", ["stdin", "stdout and stderr"])
def test_without_both_ways_there_is_none(missing: str) -> None:
    """Somebody has to read what is asked, and to answer."""
    screen, terminal = pty.openpty()
    try:
        shown = subprocess.run(
            [sys.executable, "-c", PROBE],
            stdin=subprocess.DEVNULL if missing == "stdin" else terminal,
            stdout=subprocess.PIPE,
            stderr=terminal if missing == "stdin" else subprocess.DEVNULL,
            check=True,
        )
    finally:
        os.close(screen)
        os.close(terminal)

    assert b"None\n" == shown.stdout


def test_what_is_no_terminal_of_ours_has_no_foreground() -> None:
    """Neither a missing or closed input, nor a file, nor a terminal that controls other processes."""
    screen, terminal = pty.openpty()
    with open(os.devnull, "rb") as nothing:
        foreign = [has_foreground(each) for each in (None, -1, 1 << 40, nothing.fileno(), terminal)]
    os.close(screen)
    os.close(terminal)

    assert [False] * 6 == [*foreign, has_foreground(terminal)]


async def test_only_what_was_asked_for_is_read(person: Callable[[str], Person]) -> None:
    """What is typed ahead stays for whoever reads it next."""
    sitting = person(TAKES_THE_REST)

    sitting.until("What? ")
    sitting.type("Aare\nls\n")

    assert "answered Aare" == await sitting.answer()
    sitting.until("left: ls")


async def test_nothing_is_read_in_the_background(person: Callable[[str], Person]) -> None:
    """What waits for an answer goes on waiting until the command is back."""
    sitting = person(GOES_AWAY)

    sitting.until("away")
    sitting.until("What? ")
    sitting.type("Aare\n")

    assert "answered Aare" == await sitting.answer()


async def test_the_end_of_input_is_handed_over(person: Callable[[str], Person]) -> None:
    """And ends nothing else: the next question is asked as ever."""
    sitting = person(TAKES_THE_REST)

    sitting.until("What? ")
    sitting.type("\x04more\n")

    assert "EOF when reading a line" == await sitting.answer()
    sitting.until("left: more")


async def test_a_terminal_that_was_closed_keeps_nobody_waiting(person: Callable[[str], Person]) -> None:
    """Also when the command outlives it."""
    sitting = person(OUTLIVES_IT)

    sitting.until("What? ")
    sitting.leave()

    assert (await sitting.answer()).startswith("Nobody can be asked any more")
