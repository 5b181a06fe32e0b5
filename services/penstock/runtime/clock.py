"""The real clock."""

import time

import pendulum
from pendulum import DateTime


class SystemClock:
    """Tells the time of this host."""

    def now(self) -> DateTime:
        return pendulum.now("UTC")

    def monotonic(self) -> float:
        return time.monotonic()
