"""Projects, flow groups and flows, and the run configs and policies that runs share with them."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from flowrun.v1 import flow_pb2, flow_run_pb2, flow_service_pb2, project_pb2
from penstock.domain.flow import (
    Callable,
    ChildPolicy,
    Command,
    EntryPoint,
    Flow,
    FlowGroup,
    GroupDefaults,
    Policy,
    PolicyAsked,
    Project,
    Registration,
    RunConfig,
)
from penstock.domain.ids import FlowGroupId
from penstock.domain.json_text import canonical
from penstock.domain.limits import (
    ARGUMENTS_MAX,
    DESCRIPTION_CHARACTERS_MAX,
    ENTRY_POINT_BYTES_MAX,
    ENTRY_POINT_CHARACTERS_MAX,
    ENVIRONMENT_VALUE_CHARACTERS_MAX,
    ENVIRONMENT_VARIABLES_MAX,
    LOST_RESTARTS_MAX,
    NAME_CHARACTERS_MAX,
    PARAMETERS_BYTES_MAX,
    PARAMETERS_MAX,
    PATH_CHARACTERS_MAX,
    PRIORITY_MAX,
    RESOURCES_MAX,
    RETRIES_MAX,
    RETRY_DELAY_MAX,
    RUN_CONFIG_BYTES_MAX,
)
from penstock.domain.parameters import FITS, Parameter, ParameterType, type_of
from penstock.domain.queries import FlowFilter, FlowName, FlowReference
from penstock.wire.checks import Checks, abridged, collecting, present
from penstock.wire.logs import LOG_LEVEL_FROM_PROTO, LOG_LEVEL_TO_PROTO
from penstock.wire.times import to_duration, to_timestamp

CHILD_POLICY_TO_PROTO: Final[Mapping[ChildPolicy, flow_run_pb2.ChildPolicy.ValueType]] = {
    policy: flow_run_pb2.ChildPolicy.Value(f"CHILD_POLICY_{policy.name}") for policy in ChildPolicy
}
CHILD_POLICY_FROM_PROTO: Final[Mapping[int, ChildPolicy]] = {
    number: policy for policy, number in CHILD_POLICY_TO_PROTO.items()
}
PARAMETER_TYPE_TO_PROTO: Final[Mapping[ParameterType, flow_pb2.ParameterType.ValueType]] = {
    ParameterType.ANY: flow_pb2.PARAMETER_TYPE_UNSPECIFIED
} | {
    kind: flow_pb2.ParameterType.Value(f"PARAMETER_TYPE_{kind.name}")
    for kind in ParameterType
    if kind is not ParameterType.ANY
}
PARAMETER_TYPE_FROM_PROTO: Final[Mapping[int, ParameterType]] = {
    number: kind for kind, number in PARAMETER_TYPE_TO_PROTO.items()
}

# A path or module, a colon, and a name or dotted names within it.
_PYTHON_ENTRY_POINT: Final = re.compile(r".*\S.*:[^\W\d]\w*(\.[^\W\d]\w*)*", re.DOTALL)
_NO_TIME: Final = timedelta(0)


def registering_of(request: flow_service_pb2.RegisterFlowRequest) -> tuple[Registration, FlowGroupId | None]:
    """The version that somebody asks to be registered, and the group if one is given by its id."""
    with collecting(None) as checks:
        group_id = checks.uuid("flow_group_id", request.flow_group_id, required=False)
        return registration_of(request, checks), None if group_id is None else FlowGroupId(group_id)


def registration_of(request: flow_service_pb2.RegisterFlowRequest, checks: Checks | None = None) -> Registration:
    """The version to register; it may leave the names to a group that is given."""
    with collecting(checks) as checks:
        by_name = not request.flow_group_id
        return Registration(
            project_name=checks.name("project_name", request.project_name, required=by_name),
            name=checks.name("name", request.name, required=by_name),
            entry_point=_entry_point_of(checks, request.entry_point),
            parameters=_parameters_of(checks, request.parameters),
            accepts_extra_parameters=request.accepts_extra_parameters,
            labels=checks.labels("labels", request.labels),
            run_config=run_config_of(checks, "run_config", request.run_config),
            policy=policy_of(checks, "policy", request.policy).over(Policy()),
            description=checks.text("description", request.description, DESCRIPTION_CHARACTERS_MAX),
            source_digest=checks.text("source_digest", request.source_digest, NAME_CHARACTERS_MAX),
        )


def project_name_of(request: flow_service_pb2.CreateProjectRequest) -> str:
    """The name of the project to create."""
    with collecting(None) as checks:
        return checks.name("name", request.name)


def reference_of(request: flow_service_pb2.LookUpFlowRequest) -> FlowReference:
    """Which flow a person means."""
    with collecting(None) as checks:
        match request.WhichOneof("reference"):
            case "id":
                return checks.uuid("id", request.id)
            case "name":
                project = checks.name("name.project_name", request.name.project_name, required=False)
                return FlowName(checks.name("name.name", request.name.name), project or None)
            case _:
                checks.refuse("reference", "is required: an id or a name")
                return FlowName("")


def flow_filter_of(request: flow_service_pb2.ListFlowsRequest, checks: Checks | None = None) -> FlowFilter:
    """Which flows to list. Violations go to `checks` where there are some, whose owner then refuses by them."""
    with collecting(checks) as checks:
        group_id = checks.uuid("flow_group_id", request.flow_group_id, required=False)
        return FlowFilter(
            project_name=checks.name("project_name", request.project_name, required=False) or None,
            group_id=None if group_id is None else FlowGroupId(group_id),
            name=checks.name("name", request.name, required=False) or None,
            include_archived=request.include_archived,
        )


def group_defaults_of(request: flow_service_pb2.UpdateFlowGroupRequest) -> tuple[FlowGroupId, GroupDefaults]:
    """Which group shall have which defaults. Whether parameters fit a flow is seen when a run is created."""
    with collecting(None) as checks:
        return FlowGroupId(checks.uuid("flow_group_id", request.flow_group_id)), GroupDefaults(
            default_parameters_json=_default_parameters_of(checks, request),
            labels=checks.labels("labels", request.labels.labels) if request.HasField("labels") else None,
            run_config=run_config_of(checks, "run_config", request.run_config)
            if request.HasField("run_config")
            else None,
        )


def run_config_of(checks: Checks, field: str, config: flow_run_pb2.RunConfig) -> RunConfig:
    """Where and how to launch. Bounded as a whole too, so that whatever carries it stays within a message."""
    if not checks.size(field, config.ByteSize(), RUN_CONFIG_BYTES_MAX):
        return RunConfig()
    return RunConfig(
        environment=_environment_of(checks, f"{field}.environment", config.environment),
        working_directory=checks.text(f"{field}.working_directory", config.working_directory, PATH_CHARACTERS_MAX),
        image=checks.text(f"{field}.image", config.image, PATH_CHARACTERS_MAX),
        resources=_resources_of(checks, f"{field}.resources", config.resources),
    )


def policy_of(checks: Checks, field: str, policy: flow_run_pb2.FlowRunPolicy) -> PolicyAsked:
    """The part of a policy that was named."""
    return PolicyAsked(
        priority=_count_of(checks, field, policy, "priority", PRIORITY_MAX),
        max_retries=_count_of(checks, field, policy, "max_retries", RETRIES_MAX),
        retry_delay=checks.duration(f"{field}.retry_delay", policy.retry_delay, _NO_TIME, RETRY_DELAY_MAX)
        if policy.HasField("retry_delay")
        else None,
        max_lost_restarts=_count_of(checks, field, policy, "max_lost_restarts", LOST_RESTARTS_MAX),
        log_level=checks.choice(f"{field}.log_level", policy.log_level, LOG_LEVEL_FROM_PROTO, unspecified=None),
        child_policy=checks.choice(
            f"{field}.child_policy", policy.child_policy, CHILD_POLICY_FROM_PROTO, unspecified=None
        ),
    )


def project_to_proto(project: Project) -> project_pb2.Project:
    return project_pb2.Project(
        project_id=str(project.id), name=project.name, create_time=to_timestamp(project.create_time)
    )


def group_to_proto(group: FlowGroup) -> flow_pb2.FlowGroup:
    return flow_pb2.FlowGroup(
        flow_group_id=str(group.id),
        project_id=str(group.project_id),
        project_name=group.project_name,
        name=group.name,
        default_parameters_json=group.default_parameters_json,
        labels=None if group.labels is None else flow_run_pb2.Labels(labels=group.labels),
        run_config=None if group.run_config is None else run_config_to_proto(group.run_config),
        live_flow_id="" if group.live_flow_id is None else str(group.live_flow_id),
        latest_version=group.latest_version,
        create_time=to_timestamp(group.create_time),
    )


def flow_to_proto(flow: Flow) -> flow_pb2.Flow:
    registration = flow.registration
    return flow_pb2.Flow(
        flow_id=str(flow.id),
        flow_group_id=str(flow.group_id),
        project_id=str(flow.project_id),
        project_name=registration.project_name,
        name=registration.name,
        version=flow.version,
        entry_point=_entry_point_to_proto(registration.entry_point),
        parameters=map(_parameter_to_proto, registration.parameters),
        accepts_extra_parameters=registration.accepts_extra_parameters,
        labels=registration.labels,
        run_config=run_config_to_proto(registration.run_config),
        policy=policy_to_proto(registration.policy),
        description=registration.description,
        digest=flow.digest,
        create_time=to_timestamp(flow.create_time),
        archive_time=None if flow.archive_time is None else to_timestamp(flow.archive_time),
    )


def run_config_to_proto(config: RunConfig) -> flow_run_pb2.RunConfig:
    return flow_run_pb2.RunConfig(
        environment=config.environment,
        working_directory=config.working_directory,
        image=config.image,
        resources=config.resources,
    )


def policy_to_proto(policy: Policy) -> flow_run_pb2.FlowRunPolicy:
    """The policy with every field set."""
    return flow_run_pb2.FlowRunPolicy(
        priority=policy.priority,
        max_retries=policy.max_retries,
        retry_delay=to_duration(policy.retry_delay),
        max_lost_restarts=policy.max_lost_restarts,
        log_level=LOG_LEVEL_TO_PROTO[policy.log_level],
        child_policy=CHILD_POLICY_TO_PROTO[policy.child_policy],
    )


def _default_parameters_of(checks: Checks, request: flow_service_pb2.UpdateFlowGroupRequest) -> str | None:
    field = "default_parameters_json"
    text: str | None = present(request, field)
    if text is None:
        return None
    parameters = checks.json_object(field, text, PARAMETERS_BYTES_MAX)
    for name in checks.several(field, tuple(parameters), PARAMETERS_MAX):
        checks.name(f"{field}[{abridged(name)!r}]", name)
    return canonical(parameters)


def _count_of(checks: Checks, field: str, policy: flow_run_pb2.FlowRunPolicy, name: str, high: int) -> int | None:
    value: int | None = present(policy, name)
    return None if value is None else checks.count(f"{field}.{name}", value, 0, high)


def _environment_of(checks: Checks, field: str, environment: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in checks.several(field, sorted(environment.items()), ENVIRONMENT_VARIABLES_MAX):
        place = f"{field}[{name!r}]"
        if not name or "=" in name or "\0" in name:
            checks.refuse(place, "is not the name of a variable: that is not empty and holds neither '=' nor NUL")
        checks.text(place, value, ENVIRONMENT_VALUE_CHARACTERS_MAX)
    return dict(environment)


def _resources_of(checks: Checks, field: str, resources: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in checks.several(field, sorted(resources.items()), RESOURCES_MAX):
        checks.name(f"{field}[{name!r}]", name)
        checks.text(f"{field}[{name!r}]", value, NAME_CHARACTERS_MAX)
    return dict(resources)


def _entry_point_of(checks: Checks, entry_point: flow_pb2.EntryPoint) -> EntryPoint:
    match entry_point.WhichOneof("kind"):
        case "python":
            path = checks.words("entry_point.python", entry_point.python, ENTRY_POINT_CHARACTERS_MAX)
            if path and not _PYTHON_ENTRY_POINT.fullmatch(path):
                form = "'path/to/file.py:function' or 'package.module:function'"
                checks.refuse("entry_point.python", f"is not of the form {form}")
            return Callable(path)
        case "command":
            return _command_of(checks, "entry_point.command.arguments", entry_point.command)
        case _:
            checks.refuse("entry_point", "is required: a python callable or a command")
            return Callable("")


def _command_of(checks: Checks, field: str, command: flow_pb2.Command) -> Command:
    if not checks.size(field, command.ByteSize(), ENTRY_POINT_BYTES_MAX):
        return Command(())
    arguments = tuple(checks.several(field, command.arguments, ARGUMENTS_MAX, low=1))
    for index, argument in enumerate(arguments):
        checks.text(f"{field}[{index}]", argument, ENTRY_POINT_BYTES_MAX, required=index == 0)
    return Command(arguments)


def _parameters_of(checks: Checks, declared: Sequence[flow_pb2.Parameter]) -> tuple[Parameter, ...]:
    checks.size("parameters", sum(each.ByteSize() for each in declared), PARAMETERS_BYTES_MAX)
    parameters = tuple(
        _parameter_of(checks, f"parameters[{index}]", each)
        for index, each in enumerate(checks.several("parameters", declared, PARAMETERS_MAX))
    )
    seen: set[str] = set()
    for index, parameter in enumerate(parameters):
        if parameter.name in seen:
            checks.refuse(f"parameters[{index}].name", f"is {abridged(parameter.name)!r}, which was declared before")
        seen.add(parameter.name)
    return parameters


def _parameter_of(checks: Checks, field: str, declared: flow_pb2.Parameter) -> Parameter:
    kind = checks.choice(f"{field}.type", declared.type, PARAMETER_TYPE_FROM_PROTO, unspecified=ParameterType.ANY)
    return Parameter(
        name=checks.name(f"{field}.name", declared.name),
        type=kind,
        required=declared.required,
        default_json=_default_of(checks, f"{field}.default_json", declared, kind),
        description=checks.text(f"{field}.description", declared.description, DESCRIPTION_CHARACTERS_MAX),
    )


def _default_of(checks: Checks, field: str, declared: flow_pb2.Parameter, kind: ParameterType) -> str | None:
    if not declared.HasField("default_json"):
        return None
    if declared.required:
        checks.refuse(field, "is given, but a required parameter has no default")
    value = checks.json(field, declared.default_json, PARAMETERS_BYTES_MAX)
    # Null is a default for every type, as in a Python `x: int = None`.
    if value is not None and not FITS[kind](value):
        checks.refuse(field, f"must be of type {kind}, not {type_of(value)}")
    return canonical(value)


def _entry_point_to_proto(entry_point: EntryPoint) -> flow_pb2.EntryPoint:
    match entry_point:
        case Callable(path):
            return flow_pb2.EntryPoint(python=path)
        case Command(arguments):
            return flow_pb2.EntryPoint(command=flow_pb2.Command(arguments=arguments))


def _parameter_to_proto(parameter: Parameter) -> flow_pb2.Parameter:
    return flow_pb2.Parameter(
        name=parameter.name,
        type=PARAMETER_TYPE_TO_PROTO[parameter.type],
        required=parameter.required,
        default_json=parameter.default_json,
        description=parameter.description,
    )
