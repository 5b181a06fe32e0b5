"""The terminal of the person who executes a run here."""

import os
from typing import NamedTuple


class Terminal(NamedTuple):
    """The descriptors to read it by, and to write to it."""

    reading: int
    writing: int


def own_terminal() -> Terminal | None:
    """The terminal whose foreground this process has, by descriptors of their own; None without one.

    What a command prints may go elsewhere, while its errors are still shown at the terminal.
    """
    writing = next((descriptor for descriptor in (2, 1) if os.isatty(descriptor)), None)
    if writing is None or not _has_foreground(0):
        return None
    # Not below 3: those numbers are taken in every process that inherits these.
    return Terminal(os.dup(0), os.dup(writing))


def _has_foreground(descriptor: int) -> bool:
    """Whether what is typed there is meant for this process, and not for a shell that put it into the background."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # no terminal, or not ours
        return False
