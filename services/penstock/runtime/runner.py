"""Runs something again and again: jittered, counted, stoppable, and slower while it fails."""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from penstock.domain.errors import Refusal

_LOGGER: Final = logging.getLogger(__name__)
_RANDOM: Final = secrets.SystemRandom()
BACK_OFF_MAX: Final = timedelta(seconds=60)


class Runner:
    """Calls `run_once`, waits for `interval` give or take a part of it, and calls it again, until stopped."""

    def __init__(
        self, name: str, run_once: Callable[[], Awaitable[object]], interval: timedelta, jitter: float = 0.1
    ) -> None:
        assert 0 <= jitter < 1, "a jitter is the part of the interval by which a wait may differ"
        self._name = name
        self._run_once = run_once
        self._interval = interval
        self._jitter = jitter
        self._stopped = asyncio.Event()
        self._failures_in_a_row = 0
        self.runs = 0
        self.failures = 0

    async def serve(self) -> None:
        """Run until `stop` or cancellation. A failure is counted and logged; it ends nothing."""
        while not self._stopped.is_set():
            await self._attempt()
            try:
                async with asyncio.timeout(self._pause().total_seconds()):
                    await self._stopped.wait()
            except TimeoutError:
                continue

    def stop(self) -> None:
        """Let `serve` return after the present run."""
        self._stopped.set()

    async def _attempt(self) -> None:
        self.runs += 1
        try:
            await self._run_once()
        except Exception as error:
            self.failures += 1
            self._failures_in_a_row += 1
            # An expected failure says enough in its own words.
            stack = None if isinstance(error, Refusal) else error
            _LOGGER.warning("%s failed, %d in a row: %s", self._name, self._failures_in_a_row, error, exc_info=stack)
        else:
            self._failures_in_a_row = 0

    def _pause(self) -> timedelta:
        # The doubling is bounded too: a timedelta has no room for a year of failures.
        waited = self._interval * (1 << min(self._failures_in_a_row, 20))
        longest = max(self._interval, BACK_OFF_MAX)
        part: float = _RANDOM.uniform(1 - self._jitter, 1 + self._jitter)
        return min(waited, longest) * part
