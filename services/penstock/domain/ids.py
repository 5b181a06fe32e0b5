"""Identities: which kinds there are, and how a new one is drawn."""

from typing import Final, NewType, Protocol
from uuid import UUID

from pendulum import DateTime

TenantId = NewType("TenantId", UUID)
ProjectId = NewType("ProjectId", UUID)
FlowGroupId = NewType("FlowGroupId", UUID)
FlowId = NewType("FlowId", UUID)
FlowRunId = NewType("FlowRunId", UUID)
LaneId = NewType("LaneId", UUID)
AgentId = NewType("AgentId", UUID)
StreamId = NewType("StreamId", UUID)
ProcessId = NewType("ProcessId", UUID)
ExecutionId = NewType("ExecutionId", UUID)

DEFAULT_TENANT: Final = TenantId(UUID("00000000-0000-7000-8000-000000000001"))


class Randomness(Protocol):
    """A source of random bits: `secrets.SystemRandom()` in production, a seeded `random.Random` in tests."""

    def getrandbits(self, k: int, /) -> int: ...


def new_id(now: DateTime, random: Randomness) -> UUID:
    """Draw a UUID of version 7: milliseconds of `now`, then 74 random bits, so that later ids sort later."""
    milliseconds = int(now.timestamp() * 1000) & ((1 << 48) - 1)
    high = random.getrandbits(12)
    low = random.getrandbits(62)
    return UUID(int=(milliseconds << 80) | (0x7 << 76) | (high << 64) | (0b10 << 62) | low)
