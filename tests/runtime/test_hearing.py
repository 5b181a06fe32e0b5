"""Tests of `penstock.runtime.hearing`."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from penstock.runtime.hearing import Hearing

WAIT_SECONDS = 20


class Listener:
    """Hints that the test says; empty ones in between."""

    def __init__(self) -> None:
        self.said: queue.Queue[str | Exception] = queue.Queue()
        self.threads: set[int] = set()
        self.ended = False

    def hints(self) -> Iterator[str]:
        try:
            while True:
                self.threads.add(threading.get_ident())
                try:
                    said = self.said.get(timeout=0.01)
                except queue.Empty:
                    yield ""
                    continue
                if isinstance(said, Exception):
                    raise said
                yield said
        finally:
            self.ended = True


@contextlib.asynccontextmanager
async def listening(listener: Listener) -> AsyncIterator[tuple[asyncio.Queue[str], asyncio.Task[None]]]:
    heard: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(Hearing(listener.hints, heard.put_nowait).serve())
    async with asyncio.timeout(WAIT_SECONDS):
        yield heard, task
        task.cancel()
        await asyncio.wait([task])


async def test_hints_come_to_the_loop_in_order() -> None:
    """Each that is not empty, from a thread of its own."""
    listener = Listener()
    async with listening(listener) as (heard, _):
        for said in ("one", "", "two"):
            listener.said.put(said)
        assert ["one", "two"] == [await heard.get(), await heard.get()]

    assert threading.get_ident() not in listener.threads


async def test_it_ends_with_its_thread() -> None:
    """Once it was cancelled nobody listens any more."""
    listener = Listener()
    async with listening(listener) as (heard, task):
        listener.said.put("begun")
        await heard.get()

        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        assert listener.ended


async def test_a_failure_is_raised() -> None:
    """A thread that cannot listen any more ends the work that depends on it."""
    listener = Listener()
    async with listening(listener) as (_, task):
        listener.said.put(OSError("no bell"))
        with pytest.raises(OSError, match="no bell"):
            await task
