"""Waiting for what other processes do: a condition is looked at until it holds, or a generous time has passed."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

SECONDS_MAX = 20


async def until(holds: Callable[[], bool]) -> bool:
    """Whether the condition comes to hold."""
    return await asyncio.to_thread(_look, holds)


async def number_in(file: Path) -> int:
    """The number that a body writes into a file, once it is there."""
    assert await until(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())  # noqa: ASYNC240 - a small local file


async def is_gone(pid: int) -> bool:
    """Whether a process ends."""
    return await until(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def _look(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS_MAX
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
