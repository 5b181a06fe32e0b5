"""Calling again after a call that failed for a reason that passes."""

import random
from datetime import timedelta
from typing import Final

import grpc

from penstock.wire.errors import refusal_details

BACKOFF_FIRST: Final = timedelta(milliseconds=200)
BACKOFF_MAX: Final = timedelta(seconds=20)
CALL_WAIT_MAX: Final = timedelta(seconds=10)

_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        # A broken connection or a fault of the server; what is called again here is safe to repeat.
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)


class Backoff:
    """How long to wait before the next try: full jitter under a ceiling that doubles, and never less than was asked."""

    def __init__(self, longest: timedelta = BACKOFF_MAX) -> None:
        self._longest = longest
        self._failures = 0

    def seconds(self, error: grpc.RpcError | None = None) -> float:
        """Count one more failure and say how long to wait after it."""
        ceiling = min(self._longest.total_seconds(), BACKOFF_FIRST.total_seconds() * 2 ** min(self._failures, 16))
        self._failures += 1
        asked = None if error is None else refusal_details(error).retry_after
        return random.uniform(0, ceiling) + (asked.total_seconds() if asked else 0)  # noqa: S311 - spreads load only

    def reset(self) -> None:
        """Begin anew after a success."""
        self._failures = 0


def passes(error: grpc.aio.AioRpcError) -> bool:
    """Whether the same call may succeed later."""
    return error.code() in _PASSING
