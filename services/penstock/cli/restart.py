"""`penstock restart`: make a new attempt of a flow run that has ended."""

from typing import Annotated

import typer

from penstock.cli.failures import EXIT_MISUSED, CommandFailed, told_plainly
from penstock.cli.which_run import Run, find_run


def restart(
    run: Run,
    start_at: Annotated[
        str, typer.Option("--start-at", metavar="TIME", help="When, in ISO 8601; at once otherwise.")
    ] = "",
    start_in: Annotated[str, typer.Option("--in", metavar="SPAN", help="How long from now, such as 10m.")] = "",
    reason: Annotated[str, typer.Option("--reason", help="Why; kept in the history of the run.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the run as a JSON document.")] = False,
) -> None:
    """Make a new attempt of a flow run that has ended.

    It keeps its id, its parameters and its history, and has all its retries before it again. A run that has not ended
    is refused.
    """
    if start_at and start_in:
        raise CommandFailed("Choose one of --start-at and --in.", EXIT_MISUSED)
    from penstock.cli.start_times import start_of

    start = start_of(start_at, start_in)
    with told_plainly({"reason": "--reason", "scheduled_start_time": "--start-at", "start_delay": "--in"}):
        from penstock.client import Client

        with Client() as client:
            ended = find_run(client, run)
            again = client.restart_flow_run(ended.flow_run_id, ended.version, scheduled_start_time=start, reason=reason)
            if as_json:
                from penstock.cli.json_output import to_json

                typer.echo(to_json(again))
                return
            from penstock.cli.screen import Screen, date_and_time

            screen = Screen()
            screen.line(f"Flow run {again.name} is {again.state} again, as attempt {again.attempt}.")
            if start is not None:
                screen.line("It is due at ", date_and_time(again.scheduled_start_time), ".")
            screen.line(f"Follow it with: penstock logs {again.flow_run_id} --follow")
