"""Flow runs and their transitions."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from sqlalchemy import Row, Select, bindparam, delete, select, tuple_, update

from penstock.domain.errors import FlowRunNotFound
from penstock.domain.flow_run import Failure, FlowRun, Transition
from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.limits import PAGE_SIZE_MAX
from penstock.domain.queries import Page, PositionPage, RunFilter
from penstock.storage import dialect
from penstock.storage.database import Transaction
from penstock.storage.flows import TIME_AND_ID, policy_from_row, policy_to_row
from penstock.storage.schema import flow_runs, transitions

run, step = flow_runs.c, transitions.c

# What a list leaves out, because it may be half a megabyte each.
BULKY: Final = frozenset({"parameters_json", "context_json", "result_json"})
LISTED: Final = select(*(each for each in run if each.name not in BULKY))

# What a move may change; everything else about a run is fixed when it is created.
MOVABLE: Final = (
    "state",
    "version",
    "attempt",
    "retries_left",
    "scheduled_start_time",
    "start_time",
    "finish_time",
    "result_json",
    "failure",
    "fence",
)
MOVE: Final = (
    update(flow_runs)
    .where(
        run.tenant_id == bindparam("of_tenant"),
        run.flow_run_id == bindparam("of_run"),
        run.version == bindparam("of_version"),
    )
    .values({name: bindparam(f"new_{name}") for name in MOVABLE})
)


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a run has come: its version, and whether it is final."""

    version: int
    final: bool


def insert(tx: Transaction, tenant: TenantId, runs: Sequence[FlowRun]) -> None:
    """Insert new runs."""
    dialect.insert_many(tx.conn, flow_runs, [_to_row(tenant, each) for each in runs])


def insert_transitions(tx: Transaction, tenant: TenantId, steps: Sequence[Transition]) -> None:
    """Insert steps, and tell whoever watches those runs."""
    rows = [{"tenant_id": tenant, **{name: getattr(each, name) for name in Transition.__slots__}} for each in steps]
    dialect.insert_many(tx.conn, transitions, rows)
    tx.hint.moved.update(each.flow_run_id for each in steps)


def save_moves(tx: Transaction, tenant: TenantId, moves: Sequence[tuple[FlowRun, FlowRun]]) -> None:
    """Write runs that moved, each (before, after). Their entries are locked: another version would be our mistake."""
    if not moves:
        return
    rows = [
        {"of_tenant": tenant, "of_run": before.id, "of_version": before.version}
        | {f"new_{name}": value for name, value in _to_row(tenant, after).items() if name in MOVABLE}
        for before, after in sorted(moves, key=lambda each: each[0].id)
    ]
    moved = tx.conn.execute(MOVE, rows).rowcount
    assert moved == len(rows), f"{moved} of {len(rows)} moves met the version they were decided on"


def remove(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> None:
    """Delete a run with its steps, and tell whoever watches it."""
    tx.conn.execute(delete(flow_runs).where(run.tenant_id == tenant, run.flow_run_id == flow_run_id))
    tx.conn.execute(delete(transitions).where(step.tenant_id == tenant, step.flow_run_id == flow_run_id))
    tx.hint.moved.add(flow_run_id)


def by_id(tx: Transaction, tenant: TenantId, ids: Iterable[FlowRunId]) -> Mapping[FlowRunId, FlowRun]:
    """These runs, whole; the ones that do not exist are left out."""
    found = select(flow_runs).where(run.tenant_id == tenant, run.flow_run_id.in_(list(ids)))
    return {each.id: each for each in map(_from_row, tx.conn.execute(found))}


def hold(tx: Transaction, tenant: TenantId, ids: Iterable[FlowRunId]) -> Mapping[FlowRunId, FlowRun]:
    """Lock these runs, in the order of their ids: what a run without a queue entry is guarded by."""
    asked = list(ids)
    if not asked:
        return {}
    held = select(flow_runs).where(run.tenant_id == tenant, run.flow_run_id.in_(asked))
    rows = tx.conn.execute(held.order_by(run.flow_run_id).with_for_update())
    return {each.id: each for each in map(_from_row, rows)}


def hold_one(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> FlowRun | None:
    """Lock this run; None if there is none."""
    return hold(tx, tenant, [flow_run_id]).get(flow_run_id)


def existing(tx: Transaction, tenant: TenantId, ids: Iterable[FlowRunId]) -> frozenset[FlowRunId]:
    """Those of these runs that exist."""
    found = select(run.flow_run_id).where(run.tenant_id == tenant, run.flow_run_id.in_(list(ids)))
    return frozenset(tx.conn.scalars(found))


def check(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> None:
    """Refuse a run that does not exist."""
    if not existing(tx, tenant, [flow_run_id]):
        raise FlowRunNotFound(flow_run_id=str(flow_run_id))


def standings(tx: Transaction, tenant: TenantId, ids: Iterable[FlowRunId]) -> Mapping[FlowRunId, Standing]:
    """How far these runs have come; the ones that do not exist are left out."""
    found = select(run.flow_run_id, run.version, run.finish_time.is_not(None).label("final"))
    rows = tx.conn.execute(found.where(run.tenant_id == tenant, run.flow_run_id.in_(list(ids))))
    return {row.flow_run_id: Standing(row.version, bool(row.final)) for row in rows}


def final_by_id(tx: Transaction, tenant: TenantId, ids: Iterable[FlowRunId]) -> Mapping[FlowRunId, FlowRun]:
    """Those of these runs that are final, whole."""
    found = select(flow_runs).where(
        run.tenant_id == tenant, run.flow_run_id.in_(list(ids)), run.finish_time.is_not(None)
    )
    return {each.id: each for each in map(_from_row, tx.conn.execute(found))}


def get(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> FlowRun:
    """This run, whole; refused if there is none."""
    found = by_id(tx, tenant, [flow_run_id])
    if flow_run_id not in found:
        raise FlowRunNotFound(flow_run_id=str(flow_run_id))
    return found[flow_run_id]


def list_runs(tx: Transaction, tenant: TenantId, wanted: RunFilter, page: Page) -> list[FlowRun]:
    """A page of runs, newest first, without their parameters, contexts and results."""
    listed = _filtered(LISTED.where(run.tenant_id == tenant), wanted)
    if page.after:
        listed = listed.where(tuple_(run.create_time, run.flow_run_id) < tuple_(*page.after, types=TIME_AND_ID))
    listed = listed.order_by(run.create_time.desc(), run.flow_run_id.desc()).limit(page.size)
    return list(map(_from_row, tx.conn.execute(listed)))


def step_at(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId, version: int) -> Transition | None:
    """The step that led a run to that version; None if there is none."""
    found = select(transitions).where(
        step.tenant_id == tenant, step.flow_run_id == flow_run_id, step.version == version
    )
    row = tx.conn.execute(found).one_or_none()
    return None if row is None else _step_from_row(row)


def list_transitions(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId, page: PositionPage) -> list[Transition]:
    """The steps of a run after a version, oldest first."""
    listed = select(transitions).where(
        step.tenant_id == tenant, step.flow_run_id == flow_run_id, step.version > page.after
    )
    return list(map(_step_from_row, tx.conn.execute(listed.order_by(step.version).limit(page.size))))


def steps_at(
    tx: Transaction, tenant: TenantId, versions: Mapping[FlowRunId, range]
) -> Mapping[FlowRunId, Sequence[Transition]]:
    """The steps that led many runs to these versions, oldest first; runs without any are left out."""
    asked = [(flow_run_id, version) for flow_run_id, some in versions.items() for version in some]
    found: dict[FlowRunId, list[Transition]] = {}
    for start in range(0, len(asked), PAGE_SIZE_MAX):  # in parts, because a statement takes only so many parameters
        part = tuple_(step.flow_run_id, step.version).in_(asked[start : start + PAGE_SIZE_MAX])
        listed = select(transitions).where(step.tenant_id == tenant, part).order_by(step.flow_run_id, step.version)
        for each in map(_step_from_row, tx.conn.execute(listed)):
            found.setdefault(each.flow_run_id, []).append(each)
    return found


def _filtered(listed: Select[Any], wanted: RunFilter) -> Select[Any]:
    if wanted.states:
        listed = listed.where(run.state.in_(sorted(wanted.states)))
    if wanted.flow_id is not None:
        listed = listed.where(run.flow_id == wanted.flow_id)
    if wanted.group_id is not None:
        listed = listed.where(run.flow_group_id == wanted.group_id)
    if wanted.parent_id is not None:
        listed = listed.where(run.parent_id == wanted.parent_id)
    if wanted.name is not None:
        listed = listed.where(run.name == wanted.name)
    return listed


SAME_NAME: Final = frozenset(each.name for each in run) & frozenset(FlowRun.__slots__) - {"failure"}


def _to_row(tenant: TenantId, flow_run: FlowRun) -> Mapping[str, Any]:
    return {
        "tenant_id": tenant,
        "flow_run_id": flow_run.id,
        "flow_group_id": flow_run.group_id,
        "failure": json.dumps(asdict(flow_run.failure)) if flow_run.failure else None,
        **policy_to_row(flow_run.policy),
        **{name: getattr(flow_run, name) for name in SAME_NAME},
    }


def _from_row(row: Row[Any]) -> FlowRun:
    columns = dict.fromkeys(BULKY, "") | dict(row._mapping)
    return FlowRun(
        id=row.flow_run_id,
        group_id=row.flow_group_id,
        policy=policy_from_row(row),
        failure=Failure(**json.loads(row.failure)) if row.failure else None,
        **{name: columns[name] for name in SAME_NAME},
    )


def _step_from_row(row: Row[Any]) -> Transition:
    return Transition(**{name: getattr(row, name) for name in Transition.__slots__})
