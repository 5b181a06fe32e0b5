"""Declared parameters, their defaults, and what a caller may give."""

from collections.abc import Callable, Container, Mapping, Sequence
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


def type_of(value: Json) -> str:
    """What a value is, in the words in which a type is declared."""
    if value is None:
        return "null"
    return next(kind for kind in ParameterType if kind is not ParameterType.ANY and FITS[kind](value))


def check_given(
    declared: Sequence[Parameter], accepts_extra: bool, given: Mapping[str, Json], of_group: Container[str] = ()
) -> None:
    """Refuse, all at once, parameters that are missing, unknown or of another type than declared.

    A null is taken by a parameter of any type whose default is null, as by a Python `x: int = None`. The names in
    `of_group` were given by the flow group, not by whoever creates the run, who is then told so.
    """

    def told(name: str) -> str:
        return f"{name!r}, which the flow group sets," if name in of_group else repr(name)

    by_name = {each.name: each for each in declared}
    wrong = [f"{name!r} is required" for name, each in by_name.items() if each.required and name not in given]
    if not accepts_extra:
        wrong += [f"{told(name)} is not a parameter of the flow" for name in given if name not in by_name]
    for name, value in given.items():
        each = by_name.get(name)
        nullable = each is not None and each.default_json == "null"
        if each and not FITS[each.type](value) and not (value is None and nullable):
            wrong.append(f"{told(name)} must be of type {each.type}, not {type_of(value)}")
    if wrong:
        raise InvalidRequest(tuple(Violation("parameters_json", sentence) for sentence in wrong))


def check_size(field: str, text: str, bytes_max: int) -> None:
    """Refuse text that is too large once defaults are part of it."""
    size = len(text.encode())
    if size > bytes_max:
        raise InvalidRequest((Violation(field, f"is {size} bytes with its defaults; at most {bytes_max} are kept"),))
