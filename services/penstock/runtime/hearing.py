"""Listens for hints in a thread of its own and hands each to the event loop."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Hint = TypeVar("Hint")


class Hearing(Generic[Hint]):
    """Calls `on_hint` on the event loop for every hint that is not empty, until it is cancelled.

    `hints` is a blocking iterator that yields an empty hint every now and then, so that its thread can end.
    """

    def __init__(self, hints: Callable[[], Iterator[Hint]], on_hint: Callable[[Hint], None]) -> None:
        self._hints = hints
        self._on_hint = on_hint

    async def serve(self) -> None:
        """Listen until cancelled. A failure of the listening thread is raised here.

        Once it returns the thread has ended, so that what it listened with may be closed: closing it under a thread
        that uses it would bring the process down.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        stopping = threading.Event()
        thread = threading.Thread(target=self._listen, args=(loop, ended, stopping), name="hearing", daemon=True)
        thread.start()
        try:
            await ended
        finally:
            stopping.set()
            await asyncio.to_thread(thread.join)

    def _listen(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None], stopping: threading.Event) -> None:
        try:
            for hint in self._hints():
                if stopping.is_set():
                    return
                if hint:
                    loop.call_soon_threadsafe(self._on_hint, hint)
        except BaseException as error:
            if not stopping.is_set():
                loop.call_soon_threadsafe(_fail, ended, error)


def _fail(ended: asyncio.Future[None], error: BaseException) -> None:
    if not ended.done():
        ended.set_exception(error)
