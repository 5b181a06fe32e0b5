"""When a broken stream is opened again."""

from datetime import timedelta

import pytest

from penstock.client.errors import NotFound, Overloaded, Unavailable
from penstock.client.reconnection import PAUSE_SECONDS_FIRST, PAUSE_SECONDS_MAX, Reconnection

GONE = Unavailable("No Penstock server answers.")


class Hand:
    """A monotonic clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_pauses_grow_to_a_bound() -> None:
    """Each break in a row doubles the pause, up to the longest one."""
    reconnection = Reconnection(timedelta(hours=1), Hand(), jitter=lambda: 1.0)

    pauses = [reconnection.pause_seconds(GONE) for _ in range(20)]

    assert [PAUSE_SECONDS_FIRST * 2**n for n in range(3)] == pauses[:3]
    assert PAUSE_SECONDS_MAX == pauses[-1]


def test_a_message_forgives_what_was_before() -> None:
    """After a message the next break is a first one again, and the patience begins anew."""
    clock = Hand()
    reconnection = Reconnection(timedelta(seconds=10), clock, jitter=lambda: 1.0)
    for _ in range(3):
        reconnection.pause_seconds(GONE)
    clock.seconds += 9

    reconnection.heard()
    clock.seconds += 9

    assert PAUSE_SECONDS_FIRST == reconnection.pause_seconds(GONE)


def test_patience_ends() -> None:
    """Who heard nothing for longer than the patience is told what keeps it from its server."""
    clock = Hand()
    reconnection = Reconnection(timedelta(seconds=10), clock)
    clock.seconds += 11

    with pytest.raises(Unavailable):
        reconnection.pause_seconds(GONE)


def test_a_server_is_left_alone_as_long_as_it_asks() -> None:
    """A pause is never shorter than the server wishes."""
    reconnection = Reconnection(timedelta(minutes=1), Hand(), jitter=lambda: 0.0)

    assert 3 == reconnection.pause_seconds(Overloaded("Too many.", retry_after=timedelta(seconds=3)))


def test_what_will_not_pass_is_raised_at_once() -> None:
    """A stream that is refused is not opened again."""
    with pytest.raises(NotFound):
        Reconnection(timedelta(minutes=1), Hand()).pause_seconds(NotFound("There is no such run."))
