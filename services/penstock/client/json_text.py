"""JSON text as the contract carries it: made with every digit and no NaN, and refused by the name of what is wrong."""

import json
from collections.abc import Mapping
from typing import Any

from penstock.client.errors import invalid


def text_of(field: str, values: Mapping[str, Any] | None) -> str:
    """The text of a JSON object; empty for None. A value that JSON cannot say is refused by its name."""
    if values is None:
        return ""
    return (
        "{"
        + ", ".join(f"{json.dumps(name)}: {_value_text(field, name, value)}" for name, value in values.items())
        + "}"
    )


def _value_text(field: str, name: object, value: object) -> str:
    if not isinstance(name, str):
        raise invalid(f"{field}.{name}", f"the name {name!r} is no string.")
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(f"{field}.{name}", f"cannot be written as JSON: {error}.") from error
