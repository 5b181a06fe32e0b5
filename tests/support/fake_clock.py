"""A clock that stands still until a test moves it."""

from datetime import timedelta
from typing import Final

from pendulum import DateTime
from pendulum import datetime as moment
from sqlalchemy import Connection

NOON: Final[DateTime] = moment(2026, 3, 1, 12, tz="UTC")


class FakeClock:
    """Both a `domain.clock.Clock` and a `storage.database.StoreClock`; its two hands move together."""

    def __init__(self, start: DateTime = NOON) -> None:
        self._now = start
        self._monotonic = 1_000.0

    def now(self, conn: Connection | None = None) -> DateTime:
        """The moment it was set to; a connection is taken, and not asked."""
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, span: timedelta) -> DateTime:
        """Let time pass; return what it is then."""
        assert span >= timedelta(0), "a monotonic hand does not go back: use `set_back`"
        self._monotonic += span.total_seconds()
        self._now += span
        return self._now

    def set_back(self, span: timedelta) -> DateTime:
        """Correct the wall clock backwards, as an administrator or NTP may; the monotonic hand stays."""
        self._now -= span
        return self._now
