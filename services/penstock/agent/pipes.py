"""Reads what a body writes, as long as there is room for it: a body that writes too fast waits in its own write."""

import asyncio
import os
from collections.abc import Callable
from typing import Final, Protocol

CHUNK_BYTES: Final = 65_536


class Sink(Protocol):
    """Takes the bytes of one descriptor."""

    def feed(self, data: bytes) -> None: ...

    def end(self) -> None: ...


class Pipes:
    """The descriptors of one body, read by the loop of this process."""

    def __init__(self, full: Callable[[], bool]) -> None:
        self._full = full
        self._loop = asyncio.get_running_loop()
        self._sinks: dict[int, Sink] = {}
        self._paused = False
        self._at_end = asyncio.Event()

    def listen(self, descriptor: int, sink: Sink) -> None:
        os.set_blocking(descriptor, False)
        self._sinks[descriptor] = sink
        self._loop.add_reader(descriptor, self._read, descriptor)

    def resume_if_room(self) -> None:
        """Read on once there is room again."""
        if self._paused and not self._full():
            self._resume()

    async def read_rest(self, seconds: float) -> None:
        """Read what a body that ended has left in its pipes, whether there is room or not.

        A process that it left behind outside of its group may hold a pipe open for ever: hence the bound.
        """
        self._full = lambda: False
        self._resume()
        if self._sinks:
            try:
                async with asyncio.timeout(seconds):
                    await self._at_end.wait()
            except TimeoutError:
                for descriptor in list(self._sinks):
                    self._close(descriptor)

    def _read(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._close(descriptor)
            return
        self._sinks[descriptor].feed(data)
        if self._full() and not self._paused:
            self._paused = True
            for each in self._sinks:
                self._loop.remove_reader(each)

    def _resume(self) -> None:
        self._paused = False
        for descriptor in self._sinks:
            self._loop.add_reader(descriptor, self._read, descriptor)

    def _close(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        self._sinks.pop(descriptor).end()
        if not self._sinks:
            self._at_end.set()
