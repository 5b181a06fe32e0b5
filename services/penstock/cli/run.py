"""`penstock run`: create a flow run, and perhaps watch it to its end."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.failures import EXIT_LOST_CONTACT, EXIT_MISUSED, CommandFailed, sentence_of, told_plainly

if TYPE_CHECKING:
    from penstock.cli.progress import Display
    from penstock.client import AsyncClient, CreatedFlowRun, Flow, FlowRun


def run(
    flow_id: Annotated[str, typer.Option("--id", help="The flow, or the flow group, to run.")] = "",
    name: Annotated[str, typer.Option("--name", help="The flow to run, by its name.")] = "",
    project: Annotated[str, typer.Option("--project", help="The project of that name, where several have it.")] = "",
    param: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A parameter; JSON, or else plain text. May be repeated."),
    ] = None,
    param_file: Annotated[
        Path | None, typer.Option(help="Parameters as a JSON object in a file; --param goes before it.")
    ] = None,
    context: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="What the run shall know beside its parameters.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A label, in place of the flow's own; may be repeated.")
    ] = None,
    run_name: Annotated[str, typer.Option(help="What to call the run; two generated words otherwise.")] = "",
    idempotency_key: Annotated[
        str | None, typer.Option(help="Create at most one run under this key; a repeat shows the first.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show states and log lines until the run ends.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the run's id.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the run as a JSON document; with --watch, one document per line and event."),
    ] = False,
) -> None:
    """Create a flow run.

    Exits, with --watch, 0 when the run succeeded, 1 when it failed, 3 when it was cancelled, and 4 when contact to the
    server was lost; the run goes on whatever happens here.
    """
    import asyncio

    if bool(flow_id) == bool(name):
        raise CommandFailed("Say which flow to run: --id ID, or --name NAME.", EXIT_MISUSED)
    if project and not name:
        raise CommandFailed("--project goes with --name.", EXIT_MISUSED)
    if quiet and as_json:
        raise CommandFailed("Choose one of --quiet and --json.", EXIT_MISUSED)
    wish = {
        "parameters": _parameters(param or (), param_file, say_conflicts=not quiet),
        "context": _values("context value", context or ()),
        "labels": label,
        "name": run_name,
        "idempotency_key": idempotency_key,
    }
    with told_plainly():
        from penstock.runtime import telemetry

        telemetry.configure("penstock-cli")
        output = _Output(quiet=quiet, as_json=as_json, watch=watch)
        try:
            sys.exit(asyncio.run(_create_and_watch(flow_id, name, project, wish, output)))
        finally:
            telemetry.shutdown()


class _Output:
    """How this command shows what it does."""

    def __init__(self, *, quiet: bool, as_json: bool, watch: bool) -> None:
        self.watch = watch
        self._quiet = quiet
        self._as_json = as_json

    def created(self, run: "CreatedFlowRun") -> None:
        """Show the run that was created, now or before."""
        if self._quiet:
            typer.echo(run.flow_run_id)
        elif self._as_json:
            from penstock.cli.json_output import to_json

            typer.echo(to_json({"event": "created", "flow_run": run}) if self.watch else to_json(run))
        else:
            self._describe(run)

    def display(self) -> "Display":
        """Where the run is shown while it is watched."""
        from penstock.cli.progress import ForNobody, ForPeople, ForPrograms
        from penstock.cli.screen import Screen

        if self._quiet:
            return ForNobody()
        return ForPrograms() if self._as_json else ForPeople(Screen())

    def ended(self, run: "FlowRun") -> None:
        """Show how the run ended."""
        if self._quiet:
            return
        if self._as_json:
            from penstock.cli.json_output import to_json

            typer.echo(to_json({"event": "end", "flow_run": run}))
            return
        from penstock.cli.screen import STYLES, Screen

        how = f": {run.failure}" if run.failure else ""
        screen = Screen()
        screen.line(f"Flow run {run.name} ", (run.state.lower(), STYLES.get(run.state, "")), how or ".")
        if run.result_json is not None:
            screen.line("Result: ", run.result_json)

    def _describe(self, run: "CreatedFlowRun") -> None:
        from penstock.cli.screen import Screen

        screen = Screen()
        what = "Created" if run.created else "This idempotency key had already created"
        screen.line(f"{what} flow run {run.name} of flow {run.flow_name}.")
        for title, text in (
            ("id", run.flow_run_id),
            ("labels", ", ".join(run.labels)),
            ("parameters", run.parameters_json),
            ("differs in", ", ".join(run.differing_fields)),
        ):
            if text:
                screen.line(f"  {title:<10} ", text)
        if not self.watch:
            screen.line(f"Follow it with: penstock logs {run.flow_run_id} --follow")


async def _create_and_watch(flow_id: str, name: str, project: str, wish: dict[str, Any], output: _Output) -> int:
    from penstock.client import AsyncClient

    async with AsyncClient() as client:
        flow = await (client.look_up_flow(id=flow_id) if flow_id else client.look_up_flow(name=name, project=project))
        run = await client.create_flow_run(**_target(flow, flow_id), **wish)
        output.created(run)
        return await _watch(client, run.flow_run_id, output) if output.watch else 0


async def _watch(client: "AsyncClient", flow_run_id: str, output: _Output) -> int:
    import asyncio

    from penstock.cli.progress import exit_code_of, follow_run
    from penstock.client import PenstockError

    resume = f"The run goes on. See how it fares with: penstock logs {flow_run_id} --follow"
    try:
        ended = await follow_run(client, flow_run_id, output.display())
    except asyncio.CancelledError:
        typer.echo(f"\nNot watching any more. {resume}", err=True)
        raise
    except PenstockError as error:
        if error.passing:
            raise CommandFailed(f"Contact was lost: {sentence_of(error)}\n{resume}", EXIT_LOST_CONTACT) from error
        raise
    output.ended(ended)
    return exit_code_of(ended.state)


def _target(flow: "Flow", flow_id: str) -> dict[str, Any]:
    # A name or a group's id means whichever version is live; under a key, also when that changes between two tries.
    return {"flow_id": flow_id} if flow.flow_id == flow_id.lower() else {"flow_group_id": flow.flow_group_id}


def _parameters(param: Any, param_file: Path | None, *, say_conflicts: bool) -> dict[str, Any]:
    from penstock.cli.given import values_in_file

    in_file = values_in_file(param_file) if param_file else {}
    given = _values("parameter", param)
    both = sorted(in_file.keys() & given.keys())
    if both and say_conflicts:
        typer.echo(f"penstock: --param goes before --param-file for: {', '.join(both)}", err=True)
    return in_file | given


def _values(kind: str, given: Any) -> dict[str, Any]:
    from penstock.cli.given import values_of

    return values_of(kind, given)
