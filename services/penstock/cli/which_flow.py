"""Which flow a person means: by its id or its group's, or by its name, with the project where several have it."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from penstock.cli.failures import EXIT_MISUSED, CommandFailed
from penstock.cli.which_run import is_id

if TYPE_CHECKING:
    from penstock.client import Client, Flow

FlowArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="FLOW", help="The id of the flow or of its group, or the flow's name.")
]
Project: TypeAlias = Annotated[str, typer.Option("--project", help="The project of that name, where several have it.")]


def find_flow(client: "Client", flow: str, project: str) -> "Flow":
    """The version that is meant: with an id of a version that one, otherwise the live one."""
    if not flow.strip():
        raise CommandFailed("FLOW is empty: give the id of a flow or of its group, or the flow's name.", EXIT_MISUSED)
    return client.look_up_flow(id=flow) if is_id(flow) else client.look_up_flow(name=flow, project=project)


def find_any_version(client: "Client", flow: str, project: str) -> "Flow":
    """As `find_flow`; where no version is live, the latest one."""
    from penstock.client import Refused

    try:
        return find_flow(client, flow, project)
    except Refused as error:
        if error.reason != "NO_LIVE_FLOW":
            raise
        group_id = error.metadata["flow_group_id"]
        (latest,) = islice(client.list_flows(flow_group_id=group_id, include_archived=True, page_size=1), 1)
        return latest
