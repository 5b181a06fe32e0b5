"""Declared parameters, their defaults, and what a caller may give."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Final

from penstock.domain.errors import InvalidRequest, Violation
from penstock.domain.json_text import Json, Number


class ParameterType(StrEnum):
    """The JSON type that a value must have. The values are what rows hold."""

    ANY = auto()
    STRING = auto()
    INTEGER = auto()
    NUMBER = auto()
    BOOLEAN = auto()
    ARRAY = auto()
    OBJECT = auto()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One declared parameter. `default_json` is JSON text, None where there is no default."""

    name: str
    type: ParameterType = ParameterType.ANY
    required: bool = False
    default_json: str | None = None
    description: str = ""


FITS: Final[Mapping[ParameterType, Callable[[Json], bool]]] = {
    ParameterType.ANY: lambda value: True,
    ParameterType.STRING: lambda value: isinstance(value, str) and not isinstance(value, Number),
    ParameterType.INTEGER: lambda value: isinstance(value, Number) and value.lstrip("-").isdigit(),
    ParameterType.NUMBER: lambda value: isinstance(value, Number),
    ParameterType.BOOLEAN: lambda value: isinstance(value, bool),
    ParameterType.ARRAY: lambda value: isinstance(value, list),
    ParameterType.OBJECT: lambda value: isinstance(value, Mapping),
}


def check_given(declared: Sequence[Parameter], accepts_extra: bool, given: Mapping[str, Json]) -> None:
    """Refuse, all at once, parameters that are missing, unknown or of another type than declared.

    A null is taken by a parameter of any type whose default is null, as by a Python `x: int = None`.
    """
    by_name = {each.name: each for each in declared}
    wrong = [f"{name!r} is required" for name, each in by_name.items() if each.required and name not in given]
    if not accepts_extra:
        wrong += [f"{name!r} is not a parameter of the flow" for name in given if name not in by_name]
    for name, value in given.items():
        each = by_name.get(name)
        nullable = each is not None and each.default_json == "null"
        if each and not FITS[each.type](value) and not (value is None and nullable):
            wrong.append(f"{name!r} must be of type {each.type}")
    if wrong:
        raise InvalidRequest(tuple(Violation("parameters_json", sentence) for sentence in wrong))


def check_size(field: str, text: str, bytes_max: int) -> None:
    """Refuse text that is too large once defaults are part of it."""
    size = len(text.encode())
    if size > bytes_max:
        raise InvalidRequest((Violation(field, f"is {size} bytes with its defaults; at most {bytes_max} are kept"),))
