"""Tests of `penstock.runtime.committer`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import pytest

from penstock.domain.errors import LeaseLost, Overloaded, Refusal, Unavailable
from penstock.runtime.committer import Committer


class Store:
    """Stands for the database: each flush waits until the test lets it go."""

    def __init__(self) -> None:
        self.flushes: list[list[Any]] = []
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, items: list[Any]) -> Sequence[Any | Refusal]:
        self.flushes.append(items)
        self.begun.set()
        await self.gate.wait()
        for item in items:
            if isinstance(item, Exception) and not isinstance(item, LeaseLost):
                raise item
        return [item if isinstance(item, Exception) else item * 10 for item in items]


@contextlib.asynccontextmanager
async def serving(committer: Committer[Any, Any]) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(committer.serve())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.asynccontextmanager
async def busy(store: Store, **limits: Any) -> AsyncIterator[Committer[Any, Any]]:
    """A committer whose first flush is under way, of the item 0, and stays so until the gate opens."""
    store.gate.clear()
    committer: Committer[Any, Any] = Committer(store.run, name="test", **limits)
    async with serving(committer):
        first = asyncio.create_task(committer.commit(0))
        await store.begun.wait()
        yield committer
        store.gate.set()
        assert await first == 0


def committing(committer: Committer[Any, Any], *items: Any, key: Any = None) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(committer.commit(item, key=key)) for item in items]


async def settled() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_single_call_waits_for_nobody() -> None:
    """One call is one flush of one item."""
    store = Store()
    committer: Committer[int, int] = Committer(store.run, name="test")
    async with serving(committer):
        assert await committer.commit(4) == 40

    assert store.flushes == [[4]]


async def test_what_arrives_during_a_flush_shares_the_next() -> None:
    """Calls that come while a commit runs go into one transaction together, and each gets its own answer."""
    store = Store()
    async with busy(store) as committer:
        calls = committing(committer, 1, 2, 3)
        await settled()

        store.gate.set()

        assert await asyncio.gather(*calls) == [10, 20, 30]
    assert store.flushes == [[0], [1, 2, 3]]


async def test_a_flush_takes_no_more_than_its_bound() -> None:
    """Beyond the bound the rest goes into the flush after."""
    store = Store()
    async with busy(store, batch_max=2) as committer:
        calls = committing(committer, 1, 2, 3)
        await settled()

        store.gate.set()

        assert await asyncio.gather(*calls) == [10, 20, 30]
    assert store.flushes == [[0], [1, 2], [3]]


async def test_a_flush_weighs_no_more_than_its_bound() -> None:
    """The item that would weigh too much begins the next flush, and one that is too heavy alone has one for itself."""
    store = Store()
    async with busy(store, weigh=lambda item: item, weight_max=10) as committer:
        calls = committing(committer, 4, 6, 1, 10, 11, 3, 3)
        await settled()

        store.gate.set()

        assert await asyncio.gather(*calls) == [40, 60, 10, 100, 110, 30, 30]
    assert store.flushes == [[0], [4, 6], [1], [10], [11], [3, 3]]


async def test_an_item_that_waits_for_its_key_weighs_nothing() -> None:
    """What goes into a later flush makes no room scarce in this one."""
    store = Store()
    async with busy(store, weigh=lambda item: item, weight_max=10) as committer:
        calls = [*committing(committer, 4, 6, key="a"), *committing(committer, 5)]
        await settled()

        store.gate.set()
        await asyncio.gather(*calls)

    assert store.flushes == [[0], [4, 5], [6]]


async def test_a_refusal_is_raised_in_its_caller_alone() -> None:
    """An outcome that is a refusal concerns one caller; its neighbours are answered."""
    store = Store()
    async with busy(store) as committer:
        good, bad, fine = committing(committer, 1, LeaseLost(flow_run_id="a-run", fence=1), 3)
        await settled()

        store.gate.set()

        assert await good == 10
        assert await fine == 30
        with pytest.raises(LeaseLost):
            await bad
    assert len(store.flushes) == 2


async def test_an_unexpected_failure_hits_the_guilty_alone() -> None:
    """When a shared flush fails, its items run one by one: the others succeed, the guilty one fails as it did."""
    store = Store()
    async with busy(store) as committer:
        calls = committing(committer, 1, KeyError("oops"), 3)
        await settled()

        store.gate.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

        assert [outcomes[0], outcomes[2]] == [10, 30]
        assert isinstance(outcomes[1], KeyError)
        assert await committer.commit(4) == 40


async def test_items_of_a_failed_flush_may_be_run_otherwise() -> None:
    """Each by itself, by what knows that they may have been committed; the next flush runs as ever."""
    store, again = Store(), Store()
    async with busy(store, run_again=again.run) as committer:
        calls = committing(committer, 1, KeyError("oops"), 3)
        await settled()

        store.gate.set()
        await asyncio.gather(*calls, return_exceptions=True)
        await committer.commit(4)

    assert (3, [[1], [3]]) == (len(store.flushes), [each for each in again.flushes if isinstance(each[0], int)])


async def test_a_lone_failure_is_not_repeated() -> None:
    """A flush of one that fails is not run a second time."""
    store = Store()
    committer: Committer[Any, Any] = Committer(store.run, name="test")
    async with serving(committer):
        with pytest.raises(KeyError):
            await committer.commit(KeyError("oops"))

    assert len(store.flushes) == 1


async def test_a_database_that_is_away_fails_everyone() -> None:
    """Unavailable is not the fault of an item: all get it, each its own copy, and nothing is run one by one."""
    store = Store()
    async with busy(store) as committer:
        calls = committing(committer, 1, Unavailable(detail="the database is away"), 3)
        await settled()

        store.gate.set()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert [str(each) for each in outcomes] == ["This process cannot serve now: the database is away."] * 3
    assert len({id(each) for each in outcomes}) == 3
    assert len(store.flushes) == 2


async def test_a_database_that_goes_away_in_between_fails_the_rest() -> None:
    """While items run one by one, those after the first Unavailable are not tried."""
    attempts: list[list[int]] = []

    async def run(items: list[int]) -> list[int]:
        attempts.append(items)
        if len(items) > 1:
            raise KeyError("oops")
        if items == [2]:
            raise Unavailable(detail="the database is away")
        return items

    committer: Committer[int, int] = Committer(run, name="test")
    calls = committing(committer, 1, 2, 3)
    await settled()
    async with serving(committer):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert outcomes[0] == 1
    assert [type(each) for each in outcomes[1:]] == [Unavailable, Unavailable]
    assert attempts == [[1, 2, 3], [1], [2]]


async def test_of_one_key_one_item_goes_into_a_flush() -> None:
    """Items of one key keep their order, in flushes of their own; others do not wait for them."""
    store = Store()
    async with busy(store) as committer:
        calls = [
            *committing(committer, 1, 2, 3, key="a"),
            *committing(committer, 4, key="b"),
            *committing(committer, 5, 6),
        ]
        await settled()

        store.gate.set()
        await asyncio.gather(*calls)

    assert store.flushes == [[0], [1, 4, 5, 6], [2], [3]]


async def test_too_many_are_refused_before_anything_is_written() -> None:
    """A full queue answers Overloaded with a wait, and the item is never run."""
    store = Store()
    async with busy(store, waiting_max=2) as committer:
        calls = committing(committer, 1, 2)
        await settled()

        with pytest.raises(Overloaded) as refused:
            await committer.commit(3)

        store.gate.set()
        await asyncio.gather(*calls)
    assert refused.value.wait > timedelta(0)
    assert store.flushes == [[0], [1, 2]]


async def test_who_gives_up_in_time_was_never_there() -> None:
    """A caller cancelled before its flush is not run, and its place is free at once."""
    store = Store()
    async with busy(store, waiting_max=2) as committer:
        gone, stays = committing(committer, 1, 2)
        await settled()
        gone.cancel()
        await settled()
        (late,) = committing(committer, 3)
        await settled()

        store.gate.set()
        assert [await stays, await late] == [20, 30]

    assert store.flushes == [[0], [2, 3]]


async def test_who_gives_up_during_the_flush_disturbs_nobody() -> None:
    """A caller that leaves while its transaction runs is skipped when the answers are given."""
    store = Store()
    async with busy(store) as committer:
        gone, stays = committing(committer, 1, 2)
        await settled()
        store.begun.clear()
        store.gate.set()
        store.gate.clear()
        await store.begun.wait()

        gone.cancel()
        store.gate.set()

        assert await stays == 20
        assert await committer.commit(3) == 30


async def test_an_answer_for_each_item_is_demanded() -> None:
    """An operation that answers too little is our mistake: the flusher ends with it, its callers hear of it."""

    async def run(items: list[int]) -> list[int]:
        return []

    committer: Committer[int, int] = Committer(run, name="test")
    async with serving(committer) as task:
        with pytest.raises(Unavailable):
            await committer.commit(1)
        await asyncio.wait([task])

    assert isinstance(task.exception(), ValueError)


async def test_a_cancelled_committer_leaves_nobody_waiting() -> None:
    """Stopping settles those in the flush and those behind it, and later ones are refused at once."""
    store = Store()
    store.gate.clear()
    committer: Committer[Any, Any] = Committer(store.run, name="test")
    task = asyncio.create_task(committer.serve())
    (flushing,) = committing(committer, 1)
    await store.begun.wait()
    (waiting,) = committing(committer, 2)
    await settled()

    task.cancel()
    outcomes = await asyncio.gather(flushing, waiting, return_exceptions=True)

    assert [type(each) for each in outcomes] == [Unavailable, Unavailable]
    with pytest.raises(Unavailable):
        await committer.commit(3)
    assert task.done()
