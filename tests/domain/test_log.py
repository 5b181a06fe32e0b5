"""Tests of `penstock.domain.log`."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from penstock.domain.log import Dropped, LogLine, LogStream, new_lines
from tests.support.fake_clock import NOON


def a_line(sequence: int, count: int = 0) -> LogLine:
    """A line, or, with a count, one that stands for missing ones."""
    content = Dropped(count, "full") if count else f"line {sequence}"
    return LogLine(sequence=sequence, time=NOON, stream=LogStream.STDOUT, content=content)


def covered(lines: Sequence[LogLine]) -> list[int]:
    """Every sequence number that lines cover, in their order."""
    return [number for line in lines for number in range(line.sequence, line.last_sequence + 1)]


@st.composite
def batches(draw: st.DrawFn) -> list[LogLine]:
    """Lines whose sequences rise without gaps, from anywhere."""
    sequence = draw(st.integers(1, 12))
    lines = []
    for count in draw(st.lists(st.integers(0, 4), max_size=8)):
        lines.append(a_line(sequence, count))
        sequence = lines[-1].last_sequence + 1
    return lines


@given(batches(), st.integers(0, 25))
def test_what_is_new(lines: list[LogLine], last: int) -> None:
    """New are exactly the numbers after the last one, if the lines reach back to it; and nothing otherwise."""
    sent = covered(lines)
    connected = bool(sent) and sent[0] <= last + 1

    fresh = new_lines(lines, last)

    assert ([number for number in sent if number > last] if connected else []) == covered(fresh)


@given(batches(), st.integers(0, 25))
def test_a_repeat_stores_nothing(lines: list[LogLine], last: int) -> None:
    """What was stored once is passed over when it comes again."""
    fresh = new_lines(lines, last)

    assert new_lines(lines, fresh[-1].last_sequence if fresh else last) == [] or not fresh


def test_a_gap_ends_it() -> None:
    """Lines behind a gap are left for the producer to send again."""
    assert [a_line(3)] == new_lines([a_line(3), a_line(5)], 2)


def test_the_rest_of_a_hole() -> None:
    """Of a hole that is known in part, the unknown rest is kept, with its reason."""
    (rest,) = new_lines([a_line(3, count=5)], 4)

    assert (5, Dropped(3, "full")) == (rest.sequence, rest.content)
