"""`penstock delete`: remove what has ended."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.failures import EXIT_MISUSED, CommandFailed, told_plainly
from penstock.cli.which_run import Run, find_run

if TYPE_CHECKING:
    from penstock.client import FlowRun

app = typer.Typer(name="delete", help="Delete flow runs that have ended.", no_args_is_help=True)


@app.callback()
def _delete() -> None:
    """Delete flow runs that have ended."""


@app.command("flow-run")
def flow_run(
    run: Run,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as a JSON document.")] = False,
) -> None:
    """Delete a flow run that has ended, with its history and its log.

    Its idempotency key stays, and never makes another run. A run that has not ended is refused.
    """
    with told_plainly():
        from penstock.client import Client

        with Client() as client:
            found = find_run(client, run)
            if not found.state.is_final:
                raise CommandFailed(
                    f"Flow run {found.name} is {found.state}; wait for its end, or cancel it first: "
                    f"penstock cancel {found.flow_run_id} --wait"
                )
            if not yes:
                _demand_consent(found)
            deleted = client.delete_flow_run(found.flow_run_id)
            if as_json:
                from penstock.cli.json_output import to_json

                typer.echo(to_json({"flow_run_id": found.flow_run_id, "deleted": deleted}))
                return
            from penstock.cli.screen import Screen

            Screen().line(f"Flow run {found.name} " + ("is deleted." if deleted else "was deleted meanwhile."))


def _demand_consent(run: "FlowRun") -> None:
    if not sys.stdin.isatty():
        raise CommandFailed("Nothing was deleted: say --yes where nobody can be asked.", EXIT_MISUSED)
    from penstock.cli.safe_text import safe

    what = safe(f"flow run {run.name} of flow {run.flow_name} ({run.flow_run_id}), {run.state}")
    if not typer.confirm(f"Delete {what}, with its history and its log?", err=True):
        raise CommandFailed("Nothing was deleted.")
