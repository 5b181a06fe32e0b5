"""The states of a flow run, the table of moves between them, and the causes of a move."""

from collections.abc import Mapping
from enum import StrEnum, auto
from typing import Final

from penstock.domain.errors import MoveRefused


class State(StrEnum):
    """Where a flow run is in its life. The values are what rows hold."""

    SCHEDULED = auto()  # waits for its start time, then for an agent
    SUBMITTED = auto()  # an agent holds the lease and is deploying it
    RUNNING = auto()
    CANCELLING = auto()  # asked to stop; whoever holds the lease is stopping it
    SUCCEEDED = auto()
    FAILED = auto()
    CANCELLED = auto()


MOVES: Final[Mapping[State, frozenset[State]]] = {
    State.SCHEDULED: frozenset({State.SUBMITTED, State.FAILED, State.CANCELLED}),
    State.SUBMITTED: frozenset({State.RUNNING, State.SCHEDULED, State.FAILED, State.CANCELLING}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.SCHEDULED, State.CANCELLING}),
    State.CANCELLING: frozenset({State.CANCELLED, State.SUCCEEDED, State.FAILED}),
} | dict.fromkeys((State.SUCCEEDED, State.FAILED, State.CANCELLED), frozenset[State]())
FINAL: Final = frozenset(state for state, onward in MOVES.items() if not onward)


class Cause(StrEnum):
    """Why a run stepped into a state. The values are what rows hold."""

    CREATED = auto()
    ACCEPTED = auto()
    STARTED = auto()
    FINISHED = auto()
    RETRIED = auto()
    RELEASED = auto()
    UNDEPLOYABLE = auto()
    LOST = auto()
    CANCEL_ASKED = auto()
    UNCONFIRMED = auto()
    PARENT_CANCELLED = auto()
    RESTARTED = auto()


def check_move(flow_run_id: object, present: State, asked: State) -> None:
    """Refuse a move that is not in the table."""
    if asked not in MOVES[present]:
        raise MoveRefused(flow_run_id=str(flow_run_id), present=present.name, asked=asked.name)
