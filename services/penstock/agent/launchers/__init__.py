"""Ways to launch a run: each starts a supervisor, can stop it, and finds again what an earlier agent left behind."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol

from penstock.agent.run_directory import Assignment


class Ended(Enum):
    """How a supervisor ended."""

    # Whatever there was to report is reported.
    REPORTED = auto()
    # The code of the run was never begun: the lease can be given back.
    NOT_STARTED = auto()
    # The lease is somebody else's: nothing is to be done.
    DROPPED = auto()
    # The run was begun and its end is not reported.
    UNREPORTED = auto()


@dataclass(frozen=True, slots=True)
class End:
    """How a supervisor ended, and what it said last."""

    how: Ended
    words: str


@dataclass(slots=True, eq=False)
class Launched:
    """A supervisor that was started. `started` is set once the run is RUNNING; `ended` is its end."""

    assignment: Assignment
    stop: Callable[[], None]
    hurry: Callable[[], None]
    started: asyncio.Event = field(default_factory=asyncio.Event)
    ended: "asyncio.Future[End]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class LaunchFailed(Exception):
    """No supervisor could be started. The text is why."""


class Launcher(Protocol):
    """A way to launch runs."""

    async def start(self, assignment: Assignment) -> Launched:
        """Start a supervisor; raises LaunchFailed."""
        ...

    def stop(self, launched: Launched) -> None:
        """Ask a supervisor to end its run, and itself once it has reported that."""
        ...

    def hurry(self, launched: Launched) -> None:
        """The same, without the grace that the run has otherwise."""
        ...

    def find(self) -> list[Launched]:
        """The supervisors that an earlier agent on this machine left behind."""
        ...
