"""`penstock archive` and `penstock unarchive`: which version of a flow is the live one."""

from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from penstock.cli.failures import told_plainly
from penstock.cli.which_flow import FlowArgument, Project, find_any_version

if TYPE_CHECKING:
    from penstock.client import Flow

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the flow as a JSON document.")]


def archive(flow: FlowArgument, project: Project = "", as_json: AsJson = False) -> None:
    """Archive a version of a flow.

    A name or a group means the live one. No run of it can be created any more. Runs that exist go on.
    """
    with told_plainly():
        from penstock.client import Client

        with Client() as client:
            archived = client.archive_flow(find_any_version(client, flow, project).flow_id)
            _show(archived, "is archived: no run of it can be created any more.", as_json)


def unarchive(flow: FlowArgument, project: Project = "", as_json: AsJson = False) -> None:
    """Make a version of a flow the live one.

    The version that was is archived. A name or a group without a live version means the latest one.
    """
    with told_plainly():
        from penstock.client import Client

        with Client() as client:
            found = find_any_version(client, flow, project)
            before = client.get_flow_group(found.flow_group_id).live_flow_id
            live = client.unarchive_flow(found.flow_id)
            instead = ""
            if before not in ("", live.flow_id):
                instead = f"; version {client.get_flow(before).version} is archived instead"
            _show(live, f"is the live one{instead}.", as_json)


def _show(flow: "Flow", what: str, as_json: bool) -> None:
    if as_json:
        from penstock.cli.json_output import to_json

        typer.echo(to_json(flow))
        return
    from penstock.cli.screen import Screen

    Screen().line(f"Version {flow.version} of flow {flow.name} in project {flow.project_name} {what}")
