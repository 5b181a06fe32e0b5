"""What is held here, and keeping it: a lease counts on a clock of this machine alone, from before it was asked for.

So a holder stops before anyone else may begin, whatever the network and other clocks do. The agent renews a lease until
its supervisor has started the run; from then on the supervisor renews it alone.
"""

import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc

from flowrun.v1 import lease_pb2, queue_service_pb2
from penstock.agent.calls import CALL_WAIT_MAX, Backoff
from penstock.agent.launchers import Launched
from penstock.domain.limits import LEASES_PER_CALL_MAX

if TYPE_CHECKING:
    from flowrun.v1.queue_service_pb2_grpc import QueueServiceAsyncStub

Key = tuple[str, int]

_LOGGER: Final = logging.getLogger(__name__)
_CALL_SECONDS_MIN: Final = 0.1


def lease_time() -> float:
    """The seconds on the clock that leases count by, which all processes of this machine share.

    Never set, and on Linux it goes on while the machine is suspended, as the lease does.
    """
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


@dataclass(slots=True)
class LeaseCount:
    """A lease and how long it still lasts by this machine's own count. `end` is a `lease_time`."""

    flow_run_id: str
    fence: int
    seconds: float
    end: float

    @property
    def key(self) -> Key:
        return self.flow_run_id, self.fence

    def left(self) -> float:
        return self.end - lease_time()

    def until_renewal(self) -> float:
        """A third of the lease, give or take a tenth of that, so that many leases are not renewed at one moment."""
        return self.seconds / 3 * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load only

    def renewed(self, answer: lease_pb2.Lease, sent: float) -> None:
        """Take over what an answer grants, counted from before its request was sent."""
        seconds = answer.ttl.ToTimedelta().total_seconds()
        if seconds > 0:
            self.seconds = seconds
            self.end = max(self.end, sent + seconds)

    def to_proto(self) -> lease_pb2.Lease:
        return lease_pb2.Lease(flow_run_id=self.flow_run_id, fence=self.fence)


async def renew(stub: "QueueServiceAsyncStub", leases: Sequence[LeaseCount]) -> list[int]:
    """Renew leases in one call; what became of each, in order."""
    sent = lease_time()
    seconds = min(CALL_WAIT_MAX.total_seconds(), max(_CALL_SECONDS_MIN, max(lease.left() for lease in leases)))
    request = queue_service_pb2.RenewLeasesRequest(leases=[lease.to_proto() for lease in leases])
    answer = await stub.RenewLeases(request, timeout=seconds)
    outcomes: list[int] = []
    for lease, result in zip(leases, answer.results, strict=True):
        lease.renewed(result.lease, sent)
        outcomes.append(result.outcome)
    return outcomes


@dataclass(slots=True)
class Held:
    """A run that this agent answers for."""

    lease: LeaseCount
    flow_run_name: str
    flow_name: str
    launched: Launched | None = None
    # Adopted supervisors have long started, or give up by themselves.
    started: bool = False
    must_stop: bool = field(default=False)


class Leases:
    """The runs that this agent answers for, from the answer of Accept until the supervisor's end."""

    def __init__(self, stub: "QueueServiceAsyncStub", stop: Callable[[Held], None]) -> None:
        self._stub = stub
        self._stop = stop
        self._held: dict[Key, Held] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._held.values()))

    def add(self, held: Held) -> None:
        self._held[held.lease.key] = held
        self._changed.set()

    def remove(self, held: Held) -> None:
        self._held.pop(held.lease.key, None)

    def stop(self, key: Key) -> None:
        """Stop work on a run whose lease was lost or whose run shall stop; nothing if it is not held."""
        held = self._held.get(key)
        if held is not None and not held.must_stop:
            held.must_stop = True
            self._stop(held)

    async def serve(self) -> None:
        """Renew what is not started yet, for ever."""
        backoff = Backoff()
        while True:
            waiting = self._unstarted()
            if not waiting:
                self._changed.clear()
                await self._changed.wait()
                continue
            await asyncio.sleep(max(0.0, min(lease.lease.until_renewal() for lease in waiting)))
            try:
                await self.renew_once()
                backoff.reset()
            except grpc.aio.AioRpcError as error:
                _LOGGER.warning("leases could not be renewed: %s", error.details())
                await asyncio.sleep(min(backoff.seconds(error), 1.0))

    async def renew_once(self) -> None:
        """Renew what is not started yet; stop what is lost, stopping, or over by its own count."""
        for held in self._unstarted():
            if held.lease.left() <= 0:
                self.stop(held.lease.key)
        waiting = self._unstarted()[:LEASES_PER_CALL_MAX]
        if not waiting:
            return
        outcomes = await renew(self._stub, [held.lease for held in waiting])
        for held, outcome in zip(waiting, outcomes, strict=True):
            if outcome != lease_pb2.LEASE_OUTCOME_HELD and not held.started:
                self.stop(held.lease.key)

    def _unstarted(self) -> list[Held]:
        return [held for held in self._held.values() if not held.started and not held.must_stop]
