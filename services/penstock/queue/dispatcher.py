"""One per process: takes due runs once for all its streams, and shares them out.

It is woken by a hint, by new credit, by the next due time and by a sweep; it takes no more than it can place at once.
An idle agent costs no query of its own.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from penstock.domain.agent import AgentHello, Joined
from penstock.domain.errors import Refusal, SessionReplaced, Unavailable
from penstock.domain.ids import LaneId, ProcessId, StreamId, TenantId
from penstock.domain.lanes import Lane, Seat, share
from penstock.domain.lease import Lease
from penstock.domain.limits import OFFERS_PER_TAKE_MAX
from penstock.queue import operations
from penstock.queue.offers import fitting
from penstock.queue.operations import Grant, Taken
from penstock.queue.stream import AgentStream
from penstock.runtime.drawing import Drawing
from penstock.storage.database import Database

LOGGER: Final = logging.getLogger(__name__)
AWAY_PAUSE_SECONDS: Final = 0.5
ROUNDS_MAX: Final = 100


@dataclass(slots=True, eq=False)
class _Round:
    """One look at what is due for every tenant, and the tenants for which there may be more: something was taken."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    more_for: set[TenantId] = field(default_factory=set)


class Dispatcher:
    """Hands due runs to the streams of this process. All its state may be lost: offers then expire and wait again."""

    def __init__(
        self,
        database: Database,
        drawing: Drawing,
        *,
        offer_lease: timedelta,
        sweep_interval: timedelta,
        heartbeat_interval: timedelta,
    ) -> None:
        self._database = database
        self._drawing = drawing
        self._holder = ProcessId(drawing.id())
        self._offer_lease = offer_lease
        self._sweep_seconds = sweep_interval.total_seconds()
        self._heartbeat_seconds = heartbeat_interval.total_seconds()
        self._streams: dict[StreamId, AgentStream] = {}
        self._turns: dict[TenantId, LaneId] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._present: set[StreamId] = set()
        self._staying: set[StreamId] = set()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._woken = asyncio.Event()
        self._draining = False
        self._taking = asyncio.Lock()
        self._next_round = _Round()
        self._taken_for: set[TenantId] = set()
        # Tenants that may have offers of this process which no stream has in hand: a take, or a stream's end, of which
        # it is not known whether it was committed.
        self._unsure: set[TenantId] = set()
        # Offers that were the answer of a long poll, which has ended, each until its time is over.
        self._entrusted: dict[TenantId, dict[Lease, float]] = {}

    def wake(self) -> None:
        """Something may be due, or may be placed now. To be called on the event loop's thread."""
        self._woken.set()

    @asynccontextmanager
    async def joined(self, tenant: TenantId, hello: AgentHello) -> AsyncIterator[tuple[AgentStream, Joined]]:
        """While it lasts the stream gets offers; leaving gives back those that were not accepted, at once."""
        if self._draining:
            raise going()
        stream = AgentStream(tenant, hello, StreamId(self._drawing.id()), self.wake)
        self._present.add(stream.id)
        self._nobody.clear()
        # In tasks of their own, because the caller's may be cancelled: its agent is gone, the offers must not be, and
        # an opening that is committed after all must not pass for the agent's present one.
        joining = asyncio.create_task(self._database.run(operations.join, tenant, hello, stream.id))
        try:
            judged = await asyncio.shield(joining)
            self._admit(stream)
            yield stream, judged
        finally:
            stream.close()
            leaving = asyncio.create_task(self._leave(stream, joining))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
            await asyncio.shield(leaving)

    def entrust(self, stream: AgentStream) -> None:
        """Let an agent keep the offers of its stream, and its place, when the stream ends: it was a long poll.

        They were its answer, and last until they expire; the agent stays connected for as long as it has proved to be.
        """
        now = asyncio.get_running_loop().time()
        kept = {lease: end for lease, end in self._entrusted.get(stream.tenant, {}).items() if end > now}
        self._entrusted[stream.tenant] = kept | stream.surrender()
        self._staying.add(stream.id)

    async def serve(self) -> None:
        """Take and hand out, again and again, until cancelled."""
        wait_seconds = 0.0
        while True:
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            try:
                wait_seconds = min(await self.run_once(), self._sweep_seconds * random.uniform(0.8, 1))  # noqa: S311
            except Refusal as refusal:
                LOGGER.warning("handing out nothing for now: %s", refusal)
                await asyncio.sleep(AWAY_PAUSE_SECONDS)
                wait_seconds = 0.0

    async def run_once(self) -> float:
        """Hand out what is due and can be placed, for every tenant; return the seconds until more becomes due."""
        async with self._taking:
            this_round, self._next_round = self._next_round, _Round()
            try:
                return await self._hand_out_everywhere(this_round)
            finally:
                this_round.over.set()

    async def all_handed_out(self, tenant: TenantId) -> None:
        """Return once nothing is due any more that somebody has room for; where that never ends, after many rounds.

        One take has a bound, and it serves first those who have the most room.
        """
        for _ in range(ROUNDS_MAX):
            self.wake()
            this_round = self._next_round
            await this_round.over.wait()
            if tenant not in this_round.more_for:
                return

    async def keep_in_touch(self) -> None:
        """Once per heartbeat say who lives, until cancelled."""
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            try:
                await self.touch_once()
            except Refusal as refusal:
                LOGGER.warning("cannot store which agents live: %s", refusal)

    async def touch_once(self) -> None:
        """Store, for all streams in one statement, which agents were heard of; end streams that were replaced."""
        for tenant in sorted({stream.tenant for stream in self._streams.values()}):
            await self._store_who_lives(tenant)

    async def drain(self) -> None:
        """Take nothing more, end every stream so that its agent opens another elsewhere, and give back every offer.

        A closed stream has no room, so a take that is under way hands out nothing; what it leased is given back too.
        """
        self._draining = True
        for stream in self._streams.values():
            stream.close(going())
        async with self._taking:
            for tenant in sorted(self._taken_for):
                try:
                    kept = self._entrusted.get(tenant, ())
                    await self._database.run(operations.give_back_strays, tenant, kept, holder=self._holder)
                except Refusal as refusal:
                    LOGGER.warning("offers that were not accepted wait until they expire: %s", refusal)
        await self._nobody.wait()

    async def _hand_out_everywhere(self, this_round: _Round) -> float:
        waits = [self._sweep_seconds]
        for tenant in sorted(self._unsure):
            await self._give_back_strays(tenant)
        for tenant in sorted({stream.tenant for stream in self._streams.values() if stream.room > 0}):
            taken = await self._take(tenant)
            if taken.grants:
                # There may be more behind these, and room that other lanes left unused.
                this_round.more_for.add(tenant)
                self.wake()
            if taken.next_due_in is not None:
                waits.append(taken.next_due_in.total_seconds())
        return max(0.0, min(waits))

    async def _take(self, tenant: TenantId) -> Taken:
        labels = {each.id: each.labels for each in self._of(tenant)}
        room = {each.id: each.room for each in self._of(tenant)}
        seats: list[Seat] = []

        def rooms_of(lanes: Sequence[Lane]) -> Mapping[LaneId, int]:
            in_turn = _in_turn(lanes, self._turns.get(tenant))
            # Assigned anew each time, because a transaction that lost a race is tried again.
            seats[:] = share(in_turn, labels, room, OFFERS_PER_TAKE_MAX)
            rooms: dict[LaneId, int] = {}
            for seat in seats:
                rooms[seat.lane_id] = rooms.get(seat.lane_id, 0) + 1
            return rooms

        self._taken_for.add(tenant)
        with self._unsure_on_failure(tenant):
            taken = await self._database.run(
                operations.take, tenant, rooms_of, holder=self._holder, ttl=self._offer_lease
            )
            if seats:
                self._turns[tenant] = seats[-1].lane_id
            await self._hand_out(tenant, taken.grants, seats)
        return taken

    async def _hand_out(self, tenant: TenantId, grants: Sequence[Grant], seats: Sequence[Seat]) -> None:
        """Give each grant to a stream that has a seat for its lane; what cannot be placed any more is given back."""
        batches: dict[StreamId, list[Grant]] = {}
        stranded: list[Lease] = []
        left = list(seats)
        for grant in grants:
            seat = next(each for each in left if each.lane_id == grant.entry.lane_id)
            left.remove(seat)
            batches.setdefault(seat.stream_id, []).append(grant)
        for stream_id, batch in batches.items():
            stream = self._streams.get(stream_id)
            offers = fitting(batch) if stream and stream.room >= len(batch) else []
            stranded += [grant.held.lease for grant in batch[len(offers) :]]
            if stream and offers:
                stream.offer(offers)
        if stranded:
            await self._database.run(operations.give_back, tenant, stranded, holder=self._holder)

    def _admit(self, stream: AgentStream) -> None:
        """Let a stream have offers. Of one agent's streams only the newest goes on."""
        self._streams[stream.id] = stream
        if self._draining:
            stream.close(going())
        same_agent = [each for each in self._of(stream.tenant) if each.hello.agent_id == stream.hello.agent_id]
        for older in sorted(same_agent, key=lambda each: each.id)[:-1]:
            older.close(_replaced(older))

    async def _leave(self, stream: AgentStream, joining: asyncio.Task[Joined]) -> None:
        """Give back what was not accepted. If the database is away, that is done once it answers."""
        self._streams.pop(stream.id, None)
        await asyncio.wait([joining])
        try:
            if in_hand := stream.in_hand:
                await self._database.run(operations.give_back, stream.tenant, in_hand, holder=self._holder)
                self.wake()
            if stream.id not in self._staying:
                await self._database.run(operations.leave, stream.tenant, stream.hello.agent_id, stream.id)
        except Refusal as refusal:
            self._unsure.add(stream.tenant)
            LOGGER.warning("the stream of agent %s ended without a trace: %s", stream.hello.name, refusal)
        finally:
            self._present.discard(stream.id)
            self._staying.discard(stream.id)
            if not self._present:
                self._nobody.set()

    async def _give_back_strays(self, tenant: TenantId) -> None:
        in_hand = [lease for stream in self._of(tenant) for lease in stream.in_hand]
        in_hand += self._entrusted.get(tenant, ())
        # Before the look: a stream that ends without a trace meanwhile asks for another one.
        self._unsure.discard(tenant)
        with self._unsure_on_failure(tenant):
            await self._database.run(operations.give_back_strays, tenant, in_hand, holder=self._holder)

    @contextmanager
    def _unsure_on_failure(self, tenant: TenantId) -> Iterator[None]:
        """Whatever fails in here may have been committed all the same."""
        try:
            yield
        except BaseException:
            self._unsure.add(tenant)
            raise

    async def _store_who_lives(self, tenant: TenantId) -> None:
        heard_of = [stream for stream in self._of(tenant) if stream.heard_of]
        for stream in heard_of:
            stream.heard_of = False
        streams = {stream.id: stream.hello.agent_id for stream in heard_of}
        for stream_id in await self._database.run(operations.replaced, tenant, streams):
            if (older := self._streams.get(stream_id)) is not None:
                older.close(_replaced(older))

    def _of(self, tenant: TenantId) -> list[AgentStream]:
        return [stream for stream in self._streams.values() if stream.tenant == tenant]


def going() -> Unavailable:
    """What streams are told when this process drains."""
    return Unavailable(detail="this process is stopping; open the stream to another")


def _replaced(older: AgentStream) -> SessionReplaced:
    return SessionReplaced(agent_id=str(older.hello.agent_id))


def _in_turn(lanes: Sequence[Lane], last: LaneId | None) -> Sequence[Lane]:
    """The lanes in their order, beginning behind the one that was served last, so that none is always the first."""
    behind: Callable[[Lane], bool] = lambda lane: last is not None and lane.id <= last  # noqa: E731
    return sorted(lanes, key=lambda lane: (behind(lane), lane.id))
