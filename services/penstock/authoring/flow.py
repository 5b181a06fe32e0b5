"""What a flow is to its author: a function with a name, declared parameters and a few wishes.

Decorating changes nothing about calling the function. What is wrong with a signature is said when the module is
imported, not when the first run fails.
"""

import hashlib
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar, overload

from penstock.authoring.policy import Policy
from penstock.domain.run_config import RunConfig as RunConfig

if TYPE_CHECKING:
    from flowrun.v1 import flow_run_pb2, flow_service_pb2

P = ParamSpec("P")
R = TypeVar("R")


class ParameterType(StrEnum):
    """The JSON type that a parameter demands. The names are those of the contract."""

    UNSPECIFIED = auto()
    STRING = auto()
    INTEGER = auto()
    NUMBER = auto()
    BOOLEAN = auto()
    ARRAY = auto()
    OBJECT = auto()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One declared parameter. Without a default it is required."""

    name: str
    type: ParameterType
    default_json: str | None

    @property
    def required(self) -> bool:
        return self.default_json is None


@dataclass(frozen=True, kw_only=True)
class Flow(Generic[P, R]):
    """A function that can be registered. Calling it calls the function."""

    function: Callable[P, R]
    name: str
    parameters: tuple[Parameter, ...]
    accepts_extra_parameters: bool
    labels: tuple[str, ...] = ()
    description: str = ""
    policy: Policy = field(default_factory=Policy)
    run_config: RunConfig | None = None
    entry_point: str = ""

    def __post_init__(self) -> None:
        # What functools.wraps would set, written past the frozen dataclass: the flow still looks like its function.
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            self.__dict__[attribute] = getattr(self.function, attribute, None)
        self.__dict__["__wrapped__"] = self.function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def to_request(self, project: str) -> "flow_service_pb2.RegisterFlowRequest":
        """Build the request that registers this flow in a project."""
        from flowrun.v1 import flow_pb2, flow_service_pb2

        return flow_service_pb2.RegisterFlowRequest(
            project_name=project,
            name=self.name,
            entry_point=flow_pb2.EntryPoint(python=self.entry_point or _entry_point_of(self.function)),
            parameters=[
                flow_pb2.Parameter(
                    name=parameter.name,
                    type=flow_pb2.ParameterType.Value(f"PARAMETER_TYPE_{parameter.type.name}"),
                    required=parameter.required,
                    default_json=parameter.default_json,
                )
                for parameter in self.parameters
            ],
            accepts_extra_parameters=self.accepts_extra_parameters,
            labels=self.labels,
            run_config=_run_config_to_proto(self.run_config),
            policy=self.policy.to_proto(),
            description=self.description,
            source_digest=_source_digest(self.function),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A flow in any language: a program and its arguments, without a shell."""

    name: str
    arguments: Sequence[str]
    labels: tuple[str, ...] = ()
    description: str = ""
    policy: Policy = field(default_factory=Policy)
    run_config: RunConfig | None = None

    def to_request(self, project: str) -> "flow_service_pb2.RegisterFlowRequest":
        """Build the request that registers this command in a project. A run may be given any parameter."""
        from flowrun.v1 import flow_pb2, flow_service_pb2

        return flow_service_pb2.RegisterFlowRequest(
            project_name=project,
            name=self.name,
            entry_point=flow_pb2.EntryPoint(command=flow_pb2.Command(arguments=self.arguments)),
            accepts_extra_parameters=True,
            labels=self.labels,
            run_config=_run_config_to_proto(self.run_config),
            policy=self.policy.to_proto(),
            description=self.description,
        )


@overload
def flow(function: Callable[P, R], /) -> Flow[P, R]: ...


@overload
def flow(
    *,
    name: str | None = None,
    labels: Sequence[str] = (),
    description: str | None = None,
    retries: int = 0,
    retry_delay: timedelta | float = 0,
    max_lost_restarts: int | None = None,
    log_level: str | None = None,
    priority: int | None = None,
    child_policy: str | None = None,
    run_config: RunConfig | None = None,
) -> Callable[[Callable[P, R]], Flow[P, R]]: ...


def flow(
    function: Callable[P, R] | None = None,
    /,
    *,
    name: str | None = None,
    labels: Sequence[str] = (),
    description: str | None = None,
    retries: int = 0,
    retry_delay: timedelta | float = 0,
    max_lost_restarts: int | None = None,
    log_level: str | None = None,
    priority: int | None = None,
    child_policy: str | None = None,
    run_config: RunConfig | None = None,
) -> Flow[P, R] | Callable[[Callable[P, R]], Flow[P, R]]:
    """Turn a function into a flow; with or without arguments.

    The name defaults to the function's with dashes, the description to its docstring. A delay may be given in seconds.
    What a run does not say for itself it takes from here: how often and how long after it failed it is tried again, how
    often it begins anew when its agent was lost, the least level its loggers report ("DEBUG" to "CRITICAL"), 0 to 100
    for its priority, and whether it is cancelled with its parent ("cancel") or not ("abandon").
    """
    if isinstance(labels, str):
        raise TypeError(f"labels must be a list of strings, not the string {labels!r}")
    policy = Policy(
        retries=retries,
        retry_delay=retry_delay,
        max_lost_restarts=max_lost_restarts,
        log_level=log_level,
        priority=priority,
        child_policy=child_policy,
    )

    def decorate(function: Callable[P, R]) -> Flow[P, R]:
        if not callable(function):
            raise TypeError(f"@flow decorates a function, not {function!r}")
        parameters, accepts_extra = _parameters_of(function)
        return Flow(
            function=function,
            name=name if name is not None else function.__name__.replace("_", "-"),
            parameters=parameters,
            accepts_extra_parameters=accepts_extra,
            labels=tuple(labels),
            description=description if description is not None else inspect.getdoc(function) or "",
            policy=policy,
            run_config=run_config,
        )

    return decorate if function is None else decorate(function)


def _parameters_of(function: Callable[..., object]) -> tuple[tuple[Parameter, ...], bool]:
    parameters: list[Parameter] = []
    accepts_extra = False
    for declared in _signature(function).parameters.values():
        if declared.kind is declared.VAR_KEYWORD:
            accepts_extra = True
        elif declared.kind in (declared.POSITIONAL_ONLY, declared.VAR_POSITIONAL):
            name = declared.replace(annotation=declared.empty)  # with its star, and without its type
            raise TypeError(
                f"flow {function.__name__!r}: parameter {name} cannot be given by name, "
                "and a run gives its parameters by name"
            )
        else:
            parameters.append(_parameter(function.__name__, declared))
    return tuple(parameters), accepts_extra


def _signature(function: Callable[..., object]) -> inspect.Signature:
    try:
        return inspect.signature(function, eval_str=True)
    except (NameError, SyntaxError, TypeError, AttributeError):
        # An annotation that cannot be evaluated here demands nothing.
        return inspect.signature(function)


def _parameter(owner: str, declared: inspect.Parameter) -> Parameter:
    if declared.default is declared.empty:
        return Parameter(declared.name, _type_of(declared.annotation), None)
    try:
        default_json = json.dumps(declared.default, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"flow {owner!r}: the default of parameter {declared.name!r} cannot be written as JSON: {error}"
        ) from error
    # `x: int = None` is an old way to write that None is welcome.
    demanded = ParameterType.UNSPECIFIED if declared.default is None else _type_of(declared.annotation)
    return Parameter(declared.name, demanded, default_json)


def _type_of(annotation: object) -> ParameterType:
    origin = typing.get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType) or not isinstance(origin, type):
        return ParameterType.UNSPECIFIED
    return _TYPES.get(origin, ParameterType.UNSPECIFIED)


_TYPES: Mapping[type, ParameterType] = {
    str: ParameterType.STRING,
    int: ParameterType.INTEGER,
    float: ParameterType.NUMBER,
    bool: ParameterType.BOOLEAN,
    list: ParameterType.ARRAY,
    dict: ParameterType.OBJECT,
}


def _entry_point_of(function: Callable[..., object]) -> str:
    return f"{Path(inspect.getfile(function)).resolve()}:{function.__name__}"


def _source_digest(function: Callable[..., object]) -> str:
    try:
        return hashlib.sha256(Path(inspect.getfile(inspect.unwrap(function))).read_bytes()).hexdigest()
    except (OSError, TypeError):
        return ""


def _run_config_to_proto(run_config: RunConfig | None) -> "flow_run_pb2.RunConfig | None":
    from penstock.wire.flows import run_config_to_proto

    return None if run_config is None else run_config_to_proto(run_config)
