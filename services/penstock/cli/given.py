"""What a user gives on the command line as `name=value`, and in files, as values of JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from penstock.cli.failures import EXIT_MISUSED, CommandFailed

# How much of a value is repeated to whoever gave it.
SHOWN_CHARACTERS_MAX: Final = 200


class _NoJson(ValueError):
    """The text is JSON to Python, and to nobody else."""


def values_of(kind: str, given: Sequence[str]) -> dict[str, Any]:
    """The values in `name=value` texts; of a name given twice, the last one. `kind` says what they are, for errors."""
    return {name: _value_of(kind, name, text) for name, text in texts_of(kind, given).items()}


def texts_of(kind: str, given: Sequence[str]) -> dict[str, str]:
    """The same with values that are text whatever they look like."""
    texts = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not name:
            raise CommandFailed(f"{kind.capitalize()} {each!r} has no name: write name=value.", EXIT_MISUSED)
        # A value that was forgotten must not become an empty one.
        if not equals:
            raise CommandFailed(
                f"{kind.capitalize()} {name!r} has no value: write {name}=value, or {name}= for an empty text.",
                EXIT_MISUSED,
            )
        texts[name] = text
    return texts


def values_in_file(path: Path) -> dict[str, Any]:
    """The parameters in a file that holds a JSON object."""
    try:
        values = parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandFailed(f"Parameter file {path} cannot be read: {error.strerror}.", EXIT_MISUSED) from error
    except (ValueError, RecursionError) as error:
        raise CommandFailed(f"Parameter file {path} is not JSON: {error}.", EXIT_MISUSED) from error
    if not isinstance(values, dict):
        raise CommandFailed(f"Parameter file {path} must hold a JSON object.", EXIT_MISUSED)
    return values


def parsed(text: str) -> Any:
    """The value of a JSON text. A ValueError also for what readers disagree on: NaN, a name twice in one object."""
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_twins)


def _value_of(kind: str, name: str, text: str) -> Any:
    try:
        return parsed(text)
    except json.JSONDecodeError as error:
        # Nobody who writes a bare word means JSON; whoever writes a quote does, and has mistyped.
        if error.msg in ("Expecting value", "Extra data") and '"' not in text:
            return text
        raise _malformed(kind, name, text, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _malformed(kind, name, text, str(error)) from error


def _malformed(kind: str, name: str, text: str, detail: str) -> CommandFailed:
    shown = text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[:SHOWN_CHARACTERS_MAX]}…"
    return CommandFailed(
        f"{kind.capitalize()} {name!r} has the value {shown!r}, which is not JSON: {detail}. "
        f"To give it as text, quote it twice: {name}='\"…\"'.",
        EXIT_MISUSED,
    )


def _refuse_constant(literal: str) -> None:
    raise _NoJson(f"it holds {literal}")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _NoJson("it names a member twice")
    return members
