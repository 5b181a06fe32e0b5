"""Tests of `penstock.wire.flows`."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from google.protobuf.duration_pb2 import Duration

from flowrun.v1 import flow_pb2, flow_run_pb2, log_pb2
from flowrun.v1 import flow_service_pb2 as pb
from penstock.domain import limits
from penstock.domain.flow import (
    Callable,
    ChildPolicy,
    Command,
    GroupDefaults,
    Policy,
    PolicyAsked,
    Project,
    Registration,
    RunConfig,
)
from penstock.domain.log import LogLevel
from penstock.domain.parameters import Parameter, ParameterType
from penstock.domain.queries import FlowFilter, FlowName
from penstock.wire import flows
from penstock.wire.checks import Checks
from penstock.wire.flows import (
    flow_filter_of,
    flow_to_proto,
    group_defaults_of,
    group_to_proto,
    policy_of,
    policy_to_proto,
    project_name_of,
    project_to_proto,
    reference_of,
    registering_of,
    registration_of,
    run_config_of,
    run_config_to_proto,
)
from tests.domain.builders import FLOW_ID, GROUP_ID, PROJECT_ID, a_flow, a_group
from tests.support.fake_clock import NOON
from tests.wire.refusing import wrong, wrong_fields

PYTHON = flow_pb2.EntryPoint(python="levels.py:main")


def a_request(**fields: Any) -> pb.RegisterFlowRequest:
    plain: dict[str, Any] = {"project_name": "water", "name": "levels", "entry_point": PYTHON}
    return pb.RegisterFlowRequest(**(plain | fields))


def checked(config: flow_run_pb2.RunConfig) -> RunConfig:
    """The run config, or a refusal."""
    checks = Checks()
    read = run_config_of(checks, "run_config", config)
    checks.done()
    return read


def asked(policy: flow_run_pb2.FlowRunPolicy) -> PolicyAsked:
    """The policy, or a refusal."""
    checks = Checks()
    read = policy_of(checks, "policy", policy)
    checks.done()
    return read


def test_a_plain_registration() -> None:
    """What a request leaves out has the defaults that the contract documents."""
    registration = registration_of(a_request())

    assert Registration(project_name="water", name="levels", entry_point=Callable("levels.py:main")) == registration
    assert Policy(max_lost_restarts=3, log_level=LogLevel.INFO, child_policy=ChildPolicy.CANCEL) == registration.policy


def test_a_flow_survives() -> None:
    """Everything that was registered is answered as it was asked."""
    request = a_request(
        entry_point=flow_pb2.EntryPoint(command=flow_pb2.Command(arguments=["sh", "", "-c"])),
        parameters=[
            flow_pb2.Parameter(name="river", type=flow_pb2.PARAMETER_TYPE_STRING, required=True, description="Which"),
            flow_pb2.Parameter(name="depth", type=flow_pb2.PARAMETER_TYPE_NUMBER, default_json="1.50"),
            flow_pb2.Parameter(name="any", default_json="null"),
        ],
        accepts_extra_parameters=True,
        labels=["a", "b"],
        run_config=flow_run_pb2.RunConfig(
            environment={"A": "1", "B": ""}, working_directory="/srv", image="levels:1", resources={"cpu": "500m"}
        ),
        policy=flow_run_pb2.FlowRunPolicy(
            priority=7,
            max_retries=2,
            retry_delay=Duration(seconds=1, nanos=500_000_000),
            max_lost_restarts=0,
            log_level=log_pb2.LOG_LEVEL_DEBUG,
            child_policy=flow_run_pb2.CHILD_POLICY_ABANDON,
        ),
        description="Levels of rivers",
        source_digest="abc",
    )

    answer = flow_to_proto(replace(a_flow(), registration=registration_of(request), archive_time=NOON))

    for field in set(request.DESCRIPTOR.fields_by_name) - {"source_digest", "flow_group_id"}:
        assert getattr(request, field) == getattr(answer, field), field
    assert (str(FLOW_ID), str(GROUP_ID), str(PROJECT_ID), 1, "d1") == (
        answer.flow_id,
        answer.flow_group_id,
        answer.project_id,
        answer.version,
        answer.digest,
    )
    assert NOON.int_timestamp == answer.create_time.seconds == answer.archive_time.seconds


def test_a_group_that_is_given_makes_the_names_optional() -> None:
    """A registration into a group may leave the names out; its id is checked with all the rest."""
    request = pb.RegisterFlowRequest(flow_group_id=str(GROUP_ID), entry_point=PYTHON)

    registration, group_id = registering_of(request)

    assert (GROUP_ID, "", "") == (group_id, registration.project_name, registration.name)
    assert registering_of(a_request())[1] is None
    request.name, request.flow_group_id = "a\n", "levels"
    assert ["flow_group_id", "name"] == wrong_fields(registering_of, request)


def test_defaults_of_a_group() -> None:
    """What is absent is removed, and what is empty is kept as that."""
    bare = pb.UpdateFlowGroupRequest(flow_group_id=str(GROUP_ID))
    empty = pb.UpdateFlowGroupRequest(
        flow_group_id=str(GROUP_ID),
        default_parameters_json="{}",
        labels=flow_run_pb2.Labels(),
        run_config=flow_run_pb2.RunConfig(),
    )
    full = pb.UpdateFlowGroupRequest(
        flow_group_id=str(GROUP_ID),
        default_parameters_json='{ "b": 1.50, "a": null }',
        labels=flow_run_pb2.Labels(labels=["b", "a", "a"]),
        run_config=flow_run_pb2.RunConfig(image="i"),
    )

    assert (GROUP_ID, GroupDefaults()) == group_defaults_of(bare)
    assert (GROUP_ID, GroupDefaults("{}", (), RunConfig())) == group_defaults_of(empty)
    assert (GROUP_ID, GroupDefaults('{"a":null,"b":1.50}', ("a", "b"), RunConfig(image="i"))) == group_defaults_of(full)


def test_wrong_defaults_of_a_group() -> None:
    """Everything wrong with them is said at once; defaults must be an object, of names that could be declared."""

    def asking(text: str) -> pb.UpdateFlowGroupRequest:
        return pb.UpdateFlowGroupRequest(flow_group_id=str(GROUP_ID), default_parameters_json=text)

    request = pb.UpdateFlowGroupRequest(
        flow_group_id="x",
        default_parameters_json="[]",
        labels=flow_run_pb2.Labels(labels=["ok", "a,b"]),
        run_config=flow_run_pb2.RunConfig(environment={"": ""}),
    )
    assert ["flow_group_id", "default_parameters_json", "labels[1]", "run_config.environment['']"] == wrong_fields(
        group_defaults_of, request
    )

    field = "default_parameters_json"
    group_defaults_of(asking(json.dumps({"x" * limits.NAME_CHARACTERS_MAX: 1})))
    long = "x" * (limits.NAME_CHARACTERS_MAX + 1)
    place = f"{field}['{'x' * 39}…']"
    assert [(place, "is 256 characters; at most 255 are allowed")] == wrong(
        group_defaults_of, asking(json.dumps({long: 1}))
    )
    assert [f"{field}['a\\u202e']"] == wrong_fields(group_defaults_of, asking('{"a\u202e": 1}'))
    assert [f"{field}['']"] == wrong_fields(group_defaults_of, asking('{"": 1}'))
    assert [field] == wrong_fields(group_defaults_of, asking('{"a": NaN}'))
    room = limits.PARAMETERS_BYTES_MAX - len('{"a":""}')
    group_defaults_of(asking(f'{{"a":"{"x" * room}"}}'))
    assert [(field, "is 524289 bytes; at most 524288 are allowed")] == wrong(
        group_defaults_of, asking(f'{{"a":"{"x" * (room + 1)}"}}')
    )


def test_a_live_flow_has_no_archive_time() -> None:
    """Absence says that a flow is live."""
    assert not flow_to_proto(a_flow()).HasField("archive_time")


def test_everything_wrong_is_said_at_once() -> None:
    """Every violation of a registration is in one refusal, by the path that the proto spells."""
    request = pb.RegisterFlowRequest(
        project_name=" ",
        parameters=[
            flow_pb2.Parameter(name="a", required=True, default_json="1"),
            flow_pb2.Parameter(name="a", type=flow_pb2.PARAMETER_TYPE_STRING, default_json="1"),
            flow_pb2.Parameter(default_json="nonsense"),
        ],
        labels=["ok", ""],
        run_config=flow_run_pb2.RunConfig(environment={"A=B": "1"}),
        policy=flow_run_pb2.FlowRunPolicy(priority=101, retry_delay=Duration(seconds=-1)),
        description="\0",
        source_digest="x" * (limits.NAME_CHARACTERS_MAX + 1),
    )

    found = dict(wrong(registration_of, request))

    assert found == {
        "project_name": "is only white space",
        "name": "is required",
        "entry_point": "is required: a python callable or a command",
        "parameters[0].default_json": "is given, but a required parameter has no default",
        "parameters[1].default_json": "must be of type string, not integer",
        "parameters[1].name": "is 'a', which was declared before",
        "parameters[2].name": "is required",
        "parameters[2].default_json": "is not JSON: Expecting value: line 1 column 1 (char 0)",
        "labels[1]": "is required",
        "run_config.environment['A=B']": (
            "is not the name of a variable: that is not empty and holds neither '=' nor NUL"
        ),
        "policy.priority": "is 101; at most 100 is allowed",
        "policy.retry_delay": "is -1 s; at least 0 s are required",
        "description": "holds a NUL character",
        "source_digest": "is 256 characters; at most 255 are allowed",
    }


def test_a_default_of_null_fits_every_type() -> None:
    """A parameter of any type may be null by default, however the null is spaced."""
    for kind in flow_pb2.ParameterType.values():
        declared = flow_pb2.Parameter(name="a", type=kind, default_json=" null ")

        assert registration_of(a_request(parameters=[declared])).parameters[0].default_json == "null"


def test_an_unknown_type() -> None:
    """A type that a newer caller knows is refused, not taken for another."""
    declared = flow_pb2.Parameter(name="a", type=99)  # type: ignore[arg-type]

    assert wrong_fields(registration_of, a_request(parameters=[declared])) == ["parameters[0].type"]


@pytest.mark.parametrize(
    "path", ["levels.py:main", "a b/c.py:f", "package.module:function", "m:Class.method", "C:\\x.py:f", "m:étage"]
)
def test_python_entry_points(path: str) -> None:
    """A path or a module, a colon, and a name in it."""
    request = a_request(entry_point=flow_pb2.EntryPoint(python=path))

    assert Callable(path) == registration_of(request).entry_point


@pytest.mark.parametrize(
    "path", ["levels.py", "levels.py:", ":main", " :main", "levels.py:1st", "m:a..b", "m:a()", "m:f "]
)
def test_what_is_no_entry_point(path: str) -> None:
    """Anything else is refused at once, not when the first run fails."""
    request = a_request(entry_point=flow_pb2.EntryPoint(python=path))

    assert wrong_fields(registration_of, request) == ["entry_point.python"]


def test_entry_points_at_their_limits() -> None:
    """A path and a command are taken at their limits and refused beyond them."""

    def python(characters: int) -> pb.RegisterFlowRequest:
        return a_request(entry_point=flow_pb2.EntryPoint(python="x" * (characters - 2) + ":f"))

    def command(*arguments: str) -> pb.RegisterFlowRequest:
        return a_request(entry_point=flow_pb2.EntryPoint(command=flow_pb2.Command(arguments=arguments)))

    registration_of(python(limits.ENTRY_POINT_CHARACTERS_MAX))
    registration_of(command(*["a"] * limits.ARGUMENTS_MAX))

    place = "entry_point.command.arguments"
    assert wrong_fields(registration_of, python(limits.ENTRY_POINT_CHARACTERS_MAX + 1)) == ["entry_point.python"]
    assert [place] == wrong_fields(registration_of, command(*["a"] * (limits.ARGUMENTS_MAX + 1)))
    assert [(place, "is required")] == wrong(registration_of, command())
    assert [(f"{place}[0]", "is required")] == wrong(registration_of, command("", "a"))
    assert [(f"{place}[1]", "holds a NUL character")] == wrong(registration_of, command("a", "\0"))


def test_a_command_is_bounded_as_a_whole() -> None:
    """All arguments together are taken at their limit in bytes and refused beyond it."""
    room = limits.ENTRY_POINT_BYTES_MAX - flow_pb2.Command(arguments=["", "x" * 100_000]).ByteSize() + 100_000

    for size, fields in [(room, []), (room + 1, ["entry_point.command.arguments"])]:
        request = a_request(
            entry_point=flow_pb2.EntryPoint(command=flow_pb2.Command(arguments=["a", "x" * (size - 1)]))
        )
        if fields:
            assert fields == wrong_fields(registration_of, request)
        else:
            registration_of(request)


def test_parameters_at_their_limits() -> None:
    """As many parameters as allowed are taken, one more is refused, and so are too many bytes of them."""
    many = [flow_pb2.Parameter(name=f"p{index}") for index in range(limits.PARAMETERS_MAX + 1)]
    registration_of(a_request(parameters=many[1:]))

    assert wrong(registration_of, a_request(parameters=many)) == [("parameters", "holds 501; at most 500 are allowed")]

    default = f'"{"x" * (limits.PARAMETERS_BYTES_MAX // 2)}"'
    large = [flow_pb2.Parameter(name=name, default_json=default) for name in "ab"]
    assert wrong_fields(registration_of, a_request(parameters=large)) == ["parameters"]


@pytest.mark.parametrize(
    ("field", "characters_max"),
    [
        ("project_name", limits.NAME_CHARACTERS_MAX),
        ("name", limits.NAME_CHARACTERS_MAX),
        ("description", limits.DESCRIPTION_CHARACTERS_MAX),
        ("source_digest", limits.NAME_CHARACTERS_MAX),
    ],
)
def test_texts_at_their_limits(field: str, characters_max: int) -> None:
    """Texts are taken at their limit, counted in characters, and refused beyond it."""
    registration_of(a_request(**{field: "é" * characters_max}))

    assert [field] == wrong_fields(registration_of, a_request(**{field: "é" * (characters_max + 1)}))


@pytest.mark.parametrize("field", ["name", "description"])
def test_texts_of_a_parameter_at_their_limits(field: str) -> None:
    """The texts of a parameter are bounded too."""
    high = {"name": limits.NAME_CHARACTERS_MAX, "description": limits.DESCRIPTION_CHARACTERS_MAX}[field]

    def declaring(characters: int) -> pb.RegisterFlowRequest:
        fields: dict[str, Any] = {"name": "a", field: "x" * characters}
        return a_request(parameters=[flow_pb2.Parameter(**fields)])

    registration_of(declaring(high))
    assert [f"parameters[0].{field}"] == wrong_fields(registration_of, declaring(high + 1))


def test_a_run_config_survives() -> None:
    """A run config is read and answered whole."""
    config = flow_run_pb2.RunConfig(environment={"A": ""}, working_directory="/srv", image="i", resources={"gpu": "1"})

    assert config == run_config_to_proto(checked(config))
    assert RunConfig() == checked(flow_run_pb2.RunConfig())


@pytest.mark.parametrize(
    ("at_limit", "beyond", "field"),
    [
        (
            {"environment": {f"V{index}": "" for index in range(limits.ENVIRONMENT_VARIABLES_MAX)}},
            {"environment": {f"V{index}": "" for index in range(limits.ENVIRONMENT_VARIABLES_MAX + 1)}},
            "run_config.environment",
        ),
        (
            {"environment": {"A": "x" * limits.ENVIRONMENT_VALUE_CHARACTERS_MAX}},
            {"environment": {"A": "x" * (limits.ENVIRONMENT_VALUE_CHARACTERS_MAX + 1)}},
            "run_config.environment['A']",
        ),
        (
            {"working_directory": "x" * limits.PATH_CHARACTERS_MAX},
            {"working_directory": "x" * (limits.PATH_CHARACTERS_MAX + 1)},
            "run_config.working_directory",
        ),
        (
            {"image": "x" * limits.PATH_CHARACTERS_MAX},
            {"image": "x" * (limits.PATH_CHARACTERS_MAX + 1)},
            "run_config.image",
        ),
        (
            {"resources": {f"r{index}": "" for index in range(limits.RESOURCES_MAX)}},
            {"resources": {f"r{index}": "" for index in range(limits.RESOURCES_MAX + 1)}},
            "run_config.resources",
        ),
        (
            {"resources": {"cpu": "x" * limits.NAME_CHARACTERS_MAX}},
            {"resources": {"cpu": "x" * (limits.NAME_CHARACTERS_MAX + 1)}},
            "run_config.resources['cpu']",
        ),
    ],
)
def test_a_run_config_at_its_limits(at_limit: dict[str, Any], beyond: dict[str, Any], field: str) -> None:
    """Each part of a run config is taken at its limit and refused beyond it."""
    checked(flow_run_pb2.RunConfig(**at_limit))

    assert [field] == wrong_fields(checked, flow_run_pb2.RunConfig(**beyond))


def test_a_run_config_is_bounded_as_a_whole() -> None:
    """Many large values are refused together, before each is looked at."""
    config = flow_run_pb2.RunConfig(environment={f"V{index}": "x" * limits.KIB for index in range(256)})

    (violation,) = wrong(checked, config)

    assert (
        "run_config",
        f"is {config.ByteSize()} bytes; at most {limits.RUN_CONFIG_BYTES_MAX} are allowed",
    ) == violation


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
def test_what_is_no_variable(name: str) -> None:
    """A name that no environment can hold is refused."""
    assert [f"run_config.environment[{name!r}]"] == wrong_fields(
        checked, flow_run_pb2.RunConfig(environment={name: ""})
    )


def test_a_policy_that_says_nothing() -> None:
    """A policy without fields names nothing."""
    assert PolicyAsked() == asked(flow_run_pb2.FlowRunPolicy())


def test_a_named_zero_is_named() -> None:
    """A zero that was written is not the same as none."""
    policy = flow_run_pb2.FlowRunPolicy(priority=0, max_retries=0, max_lost_restarts=0, retry_delay=Duration())

    assert PolicyAsked(priority=0, max_retries=0, max_lost_restarts=0, retry_delay=timedelta(0)) == asked(policy)


@pytest.mark.parametrize(
    ("field", "high"),
    [
        ("priority", limits.PRIORITY_MAX),
        ("max_retries", limits.RETRIES_MAX),
        ("max_lost_restarts", limits.LOST_RESTARTS_MAX),
    ],
)
def test_a_policy_at_its_limits(field: str, high: int) -> None:
    """Each number of a policy is taken at both limits and refused beyond them."""
    for number in (0, high):
        assert number == getattr(asked(flow_run_pb2.FlowRunPolicy(**{field: number})), field)  # type: ignore[arg-type]
    for number in (-1, high + 1):
        policy = flow_run_pb2.FlowRunPolicy(**{field: number})  # type: ignore[arg-type]
        assert [f"policy.{field}"] == wrong_fields(asked, policy)


def test_the_delay_of_retries_at_its_limit() -> None:
    """The longest delay is taken, and a microsecond more is refused."""
    seconds = int(limits.RETRY_DELAY_MAX.total_seconds())
    assert (
        asked(flow_run_pb2.FlowRunPolicy(retry_delay=Duration(seconds=seconds))).retry_delay == limits.RETRY_DELAY_MAX
    )

    beyond = flow_run_pb2.FlowRunPolicy(retry_delay=Duration(seconds=seconds, nanos=1_000))
    assert wrong_fields(asked, beyond) == ["policy.retry_delay"]


def test_a_policy_answers_every_field() -> None:
    """In answers every field of a policy is set, zeros included."""
    message = policy_to_proto(Policy())

    assert {field.name for field in message.DESCRIPTOR.fields} == {field.name for field, _ in message.ListFields()}


def test_references() -> None:
    """A flow is meant by an id, or by a name with or without its project."""
    named = pb.LookUpFlowRequest(name=pb.FlowName(name="levels"))

    assert UUID(int=5) == reference_of(pb.LookUpFlowRequest(id=str(UUID(int=5))))
    assert FlowName("levels", None) == reference_of(named)
    named.name.project_name = "water"
    assert FlowName("levels", "water") == reference_of(named)


def test_wrong_references() -> None:
    """No reference, a malformed one and a nameless one are refused."""
    assert wrong_fields(reference_of, pb.LookUpFlowRequest()) == ["reference"]
    assert wrong_fields(reference_of, pb.LookUpFlowRequest(id="levels")) == ["id"]
    nameless = pb.LookUpFlowRequest(name=pb.FlowName(project_name=" "))
    assert wrong_fields(reference_of, nameless) == ["name.project_name", "name.name"]


def test_filters() -> None:
    """What a filter leaves empty is no condition."""
    request = pb.ListFlowsRequest(
        project_name="water", flow_group_id=str(GROUP_ID), name="levels", include_archived=True
    )

    assert FlowFilter() == flow_filter_of(pb.ListFlowsRequest())
    assert FlowFilter("water", GROUP_ID, "levels", True) == flow_filter_of(request)


def test_wrong_filters_join_what_else_is_wrong() -> None:
    """A filter adds to the checks it is given, so that the whole request is refused at once."""
    checks = Checks()
    checks.refuse("page_size", "is negative")

    flow_filter_of(pb.ListFlowsRequest(flow_group_id="x", name=" "), checks)

    assert wrong_fields(checks.done) == ["page_size", "flow_group_id", "name"]


def test_projects() -> None:
    """A project is created by its name and answered whole."""
    assert project_name_of(pb.CreateProjectRequest(name="water")) == "water"
    assert wrong_fields(project_name_of, pb.CreateProjectRequest()) == ["name"]

    message = project_to_proto(Project(PROJECT_ID, "water", NOON))
    assert (str(PROJECT_ID), "water") == (message.project_id, message.name)
    assert NOON.int_timestamp == message.create_time.seconds


def test_a_group_without_defaults() -> None:
    """What a group does not have is absent."""
    message = group_to_proto(a_group(live_flow_id=None))

    assert (str(GROUP_ID), str(PROJECT_ID), "water", "levels", "", 1) == (
        message.flow_group_id,
        message.project_id,
        message.project_name,
        message.name,
        message.live_flow_id,
        message.latest_version,
    )
    assert not [name for name in ("default_parameters_json", "labels", "run_config") if message.HasField(name)]


def test_a_group_with_empty_defaults() -> None:
    """An empty default is present: it is not the same as none."""
    message = group_to_proto(a_group(default_parameters_json="{}", labels=(), run_config=RunConfig()))

    assert all(message.HasField(name) for name in ("default_parameters_json", "labels", "run_config"))
    assert (str(FLOW_ID), "{}") == (message.live_flow_id, message.default_parameters_json)


def test_enums_are_total() -> None:
    """Every value of the domain has its number and every number its value, but for the unspecified ones."""
    assert set(ChildPolicy) == set(flows.CHILD_POLICY_TO_PROTO) == set(flows.CHILD_POLICY_FROM_PROTO.values())
    assert set(flow_run_pb2.ChildPolicy.values()) - {0} == set(flows.CHILD_POLICY_FROM_PROTO)
    assert set(ParameterType) == set(flows.PARAMETER_TYPE_TO_PROTO) == set(flows.PARAMETER_TYPE_FROM_PROTO.values())
    assert set(flow_pb2.ParameterType.values()) == set(flows.PARAMETER_TYPE_FROM_PROTO)


def test_parameters_are_answered_as_declared() -> None:
    """Absent and null defaults stay apart on the way out."""
    message = flow_to_proto(a_flow(parameters=(Parameter("a"), Parameter("b", default_json="null"))))

    assert [each.HasField("default_json") for each in message.parameters] == [False, True]


def test_commands() -> None:
    """A command is read as arguments, empty ones included."""
    request = a_request(entry_point=flow_pb2.EntryPoint(command=flow_pb2.Command(arguments=["node", ""])))

    assert Command(("node", "")) == registration_of(request).entry_point
