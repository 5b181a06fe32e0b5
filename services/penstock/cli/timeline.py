"""The life of a run as a table: each moment, and how long after the creation it was."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from penstock.client import FlowRunState, Transition, TransitionCause


def moments_of(steps: Sequence[Transition]) -> Iterator[tuple[str, datetime]]:
    """What happened when: created, due, leased, submitted, running, and how it ended; for each attempt."""
    for step in steps:
        if step.state is FlowRunState.SCHEDULED:
            again = "" if step.cause is TransitionCause.CREATED else " again"
            word = "created" if step.cause is TransitionCause.CREATED else step.cause.lower()
            yield word, step.create_time
            if step.due_time is not None:
                # A run that was due before it existed is due once it does.
                yield f"due{again}", max(step.due_time, step.create_time)
            continue
        if step.lease_grant_time is not None:
            yield "leased", step.lease_grant_time
        yield step.state.lower(), step.create_time


def rows_of(steps: Sequence[Transition]) -> list[Sequence[str]]:
    """The rows of the table."""
    moments = sorted(moments_of(steps), key=lambda moment: moment[1])
    begin = moments[0][1]
    return [(what, f"{(at - begin).total_seconds():9.3f} s") for what, at in moments]
