"""The only place where PostgreSQL and SQLite differ in how a statement is put."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Integer,
    Select,
    Table,
    TextClause,
    bindparam,
    column,
    func,
    insert,
    literal,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from penstock.domain.ids import LaneId
from penstock.storage.types import Id

Row = Mapping[str, Any]


def is_sqlite(conn: Connection) -> bool:
    return conn.dialect.name == "sqlite"


def insert_many(conn: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that have the same columns, in one statement."""
    if not rows:
        return
    if is_sqlite(conn):
        conn.execute(insert(table), list(rows))
        return
    conn.execute(_unnesting(table, tuple(rows[0]), ""), _columns(rows))


def insert_unless_present(
    conn: Connection, table: Table, rows: Sequence[Row], *, key: Sequence[Column[Any]] = ()
) -> set[tuple[Any, ...]]:
    """Insert the rows whose key, by default the primary one, is not there yet; return the keys that were inserted.

    Rows must differ in their keys and come sorted by them, so that two transactions lock keys in one order. Where a
    table has several unique keys, rows that are equal in one of those that `key` does not name are equal in `key` too.
    """
    if not rows:
        return set()
    key = tuple(key or table.primary_key.columns)
    if is_sqlite(conn):
        # The write lock of the file is held, so nobody inserts between the look and the insert.
        asked = {tuple(row[column.name] for column in key): row for row in rows}
        found = set(map(tuple, conn.execute(select(*key).where(tuple_(*key).in_(list(asked))))))
        insert_many(conn, table, [row for each, row in asked.items() if each not in found])
        return asked.keys() - found
    names = ", ".join(column.name for column in key)
    # No key is named as the one that may conflict: of two that insert one row at once, the second may meet any of its
    # keys first, and a key that was not named would be an error.
    statement = _unnesting(table, tuple(rows[0]), f"ON CONFLICT DO NOTHING RETURNING {names}")
    return set(map(tuple, conn.execute(statement.columns(*key), _columns(rows))))


def best_of_lanes(
    conn: Connection, rooms: Mapping[LaneId, int], best: Callable[[Any, Any], Select[Any]]
) -> Select[Any] | Sequence[UUID]:
    """What `best(lane_id, room)` selects, for every lane of `rooms`: something to be looked for with `in_`.

    PostgreSQL probes lane after lane inside one statement; SQLite, whose statements cost no round trip, one by one.
    """
    if is_sqlite(conn):
        return [run for lane, room in rooms.items() for run in conn.scalars(best(lane, room))]
    lanes = (
        func.unnest(
            literal(list(rooms), type_=ARRAY(Id)), literal(list(rooms.values()), type_=ARRAY(Integer)), type_=Id
        )
        .table_valued(column("lane_id", Id), column("room", Integer), name="lane")
        .render_derived()
    )
    chosen = best(lanes.c.lane_id, lanes.c.room).lateral("chosen")
    # A CTE, because a subquery of an UPDATE may be evaluated more than once.
    return select(select(chosen.c.flow_run_id).select_from(lanes.join(chosen, true())).cte("best").c.flow_run_id)


@cache
def _unnesting(table: Table, names: tuple[str, ...], suffix: str) -> TextClause:
    """One array per column, because a statement with a parameter per value costs several times as much to prepare.

    Their one dimension is said, lest a column of labels, whose values are tuples, be taken for a table of texts.
    """
    arrays = ", ".join(f":{name}" for name in names)
    statement = text(f"INSERT INTO {table.name} ({', '.join(names)}) SELECT * FROM unnest({arrays}) {suffix}")  # noqa: S608
    return statement.bindparams(*(bindparam(name, type_=ARRAY(table.c[name].type, dimensions=1)) for name in names))


def _columns(rows: Sequence[Row]) -> Mapping[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


class Holds(FunctionElement[bool]):
    """Whether the first of two byte strings holds the second."""

    inherit_cache = True
    type = Boolean()


@compiles(Holds, "postgresql")
def _holds_on_postgresql(element: Holds, compiler: SQLCompiler, **words: Any) -> str:
    whole, part = (compiler.process(each, **words) for each in element.clauses)
    return f"(position({part} IN {whole}) > 0)"


@compiles(Holds, "sqlite")
def _holds_on_sqlite(element: Holds, compiler: SQLCompiler, **words: Any) -> str:
    whole, part = (compiler.process(each, **words) for each in element.clauses)
    return f"(instr({whole}, {part}) > 0)"
