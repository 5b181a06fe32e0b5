"""`penstock get`: what there is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from penstock.cli.failures import EXIT_MISUSED, CommandFailed, told_plainly
from penstock.cli.which_run import Run, find_run

if TYPE_CHECKING:
    from penstock.client import Agent, Flow, FlowRun, FlowRunState, Project

T = TypeVar("T")

app = typer.Typer(name="get", help="Show projects, flows, flow runs and agents.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document per line and item, for programs.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="Show at most so many.")]


@app.command("projects")
def projects(limit: Limit = 50, as_json: AsJson = False) -> None:
    """Show projects, oldest first."""
    with told_plainly():
        from penstock.client import Client

        with Client() as client:
            found = client.list_projects(page_size=_page(limit))
            _show(_first(limit, found), ("PROJECT ID", "NAME", "CREATED"), _project, as_json)


@app.command("flows")
def flows(
    project: Annotated[str, typer.Option(help="Only flows of this project.")] = "",
    name: Annotated[str, typer.Option(help="Only flows of this name.")] = "",
    all_versions: Annotated[bool, typer.Option("--all-versions", help="Show archived versions too.")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show registered flows, newest first."""
    with told_plainly():
        from penstock.client import Client

        with Client() as client:
            found = client.list_flows(project=project, name=name, include_archived=all_versions, page_size=_page(limit))
            _show(
                _first(limit, found), ("FLOW ID", "PROJECT", "NAME", "VERSION", "LABELS", "REGISTERED"), _flow, as_json
            )


@app.command("flow-runs")
def flow_runs(
    state: Annotated[list[str] | None, typer.Option(help="Only runs in this state; may be repeated.")] = None,
    name: Annotated[str, typer.Option(help="Only runs of this name.")] = "",
    flow_id: Annotated[str, typer.Option(help="Only runs of this flow.")] = "",
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """Show flow runs, newest first."""
    with told_plainly():
        from penstock.client import Client

        states = [_state_of(word) for word in state or ()]
        with Client() as client:
            found = client.list_flow_runs(states=states, name=name, flow_id=flow_id, page_size=_page(limit))
            _show(_first(limit, found), _FLOW_RUN, _flow_run, as_json)


@app.command("flow-run")
def flow_run(run: Run, as_json: AsJson = False) -> None:
    """Show one flow run."""
    with told_plainly():
        from penstock.client import Client

        with Client() as client:
            _show([find_run(client, run)], _FLOW_RUN, _flow_run, as_json)


@app.command("agents")
def agents(limit: Limit = 50, as_json: AsJson = False) -> None:
    """Show agents, the last seen first."""
    with told_plainly():
        from penstock.client import Client

        with Client() as client:
            found = client.list_agents(page_size=_page(limit))
            headings = ("AGENT ID", "NAME", "LABELS", "SLOTS USED", "HEALTHY", "LAST SEEN")
            _show(_first(limit, found), headings, _agent, as_json)


def _show(items: Iterable[T], headings: Sequence[str], row: Callable[[T], Sequence[str]], as_json: bool) -> None:
    if as_json:
        from penstock.cli.json_output import to_json

        for item in items:
            typer.echo(to_json(item))
        return
    from penstock.cli.screen import Screen

    Screen().table(headings, [row(item) for item in items])


def _project(project: "Project") -> Sequence[str]:
    from penstock.cli.screen import date_and_time

    return project.project_id, project.name, date_and_time(project.create_time)


def _flow(flow: "Flow") -> Sequence[str]:
    from penstock.cli.screen import date_and_time

    labels = ", ".join(flow.labels)
    return flow.flow_id, flow.project_name, flow.name, str(flow.version), labels, date_and_time(flow.create_time)


_FLOW_RUN = ("FLOW RUN ID", "FLOW", "NAME", "STATE", "CREATED")


def _flow_run(run: "FlowRun") -> Sequence[str]:
    from penstock.cli.screen import date_and_time

    return run.flow_run_id, run.flow_name, run.name, run.state, date_and_time(run.create_time)


def _agent(agent: "Agent") -> Sequence[str]:
    from penstock.cli.screen import date_and_time

    slots, healthy = f"{agent.slots_used} of {agent.slots}", "yes" if agent.healthy else "no"
    labels = ", ".join(agent.labels)
    return agent.agent_id, agent.name, labels, slots, healthy, date_and_time(agent.last_seen_time)


def _state_of(word: str) -> "FlowRunState":
    from penstock.client import FlowRunState

    known = [state for state in FlowRunState if state is not FlowRunState.UNKNOWN]
    if word.upper() not in known:
        raise CommandFailed(f"There is no state {word!r}; there are {', '.join(known)}.", EXIT_MISUSED)
    return FlowRunState(word.upper())


def _page(limit: int) -> int:
    return min(limit, 1_000)


def _first(limit: int, items: Iterator[T]) -> Iterator[T]:
    return (item for _, item in zip(range(limit), items, strict=False))
