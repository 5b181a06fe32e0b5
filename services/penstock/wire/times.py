"""Moments and spans of the contract, as UTC times and timedeltas and back, exact to the microsecond.

Only years 1 to 9999 exist here. What lies outside, or is not well-formed, raises `OutOfRange`, whose message is a
sentence without a subject; `wire/checks.py` turns it into a violation.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

import pendulum
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from pendulum import DateTime

_DURATION_SECONDS_MAX: Final = 315_576_000_000  # ten thousand years, as protobuf defines a Duration
_NANOS_MAX: Final = 999_999_999


class OutOfRange(ValueError):
    """A moment or span that protobuf does not allow."""


def to_time(timestamp: Timestamp) -> DateTime:
    """The moment, in UTC. What it holds beyond microseconds is cut off."""
    try:
        return _in_utc(timestamp.ToDatetime(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise OutOfRange("is not a moment of the years 1 to 9999") from None


def to_timestamp(time: DateTime) -> Timestamp:
    """The moment as the contract carries it."""
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def to_timedelta(duration: Duration) -> timedelta:
    """The span. What it holds beyond microseconds is cut off."""
    seconds, nanos = duration.seconds, duration.nanos
    if abs(seconds) > _DURATION_SECONDS_MAX or abs(nanos) > _NANOS_MAX or seconds * nanos < 0:
        raise OutOfRange("is not a duration: its seconds or nanos are out of range, or differ in sign")
    return duration.ToTimedelta()


def to_duration(span: timedelta) -> Duration:
    """The span as the contract carries it."""
    duration = Duration()
    duration.FromTimedelta(span)
    return duration


def _in_utc(time: datetime) -> DateTime:
    # The constructor is ten times as fast as pendulum.instance, and a page of log lines holds a thousand times.
    return DateTime(
        time.year,
        time.month,
        time.day,
        time.hour,
        time.minute,
        time.second,
        time.microsecond,
        tzinfo=pendulum.UTC,
    )
