"""What commands print for programs: values of the client as JSON, one document per line.

A field bears the contract's name; what the contract carries as JSON text (`parameters_json`) is the value itself
(`parameters`) with its digits as written. Absent is null, a time is RFC 3339 in UTC, bytes are base64.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime, timedelta
from typing import Any

from penstock.domain import json_text


def to_json(value: Any) -> str:
    """The value as JSON, in one line."""
    if is_dataclass(value):
        members = (_member(each.name, getattr(value, each.name)) for each in fields(value))
        return "{" + ", ".join(member for member in members if member) + "}"
    match value:
        case None | bool() | int() | float():
            return json.dumps(value)
        case str():
            return json.dumps(str(value))
        case bytes():
            return json.dumps(base64.b64encode(value).decode())
        case datetime():
            return json.dumps(value.isoformat().replace("+00:00", "Z"))
        case timedelta():
            return json.dumps(value.total_seconds())
        case Mapping():
            return "{" + ", ".join(f"{json.dumps(name)}: {to_json(member)}" for name, member in value.items()) + "}"
        case Sequence():
            return "[" + ", ".join(map(to_json, value)) + "]"
    raise AssertionError(f"no client value is a {type(value).__name__}")


def _member(name: str, value: Any) -> str:
    if not name.endswith("_json"):
        return f"{json.dumps(name)}: {to_json(value)}"
    if value == "":
        return ""  # a list leaves it out, which is not the same as null
    text = "null" if value is None else json_text.canonical(json_text.parse(value))
    return f"{json.dumps(name.removesuffix('_json'))}: {text}"
