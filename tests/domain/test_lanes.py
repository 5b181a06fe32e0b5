"""Tests of `penstock.domain.lanes`."""

from collections import Counter
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.domain.ids import FlowGroupId, LaneId, StreamId
from penstock.domain.lanes import AGENTLESS, Lane, LaneKey, Seat, may_take, missing_labels, share
from tests.domain.builders import GROUP_ID

LABELS = ("cpu", "gpu", "ssd")

label_sets = st.frozensets(st.sampled_from(LABELS), max_size=3)
streams = st.dictionaries(
    st.integers(1, 6).map(lambda number: StreamId(UUID(int=number))),
    st.tuples(label_sets, st.integers(-1, 8)),
    max_size=6,
)
lane_lists = st.lists(label_sets, max_size=6).map(
    lambda sets: [a_lane(number, *labels) for number, labels in enumerate(sets)]
)


def a_lane(number: int, *labels: str) -> Lane:
    return Lane(LaneId(UUID(int=number)), LaneKey(tuple(sorted(labels)), GROUP_ID))


@pytest.mark.parametrize(
    ("agent", "lane", "takes"),
    [
        ((), (), True),
        ((), ("gpu",), False),
        (("gpu",), (), False),
        (("gpu",), ("gpu",), True),
        (("gpu", "ssd"), ("gpu",), True),
        (("gpu",), ("gpu", "ssd"), False),
        (("cpu",), ("gpu",), False),
        ((), (AGENTLESS,), False),
        (("gpu",), ("gpu", AGENTLESS), False),
        (("gpu", AGENTLESS), ("gpu", AGENTLESS), False),
    ],
)
def test_who_may_take_what(agent: tuple[str, ...], lane: tuple[str, ...], takes: bool) -> None:
    """An agent takes lanes whose labels it all bears; unlabelled lanes are for unlabelled agents only, and agentless
    ones for none."""
    assert takes == may_take(frozenset(agent), lane)


@pytest.mark.parametrize(
    ("agent", "lane", "missing"),
    [
        ((), (), ()),
        (("gpu",), (), ()),
        (("gpu",), ("gpu",), ()),
        (("gpu",), ("ssd", "gpu", "cpu"), ("cpu", "ssd")),
        ((), (AGENTLESS, "gpu"), ()),
    ],
)
def test_what_an_agent_lacks(agent: tuple[str, ...], lane: tuple[str, ...], missing: tuple[str, ...]) -> None:
    """Labels of the lane that it does not bear; of an agentless lane nobody lacks any."""
    assert missing == missing_labels(frozenset(agent), lane)


def test_lanes_have_names_of_their_own() -> None:
    """A lane's digest tells apart its group and its labels, however these are cut."""
    other = FlowGroupId(UUID(int=1))
    keys = [LaneKey(labels, GROUP_ID) for labels in [(), ("ab",), ("a", "b"), ("a",), ("b",)]] + [LaneKey((), other)]

    assert len(keys) == len({key.digest() for key in keys})


@given(lane_lists, streams, st.integers(0, 30))
def test_seats_are_within_room(
    lanes: list[Lane], connected: dict[StreamId, tuple[frozenset[str], int]], total_max: int
) -> None:
    """Never more seats than room on any stream, nor than the total; each stream may take each lane it is given."""
    labels = {stream: bears for stream, (bears, _) in connected.items()}
    room = {stream: size for stream, (_, size) in connected.items()}

    seats = share(lanes, labels, room, total_max)

    by_id = {lane.id: lane for lane in lanes}
    assert len(seats) <= total_max
    assert all(taken <= room[stream] for stream, taken in Counter(seat.stream_id for seat in seats).items())
    assert all(may_take(labels[seat.stream_id], by_id[seat.lane_id].key.labels) for seat in seats)


@given(lane_lists, streams)
def test_no_room_is_left_unused(lanes: list[Lane], connected: dict[StreamId, tuple[frozenset[str], int]]) -> None:
    """Without a total, a stream keeps room only if no lane is for it."""
    labels = {stream: bears for stream, (bears, _) in connected.items()}
    room = {stream: size for stream, (_, size) in connected.items()}

    taken = Counter(seat.stream_id for seat in share(lanes, labels, room, 1_000))

    for stream, size in room.items():
        wanted = any(may_take(labels[stream], lane.key.labels) for lane in lanes)
        assert (max(size, 0) if wanted else 0) == taken[stream]


@given(st.integers(1, 6), st.lists(st.integers(0, 8), max_size=5), st.integers(0, 30))
def test_lanes_take_turns(lane_count: int, sizes: list[int], total_max: int) -> None:
    """Lanes that the same streams may take differ by one seat at most, and the first ones are served first."""
    lanes = [a_lane(number, "gpu") for number in range(lane_count)]
    room = {StreamId(UUID(int=number)): size for number, size in enumerate(sizes)}

    seats = share(lanes, dict.fromkeys(room, frozenset({"gpu"})), room, total_max)

    counts = Counter(seat.lane_id for seat in seats)
    shares = [counts[lane.id] for lane in lanes]
    assert max(shares) - min(shares) <= 1
    assert sorted(shares, reverse=True) == shares


def test_the_emptiest_stream_is_filled_first() -> None:
    """Seats go to the stream with most room left, so that agents are loaded alike."""
    small, large = StreamId(UUID(int=1)), StreamId(UUID(int=2))
    lane = a_lane(1)

    seats = share([lane], {small: frozenset(), large: frozenset()}, {small: 1, large: 3}, 3)

    assert [Seat(lane.id, large), Seat(lane.id, large), Seat(lane.id, small)] == seats
