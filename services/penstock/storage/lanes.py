"""Lanes, interned: runs with the same labels and flow group stand in one."""

from collections.abc import Iterable, Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from penstock.domain.ids import LaneId, TenantId
from penstock.domain.lanes import Lane, LaneKey
from penstock.storage import dialect
from penstock.storage.database import Transaction
from penstock.storage.schema import lane_labels, lanes

column = lanes.c


def intern(tx: Transaction, tenant: TenantId, keys: Iterable[LaneKey]) -> Mapping[LaneKey, LaneId]:
    """The lanes of these keys, created where they were missing."""
    by_digest = {key.digest(): key for key in keys}
    ids = {digest: lane_id(digest) for digest in by_digest}
    rows = [
        {
            "tenant_id": tenant,
            "lane_id": ids[digest],
            "digest": digest,
            "labels": key.labels,
            "flow_group_id": key.flow_group_id,
        }
        for digest, key in sorted(by_digest.items())
    ]
    fresh = {lane for _, lane in dialect.insert_unless_present(tx.conn, lanes, rows)}
    labels = [
        {"tenant_id": tenant, "label": label, "lane_id": ids[digest]}
        for digest, key in sorted(by_digest.items())
        if ids[digest] in fresh
        for label in key.labels
    ]
    dialect.insert_many(tx.conn, lane_labels, labels)
    return {key: ids[digest] for digest, key in by_digest.items()}


def lane_id(digest: bytes) -> LaneId:
    """A lane's identity follows from its digest, so that interning one needs no second look. UUID of version 8."""
    bits = int.from_bytes(digest[:16])
    return LaneId(UUID(int=bits & ~(0xF << 76) & ~(0b11 << 62) | (0x8 << 76) | (0b10 << 62)))


def from_row(row: Row[Any]) -> Lane:
    """A lane from a row of its table."""
    return Lane(row.lane_id, LaneKey(row.labels, row.flow_group_id))
