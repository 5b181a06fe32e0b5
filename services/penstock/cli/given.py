"""What a user gives on the command line as `name=value`, and in files, as values of JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.cli.failures import EXIT_MISUSED, CommandFailed


class _NoJson(ValueError):
    """The text is JSON to Python, and to nobody else."""


def values_of(kind: str, given: Sequence[str]) -> dict[str, Any]:
    """The values in `name=value` texts; of a name given twice, the last one. `kind` says what they are, for errors."""
    values = {}
    for each in given:
        name, _, text = each.partition("=")
        if not name:
            raise CommandFailed(f"{kind.capitalize()} {each!r} has no name: write name=value.", EXIT_MISUSED)
        values[name] = _value_of(kind, name, text)
    return values


def values_in_file(path: Path) -> dict[str, Any]:
    """The parameters in a file that holds a JSON object."""
    try:
        values = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandFailed(f"Parameter file {path} cannot be read: {error.strerror}.", EXIT_MISUSED) from error
    except ValueError as error:
        raise CommandFailed(f"Parameter file {path} is not JSON: {error}.", EXIT_MISUSED) from error
    if not isinstance(values, dict):
        raise CommandFailed(f"Parameter file {path} must hold a JSON object.", EXIT_MISUSED)
    return values


def _value_of(kind: str, name: str, text: str) -> Any:
    try:
        return _parsed(text)
    except json.JSONDecodeError as error:
        # Nobody who writes a bare word means JSON; whoever writes a quote does, and has mistyped.
        if error.msg in ("Expecting value", "Extra data") and '"' not in text:
            return text
        raise _malformed(kind, name, text, str(error)) from error
    except (_NoJson, RecursionError) as error:
        raise _malformed(kind, name, text, str(error)) from error


def _malformed(kind: str, name: str, text: str, detail: str) -> CommandFailed:
    return CommandFailed(
        f"{kind.capitalize()} {name!r} has the value {text!r}, which is not JSON: {detail}. "
        f"To give it as text, quote it twice: {name}='\"…\"'.",
        EXIT_MISUSED,
    )


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_twins)


def _refuse_constant(literal: str) -> None:
    raise _NoJson(f"it holds {literal}")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _NoJson("it names a member twice")
    return members
