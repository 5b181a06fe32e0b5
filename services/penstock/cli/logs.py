"""`penstock logs`: what a run has written."""

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.failures import EXIT_LOST_CONTACT, CommandFailed, sentence_of, told_plainly
from penstock.cli.which_run import Run, find_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penstock.client import LogLine


def logs(
    run: Run,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new lines until the run has ended.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document per line of the log.")] = False,
) -> None:
    """Show the log of a flow run."""
    with told_plainly():
        from penstock.client import Client, PenstockError

        with Client() as client:
            flow_run_id = find_run(client, run).flow_run_id
            try:
                _show(client.follow_logs(flow_run_id) if follow else client.read_logs(flow_run_id), as_json)
            except PenstockError as error:
                if follow and error.passing:
                    raise CommandFailed(f"Contact was lost: {sentence_of(error)}", EXIT_LOST_CONTACT) from error
                raise


def _show(lines: "Iterator[LogLine]", as_json: bool) -> None:
    if as_json:
        from penstock.cli.json_output import to_json

        for line in lines:
            typer.echo(to_json(line))
        return
    from penstock.cli.progress import rows_of
    from penstock.cli.screen import Screen, date_and_time

    screen = Screen()
    for line in lines:
        for number, parts in enumerate(rows_of(line)):
            screen.line(date_and_time(line.time) if number == 0 else " " * 19, "  ", *parts)
