"""Group commit: many calls, one transaction, one answer each.

Whatever arrived while the last flush ran goes into the next one. There are no timers: a single call waits for nothing.
"""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from datetime import timedelta
from typing import Final, Generic, TypeAlias, TypeVar

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext

from penstock.domain.errors import Overloaded, Refusal, Unavailable
from penstock.domain.limits import COMMITTER_BATCH_MAX, COMMITTER_WAITING_MAX
from penstock.runtime import telemetry

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Run: TypeAlias = Callable[[list[Item]], Awaitable[Sequence[Outcome | Refusal]]]

_LOGGER: Final = logging.getLogger(__name__)
_WAIT_MIN: Final = timedelta(milliseconds=100)


@dataclasses.dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Outcome]):
    item: Item
    key: Hashable | None
    answer: asyncio.Future[Outcome]
    caller: SpanContext


class Committer(Generic[Item, Outcome]):
    """Answers each call after a commit it shared with the calls that arrived while the last commit ran.

    `run` performs a list of items in one transaction and returns one outcome for each, in order; an outcome that is a
    Refusal is raised in its caller alone. Whoever stops waiting before its flush began was never there.

    A flush ends at `batch_max` items, and before the item with which it would weigh more than `weight_max`. `run_again`
    performs items of a flush that failed unexpectedly, of which nobody knows whether it was committed nevertheless.
    """

    def __init__(
        self,
        run: Run[Item, Outcome],
        *,
        name: str,
        run_again: Run[Item, Outcome] | None = None,
        waiting_max: int = COMMITTER_WAITING_MAX,
        batch_max: int = COMMITTER_BATCH_MAX,
        weigh: Callable[[Item], int] = lambda item: 0,
        weight_max: int = 0,
    ) -> None:
        self._run = run
        self._run_again = run_again or run
        self._name = name
        self._waiting_max = waiting_max
        self._batch_max = batch_max
        self._weigh = weigh
        self._weight_max = weight_max
        # In order of arrival; a dict, because whoever gives up leaves from the middle.
        self._waiting: dict[_Waiting[Item, Outcome], None] = {}
        self._arrived = asyncio.Event()
        self._last_flush = timedelta(0)
        self._closed = False

    async def commit(self, item: Item, *, key: Hashable | None = None) -> Outcome:
        """Wait until that item is committed; of one key, one item goes into a flush, in order of arrival."""
        if self._closed:
            raise Unavailable(detail="it is stopping")
        if len(self._waiting) >= self._waiting_max:
            raise Overloaded(wait=max(self._last_flush, _WAIT_MIN))
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(item, key, answer, trace.get_current_span().get_span_context())
        self._waiting[waiting] = None
        self._arrived.set()
        try:
            return await answer
        finally:
            self._waiting.pop(waiting, None)

    async def serve(self) -> None:
        """Flush, again and again, until cancelled. Whatever else ends it is our mistake and should end the process."""
        batch: list[_Waiting[Item, Outcome]] = []
        try:
            while True:
                await self._arrived.wait()
                batch = self._next_batch()
                await self._flush(batch)
        finally:
            self._closed = True
            _settle_all([*batch, *self._waiting], Unavailable(detail="it is stopping"))

    def _next_batch(self) -> list[_Waiting[Item, Outcome]]:
        """The first of those that wait, at most one for each key; they wait no longer."""
        batch: list[_Waiting[Item, Outcome]] = []
        keys: set[Hashable] = set()
        weight = 0
        for waiting in self._waiting:
            if len(batch) == self._batch_max:
                break
            if waiting.key is not None and waiting.key in keys:
                continue
            weight += self._weigh(waiting.item)
            if batch and weight > self._weight_max:
                break
            keys.add(waiting.key)
            batch.append(waiting)
        for waiting in batch:
            del self._waiting[waiting]
        if not self._waiting:
            self._arrived.clear()
        return [waiting for waiting in batch if not waiting.answer.done()]

    async def _flush(self, batch: list[_Waiting[Item, Outcome]]) -> None:
        if not batch:
            return
        began = time.monotonic()
        try:
            outcomes = await self._performed(self._run, batch)
        except Unavailable as refusal:
            _settle_all(batch, refusal)
        except Exception as error:
            await self._flush_one_by_one(batch, error)
        else:
            for waiting, outcome in zip(batch, outcomes, strict=True):
                _settle(waiting, outcome)
        self._last_flush = timedelta(seconds=time.monotonic() - began)

    async def _flush_one_by_one(self, batch: list[_Waiting[Item, Outcome]], error: Exception) -> None:
        """After an unexpected failure: only the item that causes it should fail."""
        if len(batch) == 1:
            _settle(batch[0], error)
            return
        _LOGGER.warning("%s: a flush of %d failed and is repeated one by one", self._name, len(batch), exc_info=error)
        for position, waiting in enumerate(batch):
            try:
                outcomes = await self._performed(self._run_again, [waiting])
            except Unavailable as refusal:
                _settle_all(batch[position:], refusal)
                return
            except Exception as own:
                _settle(waiting, own)
            else:
                (outcome,) = outcomes
                _settle(waiting, outcome)

    async def _performed(
        self, run: Run[Item, Outcome], batch: list[_Waiting[Item, Outcome]]
    ) -> Sequence[Outcome | Refusal]:
        items = [waiting.item for waiting in batch]
        sampled = [waiting.caller for waiting in batch if waiting.caller.trace_flags.sampled]
        if not sampled:
            return await run(items)
        # The first caller's trace shows the flush that all of them shared; the others' traces are linked.
        parent = trace.set_span_in_context(NonRecordingSpan(sampled[0]), Context())
        links = [Link(caller) for caller in sampled[1:]]
        attributes = {"penstock.items": len(items)}
        with telemetry.tracer().start_as_current_span(
            f"commit {self._name}", context=parent, links=links, attributes=attributes
        ):
            return await run(items)


def _settle_all(batch: Sequence[_Waiting[Item, Outcome]], refusal: Refusal) -> None:
    for waiting in batch:
        _settle(waiting, refusal)


def _settle(waiting: _Waiting[Item, Outcome], outcome: Outcome | Exception) -> None:
    """Give a caller its answer, unless it has stopped waiting for it."""
    if waiting.answer.done():
        return
    if isinstance(outcome, Refusal):
        # A copy for each, because every caller that raises it writes its own traceback on it.
        waiting.answer.set_exception(dataclasses.replace(outcome))
    elif isinstance(outcome, Exception):
        waiting.answer.set_exception(outcome)
    else:
        waiting.answer.set_result(outcome)
