"""Column types keep domain values alike on both databases, however they are written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any, TypeAlias
from uuid import UUID

import pendulum
import pytest
from pendulum import DateTime
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, insert, select, text
from sqlalchemy.exc import StatementError

from penstock.domain.flow import RunConfig
from penstock.storage.dialect import insert_many
from penstock.storage.types import Grades, Id, LabelList, RunConfigText, Span, UtcTime, Words
from tests.support.builders import an_id

Write: TypeAlias = Callable[[Connection, Table, Sequence[Mapping[str, Any]]], object]


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


class Height(IntEnum):
    LOW = 10
    HIGH = 20


kept = Table(
    "kept",
    MetaData(),
    Column("number", Integer, primary_key=True),
    Column("id", Id),
    Column("time", UtcTime),
    Column("span", Span),
    Column("word", Words(Colour)),
    Column("grade", Grades(Height)),
    Column("labels", LabelList),
    Column("run_config", RunConfigText),
)
NOTHING = dict.fromkeys(column.name for column in kept.columns if column.name != "number")


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """A connection on which the table exists until the end of the test."""
    with engine.connect() as conn:
        kept.create(conn)
        yield conn
        conn.rollback()


@pytest.fixture(params=["insert", "insert_many"])
def write(request: pytest.FixtureRequest) -> Write:
    """Writes rows value by value, or column by column."""
    if request.param == "insert_many":
        return insert_many
    return lambda conn, table, rows: conn.execute(insert(table), list(rows))


def kept_of(conn: Connection, write: Write, column: str, values: Sequence[Any]) -> list[Any]:
    """What comes back of these values, in the order in which they were written."""
    rows = [NOTHING | {"number": number, column: value} for number, value in enumerate(values)]
    write(conn, kept, rows)
    return list(conn.scalars(select(kept.c[column]).order_by(kept.c.number)))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("id", [UUID(int=0), an_id(), UUID(int=2**128 - 1), None]),
        (
            "span",
            [
                timedelta(0),
                timedelta(microseconds=1),
                timedelta(days=-3, microseconds=7),
                timedelta(days=100_000),
                None,
            ],
        ),
        ("word", [Colour.RED, None, Colour.GREEN]),
        ("grade", [Height.HIGH, Height.LOW, None]),
        ("labels", [(), ("a",), ("a", 'b "c"', "größer, 大"), None]),
        ("run_config", [RunConfig(), RunConfig({"A": "ü"}, "/srv", "image:1", {"cpu": "2"}), None]),
    ],
)
def test_what_is_written_comes_back(conn: Connection, write: Write, column: str, values: Sequence[Any]) -> None:
    """Every value comes back equal and of its own type; nothing stays nothing."""
    back = kept_of(conn, write, column, values)

    assert back == values
    assert list(map(type, back)) == list(map(type, values))


def test_columns_of_nothing_may_be_written(conn: Connection, write: Write) -> None:
    """A batch in which a column holds only NULL is written like any other."""
    write(conn, kept, [NOTHING | {"number": number} for number in range(3)])

    assert [tuple(row[1:]) for row in conn.execute(select(kept))] == [(None,) * 7] * 3


def test_times_come_back_to_the_microsecond(conn: Connection, write: Write) -> None:
    """From before 1970 to the last microsecond of the year 9999, a moment comes back as the same one, in UTC."""
    moments = [
        pendulum.datetime(1, 1, 2, 3, 4, 5, tz="UTC").replace(microsecond=1),
        pendulum.datetime(1969, 12, 31, 23, 59, 59, tz="UTC").replace(microsecond=999_999),
        pendulum.datetime(1970, 1, 1, tz="UTC"),
        pendulum.datetime(2026, 3, 29, 1, 30, tz="UTC").replace(microsecond=123_456),
        pendulum.datetime(9999, 12, 31, 23, 59, 59, tz="UTC").replace(microsecond=999_999),
    ]

    back = kept_of(conn, write, "time", [*moments, None])

    assert back == [*moments, None]
    assert [(type(each), each.timezone_name) for each in back[:-1]] == [(DateTime, "UTC")] * len(moments)


def test_times_of_other_zones_come_back_in_utc(conn: Connection, write: Write) -> None:
    """A moment is kept, not the zone it was told in; a plain datetime is taken as well."""
    told = [
        pendulum.datetime(2026, 7, 1, 14, tz="Europe/Berlin"),
        datetime(2026, 7, 1, 7, tzinfo=timezone(timedelta(hours=-5))),
        datetime(2026, 7, 1, 12, tzinfo=UTC),
    ]

    back = kept_of(conn, write, "time", told)

    assert [each.isoformat() for each in back] == ["2026-07-01T12:00:00+00:00"] * 3


@pytest.mark.parametrize("database_kind", ["postgres"], indirect=True)
def test_the_zone_of_the_session_makes_no_difference(conn: Connection, write: Write) -> None:
    """Times come back in UTC, in whatever zone the session has the database tell them."""
    conn.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))

    back = kept_of(conn, write, "time", [pendulum.datetime(2026, 7, 1, 12, tz="UTC")])

    assert [each.isoformat() for each in back] == ["2026-07-01T12:00:00+00:00"]


def test_a_time_without_zone_is_a_mistake(conn: Connection, write: Write) -> None:
    """Nobody knows which moment it would be."""
    with pytest.raises((AssertionError, StatementError), match="a time without a zone"):
        kept_of(conn, write, "time", [datetime(2026, 7, 1, 12)])


def test_differences_of_times_are_spans(conn: Connection, write: Write) -> None:
    """What pendulum makes of two times is kept as the length that it is."""
    start = pendulum.datetime(2026, 3, 1, tz="UTC")
    later = start.add(months=1, microseconds=5)

    assert kept_of(conn, write, "span", [later - start]) == [timedelta(days=31, microseconds=5)]


def test_ids_and_times_have_one_order(conn: Connection, write: Write) -> None:
    """Both databases sort ids by their bytes and times by their moments, and compare with them alike."""
    start = pendulum.datetime(1969, 12, 31, 23, 59, 59, tz="UTC")
    rows = [
        NOTHING | {"number": number, "id": an_id(start.add(days=day)), "time": start.add(microseconds=number * 500_000)}
        for number, day in enumerate((5_000, 400, 20_000, 1))
    ]
    write(conn, kept, rows)

    ids = list(conn.scalars(select(kept.c.id).order_by(kept.c.id)))
    times = list(conn.scalars(select(kept.c.time).order_by(kept.c.time.desc())))
    beyond = list(conn.scalars(select(kept.c.number).where(kept.c.id > rows[1]["id"], kept.c.time > rows[0]["time"])))

    assert ids == [rows[number]["id"] for number in (3, 1, 0, 2)]
    assert times == [rows[number]["time"] for number in (3, 2, 1, 0)]
    assert beyond == [2]
