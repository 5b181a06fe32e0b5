"""Tests of `penstock.runtime.drawing`."""

from datetime import timedelta
from random import Random
from typing import Any

from coolname import RandomGenerator

from penstock.runtime.drawing import UNWANTED, WORDS, Drawing
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


def test_unwanted_words_are_drawn_again() -> None:
    """A source that would give names with unwanted words gives the first name without; the same one every time."""
    seed = next(each for each in range(1_000) if _plain(each)[0] & UNWANTED and not _plain(each)[1] & UNWANTED)

    name = Drawing(FakeClock(), Random(seed)).name()

    assert _plain(seed)[1] == set(name.split("-"))


def test_unwanted_words_are_words_that_could_be_drawn() -> None:
    """The list holds nothing that coolname does not, and leaves most of it."""
    words = _words_of("2")

    assert set() == UNWANTED - words
    assert len(UNWANTED) * 10 < len(words)


def _plain(seed: int) -> list[set[str]]:
    """The first two pairs of words that coolname itself makes of a seed."""
    generator = RandomGenerator(WORDS, Random(seed))
    return [set(generator.generate(2)) for _ in range(2)]


def _words_of(name: str) -> set[str]:
    part: Any = WORDS[name]
    return set(part.get("words", ())).union(*(_words_of(each) for each in part.get("lists", ())))
