"""Column types: domain values on one side, what both databases keep alike on the other."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import IntEnum, StrEnum
from typing import Any, Generic, TypeVar
from uuid import UUID

from pendulum import UTC as PENDULUM_UTC
from pendulum import DateTime
from sqlalchemy import BigInteger, Dialect, LargeBinary, SmallInteger, Text, Uuid
from sqlalchemy import DateTime as SqlDateTime
from sqlalchemy.types import TypeDecorator, TypeEngine

from penstock.domain.flow import RunConfig

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

Word = TypeVar("Word", bound=StrEnum)
Grade = TypeVar("Grade", bound=IntEnum)


class Id(TypeDecorator[UUID]):
    """A UUID: native on PostgreSQL, its 16 bytes on SQLite. Both order it alike."""

    impl = Uuid
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(LargeBinary(16) if dialect.name == "sqlite" else Uuid())

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> Any:
        return value.bytes if value is not None and dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        return UUID(bytes=value) if isinstance(value, bytes) else value


class UtcTime(TypeDecorator[DateTime]):
    """A moment, to the microsecond: timestamptz on PostgreSQL, microseconds since 1970 on SQLite, UTC in the domain."""

    impl = SqlDateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(BigInteger() if dialect.name == "sqlite" else SqlDateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        if value is None:
            return None
        assert value.tzinfo is not None, "a time without a zone"
        # Plain arithmetic: pendulum's differences cannot be divided by a plain one, and lose microseconds if long.
        since = datetime.__sub__(value, EPOCH)
        return since // MICROSECOND if dialect.name == "sqlite" else EPOCH + since

    def process_result_value(self, value: Any, dialect: Dialect) -> DateTime | None:
        if value is None:
            return None
        at = EPOCH + value * MICROSECOND if isinstance(value, int) else value.astimezone(UTC)
        return DateTime(at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, tzinfo=PENDULUM_UTC)


class Span(TypeDecorator[timedelta]):
    """A length of time, as microseconds."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: timedelta | None, dialect: Dialect) -> int | None:
        return None if value is None else timedelta.__floordiv__(value, MICROSECOND)

    def process_result_value(self, value: int | None, dialect: Dialect) -> timedelta | None:
        return None if value is None else value * MICROSECOND


class Words(TypeDecorator[Word], Generic[Word]):
    """A member of a StrEnum, as its value."""

    impl = Text
    cache_ok = True

    def __init__(self, words: type[Word]) -> None:
        super().__init__()
        self.words = words

    def process_bind_param(self, value: Word | None, dialect: Dialect) -> str | None:
        return None if value is None else value.value

    def process_result_value(self, value: str | None, dialect: Dialect) -> Word | None:
        return None if value is None else self.words(value)


class Grades(TypeDecorator[Grade], Generic[Grade]):
    """A member of an IntEnum, as its number."""

    impl = SmallInteger
    cache_ok = True

    def __init__(self, grades: type[Grade]) -> None:
        super().__init__()
        self.grades = grades

    def process_bind_param(self, value: Grade | None, dialect: Dialect) -> int | None:
        return None if value is None else value.value

    def process_result_value(self, value: int | None, dialect: Dialect) -> Grade | None:
        return None if value is None else self.grades(value)


class LabelList(TypeDecorator[tuple[str, ...]]):
    """Sorted labels, as a JSON array. None is NULL; the empty tuple is the empty array."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> tuple[str, ...] | None:
        return None if value is None else tuple(json.loads(value))


class RunConfigText(TypeDecorator[RunConfig]):
    """A run config, as a JSON object. None is NULL."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: RunConfig | None, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value.as_json(), ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> RunConfig | None:
        if value is None:
            return None
        members: Mapping[str, Any] = json.loads(value)
        return RunConfig(**members)
