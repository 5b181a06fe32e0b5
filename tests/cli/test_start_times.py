"""Start times on the command line."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from penstock.cli.failures import CommandFailed
from penstock.cli.start_times import moment_of, shown, span_of


@pytest.fixture
def zurich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine in a zone whose clocks change."""
    monkeypatch.setenv("TZ", "Europe/Zurich")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.usefixtures("zurich")
@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22T10:00+14:00", utc(2026, 11, 21, 20)),
        ("2026-11-22T10:00-14:00", utc(2026, 11, 23, 0)),
        ("2026-11-22T10:00:00.5Z", utc(2026, 11, 22, 10, 0, 0, 500_000)),
        ("2026-11-22 10:00Z", utc(2026, 11, 22, 10)),
        ("20261122T100000Z", utc(2026, 11, 22, 10)),
        ("2021-05-07T15:09:16.815228-05:00", utc(2021, 5, 7, 20, 9, 16, 815_228)),
        ("2026-W48-1T10:00+05:45", utc(2026, 11, 23, 4, 15)),
        ("2026-11-22T10:00", utc(2026, 11, 22, 9)),
        ("2026-07-01T10:00", utc(2026, 7, 1, 8)),
        ("2026-11-22", utc(2026, 11, 21, 23)),
        ("2028-02-29", utc(2028, 2, 28, 23)),
        ("2028-02-29T00:00Z", utc(2028, 2, 29)),
        ("9999-12-31T23:59:59Z", utc(9999, 12, 31, 23, 59, 59)),
        ("9999-12-31T23:59:59+14:00", utc(9999, 12, 31, 9, 59, 59)),
        ("9999-12-30", utc(9999, 12, 29, 23)),
        ("0001-01-02T00:00Z", utc(1, 1, 2)),
        # Both sides of the hour that is left out in March, and of the one that comes twice in October.
        ("2026-03-29T01:59:59", utc(2026, 3, 29, 0, 59, 59)),
        ("2026-03-29T03:00", utc(2026, 3, 29, 1)),
        ("2026-10-25T01:59:59", utc(2026, 10, 24, 23, 59, 59)),
        ("2026-10-25T03:00", utc(2026, 10, 25, 2)),
        ("2026-10-25T02:30+02:00", utc(2026, 10, 25, 0, 30)),
        ("2026-10-25T02:30+01:00", utc(2026, 10, 25, 1, 30)),
    ],
)
def test_a_moment(text: str, moment: datetime) -> None:
    """Any ISO 8601 is read: with an offset as it says, without one by this machine's zone."""
    read = moment_of("--start-at", text)

    assert moment == read
    assert UTC == read.tzinfo


@pytest.mark.usefixtures("zurich")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2026-03-29T02:00", "does not exist in the local zone, because the clocks change"),
        ("2026-03-29T02:59:59", "give its offset, +01:00 or +02:00"),
        ("2026-10-25T02:00", "exists twice in the local zone, because the clocks change"),
        ("2026-10-25T02:59:59", "give its offset, +01:00 or +02:00"),
        ("2027-02-29", "is not a moment in ISO 8601"),
        ("2026-13-01", "is not a moment in ISO 8601"),
        ("tomorrow", "is not a moment in ISO 8601"),
        ("now", "is not a moment in ISO 8601"),
        ("2026-11-22T10:00+25:00", "is not a moment in ISO 8601"),
        ("10:00", "names no day"),
        ("PT10M", "names no day"),
        ("2026-11-22/2026-11-23", "names no day"),
        ("9999-12-31T23:59:59-05:00", "lies, in UTC, at or beyond the ends"),
        ("9999-12-31", "lies, in UTC, at or beyond the ends of the years 1 to 9999"),
        ("0001-01-01T00:00+05:00", "lies, in UTC, at or beyond the ends"),
    ],
)
def test_no_moment(text: str, words: str) -> None:
    """What names no one moment is refused by the name of the option, with what to write instead."""
    with pytest.raises(CommandFailed) as failed:
        moment_of("--start-at", text)

    assert str(failed.value).startswith(f"--start-at {text!r} ")
    assert words in str(failed.value)
    assert 2 == failed.value.exit_code


def test_a_midnight_that_the_clocks_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day whose midnight does not exist is not a start time by itself."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Africa/Cairo")
        time.tzset()
        with pytest.raises(CommandFailed, match="'2026-04-24' does not exist in the local zone"):
            moment_of("--start-at", "2026-04-24")
    time.tzset()


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("10m", timedelta(minutes=10)),
        ("1h30m", timedelta(minutes=90)),
        ("2d", timedelta(days=2)),
        ("1w2d3h4m5s", timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5)),
        ("1H", timedelta(hours=1)),
        ("0s", timedelta(0)),
        ("PT10M", timedelta(minutes=10)),
        ("P1DT2H", timedelta(days=1, hours=2)),
        ("P1W", timedelta(weeks=1)),
        ("PT0.5H", timedelta(minutes=30)),
    ],
)
def test_a_span(text: str, span: timedelta) -> None:
    """Spans are read as people write them, and as ISO 8601 does."""
    assert span == span_of("--in", text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10",
        "10 m",
        "-5m",
        "1.5h",
        "30m1h",
        "m",
        "P",
        "PT",
        "P1M",
        "P1Y",
        "soon",
        "٣m",
        "9" * 20 + "d",
        "P" + "9" * 20 + "D",
    ],
)
def test_no_span(text: str) -> None:
    """What is no span, or one whose length depends on the calendar, is refused with how to write one."""
    with pytest.raises(CommandFailed, match=r"is not a span such as 90s, 10m, 1h30m, 2d or PT10M") as failed:
        span_of("--in", text)

    assert 2 == failed.value.exit_code


@pytest.mark.usefixtures("zurich")
def test_a_moment_is_shown_by_the_clock_on_the_wall() -> None:
    """People see local time, with the offset that makes it the same for everybody."""
    assert "2026-07-01 12:00:00 +02:00" == shown(utc(2026, 7, 1, 10))
