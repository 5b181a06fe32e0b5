"""What a request must look like. All violations are collected and refused at once.

Text is taken as given: nothing is trimmed, and no Unicode normalisation is applied, so two names that look alike may
differ. Text that holds a NUL character is refused everywhere, because databases cannot keep it. Names, labels and keys
must also be more than white space and steer no terminal; names and labels change no direction of writing and hold
nothing that cannot be seen (`wire/characters.py`), and labels besides nothing that would have to be quoted in a list.

A check that fails answers with some value of the right type, so that the checks after it can go on. No such value gets
out: `done` refuses the request first.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar, overload
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pendulum import UTC, DateTime

from penstock.domain.errors import InvalidRequest, Violation
from penstock.domain.flow import Labels
from penstock.domain.json_text import Json, NotJson, parse, parse_object
from penstock.domain.lanes import RESERVED_PREFIX
from penstock.domain.limits import (
    IDEMPOTENCY_KEY_CHARACTERS_MAX,
    LABEL_CHARACTERS_MAX,
    LABELS_MAX,
    NAME_CHARACTERS_MAX,
)
from penstock.wire.characters import fault_of_key, fault_of_label, fault_of_name
from penstock.wire.times import OutOfRange, to_time, to_timedelta

T = TypeVar("T")
U = TypeVar("U")

INT64_MAX: Final = 2**63 - 1

# How often each of as many labels as are allowed may be repeated, before they are refused without a look at any.
REPEATS_MAX: Final = 16
# How much of what was given a refusal shows of it.
ABRIDGED_CHARACTERS_MAX: Final = 40

_NIL: Final = UUID(int=0)
_EPOCH: Final = DateTime(1970, 1, 1, tzinfo=UTC)


class Checks:
    """Collects what is wrong with one request.

    A field's path is spelled as in the proto, "policy.priority", but for a list in a message of its own, which is named
    as its users know it: "labels[3]".
    """

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def refuse(self, field: str, description: str) -> None:
        """Note a violation; the description is a sentence whose subject is the field."""
        self._violations.append(Violation(field, description))

    def done(self) -> None:
        """Refuse the request if anything was wrong with it."""
        if self._violations:
            raise InvalidRequest(tuple(self._violations))

    def text(self, field: str, value: str, characters_max: int, *, required: bool = False) -> str:
        """Text of bounded length."""
        if required and not value:
            self.refuse(field, "is required")
        if len(value) > characters_max:
            self.refuse(field, f"is {len(value)} characters; at most {characters_max} are allowed")
        if "\0" in value:
            self.refuse(field, "holds a NUL character")
        return value

    def words(self, field: str, value: str, characters_max: int, *, required: bool = True) -> str:
        """Text of bounded length that is more than white space."""
        if value.isspace():
            self.refuse(field, "is only white space")
        return self.text(field, value, characters_max, required=required)

    def name(self, field: str, value: str, characters_max: int = NAME_CHARACTERS_MAX, *, required: bool = True) -> str:
        """What people call something: words that look like what they are."""
        self._readable(field, value, characters_max, fault_of_name)
        return self.words(field, value, characters_max, required=required)

    def key(self, field: str, value: str) -> str:
        """An idempotency key: words that are compared, and steer no terminal."""
        self._readable(field, value, IDEMPOTENCY_KEY_CHARACTERS_MAX, fault_of_key)
        return self.words(field, value, IDEMPOTENCY_KEY_CHARACTERS_MAX)

    @overload
    def uuid(self, field: str, value: str, *, required: Literal[True] = True) -> UUID: ...
    @overload
    def uuid(self, field: str, value: str, *, required: bool) -> UUID | None: ...
    def uuid(self, field: str, value: str, *, required: bool = True) -> UUID | None:
        """An id, in the form with four hyphens; None where it may be left out and is."""
        if not value and not required:
            return None
        try:
            read = UUID(value)
            # UUID() also reads braces, and digits of other scripts; the contract's form is the one that it writes.
            if str(read) == value.lower():
                return read
        except ValueError:
            pass
        self.refuse(field, "is not a UUID" if value else "is required")
        return _NIL

    def uuids(self, field: str, values: Sequence[str], high: int, *, low: int = 0) -> tuple[UUID, ...]:
        """Several ids."""
        values = self.several(field, values, high, low=low)
        return tuple(self.uuid(f"{field}[{index}]", value) for index, value in enumerate(values))

    def labels(self, field: str, values: Sequence[str], *, reserved: Container[str] = ()) -> Labels:
        """Labels, sorted; repeats count once. Of the labels that the queue reserves, only those named are taken."""
        if len(values) > LABELS_MAX * REPEATS_MAX:
            return tuple(self.several(field, values, LABELS_MAX))
        places: dict[str, int] = {}
        for index, value in enumerate(values):
            places.setdefault(value, index)
        for label, index in self.several(field, tuple(places.items()), LABELS_MAX):
            self._label(f"{field}[{index}]", label, reserved)
        return tuple(sorted(places))

    def several(self, field: str, values: Sequence[T], high: int, *, low: int = 0) -> Sequence[T]:
        """Bounds how many there are. Of too many none is looked at one by one, so none is answered."""
        if low <= len(values) <= high:
            return values
        if len(values) < low:
            self.refuse(field, "is required" if low == 1 else f"holds {len(values)}; at least {low} are required")
        else:
            self.refuse(field, f"holds {len(values)}; at most {high} are allowed")
        return ()

    def json_object(self, field: str, text: str, bytes_max: int) -> Mapping[str, Json]:
        """The text of a JSON object; empty text is the empty object."""
        if self._fits(field, text, bytes_max):
            try:
                return parse_object(text)
            except NotJson as error:
                self.refuse(field, str(error))
        return {}

    def json(self, field: str, text: str, bytes_max: int) -> Json:
        """JSON text."""
        if self._fits(field, text, bytes_max):
            try:
                return parse(text)
            except NotJson as error:
                self.refuse(field, str(error))
        return None

    def size(self, field: str, bytes_count: int, bytes_max: int) -> bool:
        """Bounds a size; answers whether it is within its bound."""
        if bytes_count > bytes_max:
            self.refuse(field, f"is {bytes_count} bytes; at most {bytes_max} are allowed")
        return bytes_count <= bytes_max

    def count(self, field: str, value: int, low: int, high: int) -> int:
        """A number within bounds."""
        if value < low:
            self.refuse(field, f"is {value}; at least {low} is required")
        elif value > high:
            self.refuse(field, f"is {value}; at most {high} is allowed")
        return value

    def fence(self, field: str, value: int) -> int:
        """The fence of a lease."""
        return self.count(field, value, 1, INT64_MAX)

    def duration(self, field: str, value: Duration, low: timedelta, high: timedelta) -> timedelta:
        """A span within bounds."""
        try:
            span = to_timedelta(value)
        except OutOfRange as error:
            self.refuse(field, str(error))
            return low
        if span < low:
            self.refuse(field, f"is {_seconds(span)}; at least {_seconds(low)} are required")
        elif span > high:
            self.refuse(field, f"is {_seconds(span)}; at most {_seconds(high)} are allowed")
        return span

    @overload
    def time(self, message: Message, field: str, *, path: str = "", required: Literal[True]) -> DateTime: ...
    @overload
    def time(self, message: Message, field: str, *, path: str = "", required: bool = False) -> DateTime | None: ...
    def time(self, message: Message, field: str, *, path: str = "", required: bool = False) -> DateTime | None:
        """The moment in a field of a message, None where it is absent; `path` leads to the message ("lines[3].")."""
        timestamp: Timestamp | None = present(message, field)
        if timestamp is None:
            if required:
                self.refuse(path + field, "is required")
            return _EPOCH if required else None
        try:
            return to_time(timestamp)
        except OutOfRange as error:
            self.refuse(path + field, str(error))
            return _EPOCH

    def choice(self, field: str, number: int, values: Mapping[int, T], *, unspecified: U) -> T | U:
        """The value that an enum's number stands for. Enums may grow, so a newer caller may send an unknown number."""
        if number == 0:
            return unspecified
        if number not in values:
            self.refuse(field, f"is {number}, which this server does not know")
        return values.get(number, unspecified)

    def _label(self, field: str, label: str, reserved: Container[str]) -> None:
        self._readable(field, label, LABEL_CHARACTERS_MAX, fault_of_label)
        self.words(field, label, LABEL_CHARACTERS_MAX)
        if label.startswith(RESERVED_PREFIX) and label not in reserved:
            self.refuse(field, f"is {abridged(label)!r}; labels that begin with {RESERVED_PREFIX!r} are reserved")

    def _readable(self, field: str, value: str, characters_max: int, fault_of: Callable[[str], str | None]) -> None:
        """Note the first character that does not belong. What is too long, empty or blank is refused for that alone."""
        if len(value) <= characters_max and not value.isspace() and "\0" not in value and (fault := fault_of(value)):
            self.refuse(field, fault)

    def _fits(self, field: str, text: str, bytes_max: int) -> bool:
        return self.size(field, len(text.encode()), bytes_max)


@contextmanager
def collecting(outer: Checks | None) -> Iterator[Checks]:
    """The checks to add to: those of the caller, who will refuse by them, or new ones that refuse at the end."""
    checks = Checks() if outer is None else outer
    yield checks
    if outer is None:
        checks.done()


def id_of(field: str, value: str) -> UUID:
    """The id in a request that holds nothing else to check."""
    with collecting(None) as checks:
        return checks.uuid(field, value)


def abridged(text: str) -> str:
    """The beginning of a text, to name it by in a refusal."""
    return text if len(text) <= ABRIDGED_CHARACTERS_MAX else text[: ABRIDGED_CHARACTERS_MAX - 1] + "…"


def present(message: Message, field: str) -> Any:
    """The value of a field that knows presence; None where it is absent."""
    return getattr(message, field) if message.HasField(field) else None


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.15g} s"
