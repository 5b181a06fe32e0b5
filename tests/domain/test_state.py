"""Tests of `penstock.domain.state`."""

from itertools import product

import pytest

from penstock.domain.errors import MoveRefused
from penstock.domain.state import FINAL, MOVES, State, check_move

TABLE = """\
SCHEDULED  -> CANCELLED FAILED SUBMITTED
SUBMITTED  -> CANCELLING FAILED RUNNING SCHEDULED
RUNNING    -> CANCELLING FAILED SCHEDULED SUCCEEDED
CANCELLING -> CANCELLED FAILED SUCCEEDED
SUCCEEDED  ->
FAILED     ->
CANCELLED  ->
"""


def test_the_table_of_moves() -> None:
    """The table is what the contract says, state by state."""
    lines = [f"{state.name:<10} -> {' '.join(sorted(onward.name for onward in MOVES[state]))}" for state in State]

    assert "".join(f"{line.rstrip()}\n" for line in lines) == TABLE


def test_final_states() -> None:
    """Three states are final: nothing leads out of them."""
    assert {State.SUCCEEDED, State.FAILED, State.CANCELLED} == FINAL


@pytest.mark.parametrize(("present", "asked"), list(product(State, State)))
def test_every_edge(present: State, asked: State) -> None:
    """A move is refused exactly when the printed table does not hold it, and the refusal names both states."""
    (row,) = (line for line in TABLE.splitlines() if line.split()[0] == present.name)

    if asked.name in row.split()[2:]:
        check_move("run-1", present, asked)
    else:
        with pytest.raises(MoveRefused) as refused:
            check_move("run-1", present, asked)
        assert f"Flow run run-1 is {present.name}; it cannot become {asked.name}." == str(refused.value)
