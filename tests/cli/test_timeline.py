"""The life of a run as a table."""

from typing import Any

import pendulum

from penstock.cli.timeline import rows_of
from penstock.client import FlowRunState, Transition, TransitionCause

BEGIN = pendulum.datetime(2026, 3, 1, 10)


def step(version: int, state: FlowRunState, cause: TransitionCause, after: float, **times: float) -> Transition:
    """A transition some seconds after the beginning."""
    moments: dict[str, Any] = {"due_time": None, "lease_grant_time": None}
    moments |= {name: BEGIN.add(seconds=seconds) for name, seconds in times.items()}
    at = BEGIN.add(seconds=after)
    return Transition(version, state, cause, "", at, attempt=1, fence=0, agent_id="", **moments)


def test_each_moment_has_its_time_since_creation() -> None:
    """The table shows created, due, leased, submitted, running and the end, in the order of time."""
    steps = [
        step(1, FlowRunState.SCHEDULED, TransitionCause.CREATED, 0, due_time=-5),
        step(2, FlowRunState.SUBMITTED, TransitionCause.ACCEPTED, 0.2, lease_grant_time=0.125),
        step(3, FlowRunState.RUNNING, TransitionCause.STARTED, 1),
        step(4, FlowRunState.SUCCEEDED, TransitionCause.FINISHED, 12.5),
    ]

    rows = rows_of(steps)

    assert [
        ("created", "    0.000 s"),
        ("due", "    0.000 s"),
        ("leased", "    0.125 s"),
        ("submitted", "    0.200 s"),
        ("running", "    1.000 s"),
        ("succeeded", "   12.500 s"),
    ] == rows


def test_a_retry_is_told_from_the_creation() -> None:
    """A second attempt shows why it is due again, and when."""
    steps = [
        step(1, FlowRunState.SCHEDULED, TransitionCause.CREATED, 0, due_time=0),
        step(2, FlowRunState.SCHEDULED, TransitionCause.RETRIED, 3, due_time=10),
    ]

    assert ["created", "due", "retried", "due again"] == [what for what, _ in rows_of(steps)]
