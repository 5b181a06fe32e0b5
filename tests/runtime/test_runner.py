"""Tests of `penstock.runtime.runner`."""

import asyncio
import logging
from datetime import timedelta

import pytest

from penstock.domain.errors import Unavailable
from penstock.runtime.runner import BACK_OFF_MAX, Runner

SOON = timedelta(milliseconds=1)
LATE = timedelta(hours=1)


class Work:
    """Counts its runs, fails as told, and says when it ran often enough."""

    def __init__(self, *failures: Exception, enough: int) -> None:
        self._failures = list(failures)
        self._enough = enough
        self.runs = 0
        self.done = asyncio.Event()

    async def run_once(self) -> None:
        self.runs += 1
        if self.runs == self._enough:
            self.done.set()
        if self._failures:
            raise self._failures.pop(0)


async def stopped_after(work: Work, runner: Runner) -> None:
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(runner.serve())
        await work.done.wait()
        runner.stop()


async def test_it_runs_again_and_again() -> None:
    """The work is repeated, and each run is counted, until the runner is stopped."""
    work = Work(enough=5)
    runner = Runner("test", work.run_once, SOON)

    await stopped_after(work, runner)

    assert runner.runs == work.runs >= 5
    assert runner.failures == 0


async def test_a_failure_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What fails is counted and logged, a refusal without its stack, and the work is tried again."""
    work = Work(KeyError("oops"), Unavailable(detail="the database is away"), enough=3)
    runner = Runner("sweeper", work.run_once, SOON)

    with caplog.at_level(logging.WARNING, logger="penstock.runtime.runner"):
        await stopped_after(work, runner)

    assert runner.failures == 2
    assert ["sweeper failed, 1 in a row" in caplog.messages[0], "2 in a row" in caplog.messages[1]] == [True, True]
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]


async def test_a_success_ends_the_backing_off() -> None:
    """After a run that succeeds the pauses are the ordinary ones again."""
    work = Work(KeyError("oops"), enough=2)
    runner = Runner("test", work.run_once, SOON, jitter=0)

    await stopped_after(work, runner)

    assert runner._pause() == SOON


async def test_stopping_does_not_wait_for_the_interval() -> None:
    """A runner that pauses for an hour stops at once."""
    work = Work(enough=1)

    await stopped_after(work, Runner("test", work.run_once, LATE))

    assert work.runs == 1


@pytest.mark.parametrize(
    ("interval", "failures", "expected"),
    [
        (timedelta(seconds=1), 0, timedelta(seconds=1)),
        (timedelta(seconds=1), 3, timedelta(seconds=8)),
        (timedelta(seconds=1), 1_000, BACK_OFF_MAX),
        (LATE, 5, LATE),
    ],
)
async def test_it_backs_off_while_it_fails(interval: timedelta, failures: int, expected: timedelta) -> None:
    """Each failure in a row doubles the pause, up to a minute or the interval if that is longer."""
    runner = Runner("test", Work(enough=1).run_once, interval, jitter=0)
    runner._failures_in_a_row = failures

    assert expected == runner._pause()


async def test_pauses_differ_by_the_jitter() -> None:
    """Pauses are spread around the interval, no further than the jitter."""
    runner = Runner("test", Work(enough=1).run_once, timedelta(seconds=100), jitter=0.2)

    pauses = {runner._pause() for _ in range(200)}

    assert len(pauses) > 100
    assert timedelta(seconds=80) <= min(pauses) < timedelta(seconds=90)
    assert timedelta(seconds=110) < max(pauses) <= timedelta(seconds=120)
