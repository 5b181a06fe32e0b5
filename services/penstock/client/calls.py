"""What a call is before it is made: which rpc, what is sent, what comes back. Both clients share the descriptions."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

Answer = TypeVar("Answer", covariant=True)
Item = TypeVar("Item")


class Service(StrEnum):
    """The services of the contract that a client speaks to."""

    FLOW = "FlowService"
    FLOW_RUN = "FlowRunService"
    LOG = "LogService"
    OPERATOR = "OperatorService"


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One question, one answer. `span` names the span that is opened around it; empty opens none."""

    service: Service
    rpc: str
    request: Message
    answer: Callable[[Any], Answer]
    span: str = ""


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some of a list, and the token that asks for more; empty on the last page."""

    items: Sequence[Item]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Listing(Generic[Item]):
    """A list that comes in pages: `page` describes the call for the page of a token."""

    page: Callable[[str], Call[Page[Item]]]


@dataclass(frozen=True, slots=True)
class Step(Generic[Item]):
    """What one message of a stream brings, where to resume after it, and whether it was the last."""

    items: Sequence[Item]
    cursor: str
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Following(Generic[Item]):
    """A stream that is opened again from its last cursor whenever it breaks, until it says that it ended."""

    service: Service
    rpc: str
    cursor: str
    request: Callable[[str], Message]
    read: Callable[[Any, str], Step[Item]]


class Ending:
    """Ends a stream from outside, for a thread that waits for its next message."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._call: Any = None

    @property
    def ended(self) -> bool:
        """Whether the stream was ended so."""
        return self._ended.is_set()

    def end(self) -> None:
        """End it, wherever its reader is."""
        self._ended.set()
        if self._call is not None:
            self._call.cancel()

    def watch(self, call: Any) -> None:
        """Note the call that brings the stream now."""
        self._call = call
        # Whichever of the two threads comes second to this sees what the other one set.
        if self.ended:
            call.cancel()

    def pause(self, seconds: float) -> None:
        """Wait for that long, unless the stream is ended first."""
        self._ended.wait(seconds)
