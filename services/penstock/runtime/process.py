"""Start, readiness, signals, drain, stop: in that order, for every service.

A first SIGTERM or SIGINT ends the process in good order, a second one at once. A background task that ends by itself
ends the process with exit code 1: half a process is worse than one that its supervisor starts anew.
"""

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import timedelta
from typing import Any, Final

from penstock.domain.errors import Refusal
from penstock.runtime import telemetry
from penstock.runtime.server import BindFailed, Server
from penstock.runtime.settings import SettingsError

Work = Callable[[], Coroutine[Any, Any, None]]
Callback = Callable[[], Awaitable[None]]

EXIT_FAILED: Final = 1
EXIT_MISUSED: Final = 2

_LOGGER: Final = logging.getLogger(__name__)
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Process:
    """One service from its start to its end. A `__main__` tells it what belongs to it, then awaits its end."""

    def __init__(self, name: str, server: Server, *, grace: timedelta) -> None:
        self._name = name
        self._server = server
        self._grace = grace
        self._works: list[tuple[str, Work]] = []
        self._draining: list[Callback] = []
        self._closing: list[Callback] = []
        self._told = asyncio.Event()
        self._hurried = asyncio.Event()
        self._failed = False

    def in_background(self, name: str, work: Work) -> None:
        """Run that, an endless loop, from the start until the server has stopped."""
        self._works.append((name, work))

    def on_drain(self, callback: Callback) -> None:
        """Call that before the server stops, in the order given: end streams, give back what is held."""
        self._draining.append(callback)

    def at_end(self, callback: Callback) -> None:
        """Call that last of all, in the order given: close the database."""
        self._closing.append(callback)

    def stop(self) -> None:
        """What a signal does: end in good order; called again, at once."""
        if self._told.is_set():
            self._hurried.set()
        self._told.set()

    async def serve_until_signalled(self) -> int:
        """Serve, and return the exit code."""
        tasks: list[asyncio.Task[None]] = []
        with self._signals_caught():
            try:
                await self._server.start()
                tasks += [asyncio.create_task(work(), name=name) for name, work in self._works]
                await self._server.set_serving(True)
                _LOGGER.info("%s listens on %s", self._name, self._server.address)
                await self._until_told_or_dead(tasks)
                await self._unless_hurried(self._drain())
                await self._stop_server()
            finally:
                await self._end(tasks)
        _LOGGER.info("%s has stopped", self._name)
        return EXIT_FAILED if self._failed else 0

    async def _until_told_or_dead(self, tasks: list[asyncio.Task[None]]) -> None:
        told = asyncio.create_task(self._told.wait())
        await asyncio.wait({told, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        for task in filter(asyncio.Task.done, tasks):
            self._failed = True
            _LOGGER.error("%s ended by itself; the process ends with it", task.get_name(), exc_info=_failure_of(task))

    async def _drain(self) -> None:
        await self._server.set_serving(False)
        for callback in self._draining:
            try:
                async with asyncio.timeout(self._grace.total_seconds()):
                    await callback()
            except Exception:
                self._failed = True
                _LOGGER.exception("draining failed; going on")

    async def _stop_server(self) -> None:
        await self._unless_hurried(self._server.stop(self._grace))
        if self._hurried.is_set():
            await self._server.stop(timedelta(0))

    async def _unless_hurried(self, work: Coroutine[Any, Any, None]) -> None:
        """Do that, but leave it as soon as a second signal comes."""
        working, hurried = asyncio.create_task(work), asyncio.create_task(self._hurried.wait())
        await asyncio.wait({working, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
            return
        await working

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        running = [task for task in tasks if not task.done()]
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for task in running:
            if failure := _failure_of(task):
                self._failed = True
                _LOGGER.error("%s failed while it ended", task.get_name(), exc_info=failure)
        for callback in self._closing:
            await callback()

    @contextlib.contextmanager
    def _signals_caught(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for each in _SIGNALS:
            loop.add_signal_handler(each, self.stop)
        try:
            yield
        finally:
            for each in _SIGNALS:
                loop.remove_signal_handler(each)


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run a process's `main` and return its exit code. What its user got wrong is one line on stderr, no traceback."""
    configure_logging("INFO")
    try:
        with asyncio.Runner(debug=False, loop_factory=_loop_factory()) as runner:
            return runner.run(main)
    except (SettingsError, BindFailed, Refusal) as error:
        print(f"penstock: {error}", file=sys.stderr)
        return EXIT_MISUSED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception:
        _LOGGER.exception("the process failed")
        return EXIT_FAILED
    finally:
        telemetry.shutdown()


def configure_logging(level: str) -> None:
    """Records go to stderr, one line each: time, level, logger, message. A traceback follows, indented."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _LineFormatter(logging.Formatter):
    """Times in UTC; no line but a record's first begins at the margin."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\n    ")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _failure_of(task: asyncio.Task[None]) -> BaseException | None:
    return None if task.cancelled() else task.exception()
