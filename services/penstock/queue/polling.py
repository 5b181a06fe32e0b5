"""Long polls: the same as the stream for those who cannot keep one, and the only way to lease one run by its name.

A poll for any run joins the dispatcher as a stream does, with credit for one batch. What polls wait for beside that (a
named run to become due, the end of what their agents hold) is asked for many of them together: once per hint that
concerns them, at the next due time, and per sweep.

A hint that a run moved concerns whoever watches that run. A hint that something is due concerns those whose run was on
offer to somebody else: any other run becomes due by moving, or at a time that is known. A sweep asks for all, a slice
at a time, so that a hint never waits for the whole of it.
"""

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from typing import Final

from flowrun.v1 import lease_pb2
from penstock.domain.agent import Joined, Polling
from penstock.domain.errors import Overloaded, Refusal, Unavailable
from penstock.domain.ids import FlowRunId, ProcessId, TenantId
from penstock.domain.limits import LEASES_PER_CALL_MAX, POLLS_MAX
from penstock.queue import operations
from penstock.queue.dispatcher import Dispatcher, going
from penstock.queue.offers import fitting
from penstock.queue.operations import Grant, Seen, Watch
from penstock.queue.stream import AgentStream
from penstock.runtime.drawing import Drawing
from penstock.storage.database import Database
from penstock.storage.wakeups import Hint

LOGGER: Final = logging.getLogger(__name__)
NOTHING: Final = Joined()
ROOM_WAIT: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a poll is told: offers, and what its agent must stop. Nothing of either when its time was over."""

    offers: Sequence[lease_pb2.Offer] = ()
    judged: Joined = NOTHING


@dataclass(slots=True, eq=False)
class _Poll:
    """One poll under way. `seen` is what the last look found for it; None before the first, and once it shall end."""

    tenant: TenantId
    polling: Polling
    deadline: float
    more_at: float = math.inf
    seen: Seen | None = None
    stirred: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def watch(self) -> Watch:
        return Watch(self.polling.flow_run_id, self.polling.hello.held)

    @property
    def runs(self) -> set[FlowRunId]:
        """The runs that it has a reason to ask for."""
        named = {self.polling.flow_run_id} if self.polling.flow_run_id is not None else set()
        return named | {lease.flow_run_id for lease in self.polling.hello.held}

    @property
    def may_get_it_untold(self) -> bool:
        """Whether its run may become free without moving: it was on offer, or taken between a look and the take."""
        named = self.polling.flow_run_id is not None
        return named and (self.seen is None or self.seen.on_offer or self.seen.ready)


class Polls:
    """Serves the long polls of this process. All its state may be lost: offers then expire and wait again."""

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        drawing: Drawing,
        *,
        offer_lease: timedelta,
        sweep_interval: timedelta,
        polls_max: int = POLLS_MAX,
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        # Not the dispatcher's own, which takes back every offer in its name that none of its streams has in hand.
        self._holder = ProcessId(drawing.id())
        self._offer_lease = offer_lease
        self._sweep_seconds = sweep_interval.total_seconds()
        self._polls_max = polls_max
        self._polls: set[_Poll] = set()
        self._watching: dict[FlowRunId, set[_Poll]] = {}
        self._asking: set[_Poll] = set()
        self._something_is_due = False
        # Those who are still to be asked for in the present sweep.
        self._sweeping: dict[_Poll, None] = {}
        self._taking_back: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._draining = False

    async def lease(self, tenant: TenantId, polling: Polling) -> Answer:
        """What there is for this agent, as soon as there is something, or nothing when it has waited long enough."""
        with self._present(tenant, polling) as poll:
            if polling.flow_run_id is None:
                return await self._any_run(poll)
            return await self._named_run(poll, polling.flow_run_id)

    def hear(self, hint: Hint) -> None:
        """Look for the polls that a hint concerns. To be called on the event loop's thread."""
        if hint.anything:
            self._sweep()
        # What shall stop has moved, too.
        for flow_run_id in hint.moved & self._watching.keys():
            self._asking |= self._watching[flow_run_id]
        self._something_is_due = self._something_is_due or hint.due
        if self._sweeping or self._asking or self._something_is_due:
            self._woken.set()

    async def serve(self) -> None:
        """Look, again and again, until cancelled."""
        time = asyncio.get_running_loop().time
        next_sweep = time() + self._sweep_seconds
        while True:
            if not self._sweeping:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(min([next_sweep, *(poll.more_at for poll in self._polls)])):
                        await self._woken.wait()
            self._woken.clear()
            # Asked by the clock, not by the timeout: hints that never pause must not keep the sweep away.
            if time() >= next_sweep:
                self._sweep()
                next_sweep = time() + self._sweep_seconds * random.uniform(0.8, 1)  # noqa: S311
            now = time()
            self._asking.update(poll for poll in self._polls if poll.more_at <= now)
            try:
                await self.look_once()
            except Refusal as refusal:
                # A hint is not repeated, so what it told of is found by the sweep.
                LOGGER.warning("finding nothing for those who poll for now: %s", refusal)

    async def look_once(self) -> None:
        """Ask once for each tenant what there is for its polls: those with a reason to ask, and a slice of a sweep."""
        asking, self._asking = self._asking, set()
        if self._something_is_due:
            self._something_is_due = False
            asking.update(poll for poll in self._polls if poll.may_get_it_untold)
        asking |= self._slice()
        for poll in asking:
            poll.more_at = math.inf
        for tenant in sorted({poll.tenant for poll in asking}):
            await self._look_for([poll for poll in asking if poll.tenant == tenant])

    async def drain(self) -> None:
        """Answer every poll with what it has, and take no more."""
        self._draining = True
        for poll in self._polls:
            poll.stirred.set()
        await self._nobody.wait()
        if self._taking_back:
            await asyncio.wait(self._taking_back)

    def _sweep(self) -> None:
        """Ask for all, from now on. Those who wait for their turn in a sweep already do not lose it."""
        self._sweeping |= dict.fromkeys(poll for poll in self._polls if poll.runs)

    def _slice(self) -> set[_Poll]:
        """The next polls of the sweep, as many as have the runs of one statement, and at least one."""
        taken: set[_Poll] = set()
        count = 0
        for poll in list(islice(self._sweeping, LEASES_PER_CALL_MAX)):
            count += len(poll.runs)
            if taken and count > LEASES_PER_CALL_MAX:
                break
            taken.add(poll)
            del self._sweeping[poll]
        return taken

    @contextlib.contextmanager
    def _present(self, tenant: TenantId, polling: Polling) -> Iterator[_Poll]:
        if self._draining:
            raise going()
        if len(self._polls) >= self._polls_max:
            raise Overloaded(wait=ROOM_WAIT)
        poll = _Poll(tenant, polling, asyncio.get_running_loop().time() + polling.wait.total_seconds())
        self._polls.add(poll)
        self._nobody.clear()
        for flow_run_id in poll.runs:
            self._watching.setdefault(flow_run_id, set()).add(poll)
        try:
            yield poll
        finally:
            self._polls.discard(poll)
            self._asking.discard(poll)
            self._sweeping.pop(poll, None)
            for flow_run_id in poll.runs:
                self._watching[flow_run_id].discard(poll)
                if not self._watching[flow_run_id]:
                    del self._watching[flow_run_id]
            if not self._polls:
                self._nobody.set()

    async def _any_run(self, poll: _Poll) -> Answer:
        polling = poll.polling
        async with self._dispatcher.joined(poll.tenant, polling.hello) as (stream, judged):
            if not judged:
                stream.allow(polling.offers_max)
                await self._until_something(poll, stream)
                judged = poll.seen.judged if poll.seen else judged
            answer = Answer(stream.offered, judged)
            if not stream.closed:
                self._dispatcher.entrust(stream)
            return answer

    async def _until_something(self, poll: _Poll, stream: AgentStream) -> None:
        async def news() -> None:
            while (seen := await self._next(poll)) and not seen.judged:
                pass

        async def patience() -> None:
            # A run that is due is offered also to one who will not wait at all.
            await self._dispatcher.all_handed_out(poll.tenant)
            await asyncio.sleep(poll.deadline - asyncio.get_running_loop().time())

        offered = asyncio.create_task(stream.next_message())
        others = [asyncio.create_task(each) for each in (news(), patience())]
        try:
            await asyncio.wait([offered, *others], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in (offered, *others):
                each.cancel()
        if offered.done():
            try:
                offered.result()
            except Unavailable:
                return  # it drains: the poll is answered with what it has

    async def _named_run(self, poll: _Poll, flow_run_id: FlowRunId) -> Answer:
        labels = frozenset(poll.polling.hello.labels)
        (seen,) = await self._look_for([poll])
        self._woken.set()  # it may become due before what was waited for until now
        checked = False
        while not seen.judged:
            if seen.gone or not checked:
                await self._database.read(operations.check_named, poll.tenant, flow_run_id, labels)
                checked = True
            if seen.ready and poll.polling.offers_max:
                grant = await self._grant(poll.tenant, flow_run_id)
                if grant is not None:
                    return Answer([offer for _, offer in fitting([grant])])
            try:
                async with asyncio.timeout_at(poll.deadline):
                    following = await self._next(poll)
            except TimeoutError:
                following = None
            if following is None:
                return Answer()
            seen = following
        return Answer(judged=seen.judged)

    async def _next(self, poll: _Poll) -> Seen | None:
        """What the next look finds for a poll, if that is anything; None once it shall end."""
        if not self._draining:
            await poll.stirred.wait()
            poll.stirred.clear()
        return None if self._draining else poll.seen

    async def _look_for(self, polls: Sequence[_Poll]) -> Sequence[Seen]:
        watches = [poll.watch for poll in polls]
        found = await self._database.read(operations.look, polls[0].tenant, watches)
        now = asyncio.get_running_loop().time()
        for poll, seen in zip(polls, found, strict=True):
            poll.seen = seen
            poll.more_at = math.inf if seen.more_in is None else now + seen.more_in.total_seconds()
            if seen.judged or seen.gone or seen.ready:
                poll.stirred.set()
        return found

    async def _grant(self, tenant: TenantId, flow_run_id: FlowRunId) -> Grant | None:
        """Lease that run. In a task of its own, because the caller may go away meanwhile: then it waits again."""
        granting = asyncio.create_task(
            self._database.run(
                operations.offer_flow_run, tenant, flow_run_id, holder=self._holder, ttl=self._offer_lease
            )
        )
        try:
            return await asyncio.shield(granting)
        except asyncio.CancelledError:
            taking_back = asyncio.create_task(self._take_back(tenant, granting))
            self._taking_back.add(taking_back)
            taking_back.add_done_callback(self._taking_back.discard)
            raise

    async def _take_back(self, tenant: TenantId, granting: asyncio.Task[Grant | None]) -> None:
        try:
            grant = await granting
            if grant is not None:
                await self._database.run(operations.give_back, tenant, [grant.held.lease], holder=self._holder)
        except Refusal as refusal:
            LOGGER.warning("an offer that nobody waits for any more lasts until it expires: %s", refusal)
