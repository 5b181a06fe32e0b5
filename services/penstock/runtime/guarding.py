"""What becomes of a mistake of ours: it is logged, and it has the consequence that its place provides for."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

_LOGGER: Final = logging.getLogger(__name__)


async def guarded(work: Awaitable[T], failing: str, consequence: Callable[[Exception], Awaitable[T]]) -> T:
    """The outcome of the work, or of the `consequence` if the work fails; `failing` says in the log what did not work.

    For what must not be left half done whatever happens. An expected failure is none of its business.
    """
    try:
        return await work
    except Exception as error:
        _LOGGER.exception("%s", failing)
        return await consequence(error)
