"""Projects, flow groups and flows."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Row, Select, and_, insert, select, tuple_, update

from penstock.domain.errors import FlowGroupNotFound
from penstock.domain.flow import (
    Callable,
    Command,
    EntryPoint,
    Flow,
    FlowGroup,
    GroupDefaults,
    Policy,
    Project,
    Registration,
)
from penstock.domain.ids import FlowGroupId, FlowId, ProjectId, TenantId
from penstock.domain.parameters import Parameter, ParameterType
from penstock.domain.queries import FlowFilter, FlowName, Page
from penstock.storage import dialect
from penstock.storage.database import Transaction
from penstock.storage.schema import flow_groups, flows, projects
from penstock.storage.types import Id, UtcTime

flow, group, project = flows.c, flow_groups.c, projects.c

# Of the key that a page begins after: said, because a comparison of tuples does not hand on the types of one side.
TIME_AND_ID: Final = (UtcTime(), Id())

OF_GROUP: Final = and_(group.tenant_id == flow.tenant_id, group.flow_group_id == flow.flow_group_id)
OF_PROJECT: Final = and_(project.tenant_id == group.tenant_id, project.project_id == group.project_id)
FLOWS: Final = (
    select(flows, group.name.label("flow_name"), project.project_id, project.name.label("project_name"))
    .join(flow_groups, OF_GROUP)
    .join(projects, OF_PROJECT)
)
LIVE: Final = (
    select(flow.flow_id)
    .where(flow.tenant_id == group.tenant_id, flow.flow_group_id == group.flow_group_id, flow.archive_time.is_(None))
    .scalar_subquery()
)
GROUPS: Final = select(flow_groups, project.name.label("project_name"), LIVE.label("live_flow_id")).join(
    projects, OF_PROJECT
)


def ensure_project(tx: Transaction, tenant: TenantId, fresh: ProjectId, name: str) -> tuple[Project, bool]:
    """The project of this name, created under `fresh` if it was missing; and whether it was."""
    row = {"tenant_id": tenant, "project_id": fresh, "name": name, "create_time": tx.now}
    created = dialect.insert_unless_present(tx.conn, projects, [row], key=(project.tenant_id, project.name))
    found = tx.conn.execute(select(projects).where(project.tenant_id == tenant, project.name == name)).one()
    return _project_from_row(found), bool(created)


def list_projects(tx: Transaction, tenant: TenantId, page: Page) -> list[Project]:
    """A page of projects, oldest first."""
    listed = select(projects).where(project.tenant_id == tenant)
    if page.after:
        listed = listed.where(tuple_(project.create_time, project.project_id) > tuple_(*page.after, types=TIME_AND_ID))
    listed = listed.order_by(project.create_time, project.project_id).limit(page.size)
    return list(map(_project_from_row, tx.conn.execute(listed)))


def lock_group(tx: Transaction, tenant: TenantId, fresh: FlowGroupId, project_id: ProjectId, name: str) -> FlowGroup:
    """The group of this name, created under `fresh` if it was missing, locked so that versions are made one by one."""
    row = {
        "tenant_id": tenant,
        "flow_group_id": fresh,
        "project_id": project_id,
        "name": name,
        "default_parameters_json": None,
        "labels": None,
        "run_config": None,
        "latest_version": 0,
        "create_time": tx.now,
    }
    dialect.insert_unless_present(tx.conn, flow_groups, [row], key=(group.tenant_id, group.project_id, group.name))
    named = (group.tenant_id == tenant, group.project_id == project_id, group.name == name)
    locked = tx.conn.execute(select(group.flow_group_id).where(*named).with_for_update()).scalar_one()
    return groups_by_id(tx, tenant, [locked])[locked]


def hold_group(tx: Transaction, tenant: TenantId, group_id: FlowGroupId) -> FlowGroup:
    """This flow group, locked, so that its flows are registered and archived one by one; refused if there is none."""
    this = (group.tenant_id == tenant, group.flow_group_id == group_id)
    # Locked before it is read: what another transaction did to it meanwhile is then seen.
    tx.conn.execute(select(group.flow_group_id).where(*this).with_for_update())
    return group_by_id(tx, tenant, group_id)


def add_version(tx: Transaction, tenant: TenantId, fresh: FlowId, owner: FlowGroup, registration: Registration) -> None:
    """Archive the live flow of a locked group and make the next version the live one."""
    archive_live(tx, tenant, owner)
    version = owner.latest_version + 1
    row = {
        "tenant_id": tenant,
        "flow_id": fresh,
        "flow_group_id": owner.id,
        "version": version,
        "digest": registration.digest(),
        **_entry_point_to_row(registration.entry_point),
        "parameters": _parameters_to_text(registration.parameters),
        "accepts_extra_parameters": registration.accepts_extra_parameters,
        "labels": registration.labels,
        "run_config": registration.run_config,
        **policy_to_row(registration.policy),
        "description": registration.description,
        "source_digest": registration.source_digest,
        "create_time": tx.now,
        "archive_time": None,
    }
    tx.conn.execute(insert(flows).values(row))
    this = (group.tenant_id == tenant, group.flow_group_id == owner.id)
    tx.conn.execute(update(flow_groups).where(*this).values(latest_version=version))


def archive_live(tx: Transaction, tenant: TenantId, owner: FlowGroup) -> None:
    """Archive the live flow of a locked group; nothing if it has none."""
    live = (flow.tenant_id == tenant, flow.flow_group_id == owner.id, flow.archive_time.is_(None))
    tx.conn.execute(update(flows).where(*live).values(archive_time=tx.now))


def unarchive(tx: Transaction, tenant: TenantId, flow_id: FlowId) -> None:
    """Make a flow live, in a locked group that has no live one."""
    this = (flow.tenant_id == tenant, flow.flow_id == flow_id)
    tx.conn.execute(update(flows).where(*this).values(archive_time=None))


def update_group(tx: Transaction, tenant: TenantId, group_id: FlowGroupId, defaults: GroupDefaults) -> None:
    """Replace the defaults of a group, each whole."""
    this = (group.tenant_id == tenant, group.flow_group_id == group_id)
    values = {name: getattr(defaults, name) for name in GroupDefaults.__slots__}
    tx.conn.execute(update(flow_groups).where(*this).values(values))


def by_id(tx: Transaction, tenant: TenantId, ids: Iterable[FlowId]) -> Mapping[FlowId, Flow]:
    """These flows; the ones that do not exist are left out."""
    found = FLOWS.where(flow.tenant_id == tenant, flow.flow_id.in_(list(ids)))
    return {each.id: each for each in map(_flow_from_row, tx.conn.execute(found))}


def groups_by_id(tx: Transaction, tenant: TenantId, ids: Iterable[FlowGroupId]) -> Mapping[FlowGroupId, FlowGroup]:
    """These flow groups; the ones that do not exist are left out."""
    found = GROUPS.where(group.tenant_id == tenant, group.flow_group_id.in_(list(ids)))
    return {each.id: each for each in map(_group_from_row, tx.conn.execute(found))}


def group_by_id(tx: Transaction, tenant: TenantId, group_id: FlowGroupId) -> FlowGroup:
    """This flow group; refused if there is none."""
    found = groups_by_id(tx, tenant, [group_id])
    if group_id not in found:
        raise FlowGroupNotFound(flow_group=str(group_id))
    return found[group_id]


def groups_by_name(tx: Transaction, tenant: TenantId, name: FlowName) -> Sequence[FlowGroup]:
    """The flow groups that bear a name: one at most in a project."""
    found = GROUPS.where(group.tenant_id == tenant, group.name == name.name)
    if name.project_name is not None:
        found = found.where(project.name == name.project_name)
    return list(map(_group_from_row, tx.conn.execute(found.order_by(project.name))))


def latest_archived(tx: Transaction, tenant: TenantId, group_id: FlowGroupId, limit: int) -> list[FlowId]:
    """The archived flows of a group that were registered last, the newest first."""
    archived = (flow.tenant_id == tenant, flow.flow_group_id == group_id, flow.archive_time.is_not(None))
    return list(tx.conn.scalars(select(flow.flow_id).where(*archived).order_by(flow.version.desc()).limit(limit)))


def group_names(tx: Transaction, tenant: TenantId, limit: int) -> list[str]:
    """Names of the tenant's flow groups, each once, `limit` at most."""
    return list(
        tx.conn.scalars(
            select(group.name).where(group.tenant_id == tenant).distinct().order_by(group.name).limit(limit)
        )
    )


def list_flows(tx: Transaction, tenant: TenantId, wanted: FlowFilter, page: Page) -> list[Flow]:
    """A page of flows, newest first."""
    listed = _filtered(FLOWS.where(flow.tenant_id == tenant), wanted)
    if page.after:
        listed = listed.where(tuple_(flow.create_time, flow.flow_id) < tuple_(*page.after, types=TIME_AND_ID))
    listed = listed.order_by(flow.create_time.desc(), flow.flow_id.desc()).limit(page.size)
    return list(map(_flow_from_row, tx.conn.execute(listed)))


def policy_to_row(policy: Policy) -> Mapping[str, Any]:
    """The policy columns of a flow or a run."""
    return {name: getattr(policy, name) for name in Policy.__slots__}


def policy_from_row(row: Row[Any]) -> Policy:
    """The policy of a flow or a run."""
    return Policy(**{name: getattr(row, name) for name in Policy.__slots__})


def _filtered(listed: Select[Any], wanted: FlowFilter) -> Select[Any]:
    if wanted.project_name is not None:
        listed = listed.where(project.name == wanted.project_name)
    if wanted.group_id is not None:
        listed = listed.where(flow.flow_group_id == wanted.group_id)
    if wanted.name is not None:
        listed = listed.where(group.name == wanted.name)
    return listed if wanted.include_archived else listed.where(flow.archive_time.is_(None))


def _project_from_row(row: Row[Any]) -> Project:
    return Project(id=row.project_id, name=row.name, create_time=row.create_time)


def _group_from_row(row: Row[Any]) -> FlowGroup:
    return FlowGroup(
        id=row.flow_group_id,
        project_id=row.project_id,
        project_name=row.project_name,
        name=row.name,
        default_parameters_json=row.default_parameters_json,
        labels=row.labels,
        run_config=row.run_config,
        live_flow_id=row.live_flow_id,
        latest_version=row.latest_version,
        create_time=row.create_time,
    )


def _flow_from_row(row: Row[Any]) -> Flow:
    return Flow(
        id=row.flow_id,
        group_id=row.flow_group_id,
        project_id=row.project_id,
        version=row.version,
        digest=row.digest,
        registration=Registration(
            project_name=row.project_name,
            name=row.flow_name,
            entry_point=_entry_point_from_row(row),
            parameters=_parameters_from_text(row.parameters),
            accepts_extra_parameters=row.accepts_extra_parameters,
            labels=row.labels,
            run_config=row.run_config,
            policy=policy_from_row(row),
            description=row.description,
            source_digest=row.source_digest,
        ),
        create_time=row.create_time,
        archive_time=row.archive_time,
    )


def _entry_point_to_row(entry_point: EntryPoint) -> Mapping[str, str]:
    match entry_point:
        case Callable(path):
            return {"entry_point_kind": "python", "entry_point": path}
        case Command(arguments):
            return {"entry_point_kind": "command", "entry_point": json.dumps(arguments, ensure_ascii=False)}


def _entry_point_from_row(row: Row[Any]) -> EntryPoint:
    if row.entry_point_kind == "python":
        return Callable(row.entry_point)
    return Command(tuple(json.loads(row.entry_point)))


def _parameters_to_text(parameters: Sequence[Parameter]) -> str:
    return json.dumps([{name: getattr(each, name) for name in Parameter.__slots__} for each in parameters])


def _parameters_from_text(text: str) -> tuple[Parameter, ...]:
    return tuple(Parameter(**{**each, "type": ParameterType(each["type"])}) for each in json.loads(text))
