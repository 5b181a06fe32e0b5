"""The one follow loop behind every watch and tail.

Read after the cursor, send, wait for a hint or the sweep, read again; a heartbeat when idle, the end marker last.
One follower serves a whole process and asks for all followed runs together, so who waits costs no query of its own.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final, Generic, TypeVar

from penstock.domain.errors import Overloaded, Refusal, Unavailable
from penstock.domain.ids import FlowRunId
from penstock.domain.limits import HEARTBEAT_INTERVAL, SWEEP_INTERVAL, WATCHERS_MAX

Item = TypeVar("Item")
End = TypeVar("End")

_LOGGER: Final = logging.getLogger(__name__)
_ROOM_WAIT: Final = timedelta(seconds=1)


@dataclasses.dataclass(frozen=True)
class Page(Generic[Item, End]):
    """What lies behind a cursor: items in order, each with its own cursor; and the end marker, if they end here.

    A page with neither is a heartbeat. One with a refusal says why there is nothing to follow any more.
    """

    items: Sequence[tuple[int, Item]] = ()
    ended: End | None = None
    refusal: Refusal | None = None


Look = Callable[[Mapping[FlowRunId, int]], Awaitable[Mapping[FlowRunId, Page[Item, End]]]]


@dataclasses.dataclass(slots=True, eq=False)
class _Watcher(Generic[Item, End]):
    run_id: FlowRunId
    cursor: int
    page: asyncio.Future[Page[Item, End]] | None = None  # there while it waits for one

    @property
    def waits(self) -> bool:
        return self.page is not None and not self.page.done()


# The watchers of one look: for each run the one cursor asked about, and who asks.
_Layer = dict[FlowRunId, tuple[int, list[_Watcher[Item, End]]]]


class Follower(Generic[Item, End]):
    """Follows many runs for many watchers.

    `look` is given a cursor for each run and answers with a page for each run that has something behind it, cut to what
    one message may hold. A watcher holds one page at a time and is looked up for again only once it took that one: who
    reads slowly holds up nobody and fills no memory.
    """

    def __init__(
        self,
        look: Look[Item, End],
        *,
        sweep: timedelta = SWEEP_INTERVAL,
        heartbeat: timedelta = HEARTBEAT_INTERVAL,
        watchers_max: int = WATCHERS_MAX,
    ) -> None:
        self._look = look
        self._sweep_seconds = sweep.total_seconds()
        self._heartbeat_seconds = heartbeat.total_seconds()
        self._watchers_max = watchers_max
        self._watchers: dict[FlowRunId, set[_Watcher[Item, End]]] = {}
        self._count = 0
        self._due: set[_Watcher[Item, End]] = set()
        self._woken = asyncio.Event()
        self._closed = False

    async def follow(self, run_id: FlowRunId, after: int) -> AsyncGenerator[Page[Item, End], None]:
        """Every page after that cursor, empty ones as heartbeats, until the end marker or a refusal, which is raised.

        Use it in `async with contextlib.aclosing(...)`, so that a caller who goes away is forgotten at once.
        """
        watcher = self._join(run_id, after)
        try:
            while True:
                page = await self._next_page(watcher)
                if page.refusal:
                    raise dataclasses.replace(page.refusal)  # every watcher writes its own traceback on its copy
                if page.items:
                    watcher.cursor = page.items[-1][0]
                yield page
                if page.ended:
                    return
        finally:
            self._leave(watcher)

    def hint(self, run_ids: Iterable[FlowRunId] | None = None) -> None:
        """Something was written about these runs (None: about any): look soon. To be called in the loop's thread."""
        for run_id in self._watchers if run_ids is None else run_ids:
            self._due.update(self._watchers.get(run_id, ()))
        self._woken.set()

    async def serve(self) -> None:
        """Look, again and again, until cancelled."""
        time = asyncio.get_running_loop().time
        next_sweep = time() + self._sweep_seconds
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(next_sweep):
                        await self._woken.wait()
                # Asked by the clock, not by the timeout: hints that never pause must not keep the sweep away.
                if time() >= next_sweep:
                    self.hint()
                    next_sweep = time() + self._sweep_seconds
                self._woken.clear()
                await self._look_for_the_due()
        finally:
            self._close()

    async def drain(self) -> None:
        """End every watch with UNAVAILABLE; its client goes on elsewhere, from its cursor."""
        self._close()

    def _join(self, run_id: FlowRunId, after: int) -> _Watcher[Item, End]:
        if self._count >= self._watchers_max:
            raise Overloaded(wait=_ROOM_WAIT)
        watcher: _Watcher[Item, End] = _Watcher(run_id, after)
        self._watchers.setdefault(run_id, set()).add(watcher)
        self._due.add(watcher)
        self._count += 1
        return watcher

    def _leave(self, watcher: _Watcher[Item, End]) -> None:
        self._due.discard(watcher)
        self._watchers[watcher.run_id].discard(watcher)
        if not self._watchers[watcher.run_id]:
            del self._watchers[watcher.run_id]
        self._count -= 1

    async def _next_page(self, watcher: _Watcher[Item, End]) -> Page[Item, End]:
        if self._closed:
            raise _going_away()
        page = watcher.page = asyncio.get_running_loop().create_future()
        if watcher in self._due:
            self._woken.set()
        try:
            await asyncio.wait([page], timeout=self._heartbeat_seconds)
            return page.result() if page.done() else Page()
        finally:
            watcher.page = None
            # Who is cancelled just when it was refused has nobody left to tell.
            if not page.cancel() and not page.cancelled():
                page.exception()

    async def _look_for_the_due(self) -> None:
        due = [watcher for watcher in self._due if watcher.waits]
        self._due.difference_update(due)
        for layer in _layers(due):
            await self._ask(layer)

    async def _ask(self, layer: _Layer[Item, End]) -> None:
        try:
            pages = await self._look({run_id: cursor for run_id, (cursor, _) in layer.items()})
        except Refusal as refusal:
            for _, watchers in layer.values():
                _fail(watchers, refusal)
        except Exception as error:
            await self._ask_one_by_one(layer, error)
        else:
            for run_id, page in pages.items():
                self._deliver(page, layer[run_id][1])

    async def _ask_one_by_one(self, layer: _Layer[Item, End], error: Exception) -> None:
        """After an unexpected failure: only those should fail who follow the run that causes it."""
        if len(layer) == 1:
            for _, watchers in layer.values():
                _fail(watchers, error)
            return
        _LOGGER.warning("looking for %d runs failed; asking one by one", len(layer), exc_info=error)
        for run_id, asked in layer.items():
            await self._ask({run_id: asked})

    def _deliver(self, page: Page[Item, End], watchers: Iterable[_Watcher[Item, End]]) -> None:
        if not page.items and not page.ended and not page.refusal:
            return
        for watcher in watchers:
            if watcher.page is not None and watcher.waits:
                watcher.page.set_result(page)
            # There may be more behind this page, and a watcher that was sending a heartbeat meanwhile has not got it:
            # look again as soon as it waits, not at the next sweep.
            if watcher in self._watchers.get(watcher.run_id, ()):
                self._due.add(watcher)

    def _close(self) -> None:
        self._closed = True
        for watchers in self._watchers.values():
            _fail(watchers, _going_away())


def _layers(watchers: Iterable[_Watcher[Item, End]]) -> list[_Layer[Item, End]]:
    """Those who ask, in as few looks as a run has different cursors: nearly always one, as most are at the head."""
    places: dict[FlowRunId, dict[int, list[_Watcher[Item, End]]]] = {}
    for watcher in watchers:
        places.setdefault(watcher.run_id, {}).setdefault(watcher.cursor, []).append(watcher)
    layers: list[_Layer[Item, End]] = []
    for run_id, cursors in places.items():
        for depth, (cursor, asking) in enumerate(cursors.items()):
            if depth == len(layers):
                layers.append({})
            layers[depth][run_id] = (cursor, asking)
    return layers


def _fail(watchers: Iterable[_Watcher[Item, End]], error: Exception) -> None:
    for watcher in watchers:
        if watcher.page is not None and watcher.waits:
            # A copy for each, because every watcher that raises it writes its own traceback on it.
            watcher.page.set_exception(dataclasses.replace(error) if isinstance(error, Refusal) else error)


def _going_away() -> Unavailable:
    return Unavailable(detail="it is stopping; follow on from the last cursor")
