"""Tests of `penstock.wire.times`."""

from datetime import UTC, datetime, timedelta

import pendulum
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from penstock.wire.times import OutOfRange, to_duration, to_time, to_timedelta, to_timestamp

FIRST_SECOND, LAST_SECOND = -62_135_596_800, 253_402_300_799


@given(st.datetimes(timezones=st.just(UTC)))
def test_moments_survive(moment: datetime) -> None:
    """Every moment of the years 1 to 9999 comes back exact to the microsecond, in UTC."""
    time = pendulum.instance(moment, tz=pendulum.UTC)

    back = to_time(to_timestamp(time))

    assert time == back
    assert ("UTC", pendulum.DateTime) == (back.timezone_name, type(back))


@given(st.integers(FIRST_SECOND, LAST_SECOND), st.integers(0, 999_999_999))
def test_timestamps_survive(seconds: int, nanos: int) -> None:
    """A timestamp comes back as it was, but for what lies below a microsecond, which is cut off."""
    back = to_timestamp(to_time(Timestamp(seconds=seconds, nanos=nanos)))

    assert (seconds, nanos // 1_000 * 1_000) == (back.seconds, back.nanos)


def test_another_zone_is_the_same_moment() -> None:
    """A time is carried as the moment it is, in whatever zone it was written."""
    assert to_timestamp(pendulum.datetime(2026, 3, 1, 12)) == to_timestamp(
        pendulum.datetime(2026, 3, 1, 13, tz="Europe/Zurich")
    )


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(FIRST_SECOND - 1, 0), (LAST_SECOND + 1, 0), (0, -1), (0, 1_000_000_000), (2**63 - 1, 0), (-(2**63), 0)],
)
def test_moments_out_of_range(seconds: int, nanos: int) -> None:
    """What no calendar of four digits holds is refused, and nothing crashes."""
    with pytest.raises(OutOfRange, match="is not a moment of the years 1 to 9999"):
        to_time(Timestamp(seconds=seconds, nanos=nanos))


@given(st.timedeltas(timedelta(days=-3_652_500), timedelta(days=3_652_500)))
def test_spans_survive(span: timedelta) -> None:
    """Every span that a duration can hold comes back exact to the microsecond, of either sign."""
    assert span == to_timedelta(to_duration(span))


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [
        (315_576_000_001, 0),
        (-315_576_000_001, 0),
        (2**63 - 1, 0),
        (0, 1_000_000_000),
        (0, -1_000_000_000),
        (1, -1),
        (-1, 1),
    ],
)
def test_spans_out_of_range(seconds: int, nanos: int) -> None:
    """A duration that protobuf does not allow is refused."""
    with pytest.raises(OutOfRange, match="is not a duration"):
        to_timedelta(Duration(seconds=seconds, nanos=nanos))
