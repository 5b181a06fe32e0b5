"""Asking a person at a terminal, from a process that is no part of the terminal's session."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ATTACH = "import sys\nfrom penstock.authoring.terminal import attach\nattach(int(sys.argv[1]), int(sys.argv[2]))\n"


class Asking:
    """A process that was handed a terminal, and the side of it at which a person sits."""

    def __init__(self, code: str, **variables: str) -> None:
        self._screen, terminal = pty.openpty()
        descriptors = terminal, os.dup(terminal)
        self.process = subprocess.Popen(
            [sys.executable, "-c", ATTACH + code, *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            pass_fds=descriptors,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join([str(ROOT / "services"), str(ROOT / "gen" / "python")]),
                **variables,
            },
        )
        for each in descriptors:
            os.close(each)

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def shown(self, words: str) -> str:
        """What the terminal shows, up to these words."""
        text = ""
        while words not in text:
            text += os.read(self._screen, 1024).decode()
        return text

    def ended(self) -> tuple[int, str, str]:
        """The exit code, and what went to standard output and standard error."""
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._screen)


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

    asking.shown("Name? ")
    asking.type("Aare\nmore\n")

    assert (0, "['Aare', 'more\\n']\n", "") == asking.ended()


def test_the_end_of_input_is_an_error_as_ever(start: Start) -> None:
    """Whoever has nothing to say types Ctrl-D."""
    asking = start("input('Name? ')")

    asking.shown("Name? ")
    asking.type("\x04")

    code, _, err = asking.ended()
    assert 1 == code
    assert "EOFError" in err


def test_a_breakpoint_opens_the_debugger_at_the_terminal(start: Start) -> None:
    """In the frame of the author's code; what is printed by the code itself stays output."""
    asking = start("def f(depth):\n    breakpoint()\n    print('deep', depth)\nf('est')\n")

    asking.shown("(Pdb) ")
    asking.type("depth + 'uary'\n")
    asking.shown("'estuary'")
    asking.type("c\n")

    assert (0, "deep est\n", "") == asking.ended()


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
        "print('/dev/pts' in listed.stdout, end='')\n"
    )

    assert (0, "False", "") == asking.ended()
