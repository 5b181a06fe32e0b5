"""Idempotency keys and request ids: which run each of them made, and what was asked then."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Any
from uuid import UUID

from pendulum import DateTime
from sqlalchemy import Row, delete, select, tuple_, update

from penstock.domain.flow_run import Fingerprint
from penstock.domain.ids import FlowRunId, TenantId
from penstock.storage import dialect
from penstock.storage.database import Transaction
from penstock.storage.schema import idempotency_keys

column = idempotency_keys.c


class TargetKind(StrEnum):
    """What a key is unique within. The values are what rows hold."""

    FLOW = auto()
    FLOW_GROUP = auto()
    REQUEST = auto()


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A key with its scope: the target as the caller named it, so that a repeat finds it after a new version too."""

    target_kind: TargetKind
    target_id: UUID
    key: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A key, the run it made, and what was asked."""

    key: Key
    flow_run_id: FlowRunId
    fingerprint: Fingerprint
    delete_time: DateTime | None = None


def claim(tx: Transaction, tenant: TenantId, claims: Iterable[Claim]) -> None:
    """Give each key that has no run yet to the run that claims it; among equal keys the first claim counts."""
    first: dict[Key, Claim] = {}
    for each in claims:
        first.setdefault(each.key, each)
    rows = [
        {
            "tenant_id": tenant,
            "target_kind": key.target_kind.value,
            "target_id": key.target_id,
            "key": key.key,
            "flow_run_id": each.flow_run_id,
            "parameters_digest": each.fingerprint.parameters,
            "context_digest": each.fingerprint.context,
            "labels_digest": each.fingerprint.labels,
            "run_config_digest": each.fingerprint.run_config,
            "create_time": tx.now,
            "delete_time": None,
        }
        for key, each in sorted(first.items())
    ]
    dialect.insert_unless_present(tx.conn, idempotency_keys, rows)


def find(tx: Transaction, tenant: TenantId, keys: Iterable[Key]) -> Mapping[Key, Claim]:
    """Who has these keys; the ones nobody has are left out."""
    asked = [(key.target_kind.value, key.target_id, key.key) for key in keys]
    if not asked:
        return {}
    found = select(idempotency_keys).where(
        column.tenant_id == tenant, tuple_(column.target_kind, column.target_id, column.key).in_(asked)
    )
    return {each.key: each for each in map(_claim_from_row, tx.conn.execute(found))}


def forget(tx: Transaction, tenant: TenantId, runs: Sequence[FlowRunId]) -> None:
    """Give back the keys that these runs claimed in this transaction, because they will not be created after all."""
    if runs:
        tx.conn.execute(delete(idempotency_keys).where(column.tenant_id == tenant, column.flow_run_id.in_(runs)))


def retire(tx: Transaction, tenant: TenantId, flow_run_id: FlowRunId) -> None:
    """A run is deleted: its idempotency key says so from now on, its request id is forgotten.

    Keys are locked in the order in which they are claimed; a run has at most one of each kind.
    """
    owned = (column.tenant_id == tenant, column.flow_run_id == flow_run_id)
    kept = (*owned, column.target_kind != TargetKind.REQUEST.value, column.delete_time.is_(None))
    tx.conn.execute(update(idempotency_keys).where(*kept).values(delete_time=tx.now))
    tx.conn.execute(delete(idempotency_keys).where(*owned, column.target_kind == TargetKind.REQUEST.value))


def _claim_from_row(row: Row[Any]) -> Claim:
    return Claim(
        key=Key(TargetKind(row.target_kind), row.target_id, row.key),
        flow_run_id=row.flow_run_id,
        fingerprint=Fingerprint(
            parameters=row.parameters_digest,
            context=row.context_digest,
            labels=row.labels_digest,
            run_config=row.run_config_digest,
        ),
        delete_time=row.delete_time,
    )
