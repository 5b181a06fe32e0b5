"""Tests of `penstock.domain.window`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.domain.window import Window

steps = st.lists(st.tuples(st.sampled_from(["grant", "spend"]), st.integers(0, 50)))


@given(steps)
def test_never_more_than_was_allowed(taken: list[tuple[str, int]]) -> None:
    """Whatever order credit comes in, offers sent never exceed the greatest total that was granted."""
    window = Window()
    greatest = 0
    for step, number in taken:
        if step == "grant":
            assert (number > greatest) == window.grant(number)
            greatest = max(greatest, number)
        else:
            window.spend(min(number, window.room))
        assert window.sent_total <= greatest
        assert greatest - window.sent_total == window.room


def test_more_than_the_room_is_our_mistake() -> None:
    """Spending more than there is room for is caught, and so is spending backwards."""
    window = Window()
    window.grant(2)

    with pytest.raises(AssertionError, match="more offers than credit"):
        window.spend(3)
    with pytest.raises(AssertionError, match="more offers than credit"):
        window.spend(-1)
