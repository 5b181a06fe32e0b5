"""`penstock register`: make flows known to the server."""

import shlex
from typing import TYPE_CHECKING, Annotated, Final

import typer

from penstock.cli.failures import EXIT_MISUSED, CommandFailed, told_plainly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from penstock.client.flows import Registrable


def register(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[PATH_OR_MODULE]", help="A Python file or module with functions decorated by @flow."),
    ] = None,
    project: Annotated[str, typer.Option("--project", help="The project; it is created when it is missing.")] = "",
    group: Annotated[
        str, typer.Option("--group", metavar="ID", help="The group to add a version to, whatever the flow is called.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Only the flow of this name; with --command, its name.")] = "",
    command: Annotated[str, typer.Option("--command", help='A program instead, as "prog arg …".')] = "",
    label: Annotated[
        list[str] | None, typer.Option(help="With --command: a label of its runs; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document per line and flow.")] = False,
) -> None:
    """Register the flows in a file or module, or a program in any language.

    A flow that did not change since its last registration keeps its version.
    """
    if not project and not group:
        raise CommandFailed("Say which project: --project NAME.", EXIT_MISUSED)
    if command:
        registrables = _command(command, name, group, label or (), source)
    else:
        registrables = _flows(source, name, label)
        _demand_one_for(group, registrables)
    with told_plainly(_WORDS | (_WORDS_FOR_COMMANDS if command else {})):
        from penstock.client import Client

        with Client() as client:
            for each in registrables:
                flow = client.register_flow(each, project=project, flow_group_id=group)
                if as_json:
                    from penstock.cli.json_output import to_json

                    typer.echo(to_json(flow))
                else:
                    from penstock.cli.screen import Screen

                    what = "registered as" if flow.created else "unchanged, still"
                    place = f"in project {flow.project_name}"
                    Screen().line(f"Flow {flow.name} is {what} version {flow.version} {place}: {flow.flow_id}")


_WORDS: Final[dict[str, str]] = {"project_name": "--project", "project": "--project", "flow_group_id": "--group"}

# A Python flow says the rest itself.
_WORDS_FOR_COMMANDS: Final[dict[str, str]] = {
    "name": "--name",
    "labels": "--label",
    "entry_point.command.arguments": "--command",
    "entry_point.command": "--command",
}


def _demand_one_for(group: str, registrables: "Sequence[Registrable]") -> None:
    if group and len(registrables) > 1:
        raise CommandFailed("--group takes one flow, and there are several; say which with --name.", EXIT_MISUSED)


def _flows(source: str | None, name: str, label: "Sequence[str] | None") -> "Sequence[Registrable]":
    from penstock.authoring.loading import LoadingError, discover

    if source is None:
        raise CommandFailed("Say what to register: a Python file, a module, or --command.", EXIT_MISUSED)
    if label:
        raise CommandFailed("--label goes with --command; a Python flow says its labels itself.", EXIT_MISUSED)
    try:
        found = [flow for _, flow in discover(source)]
    except LoadingError as error:
        raise CommandFailed(f"Nothing was registered: {error}") from error
    wanted = [flow for flow in found if name in ("", flow.name)]
    if not wanted:
        raise CommandFailed(f"{source} has no flow {name!r}; it has {', '.join(flow.name for flow in found)}.")
    return wanted


def _command(
    command: str, name: str, group: str, labels: "Sequence[str]", source: str | None
) -> "Sequence[Registrable]":
    from penstock.authoring.flow import Command

    if source is not None:
        raise CommandFailed("Give a file or module, or --command, not both.", EXIT_MISUSED)
    if not name and not group:
        raise CommandFailed("A command needs a name: --name NAME.", EXIT_MISUSED)
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise CommandFailed(f"--command cannot be split into arguments: {error}.", EXIT_MISUSED) from error
    return [Command(name=name, arguments=arguments, labels=tuple(labels))]
