"""One per process: learns which leases its agents shall stop working on, and tells their streams.

It is woken by a hint and by a sweep, and asks once for all streams of a tenant together. What it finds is the whole
truth of that moment, so whatever was missed is told the next time.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from penstock.domain.errors import Refusal
from penstock.domain.ids import TenantId
from penstock.queue import operations
from penstock.queue.stream import AgentStream
from penstock.storage.database import Database

LOGGER: Final = logging.getLogger(__name__)


class Stopping:
    """Tells the streams of this process. While there are none, it asks nothing."""

    def __init__(self, database: Database, *, sweep_interval: timedelta) -> None:
        self._database = database
        self._sweep_seconds = sweep_interval.total_seconds()
        self._streams: set[AgentStream] = set()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Some run shall stop. To be called on the event loop's thread."""
        self._woken.set()

    @contextlib.contextmanager
    def told_to(self, stream: AgentStream) -> Iterator[None]:
        """While it lasts the stream is told. What it was to stop before, its agent learned when it joined."""
        self._streams.add(stream)
        try:
            yield
        finally:
            self._streams.discard(stream)

    async def serve(self) -> None:
        """Ask and tell, again and again, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._sweep_seconds * random.uniform(0.8, 1)):  # noqa: S311
                    await self._woken.wait()
            self._woken.clear()
            try:
                await self.look_once()
            except Refusal as refusal:
                # A hint is not repeated, so what it told of is found by the sweep.
                LOGGER.warning("telling nobody to stop for now: %s", refusal)

    async def look_once(self) -> None:
        """Ask once for every tenant that is connected, and tell its streams."""
        for tenant in sorted({stream.tenant for stream in self._streams}):
            await self._tell(tenant)

    async def _tell(self, tenant: TenantId) -> None:
        # Those that join meanwhile know more than the answer does.
        streams = [stream for stream in self._streams if stream.tenant == tenant]
        agents = [stream.hello.agent_id for stream in streams]
        stopping = await self._database.read(operations.stopping, tenant, agents)
        for stream in streams:
            stream.stop(stopping.get(stream.hello.agent_id, ()))
