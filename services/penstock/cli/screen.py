"""What commands print for people: lines and tables that survive a pipe, a narrow terminal and NO_COLOR."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from penstock.cli.safe_text import safe
from penstock.runtime.settings import environment

# Wide enough that nothing in a pipe is ever wrapped or cut; a user who sets COLUMNS wants another width.
PIPE_COLUMNS = 10_000

STYLES = {
    "SCHEDULED": "yellow",
    "SUBMITTED": "blue",
    "RUNNING": "cyan",
    "CANCELLING": "magenta",
    "SUCCEEDED": "bold green",
    "FAILED": "bold red",
    "CANCELLED": "bold magenta",
    "DEBUG": "dim",
    "WARNING": "yellow",
    "ERROR": "red",
    "CRITICAL": "bold red",
}


class Screen:
    """Standard output. Every text is shown as it is, made safe; nothing in it is markup."""

    def __init__(self) -> None:
        environ = environment()
        columns = environ.get("COLUMNS", "")
        has_width = columns.isdecimal() and int(columns) > 0
        if not has_width:
            environ.pop("COLUMNS", None)
        console = Console(highlight=False, markup=False, emoji=False, _environ=environ)
        self._folds = has_width or console.is_terminal
        if not self._folds:
            console.width = PIPE_COLUMNS
        self._console = console

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print one line of parts; a part may be a text and its style."""
        text = Text()
        for part in parts:
            content, style = part if isinstance(part, tuple) else (part, "")
            text.append(safe(content), style=style)
        text.rstrip()
        self._console.print(text, soft_wrap=True)

    def table(self, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows under headings. A narrow terminal folds all but the first cell: an id is there to be copied."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for number, heading in enumerate(headings):
            table.add_column(heading, overflow="fold", no_wrap=number == 0 or not self._folds)
        for row in rows:
            table.add_row(*(Text(safe(cell), style=STYLES.get(cell, "")) for cell in row))
        self._console.print(table)


def clock_time(time: datetime) -> str:
    """The time of day, as the clock on this person's wall shows it."""
    return time.astimezone().strftime("%H:%M:%S")


def date_and_time(time: datetime | None) -> str:
    """Day and time, by the clock on this person's wall; empty for none."""
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
