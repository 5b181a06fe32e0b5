"""The contract's enums as words. An enum may grow: a value this version has no word for is UNKNOWN, never an error."""

from enum import StrEnum
from typing import Any, TypeVar


class FlowRunState(StrEnum):
    """Where a run is in its life."""

    UNKNOWN = "UNKNOWN"
    SCHEDULED = "SCHEDULED"
    SUBMITTED = "SUBMITTED"
    RUNNING = "RUNNING"
    CANCELLING = "CANCELLING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether a run in this state has ended."""
        return self in (FlowRunState.SUCCEEDED, FlowRunState.FAILED, FlowRunState.CANCELLED)


class TransitionCause(StrEnum):
    """Why a run stepped into a state."""

    UNKNOWN = "UNKNOWN"
    CREATED = "CREATED"
    ACCEPTED = "ACCEPTED"
    STARTED = "STARTED"
    FINISHED = "FINISHED"
    RETRIED = "RETRIED"
    RELEASED = "RELEASED"
    UNDEPLOYABLE = "UNDEPLOYABLE"
    LOST = "LOST"
    CANCEL_ASKED = "CANCEL_ASKED"
    UNCONFIRMED = "UNCONFIRMED"
    PARENT_CANCELLED = "PARENT_CANCELLED"
    RESTARTED = "RESTARTED"


class ChildPolicy(StrEnum):
    """What becomes of a run when its parent is cancelled."""

    UNKNOWN = "UNKNOWN"
    CANCEL = "CANCEL"
    ABANDON = "ABANDON"


class KeyReuse(StrEnum):
    """What a repeat of an idempotency key is answered."""

    RETURN_FIRST = "RETURN_FIRST"
    REFUSE_IF_DIFFERENT = "REFUSE_IF_DIFFERENT"


class LogLevel(StrEnum):
    """The level of a log line; UNKNOWN for output, which has none."""

    UNKNOWN = "UNKNOWN"
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"


class LogStream(StrEnum):
    """Where a log line was written."""

    UNKNOWN = "UNKNOWN"
    LOGGER = "LOGGER"
    STDOUT = "STDOUT"
    STDERR = "STDERR"


class ParameterType(StrEnum):
    """The JSON type that a parameter demands; UNKNOWN takes any value."""

    UNKNOWN = "UNKNOWN"
    STRING = "STRING"
    INTEGER = "INTEGER"
    NUMBER = "NUMBER"
    BOOLEAN = "BOOLEAN"
    ARRAY = "ARRAY"
    OBJECT = "OBJECT"


Word = TypeVar("Word", bound=StrEnum)


def word_of(words: type[Word], enum: Any, prefix: str, number: int) -> Word:
    """The word for a number of the contract's `enum`, whose names bear `prefix`."""
    value = enum.DESCRIPTOR.values_by_number.get(number)
    name = value.name.removeprefix(prefix) if value else "UNKNOWN"
    return words(name if name in words.__members__ else "UNKNOWN")


def number_of(enum: Any, prefix: str, word: str) -> int:
    """The number of a word; 0, which leaves the choice to the server, for UNKNOWN."""
    value = enum.DESCRIPTOR.values_by_name.get(prefix + word)
    return value.number if value else 0
