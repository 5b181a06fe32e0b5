"""Projects, flows and flow groups: what they look like to a caller, and how they are registered and found."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pendulum import DateTime

from flowrun.v1 import flow_pb2 as nouns
from flowrun.v1 import flow_service_pb2 as verbs
from flowrun.v1 import project_pb2
from penstock.client.calls import Call, Listing, Page, Service
from penstock.client.enums import ParameterType, word_of
from penstock.client.errors import invalid
from penstock.client.flow_runs import (
    Policy,
    RunConfig,
    labels_message,
    policy_of,
    run_config_message,
    run_config_of,
)
from penstock.client.json_text import text_of
from penstock.client.times import time_or_none
from penstock.wire.times import to_time


@dataclass(frozen=True, slots=True)
class Project:
    """A named shelf for flow groups."""

    project_id: str
    name: str
    create_time: DateTime


@dataclass(frozen=True, slots=True)
class Parameter:
    """One declared parameter of a flow."""

    name: str
    type: ParameterType
    required: bool
    default_json: str | None
    description: str

    @property
    def default(self) -> Any:
        """The value used when a run is given none; None also when there is no default."""
        return None if self.default_json is None else json.loads(self.default_json)


@dataclass(frozen=True, slots=True)
class Flow:
    """One registered version of what a run executes. Of `python` and `command` one is empty."""

    flow_id: str
    flow_group_id: str
    project_id: str
    project_name: str
    name: str
    version: int
    python: str
    command: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    accepts_extra_parameters: bool
    labels: tuple[str, ...]
    run_config: RunConfig
    policy: Policy
    description: str
    digest: str
    create_time: DateTime
    archive_time: DateTime | None


@dataclass(frozen=True, slots=True)
class RegisteredFlow(Flow):
    """A flow as its registration answered it; `created` is False when the live version was the same already."""

    created: bool


@dataclass(frozen=True, slots=True)
class FlowGroup:
    """All versions of one flow."""

    flow_group_id: str
    project_id: str
    project_name: str
    name: str
    default_parameters_json: str | None
    labels: tuple[str, ...] | None
    run_config: RunConfig | None
    live_flow_id: str
    latest_version: int
    create_time: DateTime

    @property
    def default_parameters(self) -> dict[str, Any]:
        """Defaults that go before the flow's own."""
        return dict(json.loads(self.default_parameters_json or "{}"))


class Registrable(Protocol):
    """What can be registered: a function that `penstock.flow` decorated, or a command."""

    def to_request(self, project: str) -> verbs.RegisterFlowRequest:
        """Describe the version to register in that project."""
        ...


def create_project(name: str) -> Call[Project]:
    """Create a project, or return the one that has this name already."""
    request = verbs.CreateProjectRequest(name=name)
    return Call(Service.FLOW, "CreateProject", request, lambda response: project_of(response.project))


def list_projects(*, page_size: int = 0) -> Listing[Project]:
    """List projects, oldest first."""

    def page(token: str) -> Call[Page[Project]]:
        return Call(
            Service.FLOW,
            "ListProjects",
            verbs.ListProjectsRequest(page_size=page_size, page_token=token),
            lambda response: Page([project_of(each) for each in response.projects], response.next_page_token),
        )

    return Listing(page)


def register_flow(
    flow: Registrable, *, project: str = "", name: str = "", flow_group_id: str = ""
) -> Call[RegisteredFlow]:
    """Register a version of a flow in a project, under another name if one is given, or in the group of that id.

    The same version again changes nothing.
    """
    if not project and not flow_group_id:
        raise invalid("project", "must be given, or flow_group_id in its place.")
    request = verbs.RegisterFlowRequest()
    request.CopyFrom(flow.to_request(project))
    request.flow_group_id = flow_group_id
    # A group has its own name, and the flow's is but a default.
    if name or flow_group_id:
        request.name = name
    return Call(Service.FLOW, "RegisterFlow", request, _registered)


def get_flow(flow_id: str) -> Call[Flow]:
    """Return a flow, archived or not."""
    return Call(Service.FLOW, "GetFlow", verbs.GetFlowRequest(flow_id=flow_id), lambda response: flow_of(response.flow))


def look_up_flow(*, id: str | None = None, name: str | None = None, project: str = "") -> Call[Flow]:  # noqa: A002
    """Return the flow that a person means, by the id of a flow or a group, or by a name: these mean their live flow."""
    if (id is None) == (name is None):
        raise invalid("reference", "exactly one of id and name must be given.")
    request = verbs.LookUpFlowRequest()
    if id is not None:
        request.id = id
    elif name is not None:
        request.name.CopyFrom(verbs.FlowName(name=name, project_name=project))
    return Call(Service.FLOW, "LookUpFlow", request, lambda response: flow_of(response.flow))


def list_flows(
    *,
    project: str = "",
    flow_group_id: str = "",
    name: str = "",
    include_archived: bool = False,
    page_size: int = 0,
) -> Listing[Flow]:
    """List flows, newest first. All filters must hold."""

    def page(token: str) -> Call[Page[Flow]]:
        request = verbs.ListFlowsRequest(
            page_size=page_size,
            page_token=token,
            project_name=project,
            flow_group_id=flow_group_id,
            name=name,
            include_archived=include_archived,
        )
        return Call(
            Service.FLOW,
            "ListFlows",
            request,
            lambda response: Page([flow_of(each) for each in response.flows], response.next_page_token),
        )

    return Listing(page)


def get_flow_group(flow_group_id: str) -> Call[FlowGroup]:
    """Return a flow group."""
    request = verbs.GetFlowGroupRequest(flow_group_id=flow_group_id)
    return Call(Service.FLOW, "GetFlowGroup", request, lambda response: flow_group_of(response.flow_group))


def archive_flow(flow_id: str) -> Call[Flow]:
    """Archive a flow, and return it: no run of it can be created any more; runs that exist go on."""
    request = verbs.ArchiveFlowRequest(flow_id=flow_id)
    return Call(Service.FLOW, "ArchiveFlow", request, lambda response: flow_of(response.flow))


def unarchive_flow(flow_id: str) -> Call[Flow]:
    """Make an archived flow the live one of its group, in place of the one that was, and return it."""
    request = verbs.UnarchiveFlowRequest(flow_id=flow_id)
    return Call(Service.FLOW, "UnarchiveFlow", request, lambda response: flow_of(response.flow))


def update_flow_group(
    flow_group_id: str,
    *,
    default_parameters: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    run_config: RunConfig | None = None,
) -> Call[FlowGroup]:
    """Replace the defaults of a flow group, and return it. What is left out is removed; `labels=[]` unlabels its runs.

    Runs that exist keep what they have.
    """
    request = verbs.UpdateFlowGroupRequest(
        flow_group_id=flow_group_id,
        default_parameters_json=(
            None if default_parameters is None else text_of("default_parameters", default_parameters)
        ),
        labels=labels_message("labels", labels),
        run_config=run_config_message(run_config),
    )
    return Call(Service.FLOW, "UpdateFlowGroup", request, lambda response: flow_group_of(response.flow_group))


def project_of(message: project_pb2.Project) -> Project:
    """The project in a message."""
    return Project(message.project_id, message.name, to_time(message.create_time))


def flow_of(message: nouns.Flow) -> Flow:
    """The flow in a message."""
    return Flow(**_flow_fields(message))


def flow_group_of(message: nouns.FlowGroup) -> FlowGroup:
    """The group in a message."""
    has_defaults = message.HasField("default_parameters_json")
    return FlowGroup(
        flow_group_id=message.flow_group_id,
        project_id=message.project_id,
        project_name=message.project_name,
        name=message.name,
        default_parameters_json=message.default_parameters_json if has_defaults else None,
        labels=tuple(message.labels.labels) if message.HasField("labels") else None,
        run_config=run_config_of(message.run_config) if message.HasField("run_config") else None,
        live_flow_id=message.live_flow_id,
        latest_version=message.latest_version,
        create_time=to_time(message.create_time),
    )


def _flow_fields(message: nouns.Flow) -> Mapping[str, Any]:
    return {
        "flow_id": message.flow_id,
        "flow_group_id": message.flow_group_id,
        "project_id": message.project_id,
        "project_name": message.project_name,
        "name": message.name,
        "version": message.version,
        "python": message.entry_point.python,
        "command": tuple(message.entry_point.command.arguments),
        "parameters": tuple(map(_parameter_of, message.parameters)),
        "accepts_extra_parameters": message.accepts_extra_parameters,
        "labels": tuple(message.labels),
        "run_config": run_config_of(message.run_config),
        "policy": policy_of(message.policy),
        "description": message.description,
        "digest": message.digest,
        "create_time": to_time(message.create_time),
        "archive_time": time_or_none(message, "archive_time"),
    }


def _parameter_of(message: nouns.Parameter) -> Parameter:
    return Parameter(
        name=message.name,
        type=word_of(ParameterType, nouns.ParameterType, "PARAMETER_TYPE_", message.type),
        required=message.required,
        default_json=message.default_json if message.HasField("default_json") else None,
        description=message.description,
    )


def _registered(response: verbs.RegisterFlowResponse) -> RegisteredFlow:
    return RegisteredFlow(**_flow_fields(response.flow), created=response.created)
