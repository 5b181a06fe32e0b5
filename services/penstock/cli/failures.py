"""How a command fails: one sentence on stderr and an exit code, never a traceback for what its user got wrong."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from penstock.cli.safe_text import safe

if TYPE_CHECKING:
    from penstock.client.errors import PenstockError

EXIT_FAILED = 1
EXIT_MISUSED = 2
EXIT_CANCELLED = 3
EXIT_LOST_CONTACT = 4


class CommandFailed(Exception):
    """Ends the command. The text is for its user; whatever came from elsewhere is safe to show."""

    def __init__(self, text: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__("\n".join(safe(line) for line in text.split("\n")))
        self.exit_code = exit_code


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Turn what a client or its settings raise into the words for the user of a command."""
    from penstock.client.errors import PenstockError
    from penstock.runtime.settings import SettingsError

    try:
        yield
    except PenstockError as error:
        raise CommandFailed(sentence_of(error)) from error
    except SettingsError as error:
        raise CommandFailed(str(error), EXIT_MISUSED) from error


def sentence_of(error: "PenstockError") -> str:
    """What a user is told about a failed call, and what can be done about it."""
    from penstock.client.errors import Unauthenticated, Unavailable

    if isinstance(error, Unavailable) and not error.reason:
        return f"{error} Start one with: penstock server start"
    if isinstance(error, Unauthenticated):
        return f"{error} Set PENSTOCK_TOKEN to the token that the server was started with."
    if len(error.violations) > 1:
        return "\n".join(["The request is invalid:", *(f"  {v.field}: {v.description}" for v in error.violations)])
    return str(error)
