"""What callers give and get where the contract has moments and spans."""

from datetime import datetime, timedelta

import pendulum
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from penstock.client.errors import invalid
from penstock.runtime.clock import SystemClock
from penstock.wire.times import to_duration, to_time, to_timestamp


def time_or_none(message: Message, field: str) -> pendulum.DateTime | None:
    """The moment in a field, or None where it is absent."""
    return to_time(getattr(message, field)) if message.HasField(field) else None


def timestamp_of(field: str, time: datetime | timedelta | None) -> Timestamp | None:
    """The moment as the contract carries it; a span counts from now, a time without zone is refused."""
    if time is None:
        return None
    if isinstance(time, timedelta):
        return to_timestamp(SystemClock().now() + time)
    if time.tzinfo is None:
        raise invalid(field, "has no time zone; say which one is meant, for example with datetime.now(UTC).")
    return to_timestamp(pendulum.instance(time))


def duration_of(span: timedelta | float | None) -> Duration | None:
    """The span as the contract carries it; a number counts seconds."""
    if span is None:
        return None
    return to_duration(span if isinstance(span, timedelta) else timedelta(seconds=span))
