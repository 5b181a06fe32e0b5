"""Tests of `penstock.runtime.clock`."""

from datetime import UTC, datetime

from penstock.domain.clock import Clock
from penstock.runtime.clock import SystemClock


def test_the_real_clock_tells_the_time_in_utc() -> None:
    """Now is between a moment before and a moment after, in UTC, and the monotonic reading never goes back."""
    clock: Clock = SystemClock()

    before, now, after = datetime.now(UTC), clock.now(), datetime.now(UTC)

    assert before <= now <= after
    assert now.timezone_name == "UTC"
    assert clock.monotonic() <= clock.monotonic()
