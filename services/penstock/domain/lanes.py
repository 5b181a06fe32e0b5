"""Lanes: runs that the same agents may take and the same things can block, and how credit is shared among them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from penstock.domain.flow import Labels
from penstock.domain.ids import FlowGroupId, LaneId, StreamId

# Labels that begin so mean something to the queue itself; nobody else may bear them.
RESERVED_PREFIX: Final = "penstock:"

# A run with this label is offered to no agent: it waits for the one process that executes it without an agent.
AGENTLESS: Final = f"{RESERVED_PREFIX}agentless"


@dataclass(frozen=True, slots=True)
class LaneKey:
    """What makes two runs stand in one lane."""

    labels: Labels
    flow_group_id: FlowGroupId

    def digest(self) -> bytes:
        """A fixed-size name of the lane; labels are separated by a character that no label holds."""
        return sha256(self.flow_group_id.bytes + "\0".join(self.labels).encode()).digest()


@dataclass(frozen=True, slots=True)
class Lane:
    id: LaneId
    key: LaneKey


def may_take(agent_labels: frozenset[str], lane_labels: Iterable[str]) -> bool:
    """Whether an agent bears all labels of a lane; a lane without labels is only for agents without.

    An agentless lane is for none, whatever it bears.
    """
    wanted = frozenset(lane_labels)
    if AGENTLESS in wanted:
        return False
    return wanted <= agent_labels if wanted else not agent_labels


def missing_labels(agent_labels: frozenset[str], lane_labels: Iterable[str]) -> tuple[str, ...]:
    """What keeps an agent that names a run from taking it: labels of the lane that it does not bear.

    An agentless run is taken by whoever names it.
    """
    wanted = frozenset(lane_labels)
    return () if AGENTLESS in wanted else tuple(sorted(wanted - agent_labels))


@dataclass(frozen=True, slots=True)
class Seat:
    """Room for one offer on one stream, set aside for one lane."""

    lane_id: LaneId
    stream_id: StreamId


def share(
    lanes: Sequence[Lane], labels: Mapping[StreamId, frozenset[str]], room: Mapping[StreamId, int], total_max: int
) -> list[Seat]:
    """Set aside seats round-robin over the lanes, each on the eligible stream with most room left, `total_max` at most.

    Whoever then takes no more runs from a lane than it has seats can place every one of them.
    """
    left = {stream_id: size for stream_id, size in room.items() if size > 0}
    waiting = [(lane, [stream for stream in left if may_take(labels[stream], lane.key.labels)]) for lane in lanes]
    seats: list[Seat] = []
    while waiting and len(seats) < total_max:
        again = []
        for lane, streams in waiting:
            best = max(streams, key=lambda stream: left[stream], default=None)
            if best is None or not left[best] or len(seats) == total_max:
                continue
            left[best] -= 1
            seats.append(Seat(lane.id, best))
            again.append((lane, streams))
        waiting = again
    return seats
