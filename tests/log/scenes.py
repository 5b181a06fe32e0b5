"""Runs with logs in a database, and what their producers send."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import update

from penstock.domain.errors import Refusal
from penstock.domain.flow_run import FlowRun
from penstock.domain.ids import DEFAULT_TENANT, FlowRunId
from penstock.domain.lease import EndedBy
from penstock.domain.log import Content, LogLine, LogStream, ProducerKey, StoredLine, Writing
from penstock.domain.queries import LogFilter
from penstock.domain.state import State
from penstock.log import operations
from penstock.storage import executions, flow_runs, logs
from penstock.storage import schema as tables
from penstock.storage.database import Database, Transaction
from tests.support.builders import a_flow_run, an_execution
from tests.support.fake_clock import NOON

TENANT: Final = DEFAULT_TENANT
ANY: Final = LogFilter()
SUPERVISOR: Final = "supervisor"


def a_line(sequence: int, content: Content | None = None, **fields: Any) -> LogLine:
    """A line on standard output that says its own number."""
    said = f"line {sequence}" if content is None else content
    defaults: dict[str, Any] = {"time": NOON, "stream": LogStream.STDOUT, "content": said}
    return LogLine(sequence, **(defaults | fields))


def some_lines(count: int, *, first: int = 1) -> tuple[LogLine, ...]:
    return tuple(a_line(sequence) for sequence in range(first, first + count))


def key_of(run: FlowRun, *, fence: int | None = None, producer: str = SUPERVISOR) -> ProducerKey:
    return ProducerKey(run.id, run.fence if fence is None else fence, producer)


async def a_scheduled_run(database: Database) -> FlowRun:
    """A run that nobody has taken yet."""
    run = a_flow_run(State.SCHEDULED)
    await database.run(flow_runs.insert, TENANT, [run])
    return run


async def an_accepted_run(database: Database) -> FlowRun:
    """A run that an agent holds and has not started."""
    return await _held(database, a_flow_run(State.SUBMITTED))


async def a_started_run(database: Database) -> FlowRun:
    """A run under way, whose supervisor is expected to write."""
    run = await _held(database, a_flow_run(State.RUNNING))
    await database.run(logs.open_producers, TENANT, [key_of(run)])
    return run


async def rescue(database: Database, run: FlowRun) -> FlowRun:
    """Let another execution of the run begin, one fence on, as after a lost lease."""
    return await _held(database, replace(run, fence=run.fence + 2), insert=False)


async def finish(database: Database, run: FlowRun) -> None:
    """Make the run final, and end its execution, now."""

    def work(tx: Transaction) -> None:
        tx.conn.execute(
            update(tables.flow_runs)
            .where(tables.flow_runs.c.flow_run_id == run.id)
            .values(state=State.SUCCEEDED, version=run.version + 1, finish_time=tx.now)
        )
        tx.conn.execute(
            update(tables.executions)
            .where(tables.executions.c.flow_run_id == run.id, tables.executions.c.end_time.is_(None))
            .values(outcome=State.SUCCEEDED, end_time=tx.now, ended_by=EndedBy.FINISH)
        )
        tx.hint.moved.add(run.id)

    await database.run(work)


async def write(
    database: Database, key: ProducerKey, lines: Sequence[LogLine] = (), *, closed: bool = False
) -> int | Refusal:
    """Send one writing; its outcome."""
    (outcome,) = await database.run(operations.write_logs, TENANT, [Writing(key, tuple(lines), closed)])
    return outcome


async def stored(database: Database, flow_run_id: FlowRunId) -> Sequence[StoredLine]:
    """All lines of a run, which must be few."""
    page = await database.read(logs.lines, TENANT, flow_run_id, 0, 1_000, ANY)
    assert not page.more
    return page.lines


def contents(lines: Sequence[StoredLine]) -> list[Content]:
    return [each.line.content for each in lines]


async def _held(database: Database, run: FlowRun, *, insert: bool = True) -> FlowRun:
    def work(tx: Transaction) -> None:
        if insert:
            flow_runs.insert(tx, TENANT, [run])
        executions.begin(tx, TENANT, [an_execution(run)])
        logs.open_heads(tx, TENANT, [run.id])

    await database.run(work)
    return run
