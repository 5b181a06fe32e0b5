"""Tests of `penstock.runtime.drawing`."""

from datetime import timedelta
from random import Random

from penstock.runtime.drawing import Drawing
from tests.support.fake_clock import FakeClock


def test_identities_sort_by_when_they_were_drawn() -> None:
    """Each is a new UUID of version 7 that bears the clock's time."""
    clock = FakeClock()
    drawing = Drawing(clock)
    drawn = []
    for _ in range(5):
        drawn.append(drawing.id())
        clock.advance(timedelta(milliseconds=1))

    assert sorted(set(drawn)) == drawn
    assert {each.version for each in drawn} == {7}


def test_the_same_randomness_draws_the_same_identities() -> None:
    """So that a test can be run again as it was."""
    first, second = (Drawing(FakeClock(), Random(7)) for _ in range(2))

    assert [first.id() for _ in range(3)] == [second.id() for _ in range(3)]


def test_names_are_two_words_or_more() -> None:
    """Lower-case words that can be said and typed."""
    name = Drawing(FakeClock()).name()

    assert name == name.lower()
    assert len(name.split("-")) >= 2
    assert name.replace("-", "").isalpha()
