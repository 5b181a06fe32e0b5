"""Tests of `penstock.runtime.follow`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from penstock.domain.errors import FlowRunNotFound, Overloaded, Refusal, Unavailable
from penstock.domain.ids import FlowRunId
from penstock.runtime.follow import Follower, Page

A = FlowRunId(UUID(int=1))
B = FlowRunId(UUID(int=2))
NEVER = timedelta(hours=1)
SOON = timedelta(milliseconds=10)

Pages = AsyncGenerator[Page[str, str], None]


class History:
    """What the database holds: of each run the items by position, and whether it ended. Notes what it is asked."""

    def __init__(self, page_items: int = 100) -> None:
        self.items: dict[FlowRunId, list[str]] = {A: [], B: []}
        self.ended: set[FlowRunId] = set()
        self.looks: list[dict[FlowRunId, int]] = []
        self.failing: dict[FlowRunId, Exception] = {}
        self.gone: dict[FlowRunId, Refusal] = {}
        self._page_items = page_items

    async def look(self, cursors: Mapping[FlowRunId, int]) -> Mapping[FlowRunId, Page[str, str]]:
        self.looks.append(dict(cursors))
        for run_id in cursors:
            if run_id in self.failing:
                raise self.failing[run_id]
        return {run_id: self._page(run_id, cursor) for run_id, cursor in cursors.items()}

    def _page(self, run_id: FlowRunId, cursor: int) -> Page[str, str]:
        if run_id in self.gone:
            return Page(refusal=self.gone[run_id])
        behind = list(enumerate(self.items[run_id], start=1))[cursor:]
        page = behind[: self._page_items]
        return Page(page, "the end" if run_id in self.ended and len(page) == len(behind) else None)


@contextlib.asynccontextmanager
async def following(
    history: History, *, sweep: timedelta = NEVER, heartbeat: timedelta = NEVER, watchers_max: int = 10
) -> AsyncIterator[Follower[str, str]]:
    """A follower at work, that by itself neither sweeps nor beats."""
    follower: Follower[str, str] = Follower(history.look, sweep=sweep, heartbeat=heartbeat, watchers_max=watchers_max)
    task = asyncio.create_task(follower.serve())
    try:
        async with asyncio.timeout(20):
            yield follower
    finally:
        task.cancel()
        await asyncio.wait([task])


async def settled() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def next_of(pages: Pages) -> asyncio.Task[Page[str, str]]:
    return asyncio.ensure_future(anext(pages))


async def test_what_is_there_comes_first_in_pages_then_the_end() -> None:
    """A watcher reads all that is behind its cursor, page after page, waiting for no sweep, then the end marker."""
    history = History(page_items=2)
    history.items[A] = ["a", "b", "c", "d", "e"]
    history.ended.add(A)

    async with following(history) as follower:
        pages = [page async for page in follower.follow(A, after=1)]

    assert [list(page.items) for page in pages] == [[(2, "b"), (3, "c")], [(4, "d"), (5, "e")]]
    assert [page.ended for page in pages] == [None, "the end"]


async def test_a_hint_brings_what_is_new() -> None:
    """A watcher at the head waits; a hint about its run makes the follower look."""
    history = History()
    async with following(history) as follower, contextlib.aclosing(follower.follow(A, after=0)) as pages:
        waiting = next_of(pages)
        await settled()
        history.items[A].append("new")

        follower.hint([A])

        assert Page([(1, "new")]) == await waiting


async def test_a_hint_about_anything_is_about_all() -> None:
    """A hint that names no run makes the follower look for every one, together."""
    history = History()
    async with following(history) as follower:
        waiting = [next_of(follower.follow(A, after=0)), next_of(follower.follow(B, after=0))]
        await settled()
        history.looks.clear()
        history.items = {A: ["a"], B: ["b"]}

        follower.hint()

        assert [Page([(1, "a")]), Page([(1, "b")])] == await asyncio.gather(*waiting)
        assert history.looks[0] == {A: 0, B: 0}


async def test_a_hint_about_another_run_costs_nothing() -> None:
    """Only those whose run is named are looked for."""
    history = History()
    async with following(history) as follower:
        waiting = next_of(follower.follow(A, after=0))
        await settled()
        history.looks.clear()

        follower.hint([B])
        await settled()

        assert history.looks == []
        waiting.cancel()


async def test_the_sweep_finds_what_no_hint_told() -> None:
    """Without any hint, the sweep brings what is new."""
    history = History()
    async with following(history, sweep=SOON) as follower:
        waiting = next_of(follower.follow(A, after=0))
        await settled()

        history.items[A].append("unhinted")

        assert Page([(1, "unhinted")]) == await waiting


async def test_hints_do_not_keep_the_sweep_away() -> None:
    """However many hints about one run arrive, another run is still swept."""
    history = History()

    async def hint_for_ever() -> None:
        while True:
            follower.hint([A])
            await asyncio.sleep(0)

    async with following(history, sweep=SOON) as follower:
        others, waiting = next_of(follower.follow(A, after=0)), next_of(follower.follow(B, after=0))
        await settled()
        hinting = asyncio.create_task(hint_for_ever())
        history.items[B].append("swept")

        assert Page([(1, "swept")]) == await waiting

        hinting.cancel()
        others.cancel()


async def test_a_hint_during_a_look_is_not_lost() -> None:
    """What is written while a look is under way, too late for it, is found by the next."""
    history = History()
    looking, gate = asyncio.Event(), asyncio.Event()

    async def look(cursors: Mapping[FlowRunId, int]) -> Mapping[FlowRunId, Page[str, str]]:
        answer = await history.look(cursors)
        looking.set()
        await gate.wait()
        return answer

    follower: Follower[str, str] = Follower(look, sweep=NEVER, heartbeat=NEVER)
    task = asyncio.create_task(follower.serve())
    waiting = next_of(follower.follow(A, after=0))
    await looking.wait()

    history.items[A].append("late")
    follower.hint([A])
    gate.set()

    async with asyncio.timeout(20):
        assert Page([(1, "late")]) == await waiting
    task.cancel()
    await asyncio.wait([task])


async def test_an_idle_watcher_gets_heartbeats() -> None:
    """When nothing happens an empty page says that the watch lives; what comes later is still brought."""
    history = History()
    async with (
        following(history, heartbeat=SOON) as follower,
        contextlib.aclosing(follower.follow(A, after=0)) as pages,
    ):
        assert Page() == await anext(pages) == await anext(pages)

        history.items[A].append("new")
        follower.hint([A])

        assert [item async for page in until_items(pages) for item in page.items] == [(1, "new")]


async def until_items(pages: Pages) -> Pages:
    async for page in pages:
        yield page
        if page.items:
            return


async def test_watchers_of_one_run_share_the_look() -> None:
    """However many stand at one cursor, the question is asked once and all get the answer."""
    history = History()
    async with following(history, watchers_max=50) as follower:
        waiting = [next_of(follower.follow(A, after=0)) for _ in range(50)]
        await settled()
        history.looks.clear()
        history.items[A].append("new")

        follower.hint([A])

        assert [Page([(1, "new")])] * 50 == await asyncio.gather(*waiting)
        assert history.looks == [{A: 0}]


async def test_watchers_at_different_cursors_each_get_their_own() -> None:
    """A watcher far behind gets its pages, one at the head gets only what is new."""
    history = History(page_items=1)
    history.items[A] = ["a", "b"]
    async with following(history) as follower:
        behind, ahead = follower.follow(A, after=0), follower.follow(A, after=1)

        assert [Page([(1, "a")]), Page([(2, "b")])] == list(await asyncio.gather(anext(behind), anext(ahead)))

        await behind.aclose()
        await ahead.aclose()


async def test_a_slow_reader_holds_up_nobody_and_is_not_asked_for() -> None:
    """Who does not take its page is left out of the looks; others go on; later it gets everything in order."""
    history = History()
    history.items[A] = ["a"]
    async with following(history) as follower:
        slow, quick = follower.follow(A, after=0), follower.follow(A, after=0)
        await asyncio.gather(anext(slow), anext(quick))
        history.looks.clear()

        for position, item in enumerate("bcd", start=2):
            waiting = next_of(quick)
            await settled()
            history.items[A].append(item)
            follower.hint([A])
            assert Page([(position, item)]) == await waiting
        cursors = [look[A] for look in history.looks]
        caught_up = await anext(slow)

        assert sorted(cursors) == cursors, "a look for the slow one would go back"
        assert all(len(look) == 1 for look in history.looks)
        assert list(caught_up.items) == [(2, "b"), (3, "c"), (4, "d")]
        await slow.aclose()
        await quick.aclose()


async def test_too_many_watchers_are_refused() -> None:
    """Beyond the bound a watch is Overloaded; a place that is left can be taken again."""
    async with following(History(), watchers_max=1) as follower:
        first = follower.follow(A, after=0)
        waiting = next_of(first)
        await settled()

        with pytest.raises(Overloaded):
            await anext(follower.follow(B, after=0))

        waiting.cancel()
        await asyncio.wait([waiting])
        second = next_of(follower.follow(B, after=0))
        await settled()
        assert not second.done()
        second.cancel()


async def test_a_database_that_is_away_ends_the_watches() -> None:
    """A refused look is raised in every watcher it was for, each its own; the follower goes on."""
    history = History()
    history.failing[A] = Unavailable(detail="the database is away")
    async with following(history) as follower:
        waiting = [next_of(follower.follow(A, after=0)), next_of(follower.follow(B, after=0))]
        outcomes: list[Any] = await asyncio.gather(*waiting, return_exceptions=True)
        history.failing.clear()
        history.items[A] = ["back"]
        again = await anext(follower.follow(A, after=0))

    assert [Unavailable, Unavailable] == [type(each) for each in outcomes]
    assert outcomes[0] is not outcomes[1]
    assert Page([(1, "back")]) == again


async def test_a_run_that_cannot_be_read_fails_alone() -> None:
    """An unexpected failure is raised in the watchers of the run that causes it, not in its neighbours."""
    history = History()
    history.items[B] = ["b"]
    history.failing[A] = KeyError("oops")
    async with following(history) as follower:
        waiting = [next_of(follower.follow(A, after=0)), next_of(follower.follow(B, after=0))]
        broken, whole = await asyncio.gather(*waiting, return_exceptions=True)

    assert isinstance(broken, KeyError)
    assert Page([(1, "b")]) == whole


async def test_what_is_gone_is_refused_to_everybody_who_follows_it() -> None:
    """Each is refused by itself, also who was busy with a page when it was found out; others follow on."""
    history = History()
    history.items = {A: ["a"], B: ["b"]}
    async with following(history) as follower:
        busy = follower.follow(A, after=0)
        await anext(busy)
        waiting = [next_of(follower.follow(A, after=1)) for _ in range(2)]
        await settled()
        history.gone[A] = FlowRunNotFound(flow_run_id=str(A))

        follower.hint([A])

        refusals: list[Any] = [*await asyncio.gather(*waiting, return_exceptions=True)]
        with pytest.raises(FlowRunNotFound):
            await anext(busy)
        assert [FlowRunNotFound] * 2 == [type(each) for each in refusals]
        assert 3 == len({id(each) for each in (*refusals, history.gone[A])})
        assert Page([(1, "b")]) == await anext(follower.follow(B, after=0))


async def test_draining_ends_every_watch() -> None:
    """At drain those who wait are refused at once, and so are those who come back for more or come anew."""
    history = History()
    history.items[B] = ["b"]
    async with following(history) as follower:
        waiting = next_of(follower.follow(A, after=0))
        busy = follower.follow(B, after=0)
        await anext(busy)

        await follower.drain()

        for pages in (waiting, anext(busy), anext(follower.follow(A, after=0))):
            with pytest.raises(Unavailable):
                await pages


async def test_a_page_found_during_a_heartbeat_comes_with_the_next_look() -> None:
    """A watcher that sends a heartbeat while its page is found asks again at once, not at the next sweep."""
    looked, may_answer = asyncio.Event(), asyncio.Event()

    async def look(cursors: Mapping[FlowRunId, int]) -> Mapping[FlowRunId, Page[str, str]]:
        looked.set()
        await may_answer.wait()
        return {run: Page([(1, "line")], "end") for run in cursors}

    follower: Follower[str, str] = Follower(look, sweep=timedelta(hours=1), heartbeat=timedelta(milliseconds=1))
    serving = asyncio.create_task(follower.serve())
    try:
        async with asyncio.timeout(20), contextlib.aclosing(follower.follow(A, after=0)) as pages:
            assert Page() == await anext(pages)
            await looked.wait()
            may_answer.set()
            await settled()  # the look ends while nobody waits: the heartbeat is still being sent

            while not (page := await anext(pages)).items:
                continue
        assert Page([(1, "line")], "end") == page
    finally:
        serving.cancel()
        await asyncio.wait([serving])
