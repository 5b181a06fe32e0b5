"""When a run shall start, as a person says it: a moment in ISO 8601, or a span such as 1h30m from now.

A moment with an offset means the same everywhere. One without is read by this machine's zone, where it must exist
exactly once: at a change of the clocks some moments do not, and which one was meant cannot be guessed.
"""

import re
from datetime import UTC, date, datetime, timedelta
from typing import Final

import pendulum
from pendulum.parsing import parse

from penstock.cli.failures import EXIT_MISUSED, CommandFailed

_SPAN: Final = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII | re.IGNORECASE)


def start_of(start_at: str, start_in: str) -> datetime | timedelta | None:
    """What --start-at or --in say; None where neither was given."""
    if start_at:
        return moment_of("--start-at", start_at)
    return span_of("--in", start_in) if start_in else None


def moment_of(option: str, text: str) -> datetime:
    """The moment in a text; a date alone is its midnight."""
    try:
        read = parse(text, exact=True)
    except ValueError as error:
        raise _misused(
            option, text, "is not a moment in ISO 8601, such as 2026-11-22T10:00 or 2026-11-22T10:00+01:00."
        ) from error
    if isinstance(read, date) and not isinstance(read, datetime):
        read = datetime(read.year, read.month, read.day)
    if not isinstance(read, datetime):
        raise _misused(option, text, "names no day: write a moment such as 2026-11-22T10:00.")
    try:
        return (_on_this_machine(option, text, read) if read.tzinfo is None else read).astimezone(UTC)
    except (OverflowError, ValueError) as error:
        raise _misused(option, text, "lies, in UTC, at or beyond the ends of the years 1 to 9999.") from error


def span_of(option: str, text: str) -> timedelta:
    """The span in a text: 90s, 10m, 1h30m, 2d, 1w, or an ISO 8601 duration without years and months."""
    match = _SPAN.fullmatch(text)
    try:
        if match and any(match.groups()):
            return timedelta(**dict(zip(_UNITS, (int(each or 0) for each in match.groups()), strict=True)))
        return _iso_span(text)
    except (ValueError, OverflowError) as error:
        raise _misused(option, text, "is not a span such as 90s, 10m, 1h30m, 2d or PT10M.") from error


_UNITS: Final = ("weeks", "days", "hours", "minutes", "seconds")


def shown(time: datetime) -> str:
    """A moment by the clock on this person's wall, with its offset."""
    local = time.astimezone()
    return f"{local:%Y-%m-%d %H:%M:%S} {local.isoformat()[-6:]}"


def _iso_span(text: str) -> timedelta:
    read = pendulum.parse(text, exact=True) if re.fullmatch(r"P(?=.*\d).*[WDHMS]", text) else None
    # How long a month or a year is depends on which.
    if not isinstance(read, pendulum.Duration) or read.years or read.months:
        raise ValueError(text)
    return read.as_timedelta()


def _on_this_machine(option: str, text: str, wall: datetime) -> datetime:
    """The moment at which the clock on this machine's wall shows that time, if there is exactly one."""
    first, second = (wall.replace(fold=fold).astimezone() for fold in (0, 1))
    if first.utcoffset() == second.utcoffset():
        return first
    exists = first.astimezone(UTC).astimezone().replace(tzinfo=None) == wall
    how_often = "exists twice in the local zone" if exists else "does not exist in the local zone"
    offsets = " or ".join(sorted({each.isoformat()[-6:] for each in (first, second)}))
    raise _misused(option, text, f"{how_often}, because the clocks change: give its offset, {offsets}.")


def _misused(option: str, text: str, what: str) -> CommandFailed:
    return CommandFailed(f"{option} {text!r} {what}", EXIT_MISUSED)
