"""Everything that the first release keeps: flows, runs, the queue, agents and logs."""

import secrets

import sqlalchemy as sa
from alembic import context, op

from penstock.storage.types import UtcTime

revision = "0001"
down_revision = None

ID = sa.Uuid().with_variant(sa.LargeBinary(16), "sqlite")
TIME = sa.DateTime(timezone=True).with_variant(sa.BigInteger(), "sqlite")


def upgrade() -> None:
    create_installation()
    create_flows()
    create_flow_runs()
    create_queue()
    create_logs()


def create_installation() -> None:
    op.create_table(
        "installation",
        sa.Column("one", sa.SmallInteger(), nullable=False),
        sa.Column("signing_key", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", TIME, nullable=False),
        sa.CheckConstraint("one = 1", name="installation_one_check"),
        sa.PrimaryKeyConstraint("one", name="installation_pk"),
    )
    key = {"one": 1, "signing_key": secrets.token_bytes(32), "create_time": context.config.attributes["now"]}
    table = sa.table("installation", sa.column("one"), sa.column("signing_key"), sa.column("create_time", UtcTime))
    op.execute(table.insert().values(key))


def create_flows() -> None:
    op.create_table(
        "projects",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("project_id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("create_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "project_id", name="projects_pk"),
        sa.UniqueConstraint("tenant_id", "name", name="projects_tenant_id_name_unique"),
    )
    op.create_table(
        "flow_groups",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_group_id", ID, nullable=False),
        sa.Column("project_id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("default_parameters_json", sa.Text()),
        sa.Column("labels", sa.Text()),
        sa.Column("run_config", sa.Text()),
        sa.Column("latest_version", sa.Integer(), nullable=False),
        sa.Column("create_time", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "project_id"], ["projects.tenant_id", "projects.project_id"], name="flow_groups_projects_fk"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "flow_group_id", name="flow_groups_pk"),
        sa.UniqueConstraint("tenant_id", "project_id", "name", name="flow_groups_tenant_id_project_id_name_unique"),
    )
    op.create_index("flow_groups_tenant_id_name_index", "flow_groups", ["tenant_id", "name"])
    op.create_table(
        "flows",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_id", ID, nullable=False),
        sa.Column("flow_group_id", ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("entry_point_kind", sa.Text(), nullable=False),
        sa.Column("entry_point", sa.Text(), nullable=False),
        sa.Column("parameters", sa.Text(), nullable=False),
        sa.Column("accepts_extra_parameters", sa.Boolean(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("run_config", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("max_retries", sa.Integer(), nullable=False),
        sa.Column("retry_delay", sa.BigInteger(), nullable=False),
        sa.Column("max_lost_restarts", sa.Integer(), nullable=False),
        sa.Column("log_level", sa.SmallInteger(), nullable=False),
        sa.Column("child_policy", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("source_digest", sa.Text(), nullable=False),
        sa.Column("create_time", TIME, nullable=False),
        sa.Column("archive_time", TIME),
        sa.CheckConstraint("child_policy IN ('abandon', 'cancel')", name="flows_child_policy_check"),
        sa.CheckConstraint("entry_point_kind IN ('command', 'python')", name="flows_entry_point_kind_check"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "flow_group_id"],
            ["flow_groups.tenant_id", "flow_groups.flow_group_id"],
            name="flows_flow_groups_fk",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "flow_id", name="flows_pk"),
        sa.UniqueConstraint(
            "tenant_id", "flow_group_id", "version", name="flows_tenant_id_flow_group_id_version_unique"
        ),
    )
    op.create_index(
        "flows_one_live_index",
        "flows",
        ["tenant_id", "flow_group_id"],
        unique=True,
        postgresql_where=sa.text("archive_time IS NULL"),
        sqlite_where=sa.text("archive_time IS NULL"),
    )
    op.create_index("flows_tenant_id_create_time_flow_id_index", "flows", ["tenant_id", "create_time", "flow_id"])


def create_flow_runs() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("target_kind", sa.Text(), nullable=False),
        sa.Column("target_id", ID, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("flow_run_id", ID, nullable=False),
        sa.Column("parameters_digest", sa.LargeBinary(), nullable=False),
        sa.Column("context_digest", sa.LargeBinary(), nullable=False),
        sa.Column("labels_digest", sa.LargeBinary(), nullable=False),
        sa.Column("run_config_digest", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", TIME, nullable=False),
        sa.Column("delete_time", TIME),
        sa.CheckConstraint(
            "target_kind IN ('flow', 'flow_group', 'request')", name="idempotency_keys_target_kind_check"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "target_kind", "target_id", "key", name="idempotency_keys_pk"),
    )
    op.create_index("idempotency_keys_flow_run_index", "idempotency_keys", ["tenant_id", "flow_run_id"])
    op.create_table(
        "flow_runs",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_run_id", ID, nullable=False),
        sa.Column("flow_id", ID, nullable=False),
        sa.Column("flow_group_id", ID, nullable=False),
        sa.Column("flow_name", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("retries_left", sa.Integer(), nullable=False),
        sa.Column("scheduled_start_time", TIME, nullable=False),
        sa.Column("create_time", TIME, nullable=False),
        sa.Column("start_time", TIME),
        sa.Column("finish_time", TIME),
        sa.Column("parameters_json", sa.Text(), nullable=False),
        sa.Column("context_json", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("run_config", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("max_retries", sa.Integer(), nullable=False),
        sa.Column("retry_delay", sa.BigInteger(), nullable=False),
        sa.Column("max_lost_restarts", sa.Integer(), nullable=False),
        sa.Column("log_level", sa.SmallInteger(), nullable=False),
        sa.Column("child_policy", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("parent_id", ID),
        sa.Column("result_json", sa.Text()),
        sa.Column("failure", sa.Text()),
        sa.Column("traceparent", sa.Text(), nullable=False),
        sa.Column("tracestate", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "(finish_time IS NOT NULL) = (state IN ('cancelled', 'failed', 'succeeded'))",
            name="flow_runs_final_is_finished_check",
        ),
        sa.CheckConstraint("child_policy IN ('abandon', 'cancel')", name="flow_runs_child_policy_check"),
        sa.CheckConstraint(
            "state IN ('cancelled', 'cancelling', 'failed', 'running', 'scheduled', 'submitted', 'succeeded')",
            name="flow_runs_state_check",
        ),
        sa.CheckConstraint(
            "version >= 1 AND attempt >= 1 AND retries_left >= 0 AND fence >= 0", name="flow_runs_counts_check"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "flow_run_id", name="flow_runs_pk"),
    )
    op.create_index(
        "flow_runs_children_index",
        "flow_runs",
        ["tenant_id", "parent_id", "create_time", "flow_run_id"],
        postgresql_where=sa.text("parent_id IS NOT NULL"),
        sqlite_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index(
        "flow_runs_tenant_id_create_time_flow_run_id_index", "flow_runs", ["tenant_id", "create_time", "flow_run_id"]
    )
    op.create_index(
        "flow_runs_tenant_id_flow_group_id_create_time_flow_run_id_index",
        "flow_runs",
        ["tenant_id", "flow_group_id", "create_time", "flow_run_id"],
    )
    op.create_table(
        "transitions",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_run_id", ID, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("create_time", TIME, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("agent_id", ID),
        sa.Column("due_time", TIME),
        sa.Column("lease_grant_time", TIME),
        sa.CheckConstraint(
            "cause IN ('accepted', 'cancel_asked', 'created', 'finished', 'lost', 'parent_cancelled',"
            " 'released', 'restarted', 'retried', 'started', 'unconfirmed', 'undeployable')",
            name="transitions_cause_check",
        ),
        sa.CheckConstraint(
            "state IN ('cancelled', 'cancelling', 'failed', 'running', 'scheduled', 'submitted', 'succeeded')",
            name="transitions_state_check",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "flow_run_id", "version", name="transitions_pk"),
    )
    op.create_table(
        "executions",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_run_id", ID, nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("agent_id", ID, nullable=False),
        sa.Column("execution_id", ID),
        sa.Column("grant_time", TIME, nullable=False),
        sa.Column("accept_time", TIME, nullable=False),
        sa.Column("start_time", TIME),
        sa.Column("end_time", TIME),
        sa.Column("outcome", sa.Text()),
        sa.Column("ended_by", sa.Text()),
        sa.CheckConstraint("ended_by IN ('expiry', 'finish', 'release')", name="executions_ended_by_check"),
        sa.CheckConstraint(
            "outcome IN ('cancelled', 'cancelling', 'failed', 'running', 'scheduled', 'submitted', 'succeeded')",
            name="executions_outcome_check",
        ),
        sa.CheckConstraint("(end_time IS NULL) = (ended_by IS NULL)", name="executions_ended_check"),
        sa.PrimaryKeyConstraint("tenant_id", "flow_run_id", "fence", name="executions_pk"),
    )


def create_queue() -> None:
    op.create_table(
        "lanes",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("lane_id", ID, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("flow_group_id", ID, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "lane_id", name="lanes_pk"),
        sa.UniqueConstraint("tenant_id", "digest", name="lanes_tenant_id_digest_unique"),
    )
    op.create_table(
        "lane_labels",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("lane_id", ID, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "label", "lane_id", name="lane_labels_pk"),
    )
    op.create_table(
        "queue_entries",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_run_id", ID, nullable=False),
        sa.Column("lane_id", ID, nullable=False),
        sa.Column("rank_time", TIME, nullable=False),
        sa.Column("due_time", TIME, nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("holder", ID),
        sa.Column("grant_time", TIME),
        sa.Column("lease_expire_time", TIME),
        sa.Column("releases", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column("parent_id", ID),
        sa.CheckConstraint(
            "(phase = 'waiting') = (holder IS NULL) AND (phase = 'waiting') = (lease_expire_time IS NULL)"
            " AND (phase = 'waiting') = (grant_time IS NULL)",
            name="queue_entries_waiting_is_unheld_check",
        ),
        sa.CheckConstraint("phase IN ('held', 'offered', 'stopping', 'waiting')", name="queue_entries_phase_check"),
        sa.PrimaryKeyConstraint("tenant_id", "flow_run_id", name="queue_entries_pk"),
    )
    op.create_index(
        "queue_entries_children_index",
        "queue_entries",
        ["tenant_id", "parent_id"],
        postgresql_where=sa.text("parent_id IS NOT NULL"),
        sqlite_where=sa.text("parent_id IS NOT NULL"),
    )
    op.create_index(
        "queue_entries_due_index",
        "queue_entries",
        ["tenant_id", "due_time"],
        postgresql_where=sa.text("phase = 'waiting'"),
        sqlite_where=sa.text("phase = 'waiting'"),
    )
    op.create_index(
        "queue_entries_expiry_index",
        "queue_entries",
        ["tenant_id", "lease_expire_time"],
        postgresql_where=sa.text("phase <> 'waiting'"),
        sqlite_where=sa.text("phase <> 'waiting'"),
    )
    op.create_index(
        "queue_entries_slots_index",
        "queue_entries",
        ["tenant_id", "lane_id"],
        postgresql_where=sa.text("phase <> 'waiting'"),
        sqlite_where=sa.text("phase <> 'waiting'"),
    )
    op.create_index(
        "queue_entries_take_index",
        "queue_entries",
        ["tenant_id", "lane_id", "rank_time", "due_time", "flow_run_id"],
        postgresql_where=sa.text("phase = 'waiting'"),
        sqlite_where=sa.text("phase = 'waiting'"),
    )
    op.create_table(
        "concurrency_limits",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.CheckConstraint("slots >= 0", name="concurrency_limits_slots_check"),
        sa.PrimaryKeyConstraint("tenant_id", "label", name="concurrency_limits_pk"),
    )
    op.create_table(
        "drains",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("drain_id", ID, nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("create_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "drain_id", name="drains_pk"),
        sa.UniqueConstraint("tenant_id", "labels", name="drains_tenant_id_labels_unique"),
    )
    op.create_table(
        "pauses",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_group_id", ID, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("create_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "flow_group_id", name="pauses_pk"),
    )
    op.create_table(
        "agents",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("agent_id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("stream_id", ID),
        sa.Column("connect_time", TIME, nullable=False),
        sa.Column("last_seen_time", TIME, nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "agent_id", name="agents_pk"),
    )
    op.create_index(
        "agents_tenant_id_last_seen_time_agent_id_index", "agents", ["tenant_id", "last_seen_time", "agent_id"]
    )


def create_logs() -> None:
    op.create_table(
        "log_heads",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_run_id", ID, nullable=False),
        sa.Column("first_position", sa.BigInteger(), nullable=False),
        sa.Column("last_position", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "first_position >= 1 AND last_position >= first_position - 1", name="log_heads_positions_check"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "flow_run_id", name="log_heads_pk"),
    )
    op.create_table(
        "log_producers",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_run_id", ID, nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("producer", sa.Text(), nullable=False),
        sa.Column("last_sequence", sa.BigInteger(), nullable=False),
        sa.Column("closed", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "flow_run_id", "fence", "producer", name="log_producers_pk"),
    )
    op.create_table(
        "log_lines",
        sa.Column("tenant_id", ID, nullable=False),
        sa.Column("flow_run_id", ID, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("producer", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("time", TIME, nullable=False),
        sa.Column("stream", sa.Text(), nullable=False),
        sa.Column("level", sa.SmallInteger()),
        sa.Column("level_name", sa.Text(), nullable=False),
        sa.Column("logger", sa.Text(), nullable=False),
        sa.Column("content_kind", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("dropped_count", sa.BigInteger()),
        sa.Column("trace_id", sa.Text(), nullable=False),
        sa.Column("span_id", sa.Text(), nullable=False),
        sa.CheckConstraint("(content_kind = 'dropped') = (dropped_count IS NOT NULL)", name="log_lines_dropped_check"),
        sa.CheckConstraint("content_kind IN ('data', 'dropped', 'text')", name="log_lines_content_kind_check"),
        sa.CheckConstraint("stream IN ('logger', 'stderr', 'stdout')", name="log_lines_stream_check"),
        sa.PrimaryKeyConstraint("tenant_id", "flow_run_id", "position", name="log_lines_pk"),
    )
