"""Which flow run a person means: by its id, or by its name where one run alone bears it."""

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias
from uuid import UUID

import typer

from penstock.cli.failures import EXIT_MISUSED, CommandFailed

if TYPE_CHECKING:
    from penstock.client import Client, FlowRun

CANDIDATES_MAX: Final = 10

Run: TypeAlias = Annotated[
    str, typer.Argument(metavar="RUN", help="The id of the flow run, or its name where one run alone bears it.")
]


def find_run(client: "Client", run: str) -> "FlowRun":
    """The run that is meant, whole. Refuses a name of several runs by listing them."""
    if not run.strip():
        # A shell's variable that was never set must not mean whichever run there is.
        raise CommandFailed("RUN is empty: give the id of a flow run, or its name.", EXIT_MISUSED)
    if is_id(run):
        return client.get_flow_run(run)
    found = list(islice(client.list_flow_runs(name=run, page_size=CANDIDATES_MAX + 1), CANDIDATES_MAX + 1))
    if not found:
        raise CommandFailed(f"There is no flow run with the id or the name {run!r}.")
    if len(found) > 1:
        raise CommandFailed("\n".join(_choice(run, found)))
    return client.get_flow_run(found[0].flow_run_id)


def is_id(text: str) -> bool:
    """Whether a text has the form of an id; a name of that form is never looked for."""
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def _choice(run: str, found: "list[FlowRun]") -> list[str]:
    from penstock.cli.screen import date_and_time

    shown = found[:CANDIDATES_MAX]
    lines = [
        f"  {each.flow_run_id}  {date_and_time(each.create_time)}  {each.state:<10}  {each.flow_name}" for each in shown
    ]
    more = ["  …"] if len(found) > len(shown) else []
    return [f"Several flow runs are named {run!r}; say which by its id:", *lines, *more]
