"""Logs: heads, producers and lines.

The head of a run's log is locked while lines are stored, and it alone gives out their positions. So positions are dense
and become visible in their order: a cursor, which is a position, never skips a line that was committed late.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pendulum import DateTime
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    LargeBinary,
    Row,
    Select,
    and_,
    bindparam,
    column,
    delete,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
    values,
)

from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.limits import PAGE_BYTES_MAX
from penstock.domain.log import Content, Dropped, LogLine, ProducerEnd, ProducerKey, StoredLine
from penstock.domain.queries import LogFilter
from penstock.storage import dialect
from penstock.storage.database import Transaction
from penstock.storage.schema import deleted_logs, executions, flow_runs, log_heads, log_lines, log_producers
from penstock.storage.types import Id

head, producer, line, left = log_heads.c, log_producers.c, log_lines.c, deleted_logs.c


@dataclass(frozen=True, slots=True)
class Addition:
    """What one producer adds: new lines, the sequence it has reached with them, and whether they are its last."""

    key: ProducerKey
    lines: Sequence[LogLine]
    last_sequence: int
    closed: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run and its log have come, as of one moment. `finish_time` is set once the run is final."""

    version: int
    finish_time: DateTime | None
    was_accepted: bool
    first_position: int
    last_position: int
    producers: tuple[ProducerEnd, ...]


@dataclass(frozen=True, slots=True)
class LinesPage:
    """Lines by position, and whether there are more behind them."""

    lines: Sequence[StoredLine]
    more: bool


def open_heads(tx: Transaction, tenant: TenantId, runs: Iterable[FlowRunId]) -> None:
    """Give each of these runs an empty log, unless it has one."""
    rows = [
        {"tenant_id": tenant, "flow_run_id": each, "first_position": 1, "last_position": 0}
        for each in sorted(set(runs))
    ]
    dialect.insert_unless_present(tx.conn, log_heads, rows)


def open_producers(tx: Transaction, tenant: TenantId, keys: Iterable[ProducerKey]) -> None:
    """Expect lines of these producers, so that a log does not count as complete before they have closed."""
    rows = [
        {**_columns_of(tenant, key), "last_sequence": 0, "closed": False} for key in sorted(set(keys), key=_key_order)
    ]
    dialect.insert_unless_present(tx.conn, log_producers, rows)


def lock_heads(tx: Transaction, tenant: TenantId, runs: Iterable[FlowRunId]) -> Mapping[FlowRunId, int]:
    """Lock these logs, in the order of their runs; the last position of each. Runs without a log are left out."""
    locking = (
        select(head.flow_run_id, head.last_position)
        .where(head.tenant_id == tenant, head.flow_run_id.in_(list(runs)))
        .order_by(head.flow_run_id)
        .with_for_update()
    )
    return {row.flow_run_id: row.last_position for row in tx.conn.execute(locking)}


def producers(tx: Transaction, tenant: TenantId, keys: Iterable[ProducerKey]) -> Mapping[ProducerKey, ProducerEnd]:
    """How far these producers came; the ones that are not known yet are left out."""
    asked = [(key.flow_run_id, key.fence, key.producer) for key in keys]
    if not asked:
        return {}
    found = select(log_producers).where(
        producer.tenant_id == tenant, tuple_(producer.flow_run_id, producer.fence, producer.producer).in_(asked)
    )
    return {ProducerKey(row.flow_run_id, row.fence, row.producer): _end_from_row(row) for row in tx.conn.execute(found)}


def producer_ends(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> tuple[ProducerEnd, ...]:
    """How far every producer of this run came, by fence and name."""
    found = select(log_producers).where(producer.tenant_id == tenant, producer.flow_run_id == flow_run_id)
    return tuple(map(_end_from_row, tx.conn.execute(found.order_by(producer.fence, producer.producer))))


def append(
    tx: Transaction, tenant: TenantId, last_positions: Mapping[FlowRunId, int], additions: Sequence[Addition]
) -> None:
    """Store what is added, in the order given, behind the last positions of these locked logs."""
    reached = dict(last_positions)
    rows = []
    for addition in additions:
        for each in addition.lines:
            reached[addition.key.flow_run_id] += 1
            rows.append(_row_of(tenant, addition.key, reached[addition.key.flow_run_id], each))
    dialect.insert_many(tx.conn, log_lines, rows)
    _advance_heads(tx, tenant, {run: last for run, last in reached.items() if last != last_positions[run]})
    _advance_producers(tx, tenant, additions)


def remove(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> None:
    """Delete the log of a run, after whoever is writing to it, and tell whoever tails it.

    Its lines are noted, to be removed bit by bit: nobody finds them without the run, and no run has its id again.
    """
    lock_heads(tx, tenant, [flow_run_id])
    of_run = (head.tenant_id == tenant, head.flow_run_id == flow_run_id)
    lines_left = select(log_heads).where(*of_run, head.first_position <= head.last_position)
    tx.conn.execute(insert(deleted_logs).from_select(head.keys(), lines_left))
    for table in (log_producers, log_heads):
        tx.conn.execute(delete(table).where(table.c.tenant_id == tenant, table.c.flow_run_id == flow_run_id))
    tx.hint.written.add(flow_run_id)


def deleted_exist(tx: Transaction, tenant: TenantId) -> bool:
    """Whether lines of deleted logs are left."""
    return tx.conn.execute(select(left.flow_run_id).where(left.tenant_id == tenant).limit(1)).first() is not None


def remove_deleted(tx: Transaction, tenant: TenantId, limit: int) -> int:
    """Remove up to `limit` lines of deleted logs that nobody else is removing; return how many.

    Those of a log from the first on, by position, so that what is gone already is never looked through again.
    """
    noted = select(deleted_logs).where(left.tenant_id == tenant).order_by(left.flow_run_id).limit(limit)
    found = tx.conn.execute(noted.with_for_update(skip_locked=True)).all()
    spans = list(_first(limit, found))
    if spans:
        named = [{"of_tenant": tenant, "of_run": run, "first": first, "last": last} for run, first, last in spans]
        for statement in (_REMOVE_LINES, _REMOVE_NOTE, _SHORTEN_NOTE):
            tx.conn.execute(statement, named)
    return sum(last - first + 1 for _, first, last in spans)


def lines(
    tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId, after: int, limit: int, wanted: LogFilter
) -> LinesPage:
    """The lines of a run behind a position: at most `limit`, and no more than fit into one message."""
    near = (
        select(line.flow_run_id, line.position, LINE_BYTES.label("size"))
        .where(line.tenant_id == tenant, line.flow_run_id == flow_run_id, line.position > after, *_held_by(wanted))
        .order_by(line.position)
        .limit(limit + 1)  # one more than is shown, to see whether there is one
    )
    rows = tx.conn.execute(_fitting(near, tenant, PAGE_BYTES_MAX)).all()
    shown = rows[:limit]
    return LinesPage([_stored_from_row(row) for row in shown], bool(rows) and rows[0].near > len(shown))


def read_after(
    tx: Transaction, tenant: TenantId, positions: Mapping[FlowRunId, int], limit: int
) -> Mapping[FlowRunId, Sequence[StoredLine]]:
    """The lines of many runs, each behind its own position, which must not lie before the first one stored.

    At most `limit` for each; together no more than fit into one message, shared out evenly, though at least one line
    for every run: nobody who reads much keeps the others waiting.
    """
    if not positions:
        return {}
    asked = (
        values(column("flow_run_id", Id), column("after", BigInteger), name="asked")
        .data(list(positions.items()))
        .cte("asked")
    )
    near = select(line.flow_run_id, line.position, LINE_BYTES.label("size")).join_from(
        asked,
        log_lines,
        and_(
            line.tenant_id == tenant,
            line.flow_run_id == asked.c.flow_run_id,
            # Positions are dense, so a span of them is a number of lines.
            line.position > asked.c.after,
            line.position <= asked.c.after + limit,
        ),
    )
    read: dict[FlowRunId, list[StoredLine]] = {}
    for row in tx.conn.execute(_fitting(near, tenant, PAGE_BYTES_MAX // len(positions))):
        read.setdefault(row.flow_run_id, []).append(_stored_from_row(row))
    return read


def standings(tx: Transaction, tenant: TenantId, runs: Iterable[FlowRunId]) -> Mapping[FlowRunId, Standing]:
    """How far these runs and their logs have come; runs that do not exist are left out.

    One statement, so that state, last position and producers are those of one moment.
    """
    run = flow_runs.c
    accepted = select(executions.c.fence).where(
        executions.c.tenant_id == run.tenant_id, executions.c.flow_run_id == run.flow_run_id
    )
    found = (
        select(
            run.flow_run_id,
            run.version,
            run.finish_time,
            accepted.exists().label("was_accepted"),
            func.coalesce(head.first_position, 1).label("first_position"),
            func.coalesce(head.last_position, 0).label("last_position"),
            producer.fence,
            producer.producer,
            producer.last_sequence,
            producer.closed,
        )
        .outerjoin_from(flow_runs, log_heads, and_(head.tenant_id == tenant, head.flow_run_id == run.flow_run_id))
        .outerjoin(log_producers, and_(producer.tenant_id == tenant, producer.flow_run_id == run.flow_run_id))
        .where(run.tenant_id == tenant, run.flow_run_id.in_(list(runs)))
        .order_by(run.flow_run_id, producer.fence, producer.producer)
    )
    rows: dict[FlowRunId, list[Row[Any]]] = {}
    for row in tx.conn.execute(found):
        rows.setdefault(row.flow_run_id, []).append(row)
    return {flow_run_id: _standing_from_rows(of_run) for flow_run_id, of_run in rows.items()}


# The most that a line's numbers, times, trace and tags take in a message; a character takes up to four bytes there.
_FIXED_BYTES: Final = 192
LINE_BYTES: Final[ColumnElement[int]] = (
    func.length(line.content, type_=Integer)
    + 4 * func.length(line.logger, type_=Integer)
    + 4 * func.length(line.level_name, type_=Integer)
    + 4 * func.length(line.producer, type_=Integer)
    + _FIXED_BYTES
)
# Whether a later lease of the run was accepted since.
SUPERSEDED: Final = line.fence < (
    select(func.max(executions.c.fence))
    .where(executions.c.tenant_id == line.tenant_id, executions.c.flow_run_id == line.flow_run_id)
    .correlate(log_lines)
    .scalar_subquery()
)
_ADVANCE_HEAD: Final = (
    update(log_heads)
    .where(head.tenant_id == bindparam("of_tenant"), head.flow_run_id == bindparam("of_run"))
    .values(last_position=bindparam("new_last_position"))
)
_ADVANCE_PRODUCER: Final = (
    update(log_producers)
    .where(
        producer.tenant_id == bindparam("of_tenant"),
        producer.flow_run_id == bindparam("of_run"),
        producer.fence == bindparam("of_fence"),
        producer.producer == bindparam("of_producer"),
    )
    .values(last_sequence=bindparam("new_last_sequence"), closed=bindparam("new_closed"))
)

_LINES_OF_SPAN: Final = (
    line.tenant_id == bindparam("of_tenant"),
    line.flow_run_id == bindparam("of_run"),
    line.position.between(bindparam("first"), bindparam("last")),
)
_AS_NOTED: Final = (
    left.tenant_id == bindparam("of_tenant"),
    left.flow_run_id == bindparam("of_run"),
    left.first_position == bindparam("first"),
)
_REMOVE_LINES: Final = delete(log_lines).where(*_LINES_OF_SPAN)
_REMOVE_NOTE: Final = delete(deleted_logs).where(*_AS_NOTED, left.last_position == bindparam("last"))
_SHORTEN_NOTE: Final = (
    update(deleted_logs)
    .where(*_AS_NOTED, left.last_position > bindparam("last"))
    .values(first_position=bindparam("last", type_=BigInteger) + 1)
)


def _first(count: int, noted: Iterable[Row[Any]]) -> Iterator[tuple[FlowRunId, int, int]]:
    """The first positions of these logs, `count` of them or all, as spans."""
    for row in noted:
        if count == 0:
            return
        last = min(row.last_position, row.first_position + count - 1)
        count -= last - row.first_position + 1
        yield row.flow_run_id, row.first_position, last


def _fitting(near: Select[Any], tenant: TenantId, bytes_max: int) -> Select[Any]:
    """Whole lines in place of those in `near`, for each run as many as begin within `bytes_max`: never none.

    Sizes are added up over keys alone, so that a line which does not fit is not read.
    """
    candidates = near.subquery("near_lines")
    ahead = func.sum(candidates.c.size, type_=BigInteger).over(
        partition_by=candidates.c.flow_run_id, order_by=candidates.c.position
    )
    measured = select(
        candidates.c.flow_run_id,
        candidates.c.position,
        (ahead - candidates.c.size).label("bytes_before"),
        func.count().over().label("near"),
    ).subquery("measured")
    return (
        select(log_lines, func.coalesce(SUPERSEDED, false()).label("superseded"), measured.c.near)
        .join_from(
            measured,
            log_lines,
            and_(
                line.tenant_id == tenant,
                line.flow_run_id == measured.c.flow_run_id,
                line.position == measured.c.position,
            ),
        )
        .where(measured.c.bytes_before < bytes_max)
        .order_by(line.flow_run_id, line.position)
    )


def _held_by(wanted: LogFilter) -> Iterable[ColumnElement[bool]]:
    if wanted.level is not None:
        yield or_(line.level.is_(None), line.level >= wanted.level)
    if wanted.contains:
        yield line.content_kind == "text"
        yield dialect.Holds(line.content, literal(wanted.contains.encode(), LargeBinary))
    if wanted.start_time is not None:
        yield line.time >= wanted.start_time
    if wanted.end_time is not None:
        yield line.time < wanted.end_time


def _advance_heads(tx: Transaction, tenant: TenantId, reached: Mapping[FlowRunId, int]) -> None:
    if reached:
        rows = [{"of_tenant": tenant, "of_run": run, "new_last_position": last} for run, last in reached.items()]
        tx.conn.execute(_ADVANCE_HEAD, rows)


def _advance_producers(tx: Transaction, tenant: TenantId, additions: Sequence[Addition]) -> None:
    if not additions:
        return
    # A start of the run may open the same producer at this moment: whoever comes second finds the row.
    open_producers(tx, tenant, [addition.key for addition in additions])
    last = {addition.key: addition for addition in additions}
    rows = [
        {
            **{f"of_{name}": value for name, value in _parts_of(tenant, key).items()},
            "new_last_sequence": addition.last_sequence,
            "new_closed": addition.closed,
        }
        for key, addition in sorted(last.items(), key=lambda each: _key_order(each[0]))
    ]
    tx.conn.execute(_ADVANCE_PRODUCER, rows)


def _parts_of(tenant: TenantId, key: ProducerKey) -> Mapping[str, Any]:
    return {"tenant": tenant, "run": key.flow_run_id, "fence": key.fence, "producer": key.producer}


def _columns_of(tenant: TenantId, key: ProducerKey) -> Mapping[str, Any]:
    return {"tenant_id": tenant, "flow_run_id": key.flow_run_id, "fence": key.fence, "producer": key.producer}


def _key_order(key: ProducerKey) -> tuple[FlowRunId, int, str]:
    return key.flow_run_id, key.fence, key.producer


def _row_of(tenant: TenantId, key: ProducerKey, position: int, each: LogLine) -> Mapping[str, Any]:
    kind, content, count = _stored_content(each.content)
    return {
        **_columns_of(tenant, key),
        "position": position,
        "sequence": each.sequence,
        "time": each.time,
        "stream": each.stream,
        "level": each.level,
        "level_name": each.level_name,
        "logger": each.logger,
        "content_kind": kind,
        "content": content,
        "dropped_count": count,
        "trace_id": each.trace_id,
        "span_id": each.span_id,
    }


def _stored_content(content: Content) -> tuple[str, bytes, int | None]:
    # Text is kept as bytes, because a text column of PostgreSQL takes no NUL character.
    match content:
        case str():
            return "text", content.encode(), None
        case bytes():
            return "data", content, None
        case Dropped():
            return "dropped", content.reason.encode(), content.count


def _content_from_row(row: Row[Any]) -> Content:
    content = bytes(row.content)
    match row.content_kind:
        case "text":
            return content.decode()
        case "data":
            return content
    return Dropped(row.dropped_count, content.decode())


def _stored_from_row(row: Row[Any]) -> StoredLine:
    return StoredLine(
        position=row.position,
        fence=row.fence,
        producer=row.producer,
        superseded=bool(row.superseded),
        line=LogLine(
            sequence=row.sequence,
            time=row.time,
            stream=row.stream,
            content=_content_from_row(row),
            level=row.level,
            level_name=row.level_name,
            logger=row.logger,
            trace_id=row.trace_id,
            span_id=row.span_id,
        ),
    )


def _end_from_row(row: Row[Any]) -> ProducerEnd:
    return ProducerEnd(row.fence, row.producer, row.last_sequence, row.closed)


def _standing_from_rows(rows: Sequence[Row[Any]]) -> Standing:
    first = rows[0]
    return Standing(
        version=first.version,
        finish_time=first.finish_time,
        was_accepted=first.was_accepted,
        first_position=first.first_position,
        last_position=first.last_position,
        producers=tuple(_end_from_row(row) for row in rows if row.producer is not None),
    )
