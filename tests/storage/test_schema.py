"""What the tables themselves hold to."""

from collections.abc import Mapping
from typing import Any

import pytest
from sqlalchemy import CheckConstraint, Table, UniqueConstraint, insert, select, text
from sqlalchemy.exc import IntegrityError

from penstock.domain.flow import FlowGroup
from penstock.domain.flow_run import FlowRun
from penstock.domain.ids import DEFAULT_TENANT, FlowGroupId, FlowId, ProjectId
from penstock.domain.lease import Entry
from penstock.domain.state import FINAL, State
from penstock.storage import flow_runs, flows, queue
from penstock.storage.database import Database, Transaction
from penstock.storage.schema import flows as flows_table
from penstock.storage.schema import metadata
from tests.support.builders import a_flow_run, a_registration, an_entry, an_id
from tests.support.fake_clock import NOON

TENANTS_TABLES = [table for table in metadata.sorted_tables if table.name != "installation"]


@pytest.mark.parametrize("table", TENANTS_TABLES, ids=str)
def test_the_tenant_comes_first(table: Table) -> None:
    """Every key and every index begins with the tenant, so that a tenant's rows lie together on any engine."""
    unique = [list(each.columns) for each in table.constraints if isinstance(each, UniqueConstraint)]
    keys = [list(table.primary_key.columns), *unique, *(list(index.columns) for index in table.indexes)]

    assert {key[0].name for key in keys} == {"tenant_id"}


def test_only_what_changes_seldom_refers_by_foreign_key() -> None:
    """A key to flow_runs would take locks against the one order in which locks are taken."""
    referring = {table.name for table in metadata.sorted_tables if table.foreign_keys}

    assert referring == {"flow_groups", "flows"}


def test_names_of_constraints_fit() -> None:
    """PostgreSQL would cut a longer name off silently."""
    constraints = [str(each.name) for table in metadata.sorted_tables for each in table.constraints]
    indexes = [str(each.name) for table in metadata.sorted_tables for each in table.indexes]

    assert max(map(len, constraints + indexes)) <= 63


def test_every_enum_is_held_to_its_members() -> None:
    """A column with the word of an enum has a check; a new member changes it, which asks for a new version."""
    for table in metadata.sorted_tables:
        checks = " ".join(str(each.sqltext) for each in table.constraints if isinstance(each, CheckConstraint))
        for column in table.columns:
            for word in getattr(column.type, "words", ()):
                assert f"{column.name} IN (" in checks
                assert f"'{word.value}'" in checks


@pytest.mark.parametrize("state", State)
async def test_a_run_may_be_in_every_state(database: Database, state: State) -> None:
    """A run that came to a state by the table of moves is taken."""
    await database.run(flow_runs.insert, DEFAULT_TENANT, [a_flow_run(state)])


@pytest.mark.parametrize("state", State)
async def test_a_run_is_finished_exactly_when_it_is_final(database: Database, state: State) -> None:
    """A final run without a time of its end is refused, and so is a live one with it."""
    wrong = a_flow_run(state, finish_time=None if state in FINAL else NOON)

    await refused(database, flow_runs.insert, wrong)


@pytest.mark.parametrize("wrong", [{"version": 0}, {"attempt": 0}, {"retries_left": -1}, {"fence": -1}])
async def test_counts_of_a_run_stay_sensible(database: Database, wrong: Mapping[str, Any]) -> None:
    """Counts that begin at one or at zero do not fall below."""
    await refused(database, flow_runs.insert, a_flow_run(**wrong))


@pytest.mark.parametrize("missing", ["holder", "grant_time", "lease_expire_time"])
async def test_an_entry_waits_exactly_when_nobody_holds_it(database: Database, missing: str) -> None:
    """A waiting entry bears nothing of a lease; every other one has a holder, a grant and an expiry."""
    leftovers: dict[str, Any] = {"holder": an_id(), "grant_time": NOON, "lease_expire_time": NOON}
    held = a_flow_run(State.RUNNING)

    await refused(database, queue.insert, an_entry(held, **{missing: None}))
    await refused(database, queue.insert, an_entry(a_flow_run(), **{missing: leftovers[missing]}))
    await database.run(queue.insert, DEFAULT_TENANT, [an_entry(held), an_entry(a_flow_run())])


async def test_an_unknown_word_is_refused(database: Database) -> None:
    """Words that no enum knows do not get into a row."""

    def change(tx: Transaction) -> None:
        tx.conn.execute(text("UPDATE flow_runs SET child_policy = 'adopt'"))

    await database.run(flow_runs.insert, DEFAULT_TENANT, [a_flow_run()])

    with pytest.raises(IntegrityError, match="flow_runs_child_policy_check"):
        await database.run(change)


async def test_a_group_has_one_live_flow(database: Database) -> None:
    """A second flow of a group that is not archived is refused, by the group's index."""

    def register(tx: Transaction) -> FlowGroup:
        project, _ = flows.ensure_project(tx, DEFAULT_TENANT, ProjectId(an_id()), "reports")
        group = flows.lock_group(tx, DEFAULT_TENANT, FlowGroupId(an_id()), project.id, "daily report")
        flows.add_version(tx, DEFAULT_TENANT, FlowId(an_id()), group, a_registration())
        return flows.group_by_id(tx, DEFAULT_TENANT, group.id)

    def copy_live(tx: Transaction, archived: bool) -> None:
        live = tx.conn.execute(select(flows_table)).mappings().one()
        changes = {"flow_id": an_id(), "version": 2, "archive_time": NOON if archived else None}
        tx.conn.execute(insert(flows_table).values(dict(live) | changes))

    await database.run(register)

    with pytest.raises(IntegrityError, match=r"flows_one_live_index|flow_group_id"):
        await database.run(copy_live, archived=False)
    await database.run(copy_live, archived=True)


async def refused(database: Database, work: Any, wrong: FlowRun | Entry) -> None:
    """The database takes no such row."""
    with pytest.raises(IntegrityError, match="_check"):
        await database.run(work, DEFAULT_TENANT, [wrong])
