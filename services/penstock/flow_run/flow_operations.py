"""What each rpc of FlowService does, inside one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final
from uuid import UUID

from penstock.domain.errors import FlowNameAmbiguous, FlowNotFound, InvalidRequest, NoLiveFlow, Violation
from penstock.domain.flow import Flow, FlowGroup, GroupDefaults, Project, Registration
from penstock.domain.ids import FlowGroupId, FlowId, ProjectId, TenantId
from penstock.domain.queries import FlowFilter, FlowName, FlowReference, Page
from penstock.storage import flows
from penstock.storage.database import Transaction

# How many candidates a refusal names, and how many names are looked through for similar ones.
CANDIDATES_MAX: Final = 3
NAMES_COMPARED_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class FreshIds:
    """Identities for whatever a registration turns out to need, drawn before the transaction."""

    project_id: ProjectId
    group_id: FlowGroupId
    flow_id: FlowId


def create_project(tx: Transaction, tenant: TenantId, fresh: ProjectId, name: str) -> tuple[Project, bool]:
    """The project of this name, and whether it was created now."""
    return flows.ensure_project(tx, tenant, fresh, name)


def list_projects(tx: Transaction, tenant: TenantId, page: Page) -> list[Project]:
    """A page of projects, oldest first."""
    return flows.list_projects(tx, tenant, page)


def register_flow(
    tx: Transaction,
    tenant: TenantId,
    fresh: FreshIds,
    registration: Registration,
    group_id: FlowGroupId | None = None,
) -> tuple[Flow, bool]:
    """The live flow of the group, and whether it is a new version because the registration differs from it.

    The group is the one that is given, else that of the project and name, which is created if it is missing.
    """
    if group_id is None:
        project, _ = flows.ensure_project(tx, tenant, fresh.project_id, registration.project_name)
        group = flows.lock_group(tx, tenant, fresh.group_id, project.id, registration.name)
    else:
        group = flows.hold_group(tx, tenant, group_id)
        registration = _named_as(group, registration)
    live = _live(tx, tenant, group)
    if live and live.digest == registration.digest():
        return live, False
    flows.add_version(tx, tenant, fresh.flow_id, group, registration)
    return get_flow(tx, tenant, fresh.flow_id), True


def get_flow(tx: Transaction, tenant: TenantId, flow_id: FlowId) -> Flow:
    """The flow, archived or not."""
    found = flows.by_id(tx, tenant, [flow_id])
    if flow_id not in found:
        raise FlowNotFound(flow=str(flow_id))
    return found[flow_id]


def archive_flow(tx: Transaction, tenant: TenantId, flow_id: FlowId) -> Flow:
    """The flow, archived now or before."""
    group = flows.hold_group(tx, tenant, get_flow(tx, tenant, flow_id).group_id)
    if group.live_flow_id == flow_id:
        flows.archive_live(tx, tenant, group)
    return get_flow(tx, tenant, flow_id)


def unarchive_flow(tx: Transaction, tenant: TenantId, flow_id: FlowId) -> Flow:
    """The flow, now the live one of its group; the one that was is archived."""
    group = flows.hold_group(tx, tenant, get_flow(tx, tenant, flow_id).group_id)
    if group.live_flow_id != flow_id:
        flows.archive_live(tx, tenant, group)
        flows.unarchive(tx, tenant, flow_id)
    return get_flow(tx, tenant, flow_id)


def update_flow_group(tx: Transaction, tenant: TenantId, group_id: FlowGroupId, defaults: GroupDefaults) -> FlowGroup:
    """The flow group with these defaults in place of the ones it had."""
    flows.hold_group(tx, tenant, group_id)
    flows.update_group(tx, tenant, group_id, defaults)
    return flows.group_by_id(tx, tenant, group_id)


def get_flow_group(tx: Transaction, tenant: TenantId, group_id: FlowGroupId) -> FlowGroup:
    """The flow group."""
    return flows.group_by_id(tx, tenant, group_id)


def look_up_flow(tx: Transaction, tenant: TenantId, reference: FlowReference) -> Flow:
    """The flow that a person means by an id, of a flow or a group, or by a name."""
    if isinstance(reference, FlowName):
        return _by_name(tx, tenant, reference)
    return _by_any_id(tx, tenant, reference)


def list_flows(tx: Transaction, tenant: TenantId, wanted: FlowFilter, page: Page) -> Sequence[Flow]:
    """A page of flows, newest first."""
    return flows.list_flows(tx, tenant, wanted, page)


def _by_any_id(tx: Transaction, tenant: TenantId, reference: UUID) -> Flow:
    flow = flows.by_id(tx, tenant, [FlowId(reference)]).get(FlowId(reference))
    if flow is not None:
        return flow
    group = flows.groups_by_id(tx, tenant, [FlowGroupId(reference)]).get(FlowGroupId(reference))
    if group is None:
        raise FlowNotFound(flow=str(reference))
    return _live_or_refuse(tx, tenant, group)


def _by_name(tx: Transaction, tenant: TenantId, name: FlowName) -> Flow:
    groups = flows.groups_by_name(tx, tenant, name)
    if not groups:
        raise _not_found(tx, tenant, name)
    if len(groups) > 1:
        raise FlowNameAmbiguous(name=name.name, projects=tuple(each.project_name for each in groups))
    return _live_or_refuse(tx, tenant, groups[0])


def _not_found(tx: Transaction, tenant: TenantId, name: FlowName) -> FlowNotFound:
    """A refusal that says where the name does exist, or which names are like it."""
    if name.project_name is not None:
        elsewhere = flows.groups_by_name(tx, tenant, FlowName(name.name))
        projects = [each.project_name for each in elsewhere[:CANDIDATES_MAX]]
        where = f" in project {name.project_name!r}"
        if projects:
            where += f"; it is in {', '.join(map(repr, projects))}"
            return FlowNotFound(flow=f"named {name.name!r}{where}")
    else:
        where = ""
    names = flows.group_names(tx, tenant, NAMES_COMPARED_MAX)
    similar = get_close_matches(name.name, names, CANDIDATES_MAX)
    return FlowNotFound(flow=f"named {name.name!r}{where}", similar=tuple(similar))


def _named_as(group: FlowGroup, registration: Registration) -> Registration:
    """A registration for a group that is given: it may leave the names out, and may not give others."""
    named = {
        "project_name": (registration.project_name, group.project_name),
        "name": (registration.name, group.name),
    }
    wrong = tuple(
        Violation(field, f"is {given!r}, but the flow group's is {own!r}; leave it out")
        for field, (given, own) in named.items()
        if given not in ("", own)
    )
    if wrong:
        raise InvalidRequest(wrong)
    return replace(registration, project_name=group.project_name, name=group.name)


def _live_or_refuse(tx: Transaction, tenant: TenantId, group: FlowGroup) -> Flow:
    live = _live(tx, tenant, group)
    if live is None:
        archived = flows.latest_archived(tx, tenant, group.id, CANDIDATES_MAX)
        raise NoLiveFlow(flow_group_id=str(group.id), archived=tuple(map(str, archived)))
    return live


def _live(tx: Transaction, tenant: TenantId, group: FlowGroup) -> Flow | None:
    if group.live_flow_id is None:
        return None
    return flows.by_id(tx, tenant, [group.live_flow_id])[group.live_flow_id]
