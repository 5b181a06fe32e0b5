"""When a stream that broke is opened again, and when its reader is told that contact is lost."""

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from penstock.client.errors import CutOff, PenstockError
from penstock.runtime.clock import SystemClock

PATIENCE: Final = timedelta(minutes=2)
PAUSE_SECONDS_FIRST: Final = 0.2
PAUSE_SECONDS_MAX: Final = 5.0

_monotonic: Final = SystemClock().monotonic


class Reconnection:
    """Decides after each break of one followed stream: how long to wait, or that it is over.

    Waits grow with full jitter, so that the readers of a server that restarts do not return all at once. What counts
    against the patience is the time since the last message, however many streams brought none.
    """

    def __init__(
        self,
        patience: timedelta,
        monotonic: Callable[[], float] = _monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._patience = patience.total_seconds()
        self._monotonic = monotonic
        self._jitter = jitter
        self._breaks = 0
        self._heard_at = monotonic()

    def heard(self) -> None:
        """Note a message: whatever happened before is forgiven."""
        self._breaks = 0
        self._heard_at = self._monotonic()

    def pause_seconds(self, error: PenstockError) -> float:
        """How long to wait before the stream is opened again; raises the error when that would not help."""
        asked = error.retry_after.total_seconds() if error.retry_after else 0.0
        growing = PAUSE_SECONDS_FIRST * 2.0 ** min(self._breaks, 10)
        pause = max(asked, self._jitter() * min(PAUSE_SECONDS_MAX, growing))
        self._breaks += 1
        if not error.passing or self._monotonic() + pause - self._heard_at > self._patience:
            raise error
        return pause


def ended_early(address: str) -> CutOff:
    """What it means when a stream ends well and without its end marker: a server that went away politely."""
    return CutOff(f"The Penstock server at {address} ended the stream before its end.")
