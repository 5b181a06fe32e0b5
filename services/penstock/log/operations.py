"""What each rpc of LogService does, inside one transaction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pendulum import DateTime

from penstock.domain.errors import FlowRunNotFound, LeaseLost, Refusal
from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.lease import Execution, Lease
from penstock.domain.limits import LOG_GRACE, PAGE_SIZE_MAX, TAIL_GRACE
from penstock.domain.log import ProducerEnd, ProducerKey, StoredLine, Writing, new_lines
from penstock.domain.queries import LogFilter, PositionPage
from penstock.storage import executions, flow_runs, logs
from penstock.storage.database import Transaction
from penstock.storage.logs import Addition, LinesPage, Standing


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Ends a tail: the final version of the run, and how far each producer came."""

    version: int
    producers: tuple[ProducerEnd, ...]


@dataclass(frozen=True, slots=True)
class TailPage:
    """What a tail shows next: lines, then, if nothing follows them, its end."""

    lines: Sequence[StoredLine] = ()
    end: LogEnd | None = None


def write_logs(tx: Transaction, tenant: TenantId, writings: Sequence[Writing]) -> list[int | Refusal]:
    """Store what is new of each writing: for each the last durable sequence of its producer, or why it is refused.

    Nothing follows what a producer said were its last lines. The heads are the only rows locked, and first: a run that
    is being deleted meanwhile has no executions any more when they are read in the next statement.
    """
    keys = [writing.key for writing in writings]
    last_positions = logs.lock_heads(tx, tenant, {key.flow_run_id for key in keys})
    refusals = _refusals(tx, tenant, keys)
    ends = dict(logs.producers(tx, tenant, keys))
    outcomes: list[int | Refusal] = []
    additions: list[Addition] = []
    for writing in writings:
        if writing.key in refusals:
            outcomes.append(refusals[writing.key])
            continue
        end = ends.get(writing.key) or _unheard(writing.key)
        addition = _addition(writing, end)
        if addition.lines or addition.closed != end.closed:
            additions.append(addition)
            ends[writing.key] = _end_after(addition)
            tx.hint.written.add(writing.key.flow_run_id)
        outcomes.append(addition.last_sequence)
    logs.append(tx, tenant, last_positions, additions)
    return outcomes


def list_logs(
    tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId, wanted: LogFilter, page: PositionPage
) -> LinesPage:
    """A page of a run's lines, by position."""
    check_flow_run(tx, tenant, flow_run_id)
    return logs.lines(tx, tenant, flow_run_id, page.after, page.size, wanted)


def check_flow_run(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> None:
    """Refuse a run that does not exist."""
    flow_runs.check(tx, tenant, flow_run_id)


def tail_pages(
    tx: Transaction, tenant: TenantId, positions: Mapping[FlowRunId, int]
) -> Mapping[FlowRunId, TailPage | FlowRunNotFound]:
    """What lies behind each run's position, or that there is no such run any more. Runs with nothing new to show are
    left out."""
    standings = logs.standings(tx, tenant, positions)
    behind = {
        flow_run_id: max(positions[flow_run_id], standing.first_position - 1)
        for flow_run_id, standing in standings.items()
        if standing.last_position > positions[flow_run_id]
    }
    read = logs.read_after(tx, tenant, behind, PAGE_SIZE_MAX)
    pages = {
        flow_run_id: _tail_page(standing, positions[flow_run_id], read.get(flow_run_id, ()), tx.now)
        for flow_run_id, standing in standings.items()
    }
    gone = {each: FlowRunNotFound(flow_run_id=str(each)) for each in positions.keys() - standings.keys()}
    return {**{flow_run_id: page for flow_run_id, page in pages.items() if page.lines or page.end}, **gone}


def _refusals(tx: Transaction, tenant: TenantId, keys: Iterable[ProducerKey]) -> Mapping[ProducerKey, Refusal]:
    """Why lines of some of these producers are not taken: a line is testimony, so any lease ever accepted will do."""
    leases = {key: Lease(key.flow_run_id, key.fence) for key in keys}
    done = executions.by_lease(tx, tenant, leases.values())
    refused = [key for key, lease in leases.items() if lease not in done or _is_past(done[lease], tx.now)]
    if not refused:
        return {}
    existing = flow_runs.existing(tx, tenant, {key.flow_run_id for key in refused})
    return {
        key: LeaseLost(flow_run_id=str(key.flow_run_id), fence=key.fence)
        if key.flow_run_id in existing
        else FlowRunNotFound(flow_run_id=str(key.flow_run_id))
        for key in refused
    }


def _is_past(execution: Execution, now: DateTime) -> bool:
    return execution.end_time is not None and now - execution.end_time > LOG_GRACE


def _unheard(key: ProducerKey) -> ProducerEnd:
    return ProducerEnd(key.fence, key.producer, last_sequence=0, closed=False)


def _addition(writing: Writing, end: ProducerEnd) -> Addition:
    fresh = () if end.closed else new_lines(writing.lines, end.last_sequence)
    reached = fresh[-1].last_sequence if fresh else end.last_sequence
    # Lines behind a gap are not stored, so what comes last of all is still to come.
    whole = not writing.lines or writing.lines[-1].last_sequence <= reached
    return Addition(writing.key, fresh, reached, closed=end.closed or (writing.closed and whole))


def _end_after(addition: Addition) -> ProducerEnd:
    return ProducerEnd(addition.key.fence, addition.key.producer, addition.last_sequence, addition.closed)


def _tail_page(standing: Standing, position: int, lines: Sequence[StoredLine], now: DateTime) -> TailPage:
    # Lines may have been stored between the two looks. Then the end is left to the next one, which knows of them.
    reached = lines[-1].position if lines else position
    complete = reached == standing.last_position and _is_over(standing, now)
    return TailPage(lines, LogEnd(standing.version, standing.producers) if complete else None)


def _is_over(standing: Standing, now: DateTime) -> bool:
    """Whether no more lines are waited for: the run is final, and every producer closed or has had its time."""
    if standing.finish_time is None:
        return False
    if not standing.was_accepted:
        return True
    closed = bool(standing.producers) and all(end.closed for end in standing.producers)
    return closed or now - standing.finish_time >= TAIL_GRACE
