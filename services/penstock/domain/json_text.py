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

from penstock.domain.limits import JSON_DEPTH_MAX


class Number(str):
    """A JSON number, as the literal it was written with."""

    __slots__ = ()


Json: TypeAlias = "bool | str | Number | Sequence[Json] | Mapping[str, Json] | None"

_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class NotJson(ValueError):
    """The text is not JSON that we keep; the message is a sentence without a subject ("is not JSON: …")."""


def parse(text: str) -> Json:
    """Parse JSON. Refuses by NotJson what readers disagree on: NaN, infinities, 1e400, a name twice in one object."""
    try:
        value: Json = json.loads(
            text, parse_int=Number, parse_float=_number, parse_constant=_no_constant, object_pairs_hook=_no_twins
        )
    except RecursionError:
        raise NotJson(f"is nested deeper than {JSON_DEPTH_MAX} levels") from None
    except json.JSONDecodeError as error:
        raise NotJson(f"is not JSON: {error}") from None
    if _depth_exceeds(value, JSON_DEPTH_MAX):
        raise NotJson(f"is nested deeper than {JSON_DEPTH_MAX} levels")
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
        case None | bool() | str():
            return _written(value)
        case Mapping():
            members = (f"{_written(name)}:{canonical(member)}" for name, member in sorted(value.items()))
            return "{" + ",".join(members) + "}"
        case _:
            return "[" + ",".join(map(canonical, value)) + "]"


def digest(value: Json) -> bytes:
    """The SHA-256 of the canonical form."""
    return sha256(canonical(value).encode()).digest()


def _written(value: str | bool | None) -> str:
    # Half of a surrogate pair is legal as an escape, and only as one: UTF-8 cannot carry it.
    return _LONE_SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", json.dumps(value, ensure_ascii=False))


def _number(literal: str) -> Number:
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
