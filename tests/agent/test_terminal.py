"""Whose terminal it is."""

import os
import pty
import subprocess
import sys

import pytest

PROBE = "from penstock.agent.terminal import own_terminal; t = own_terminal(); print(t and min(t) > 2 and 'attached')"
AS_A_SHELL = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PROBE!r}], process_group=0)"
AT_A_TERMINAL = "import pty, sys; pty.spawn([sys.executable, '-c', sys.argv[1]])"


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
