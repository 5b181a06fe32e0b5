"""The tables, their constraints and indexes. The tenant comes first in every primary and unique key.

Locks are taken in one order everywhere: keys and request ids (sorted), lanes (by digest), concurrency limits (sorted),
queue entries, parents and children included (sorted by run), flow_runs (sorted), executions, log_heads, deleted_logs.
The queue entry is the lock of a live run. Hot tables have no foreign keys: what belongs together is written and deleted
in one transaction, and a key to flow_runs would take locks against that order.
"""

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from penstock.domain.flow import ChildPolicy
from penstock.domain.lease import EndedBy, Phase
from penstock.domain.log import LogLevel, LogStream
from penstock.domain.state import FINAL, Cause, State
from penstock.storage.types import Grades, Id, LabelList, RunConfigText, Span, UtcTime, Words

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "uq": "%(table_name)s_%(column_0_N_name)s_unique",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "fk": "%(table_name)s_%(referred_table_name)s_fk",
        "ix": "%(table_name)s_%(column_0_N_name)s_index",
    }
)


def words(*values: str) -> str:
    """A list of SQL string literals."""
    return ", ".join(f"'{value}'" for value in sorted(values))


def one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    """Hold a column to the values of an enum."""
    return CheckConstraint(f"{column} IN ({words(*values)})", name=column)


def policy_columns() -> list[Column[Any]]:
    """How a run is treated: the same columns on a flow and on its runs."""
    return [
        Column("priority", Integer, nullable=False),
        Column("max_retries", Integer, nullable=False),
        Column("retry_delay", Span, nullable=False),
        Column("max_lost_restarts", Integer, nullable=False),
        Column("log_level", Grades(LogLevel), nullable=False),
        Column("child_policy", Words(ChildPolicy), nullable=False),
    ]


installation = Table(
    "installation",
    metadata,
    Column("one", SmallInteger, nullable=False),
    Column("signing_key", LargeBinary, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    PrimaryKeyConstraint("one"),
    CheckConstraint("one = 1", name="one"),
)

projects = Table(
    "projects",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("project_id", Id, nullable=False),
    Column("name", Text, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    PrimaryKeyConstraint("tenant_id", "project_id"),
    UniqueConstraint("tenant_id", "name"),
)

flow_groups = Table(
    "flow_groups",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_group_id", Id, nullable=False),
    Column("project_id", Id, nullable=False),
    Column("name", Text, nullable=False),
    Column("default_parameters_json", Text),
    Column("labels", LabelList),
    Column("run_config", RunConfigText),
    Column("latest_version", Integer, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    PrimaryKeyConstraint("tenant_id", "flow_group_id"),
    UniqueConstraint("tenant_id", "project_id", "name"),
    ForeignKeyConstraint(["tenant_id", "project_id"], ["projects.tenant_id", "projects.project_id"]),
    Index(None, "tenant_id", "name"),
)

flows = Table(
    "flows",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_id", Id, nullable=False),
    Column("flow_group_id", Id, nullable=False),
    Column("version", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("entry_point_kind", Text, nullable=False),
    Column("entry_point", Text, nullable=False),
    Column("parameters", Text, nullable=False),
    Column("accepts_extra_parameters", Boolean, nullable=False),
    Column("labels", LabelList, nullable=False),
    Column("run_config", RunConfigText, nullable=False),
    *policy_columns(),
    Column("description", Text, nullable=False),
    Column("source_digest", Text, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("archive_time", UtcTime),
    PrimaryKeyConstraint("tenant_id", "flow_id"),
    UniqueConstraint("tenant_id", "flow_group_id", "version"),
    ForeignKeyConstraint(["tenant_id", "flow_group_id"], ["flow_groups.tenant_id", "flow_groups.flow_group_id"]),
    CheckConstraint("entry_point_kind IN ('command', 'python')", name="entry_point_kind"),
    one_of("child_policy", ChildPolicy),
    Index(None, "tenant_id", "create_time", "flow_id"),
)
Index(
    "flows_one_live_index",
    flows.c.tenant_id,
    flows.c.flow_group_id,
    unique=True,
    postgresql_where=text("archive_time IS NULL"),
    sqlite_where=text("archive_time IS NULL"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("target_kind", Text, nullable=False),
    Column("target_id", Id, nullable=False),
    Column("key", Text, nullable=False),
    Column("flow_run_id", Id, nullable=False),
    Column("parameters_digest", LargeBinary, nullable=False),
    Column("context_digest", LargeBinary, nullable=False),
    Column("labels_digest", LargeBinary, nullable=False),
    Column("run_config_digest", LargeBinary, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("delete_time", UtcTime),
    PrimaryKeyConstraint("tenant_id", "target_kind", "target_id", "key"),
    CheckConstraint("target_kind IN ('flow', 'flow_group', 'request')", name="target_kind"),
)
Index("idempotency_keys_flow_run_index", idempotency_keys.c.tenant_id, idempotency_keys.c.flow_run_id)

flow_runs = Table(
    "flow_runs",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_run_id", Id, nullable=False),
    Column("flow_id", Id, nullable=False),
    Column("flow_group_id", Id, nullable=False),
    Column("flow_name", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("state", Words(State), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("retries_left", Integer, nullable=False),
    Column("scheduled_start_time", UtcTime, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("start_time", UtcTime),
    Column("finish_time", UtcTime),
    Column("parameters_json", Text, nullable=False),
    Column("context_json", Text, nullable=False),
    Column("labels", LabelList, nullable=False),
    Column("run_config", RunConfigText, nullable=False),
    *policy_columns(),
    Column("idempotency_key", Text),
    Column("parent_id", Id),
    Column("result_json", Text),
    Column("failure", Text),
    Column("traceparent", Text, nullable=False),
    Column("tracestate", Text, nullable=False),
    Column("fence", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "flow_run_id"),
    one_of("state", State),
    one_of("child_policy", ChildPolicy),
    CheckConstraint(f"(finish_time IS NOT NULL) = (state IN ({words(*FINAL)}))", name="final_is_finished"),
    CheckConstraint("version >= 1 AND attempt >= 1 AND retries_left >= 0 AND fence >= 0", name="counts"),
    Index(None, "tenant_id", "create_time", "flow_run_id"),
    Index(None, "tenant_id", "flow_group_id", "create_time", "flow_run_id"),
)
Index(
    "flow_runs_children_index",
    flow_runs.c.tenant_id,
    flow_runs.c.parent_id,
    flow_runs.c.create_time,
    flow_runs.c.flow_run_id,
    postgresql_where=text("parent_id IS NOT NULL"),
    sqlite_where=text("parent_id IS NOT NULL"),
)

transitions = Table(
    "transitions",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_run_id", Id, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("state", Words(State), nullable=False),
    Column("cause", Words(Cause), nullable=False),
    Column("message", Text, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("agent_id", Id),
    Column("due_time", UtcTime),
    Column("lease_grant_time", UtcTime),
    PrimaryKeyConstraint("tenant_id", "flow_run_id", "version"),
    one_of("state", State),
    one_of("cause", Cause),
)

executions = Table(
    "executions",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_run_id", Id, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("agent_id", Id, nullable=False),
    Column("execution_id", Id),
    Column("grant_time", UtcTime, nullable=False),
    Column("accept_time", UtcTime, nullable=False),
    Column("start_time", UtcTime),
    Column("end_time", UtcTime),
    Column("outcome", Words(State)),
    Column("ended_by", Words(EndedBy)),
    PrimaryKeyConstraint("tenant_id", "flow_run_id", "fence"),
    one_of("outcome", State),
    one_of("ended_by", EndedBy),
    CheckConstraint("(end_time IS NULL) = (ended_by IS NULL)", name="ended"),
)

lanes = Table(
    "lanes",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("lane_id", Id, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("labels", LabelList, nullable=False),
    Column("flow_group_id", Id, nullable=False),
    PrimaryKeyConstraint("tenant_id", "lane_id"),
    UniqueConstraint("tenant_id", "digest"),
)

lane_labels = Table(
    "lane_labels",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("label", Text, nullable=False),
    Column("lane_id", Id, nullable=False),
    PrimaryKeyConstraint("tenant_id", "label", "lane_id"),
)

queue_entries = Table(
    "queue_entries",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_run_id", Id, nullable=False),
    Column("lane_id", Id, nullable=False),
    Column("rank_time", UtcTime, nullable=False),
    Column("due_time", UtcTime, nullable=False),
    Column("phase", Words(Phase), nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("holder", Id),
    Column("grant_time", UtcTime),
    Column("lease_expire_time", UtcTime),
    Column("releases", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("parent_id", Id),
    PrimaryKeyConstraint("tenant_id", "flow_run_id"),
    one_of("phase", Phase),
    CheckConstraint(
        "(phase = 'waiting') = (holder IS NULL) AND (phase = 'waiting') = (lease_expire_time IS NULL)"
        " AND (phase = 'waiting') = (grant_time IS NULL)",
        name="waiting_is_unheld",
    ),
)
WAITING_ONLY = text("phase = 'waiting'")
LEASED_ONLY = text("phase <> 'waiting'")
STOPPING_ONLY = text("phase = 'stopping'")
Index(
    "queue_entries_take_index",
    *(queue_entries.c[name] for name in ("tenant_id", "lane_id", "rank_time", "due_time", "flow_run_id")),
    postgresql_where=WAITING_ONLY,
    sqlite_where=WAITING_ONLY,
)
Index(
    "queue_entries_due_index",
    queue_entries.c.tenant_id,
    queue_entries.c.due_time,
    postgresql_where=WAITING_ONLY,
    sqlite_where=WAITING_ONLY,
)
Index(
    "queue_entries_expiry_index",
    queue_entries.c.tenant_id,
    queue_entries.c.lease_expire_time,
    postgresql_where=LEASED_ONLY,
    sqlite_where=LEASED_ONLY,
)
Index(
    "queue_entries_slots_index",
    queue_entries.c.tenant_id,
    queue_entries.c.lane_id,
    postgresql_where=LEASED_ONLY,
    sqlite_where=LEASED_ONLY,
)
Index(
    "queue_entries_stopping_index",
    queue_entries.c.tenant_id,
    queue_entries.c.holder,
    postgresql_where=STOPPING_ONLY,
    sqlite_where=STOPPING_ONLY,
)
Index(
    "queue_entries_children_index",
    queue_entries.c.tenant_id,
    queue_entries.c.parent_id,
    postgresql_where=text("parent_id IS NOT NULL"),
    sqlite_where=text("parent_id IS NOT NULL"),
)

concurrency_limits = Table(
    "concurrency_limits",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("label", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    PrimaryKeyConstraint("tenant_id", "label"),
    CheckConstraint("slots >= 0", name="slots"),
)

drains = Table(
    "drains",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("drain_id", Id, nullable=False),
    Column("labels", LabelList, nullable=False),
    Column("reason", Text, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    PrimaryKeyConstraint("tenant_id", "drain_id"),
    UniqueConstraint("tenant_id", "labels"),
)

pauses = Table(
    "pauses",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_group_id", Id, nullable=False),
    Column("reason", Text, nullable=False),
    Column("create_time", UtcTime, nullable=False),
    PrimaryKeyConstraint("tenant_id", "flow_group_id"),
)

agents = Table(
    "agents",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("agent_id", Id, nullable=False),
    Column("name", Text, nullable=False),
    Column("labels", LabelList, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("stream_id", Id),
    Column("connect_time", UtcTime, nullable=False),
    Column("last_seen_time", UtcTime, nullable=False),
    PrimaryKeyConstraint("tenant_id", "agent_id"),
    Index(None, "tenant_id", "last_seen_time", "agent_id"),
)

log_heads = Table(
    "log_heads",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_run_id", Id, nullable=False),
    Column("first_position", BigInteger, nullable=False),
    Column("last_position", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "flow_run_id"),
    CheckConstraint("first_position >= 1 AND last_position >= first_position - 1", name="positions"),
)

log_producers = Table(
    "log_producers",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_run_id", Id, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("producer", Text, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("closed", Boolean, nullable=False),
    PrimaryKeyConstraint("tenant_id", "flow_run_id", "fence", "producer"),
)

log_lines = Table(
    "log_lines",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_run_id", Id, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("producer", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("time", UtcTime, nullable=False),
    Column("stream", Words(LogStream), nullable=False),
    Column("level", Grades(LogLevel)),
    Column("level_name", Text, nullable=False),
    Column("logger", Text, nullable=False),
    Column("content_kind", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("dropped_count", BigInteger),
    Column("trace_id", Text, nullable=False),
    Column("span_id", Text, nullable=False),
    PrimaryKeyConstraint("tenant_id", "flow_run_id", "position"),
    one_of("stream", LogStream),
    CheckConstraint("content_kind IN ('data', 'dropped', 'text')", name="content_kind"),
    CheckConstraint("(content_kind = 'dropped') = (dropped_count IS NOT NULL)", name="dropped"),
)

# What a deletion leaves to the keeper, because a log may have millions of lines: the positions still to be removed.
deleted_logs = Table(
    "deleted_logs",
    metadata,
    Column("tenant_id", Id, nullable=False),
    Column("flow_run_id", Id, nullable=False),
    Column("first_position", BigInteger, nullable=False),
    Column("last_position", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "flow_run_id"),
    CheckConstraint("first_position >= 1 AND last_position >= first_position", name="positions"),
)
