"""How a process that executes an author's code ends when it is asked to: with the clean-up that the code asked for."""

import signal
from types import FrameType
from typing import NoReturn


class Terminated(SystemExit):
    """SIGTERM came: raised in the main thread, so that `finally` blocks are executed."""


def end_with_clean_up_at_sigterm() -> None:
    """From now on, let SIGTERM raise Terminated."""
    signal.signal(signal.SIGTERM, _raise_terminated)


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: the clean-up that this begins shall not be interrupted
    raise Terminated(128 + number)
