"""How a command fails: one sentence on stderr and an exit code, never a traceback for what its user got wrong."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from penstock.cli.safe_text import safe

if TYPE_CHECKING:
    from penstock.client.errors import PenstockError, Violation

EXIT_FAILED = 1
EXIT_MISUSED = 2
EXIT_CANCELLED = 3
EXIT_LOST_CONTACT = 4


class CommandFailed(Exception):
    """Ends the command. The text is for its user; whatever came from elsewhere is safe to show."""

    def __init__(self, text: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__("\n".join(safe(line) for line in text.split("\n")))
        self.exit_code = exit_code


# What a command calls nothing by words of its own.
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@contextlib.contextmanager
def told_plainly(words: Mapping[str, str] = _NOTHING) -> Iterator[None]:
    """Turn what a client or its settings raise into the words for the user of a command.

    `words` are what the command calls the fields of the contract: {"parameters_json": "--param"}. One for a field is
    also one for what the field holds: {"labels": "--label"} speaks for labels[3].
    """
    from penstock.client.errors import PenstockError
    from penstock.runtime.settings import SettingsError

    try:
        yield
    except PenstockError as error:
        raise CommandFailed(sentence_of(error, words)) from error
    except SettingsError as error:
        raise CommandFailed(str(error), EXIT_MISUSED) from error


def sentence_of(error: "PenstockError", words: Mapping[str, str] = _NOTHING) -> str:
    """What a user is told about a failed call, and what can be done about it; `words` as for `told_plainly`."""
    from penstock.client.errors import Unauthenticated, Unavailable

    if isinstance(error, Unavailable) and not error.reason and error.message.startswith("No Penstock server"):
        return f"{error} Start one with: penstock server start"
    if isinstance(error, Unauthenticated):
        return f"{error} Set PENSTOCK_TOKEN to the token that the server was started with."
    if len(error.violations) > 1:
        return "\n".join(["The request is invalid:", *(f"  {_told(each, words)}" for each in error.violations)])
    if error.violations:
        return f"The request is invalid: {_told(error.violations[0], words)}"
    return str(error)


def _told(violation: "Violation", words: Mapping[str, str]) -> str:
    return ": ".join(filter(None, (_word_for(violation.field, words), violation.description)))


def _word_for(field: str, words: Mapping[str, str]) -> str:
    # A list that may be absent is a message of its own in the contract, and says its name twice.
    field = re.sub(r"\b(\w+)\.\1\b", r"\1", field)
    known = max((each for each in words if re.match(rf"{re.escape(each)}(?![^.\[])", field)), key=len, default=None)
    if known is None:
        return field
    rest = field[len(known) :]
    if rest.startswith("."):
        rest = f" {rest[1:]}"
    return words[known] + re.sub(r"\[(\d+)\]", lambda place: f" (no. {int(place[1]) + 1})", rest)
