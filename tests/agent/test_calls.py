"""Waiting between tries."""

from datetime import timedelta

from penstock.agent.calls import BACKOFF_MAX, Backoff


def test_the_ceiling_doubles_up_to_the_longest_wait() -> None:
    """No wait exceeds its ceiling, and with many tries some come close."""
    waits = [[backoff.seconds() for _ in range(12)] for backoff in (Backoff() for _ in range(300))]

    for number, column in enumerate(zip(*waits, strict=True)):
        ceiling = min(BACKOFF_MAX.total_seconds(), 0.2 * 2**number)
        assert ceiling * 0.8 < max(column) <= ceiling
        assert min(column) < ceiling * 0.2


def test_a_success_begins_anew() -> None:
    """After a reset the first wait is short again."""
    backoff = Backoff(timedelta(seconds=100))
    for _ in range(10):
        backoff.seconds()

    backoff.reset()

    assert backoff.seconds() <= 0.2
