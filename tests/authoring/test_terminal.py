"""Asking a person at a terminal, from a process that has no more of it than a line to a command there."""

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.runtime.frames import Frames, framed

ROOT = Path(__file__).parents[2]
ATTACH = "import sys\nfrom penstock.authoring.terminal import attach\nattach(int(sys.argv[1]))\n"


class Asking:
    """A process that was handed a line, and the other end of it."""

    def __init__(self, code: str, **variables: str) -> None:
        self._line, theirs = socket.socketpair()
        self._line.settimeout(30)
        self._frames = Frames()
        self._heard: deque[bytes] = deque()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", ATTACH + code, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
                env={
                    "PATH": os.environ["PATH"],
                    "PYTHONPATH": os.pathsep.join([str(ROOT / "services"), str(ROOT / "gen" / "python")]),
                    **variables,
                },
            )

    def answer(self, typed: str) -> str:
        """Wait until it is asked what is typed, and answer; what was shown before."""
        shown = ""
        while message := self._next():
            shown += message.decode()
        self._line.sendall(framed(typed.encode()))
        return shown

    def asked(self) -> None:
        """Wait until it is asked what is typed."""
        while self._next():
            pass

    def hang_up(self) -> None:
        self._line.close()

    def ended(self) -> tuple[int, str, str]:
        """The exit code, and what went to standard output and standard error."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._line.close()

    def _next(self) -> bytes:
        while not self._heard:
            self._heard.extend(self._frames.feed(self._line.recv(4096)))
        return self._heard.popleft()


Start = Callable[..., Asking]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Asking] = []

    def start(code: str, **variables: str) -> Asking:
        started.append(Asking(code, **variables))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_input_asks_at_the_terminal(start: Start) -> None:
    """The question is seen before it is answered, and is no output; `sys.stdin` reads on where `input` stopped."""
    asking = start("print([input('Name? '), sys.stdin.readline()])")

    assert "Name? " == asking.answer("Aare\n")
    asking.answer("more\n")

    assert (0, "['Aare', 'more\\n']\n", "") == asking.ended()


def test_the_end_of_input_is_an_error_as_ever(start: Start) -> None:
    """Whoever has nothing to say types Ctrl-D."""
    asking = start("input('Name? ')")

    asking.answer("")

    code, _, err = asking.ended()
    assert 1 == code
    assert "EOFError: EOF when reading a line" in err


def test_a_breakpoint_opens_the_debugger_at_the_terminal(start: Start) -> None:
    """In the frame of the author's code; what is printed by the code itself stays output."""
    asking = start("def f(depth):\n    breakpoint()\n    print('deep', depth)\nf('est')\n")

    assert asking.answer("depth + 'uary'\n").endswith("(Pdb) ")
    assert "'estuary'" in asking.answer("c\n")

    assert (0, "deep est\n", "") == asking.ended()


@pytest.mark.parametrize("code", ["breakpoint()\nprint('after')", "input('Name? ')", "sys.stdin.readline()"])
def test_whoever_waits_for_an_answer_fails_when_the_command_has_gone(start: Start, code: str) -> None:
    """Nobody will ever answer, so neither does the code wait for ever, nor is something made up."""
    asking = start(code)
    asking.asked()

    asking.hang_up()

    exit_code, out, err = asking.ended()
    assert (1, "") == (exit_code, out)
    assert err.endswith("Nobody can be asked any more: the command that executed this run has left its terminal.\n")


@pytest.mark.parametrize("code", ["breakpoint()", "input('Name? ')"])
def test_who_asks_after_the_command_has_gone_fails_as_well(start: Start, code: str) -> None:
    """Code that asks nobody is not concerned."""
    asking = start(f"sys.stdin.readline()\nprint('on')\ntry: sys.stdin.readline()\nexcept EOFError: {code}")
    asking.answer("begin\n")

    asking.hang_up()

    exit_code, out, err = asking.ended()
    assert (1, "on\n") == (exit_code, out)
    assert err.endswith("Nobody can be asked any more: the command that executed this run has left its terminal.\n")


@pytest.mark.parametrize(("chosen", "out"), [("0", "after\n"), ("builtins.print", "\nafter\n")])
def test_the_authors_choice_of_debugger_holds(start: Start, chosen: str, out: str) -> None:
    """As everywhere, PYTHONBREAKPOINT says what a breakpoint does."""
    asking = start("breakpoint()\nprint('after')\n", PYTHONBREAKPOINT=chosen)

    assert (0, out, "") == asking.ended()


def test_programs_that_the_code_starts_have_no_terminal(start: Start) -> None:
    """Only the code itself asks: nothing that it starts takes what is typed from it."""
    asking = start(
        "import subprocess\n"
        "listed = subprocess.run(['ls', '-l', '/proc/self/fd'], close_fds=False, capture_output=True, text=True)\n"
        "print('socket:' in listed.stdout, end='')\n"
    )

    assert (0, "False", "") == asking.ended()
