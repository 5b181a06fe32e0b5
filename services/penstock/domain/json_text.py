"""JSON kept as text, so that every number keeps its digits as they were written.

A parsed value holds numbers as `Number`, which is their literal. `canonical` writes it back with sorted names and
without spaces; equal values that were written alike are then equal texts.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Final, TypeAlias

from penstock.domain.limits import JSON_DEPTH_MAX, JSON_NUMBER_DIGITS_MAX


class Number(str):
    """A JSON number, as the literal it was written with."""

    __slots__ = ()


Json: TypeAlias = "bool | str | Number | Sequence[Json] | Mapping[str, Json] | None"

# Made once: half a megabyte of JSON may be a hundred thousand strings.
_written: Final = json.JSONEncoder(ensure_ascii=False).encode
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


class NotJson(ValueError):
    """The text is not JSON that we keep; the message is a sentence without a subject ("is not JSON: …")."""


def parse(text: str) -> Json:
    """Parse JSON. Refuses by NotJson what readers disagree on or cannot hold.

    That is NaN, infinities, 1e400, a number of thousands of digits, a name twice in one object, and half of a surrogate
    pair, which JSON can escape but UTF-8 cannot carry.
    """
    try:
        value: Json = json.loads(
            text, parse_int=_integer, parse_float=_number, parse_constant=_no_constant, object_pairs_hook=_no_twins
        )
    except RecursionError:
        raise NotJson(f"is nested deeper than {JSON_DEPTH_MAX} levels") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"is not JSON: {error}") from None
    if _depth_exceeds(value, JSON_DEPTH_MAX):
        raise NotJson(f"is nested deeper than {JSON_DEPTH_MAX} levels")
    if _ESCAPED_SURROGATE.search(text):
        _check_halves(value)
    return value


def parse_object(text: str) -> Mapping[str, Json]:
    """Parse a JSON object; the empty text is the empty object. Refuses anything else by NotJson."""
    value = parse(text) if text else {}
    if not isinstance(value, Mapping):
        raise NotJson("is not a JSON object")
    return value


def canonical(value: Json) -> str:
    """Write a value with sorted names, no spaces, numbers as they were written.

    It is never longer than the text it was parsed from, so what is within a limit stays within it.
    """
    match value:
        case Number():
            return str(value)
        case str():
            return _written(value)
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case Mapping():
            return joined({name: canonical(member) for name, member in value.items()})
        case _:
            return "[" + ",".join(map(canonical, value)) + "]"


def joined(members: Mapping[str, str]) -> str:
    """The canonical form of an object whose members are written already."""
    return "{" + ",".join([f"{_written(name)}:{text}" for name, text in sorted(members.items())]) + "}"


def digest(value: Json) -> bytes:
    """The SHA-256 of the canonical form."""
    return sha256(canonical(value).encode()).digest()


def _integer(literal: str) -> Number:
    if len(literal) > JSON_NUMBER_DIGITS_MAX:
        digits = sum(map(str.isdigit, literal))
        if digits > JSON_NUMBER_DIGITS_MAX:
            raise NotJson(f"holds a number of {digits} digits; at most {JSON_NUMBER_DIGITS_MAX} are allowed")
    return Number(literal)


def _number(literal: str) -> Number:
    _integer(literal)
    if float(literal) in (float("inf"), float("-inf")):
        raise NotJson(f"holds a number that no reader can represent: {literal[:40]}")
    return Number(literal)


def _no_constant(literal: str) -> Json:
    raise NotJson(f"holds {literal}, which is not JSON")


def _no_twins(pairs: list[tuple[str, Json]]) -> Mapping[str, Json]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twin, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise NotJson(f"names {twin[:40]!r} twice in one object")
    return members


def _depth_exceeds(value: Json, levels: int) -> bool:
    if isinstance(value, Mapping):
        return levels == 0 or any(_depth_exceeds(member, levels - 1) for member in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_depth_exceeds(element, levels - 1) for element in value)
    return False


def _check_halves(value: Json) -> None:
    """Refuse a string or a name in it that holds half of a surrogate pair."""
    if isinstance(value, str):
        if half := _SURROGATE.search(value):
            raise NotJson(f"holds \\u{ord(half[0]):04x}, half of a surrogate pair, which UTF-8 cannot carry")
    elif isinstance(value, Mapping):
        for name, member in value.items():
            _check_halves(name)
            _check_halves(member)
    elif isinstance(value, list):
        for element in value:
            _check_halves(element)
