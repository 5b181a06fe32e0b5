"""How the runs of a flow are treated, as its author wishes.

A wish that no server would grant is refused when the module is imported, not when the flow is registered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from penstock.domain.limits import LOG_LEVELS, LOST_RESTARTS_MAX, PRIORITY_MAX, RETRIES_MAX, RETRY_DELAY_MAX

if TYPE_CHECKING:
    from flowrun.v1 import flow_run_pb2

CHILD_POLICIES: Final = ("CANCEL", "ABANDON")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What was wished. None leaves a matter to the server; a delay may be given in seconds."""

    retries: int = 0
    retry_delay: timedelta | float = 0
    max_lost_restarts: int | None = None
    log_level: str | None = None
    priority: int | None = None
    child_policy: str | None = None

    def __post_init__(self) -> None:
        _demand_count("retries", self.retries, RETRIES_MAX)
        _demand_delay(self.retry_delay)
        if self.max_lost_restarts is not None:
            _demand_count("max_lost_restarts", self.max_lost_restarts, LOST_RESTARTS_MAX)
        if self.priority is not None:
            _demand_count("priority", self.priority, PRIORITY_MAX)
        _demand_word("log_level", self.log_level, LOG_LEVELS)
        _demand_word("child_policy", self.child_policy, CHILD_POLICIES)

    @property
    def delay(self) -> timedelta:
        """How long to wait before a failed run is tried again."""
        return self.retry_delay if isinstance(self.retry_delay, timedelta) else timedelta(seconds=self.retry_delay)

    def to_proto(self) -> "flow_run_pb2.FlowRunPolicy":
        """What a registration says of it."""
        from flowrun.v1 import flow_run_pb2, log_pb2

        policy = flow_run_pb2.FlowRunPolicy(
            max_retries=self.retries, max_lost_restarts=self.max_lost_restarts, priority=self.priority
        )
        policy.retry_delay.FromTimedelta(self.delay)
        if self.log_level is not None:
            policy.log_level = log_pb2.LogLevel.Value(f"LOG_LEVEL_{self.log_level.upper()}")
        if self.child_policy is not None:
            policy.child_policy = flow_run_pb2.ChildPolicy.Value(f"CHILD_POLICY_{self.child_policy.upper()}")
        return policy


def _demand_count(what: str, given: object, high: int) -> None:
    # True is an int to Python, and a slip of the keyboard to whoever wrote it.
    if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= high:
        raise TypeError(f"{what} must be a whole number from 0 to {high:,}, not {given!r}")


def _demand_delay(given: object) -> None:
    if isinstance(given, timedelta):
        seconds = given.total_seconds()
    elif isinstance(given, int | float) and not isinstance(given, bool):
        seconds = given
    else:
        seconds = math.nan
    if not 0 <= seconds <= RETRY_DELAY_MAX.total_seconds():
        raise TypeError(
            f"retry_delay must be a timedelta or a number of seconds, from 0 to {RETRY_DELAY_MAX.days} days, "
            f"not {given!r}"
        )


def _demand_word(what: str, given: object, known: Sequence[str]) -> None:
    if given is not None and not (isinstance(given, str) and given.upper() in known):
        raise TypeError(f"{what} must be one of {', '.join(known)}, not {given!r}")
