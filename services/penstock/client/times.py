"""What callers give and get where the contract has moments and spans."""

from datetime import UTC, datetime, timedelta

import pendulum
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from penstock.client.errors import invalid
from penstock.wire.times import to_duration, to_time, to_timestamp


def time_or_none(message: Message, field: str) -> pendulum.DateTime | None:
    """The moment in a field, or None where it is absent."""
    return to_time(getattr(message, field)) if message.HasField(field) else None


def timestamp_of(field: str, time: datetime | None) -> Timestamp | None:
    """The moment as the contract carries it; a time without zone is refused."""
    if time is None:
        return None
    if time.tzinfo is None:
        raise invalid(field, "has no time zone; say which one is meant, for example with datetime.now(UTC).")
    try:
        return to_timestamp(pendulum.instance(time.astimezone(UTC)))
    except (ValueError, OverflowError) as error:
        raise invalid(field, "is, in UTC, not a moment of the years 1 to 9999.") from error


def start_of(field: str, time: datetime | timedelta | None) -> tuple[Timestamp | None, Duration | None]:
    """A start time as the contract carries it: a moment, or a span that the server's clock counts. The past is now."""
    if isinstance(time, timedelta):
        return None, duration_of(field, max(time, timedelta(0)))
    return timestamp_of(field, time), None


def duration_of(field: str, span: timedelta | float | None) -> Duration | None:
    """The span as the contract carries it; a number counts seconds."""
    if span is None:
        return None
    try:
        return to_duration(span if isinstance(span, timedelta) else timedelta(seconds=span))
    except (ValueError, OverflowError) as error:
        raise invalid(field, f"is not a span that can be counted: {span!r}.") from error
