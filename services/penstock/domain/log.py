"""Log lines: their identity, their content, and which of those sent are new."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum, auto
from typing import TypeAlias

from pendulum import DateTime

from penstock.domain.ids import FlowRunId


class LogLevel(IntEnum):
    """Ordered levels. The values are what rows hold; output without a level has none."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40
    CRITICAL = 50


class LogStream(StrEnum):
    """Where a line was written. The values are what rows hold."""

    LOGGER = auto()
    STDOUT = auto()
    STDERR = auto()


@dataclass(frozen=True, slots=True)
class Dropped:
    """Stands for `count` sequence numbers whose lines are missing."""

    count: int
    reason: str


Content: TypeAlias = str | bytes | Dropped


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line as its producer sent it."""

    sequence: int
    time: DateTime
    stream: LogStream
    content: Content
    level: LogLevel | None = None
    level_name: str = ""
    logger: str = ""
    trace_id: str = ""
    span_id: str = ""

    @property
    def last_sequence(self) -> int:
        """The last sequence number that it covers."""
        return self.sequence + (self.content.count - 1 if isinstance(self.content, Dropped) else 0)


@dataclass(frozen=True, slots=True)
class StoredLine:
    """One line as the log of its run holds it."""

    position: int
    fence: int
    producer: str
    superseded: bool
    line: LogLine


@dataclass(frozen=True, slots=True)
class ProducerKey:
    """Who produced a line."""

    flow_run_id: FlowRunId
    fence: int
    producer: str


@dataclass(frozen=True, slots=True)
class Writing:
    """Lines that one producer sends, their sequences rising without gaps, and whether they are its last."""

    key: ProducerKey
    lines: tuple[LogLine, ...]
    closed: bool = False


@dataclass(frozen=True, slots=True)
class ProducerEnd:
    """How far a producer came."""

    fence: int
    producer: str
    last_sequence: int
    closed: bool


def new_lines(lines: Sequence[LogLine], last_sequence: int) -> Sequence[LogLine]:
    """Of the lines sent, those that directly follow `last_sequence`: repeats are passed over, and a gap ends it."""
    fresh: list[LogLine] = []
    for line in lines:
        if line.last_sequence <= last_sequence:
            continue
        if line.sequence > last_sequence + 1:
            break
        if line.sequence <= last_sequence and isinstance(line.content, Dropped):
            rest = replace(line.content, count=line.last_sequence - last_sequence)
            line = replace(line, sequence=last_sequence + 1, content=rest)
        fresh.append(line)
        last_sequence = line.last_sequence
    return fresh
