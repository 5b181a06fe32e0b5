"""Holds a transaction at one point, so that what happens meanwhile is certain."""

import asyncio
import threading
from typing import Final

WAIT_SECONDS_MAX: Final = 20


class Gate:
    """A thread stops at it until the test opens it."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()

    def stop_here(self) -> None:
        """Called by the transaction: say that it is here, and wait."""
        self._reached.set()
        assert self._open.wait(WAIT_SECONDS_MAX), "nobody opened the gate"

    async def reached(self) -> None:
        """Return once a transaction stands here."""
        assert await asyncio.to_thread(self._reached.wait, WAIT_SECONDS_MAX), "nobody came to the gate"

    def open(self) -> None:
        """Let it go on."""
        self._open.set()
