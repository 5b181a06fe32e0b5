"""What a decorator makes of a function."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import Any, Optional, Union

import pytest

from flowrun.v1 import flow_pb2, flow_run_pb2, log_pb2
from penstock import flow
from penstock.authoring.flow import Command, Flow, ParameterType, RunConfig
from penstock.authoring.policy import Policy

T = ParameterType


def signatures() -> list[tuple[Any, list[tuple[str, ParameterType, str | None]], bool]]:
    """Functions, the parameters they declare, and whether they take others."""

    def nothing(): ...  # type: ignore[no-untyped-def]
    def bare(a, b=2): ...  # type: ignore[no-untyped-def]
    def typed(a: str, b: int, c: float, d: bool, e: list, f: dict): ...  # type: ignore[no-untyped-def,type-arg]
    def generic(a: list[int], b: dict[str, int]): ...  # type: ignore[no-untyped-def]
    def optional(a: int | None, b: Optional[str], c: Union[int, str], d: Any): ...  # type: ignore[no-untyped-def] # noqa: UP007, UP045
    def implicit(a: int = None): ...  # type: ignore # noqa: RUF013
    def keyword(*, a: int = 1): ...  # type: ignore[no-untyped-def]
    def extra(a: int, **rest: Any): ...  # type: ignore[no-untyped-def]
    def unknown(a: NoSuchType, b: int = 1): ...  # type: ignore # noqa: F821
    def defaults(a: str = "ü", b: list = (1, 2), c: float = 1.50, d: dict = {"k": None}): ...  # type: ignore # noqa: B006

    async def coroutine(a: int): ...  # type: ignore[no-untyped-def]

    return [
        (nothing, [], False),
        (bare, [("a", T.UNSPECIFIED, None), ("b", T.UNSPECIFIED, "2")], False),
        (
            typed,
            [
                ("a", T.STRING, None),
                ("b", T.INTEGER, None),
                ("c", T.NUMBER, None),
                ("d", T.BOOLEAN, None),
                ("e", T.ARRAY, None),
                ("f", T.OBJECT, None),
            ],
            False,
        ),
        (generic, [("a", T.ARRAY, None), ("b", T.OBJECT, None)], False),
        (optional, [(name, T.UNSPECIFIED, None) for name in "abcd"], False),
        (implicit, [("a", T.UNSPECIFIED, "null")], False),
        (keyword, [("a", T.INTEGER, "1")], False),
        (extra, [("a", T.INTEGER, None)], True),
        (unknown, [("a", T.UNSPECIFIED, None), ("b", T.UNSPECIFIED, "1")], False),
        (
            defaults,
            [
                ("a", T.STRING, '"ü"'),
                ("b", T.ARRAY, "[1, 2]"),
                ("c", T.NUMBER, "1.5"),
                ("d", T.OBJECT, '{"k": null}'),
            ],
            False,
        ),
        (coroutine, [("a", T.INTEGER, None)], False),
    ]


@pytest.mark.parametrize(
    ("function", "parameters", "accepts_extra"), signatures(), ids=lambda value: getattr(value, "__name__", "")
)
def test_parameters_come_from_the_signature(
    function: Any, parameters: list[tuple[str, ParameterType, str | None]], accepts_extra: bool
) -> None:
    """Names, types, defaults in JSON, and ** for others; what cannot be understood demands nothing."""
    made = flow(function)

    assert parameters == [(each.name, each.type, each.default_json) for each in made.parameters]
    assert [default is None for _, _, default in parameters] == [each.required for each in made.parameters]
    assert accepts_extra is made.accepts_extra_parameters


def test_a_decorated_function_stays_callable() -> None:
    """Calling the flow calls the function, and the flow looks like it."""

    @flow
    def add_up(a: int, b: int = 2) -> int:
        """Add two numbers."""
        return a + b

    assert add_up(3) == 5
    assert add_up(a=1, b=3) == 4
    assert (add_up.__name__, add_up.__doc__) == ("add_up", "Add two numbers.")  # type: ignore[attr-defined]
    assert list(inspect.signature(add_up).parameters) == ["a", "b"]


def test_names_and_descriptions_have_defaults() -> None:
    """The function's name with dashes, and its docstring."""

    @flow
    def clean_all_rivers() -> None:
        """Clean them.

        All of them.
        """

    assert clean_all_rivers.name == "clean-all-rivers"
    assert clean_all_rivers.description == "Clean them.\n\nAll of them."


@pytest.mark.parametrize("given", [timedelta(seconds=90), 90, 90.0])
def test_a_delay_may_be_given_in_seconds(given: timedelta | float) -> None:
    """Both forms mean the same."""
    assert timedelta(seconds=90) == flow(retry_delay=given)(lambda: None).policy.delay


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: flow(_with_default(object())), "the default of parameter 'a' cannot be written as JSON"),
        (lambda: flow(_with_default(float("nan"))), "the default of parameter 'a' cannot be written as JSON"),
        (lambda: flow(_positional_only), "parameter a cannot be given by name"),
        (lambda: flow(_variadic), r"parameter \*rest cannot be given by name"),
        (lambda: flow(labels="linux")(_nothing), "labels must be a list of strings, not the string 'linux'"),
        (lambda: flow("name")(_nothing), "@flow decorates a function, not 'name'"),  # type: ignore[operator]
    ],
)
def test_what_no_run_could_be_given_is_refused_at_once(declare: Any, message: str) -> None:
    """The author learns it when the module is imported, by the name of the parameter."""
    with pytest.raises(TypeError, match=message):
        declare()


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"retries": -1}, "retries must be a whole number from 0 to 1,000, not -1"),
        ({"retries": 1_001}, "retries must be a whole number from 0 to 1,000, not 1001"),
        ({"retries": 1.5}, "retries must be a whole number from 0 to 1,000, not 1.5"),
        ({"retries": True}, "retries must be a whole number from 0 to 1,000, not True"),
        ({"retry_delay": -1}, "retry_delay must be a timedelta or a number of seconds, from 0 to 30 days, not -1"),
        ({"retry_delay": timedelta(days=30, microseconds=1)}, "from 0 to 30 days, not datetime.timedelta"),
        ({"retry_delay": float("nan")}, "from 0 to 30 days, not nan"),
        ({"retry_delay": float("inf")}, "from 0 to 30 days, not inf"),
        ({"retry_delay": "10m"}, "from 0 to 30 days, not '10m'"),
        ({"max_lost_restarts": 1_001}, "max_lost_restarts must be a whole number from 0 to 1,000, not 1001"),
        ({"priority": 101}, "priority must be a whole number from 0 to 100, not 101"),
        ({"log_level": "LOUD"}, "log_level must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, not 'LOUD'"),
        ({"log_level": 10}, "log_level must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, not 10"),
        ({"child_policy": "keep"}, "child_policy must be one of CANCEL, ABANDON, not 'keep'"),
    ],
    ids=str,
)
def test_wishes_that_no_server_would_grant_are_refused_at_once(wish: dict[str, Any], message: str) -> None:
    """The author learns the limit when the module is imported, for flows and for commands."""
    with pytest.raises(TypeError, match=message):
        flow(**wish)
    with pytest.raises(TypeError, match=message):
        Command(name="backup", arguments=["tar"], policy=Policy(**wish))


def test_the_limits_themselves_are_granted() -> None:
    """The greatest wishes are allowed, and reach the registration with the words in any case."""
    wishes: dict[str, Any] = {
        "retries": 1_000,
        "retry_delay": timedelta(days=30),
        "max_lost_restarts": 0,
        "log_level": "debug",
        "priority": 100,
        "child_policy": "abandon",
    }
    policy = flow(**wishes)(_nothing).to_request("water").policy

    assert (1_000, timedelta(days=30)) == (policy.max_retries, policy.retry_delay.ToTimedelta())
    assert (0, 100) == (policy.max_lost_restarts, policy.priority)
    assert policy.HasField("max_lost_restarts")
    assert (log_pb2.LOG_LEVEL_DEBUG, flow_run_pb2.CHILD_POLICY_ABANDON) == (policy.log_level, policy.child_policy)
    assert policy == Command(name="c", arguments=["c"], policy=Policy(**wishes)).to_request("water").policy


def test_what_was_not_wished_is_left_to_the_server() -> None:
    """Absent wishes are absent from the request, so that the server's own values count."""
    policy = flow(_nothing).to_request("water").policy

    assert not any(policy.HasField(name) for name in ("max_lost_restarts", "priority"))  # type: ignore[arg-type]
    assert (0, 0) == (policy.log_level, policy.child_policy)


def test_the_request_holds_everything_that_was_declared() -> None:
    """What the decorator was told reaches the registration."""

    @flow(
        name="Nightly",
        labels=["b", "a"],
        retries=3,
        retry_delay=1.5,
        run_config=RunConfig(environment={"A": "1"}, working_directory="/data", image="i", resources={"cpu": "1"}),
    )
    def nightly(day: str, copies: int = 2, **rest: Any) -> None:
        """Do it."""

    request = nightly.to_request("water")

    assert (request.project_name, request.name, request.description) == ("water", "Nightly", "Do it.")
    assert f"{__file__}:nightly" == request.entry_point.python
    assert list(request.labels) == ["b", "a"]
    assert (3, timedelta(seconds=1.5)) == (request.policy.max_retries, request.policy.retry_delay.ToTimedelta())
    assert (request.run_config.working_directory, request.run_config.image) == ("/data", "i")
    assert dict(request.run_config.environment) == {"A": "1"}
    assert request.accepts_extra_parameters
    assert len(request.source_digest) == 64
    assert [
        flow_pb2.Parameter(name="day", type=flow_pb2.PARAMETER_TYPE_STRING, required=True),
        flow_pb2.Parameter(name="copies", type=flow_pb2.PARAMETER_TYPE_INTEGER, default_json="2"),
    ] == list(request.parameters)


def test_what_was_not_said_is_absent_from_the_request() -> None:
    """A flow without a run config does not send an empty one."""
    assert not flow(_nothing).to_request("water").HasField("run_config")


def test_a_command_is_registered_by_its_arguments() -> None:
    """A program takes any parameter, because it declares none."""
    request = Command(name="backup", arguments=["tar", "-c", "two words"], labels=("disk",)).to_request("water")

    assert list(request.entry_point.command.arguments) == ["tar", "-c", "two words"]
    assert request.accepts_extra_parameters
    assert list(request.labels) == ["disk"]


def test_a_flow_is_recognised_by_its_class() -> None:
    """Loaders find flows by this."""
    assert isinstance(flow(_nothing), Flow)


def _nothing() -> None: ...


def _with_default(default: Any) -> Any:
    def function(a: Any = default) -> None: ...

    return function


def _positional_only(a: int, /) -> None: ...


def _variadic(*rest: int) -> None: ...
