"""SIGTERM and Ctrl-C, for commands that have something to put away before they end."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from signal import SIGINT, SIGTERM
from typing import Any


async def until_signalled(work: Coroutine[Any, Any, None], then: Callable[[], None]) -> bool:
    """Run that until it ends, or until a first signal cancels it; return whether it ended by itself.

    From the first signal on, and after the work has ended, each further signal calls `then`.
    """
    loop = asyncio.get_running_loop()
    working = loop.create_task(work)

    def heed() -> None:
        if working.done() or working.cancelling():
            then()
        else:
            working.cancel()

    for number in (SIGINT, SIGTERM):
        loop.add_signal_handler(number, heed)
    with contextlib.suppress(asyncio.CancelledError):
        await working
    return not working.cancelled()
