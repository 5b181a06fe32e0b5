"""`penstock describe`: everything about one flow run, or one flow."""

from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final

import typer

from penstock.cli.failures import told_plainly
from penstock.cli.which_flow import FlowArgument, Project, find_any_version
from penstock.cli.which_run import Run, find_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from penstock.cli.screen import Screen
    from penstock.client import Agent, Client, Flow, FlowGroup, FlowRun, Policy, RunConfig, Transition

CHILDREN_SHOWN_MAX: Final = 20
CHILDREN_COUNTED_MAX: Final = 10_000
VERSIONS_SHOWN_MAX: Final = 20
AGENTS_KNOWN_MAX: Final = 1_000

app = typer.Typer(name="describe", help="Show everything about one flow run or flow.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@dataclass(frozen=True, slots=True)
class RunDescription:
    """A run, and what belongs to it. Of its children the latest are here; all are counted, within reason."""

    flow_run: "FlowRun"
    flow: "Flow"
    parent: "FlowRun | None"
    children: "Sequence[FlowRun]"
    child_count: int
    transitions: "Sequence[Transition]"
    agents: "Sequence[Agent]"
    trace_id: str


@dataclass(frozen=True, slots=True)
class FlowDescription:
    """A version of a flow, its group, and the latest versions of that."""

    flow: "Flow"
    flow_group: "FlowGroup"
    versions: "Sequence[Flow]"


@app.command("flow-run")
def flow_run(run: Run, as_json: AsJson = False) -> None:
    """Show everything about a flow run.

    What it was asked to do, how it fares or ended, its history, and its children.
    """
    with told_plainly():
        from penstock.client import Client

        with Client() as client:
            description = _describe_run(client, find_run(client, run))
        if as_json:
            from penstock.cli.json_output import to_json

            typer.echo(to_json(description))
        else:
            from penstock.cli.screen import Screen

            _show_run(Screen(), description)


@app.command("flow")
def flow(flow: FlowArgument, project: Project = "", as_json: AsJson = False) -> None:
    """Show everything about a version of a flow.

    A name or a group means the live version, or the latest one where none is live.
    """
    with told_plainly():
        from penstock.client import Client

        with Client() as client:
            found = find_any_version(client, flow, project)
            group = client.get_flow_group(found.flow_group_id)
            versions = client.list_flows(
                flow_group_id=found.flow_group_id, include_archived=True, page_size=VERSIONS_SHOWN_MAX
            )
            description = FlowDescription(found, group, list(islice(versions, VERSIONS_SHOWN_MAX)))
        if as_json:
            from penstock.cli.json_output import to_json

            typer.echo(to_json(description))
        else:
            from penstock.cli.screen import Screen

            _show_flow(Screen(), description)


def _describe_run(client: "Client", run: "FlowRun") -> RunDescription:
    children = client.list_flow_runs(parent_flow_run_id=run.flow_run_id, page_size=1_000)
    shown = list(islice(children, CHILDREN_SHOWN_MAX))
    steps = list(client.list_transitions(run.flow_run_id, page_size=1_000))
    return RunDescription(
        flow_run=run,
        flow=client.get_flow(run.flow_id),
        parent=_parent_of(client, run),
        children=shown,
        child_count=len(shown) + sum(1 for _ in islice(children, CHILDREN_COUNTED_MAX - len(shown))),
        transitions=steps,
        agents=_agents_of(client, {step.agent_id for step in steps if step.agent_id}),
        trace_id=_trace_id_of(run.trace_context),
    )


def _parent_of(client: "Client", run: "FlowRun") -> "FlowRun | None":
    from penstock.client import NotFound

    if not run.parent_flow_run_id:
        return None
    try:
        return client.get_flow_run(run.parent_flow_run_id)
    except NotFound:  # it was deleted; its child remembers its id
        return None


def _agents_of(client: "Client", ids: set[str]) -> "Sequence[Agent]":
    """The agents with these ids. Their names are an extra: those that cannot be found out are missing."""
    from penstock.client import PenstockError

    if not ids:
        return ()
    try:
        known = islice(client.list_agents(page_size=AGENTS_KNOWN_MAX), AGENTS_KNOWN_MAX)
        return [agent for agent in known if agent.agent_id in ids]
    except PenstockError:
        return ()


def _trace_id_of(trace_context: "Mapping[str, str]") -> str:
    """The second field of a W3C traceparent."""
    fields = trace_context.get("traceparent", "").split("-")
    return fields[1] if len(fields) > 1 else ""


def _show_run(screen: "Screen", description: RunDescription) -> None:
    from penstock.cli.screen import STYLES, date_and_time

    run, version = description.flow_run, description.flow
    screen.line(f"Flow run {run.name} ", (run.state, STYLES.get(run.state, "")))
    _show_fields(
        screen,
        {
            "id": run.flow_run_id,
            "flow": f"{run.flow_name}, version {version.version}, in project {version.project_name} ({run.flow_id})",
            "attempt": f"{run.attempt}",
            "labels": ", ".join(run.labels),
            "created": date_and_time(run.create_time),
            "due": date_and_time(run.scheduled_start_time),
            "started": date_and_time(run.start_time),
            "ended": date_and_time(run.finish_time),
            "idempotency key": run.idempotency_key or "",
            "parent": _parent_text(run, description.parent),
            "trace id": description.trace_id,
            "policy": _policy_text(run.policy),
        },
    )
    _show_json_members(screen, "Parameters", run.parameters_json)
    _show_json_members(screen, "Context", run.context_json)
    _show_run_config(screen, run.run_config)
    _show_end(screen, run)
    _show_history(screen, description)
    _show_children(screen, description)


def _show_end(screen: "Screen", run: "FlowRun") -> None:
    if run.result_json is not None:
        screen.line("Result: ", run.result_json)
    if run.failure is not None:
        screen.line("Failure: ", str(run.failure))
        for line in run.failure.traceback.splitlines():
            screen.line("  ", line)


def _show_history(screen: "Screen", description: RunDescription) -> None:
    from penstock.cli.screen import date_and_time

    names = {agent.agent_id: agent.name for agent in description.agents}
    screen.line("History:")
    screen.table(
        ("  TIME", "STATE", "CAUSE", "ATTEMPT", "AGENT", "MESSAGE"),
        [
            (
                f"  {date_and_time(step.create_time)}",
                step.state,
                step.cause,
                str(step.attempt),
                names.get(step.agent_id, step.agent_id),
                step.message,
            )
            for step in description.transitions
        ],
    )


def _show_children(screen: "Screen", description: RunDescription) -> None:
    if not description.children:
        return
    count, shown = description.child_count, len(description.children)
    how_many = f"at least {count:,}" if count >= CHILDREN_COUNTED_MAX else str(count)
    screen.line(f"Children: {how_many}" + (f", of which the latest {shown}:" if count > shown else ""))
    screen.table(
        ("  FLOW RUN ID", "FLOW", "NAME", "STATE"),
        [(f"  {each.flow_run_id}", each.flow_name, each.name, each.state) for each in description.children],
    )


def _show_flow(screen: "Screen", description: FlowDescription) -> None:
    from penstock.cli.screen import date_and_time

    version, group = description.flow, description.flow_group
    is_live = group.live_flow_id == version.flow_id
    screen.line(f"Flow {version.name}, version {version.version}", ", live" if is_live else ", archived")
    _show_fields(
        screen,
        {
            "id": version.flow_id,
            "group": version.flow_group_id,
            "project": version.project_name,
            "entry point": version.python,
            "command": _command_text(version.command),
            "labels": ", ".join(version.labels),
            "registered": date_and_time(version.create_time),
            "archived": date_and_time(version.archive_time),
            "policy": _policy_text(version.policy),
        },
    )
    if version.description:
        screen.line("Description:")
        for line in version.description.splitlines():
            screen.line("  ", line)
    _show_parameters(screen, version)
    _show_run_config(screen, version.run_config)
    _show_group_defaults(screen, group)
    screen.line("Versions:")
    screen.table(
        ("  FLOW ID", "VERSION", "REGISTERED", "ARCHIVED"),
        [
            (
                f"  {each.flow_id}",
                str(each.version),
                date_and_time(each.create_time),
                date_and_time(each.archive_time) or "live",
            )
            for each in description.versions
        ],
    )


def _show_parameters(screen: "Screen", version: "Flow") -> None:
    from penstock.client import ParameterType

    if version.parameters:
        screen.line("Parameters:")
        screen.table(
            ("  NAME", "TYPE", "DEFAULT", "DESCRIPTION"),
            [
                (
                    f"  {each.name}",
                    "any" if each.type is ParameterType.UNKNOWN else each.type.lower(),
                    "(required)" if each.required else each.default_json or "",
                    each.description,
                )
                for each in version.parameters
            ],
        )
    if version.accepts_extra_parameters:
        screen.line("Any other parameter is taken too." if version.parameters else "Any parameter is taken.")
    elif not version.parameters:
        screen.line("No parameter is taken.")


def _show_group_defaults(screen: "Screen", group: "FlowGroup") -> None:
    if group.default_parameters_json is not None:
        _show_json_members(screen, "Parameters by default of the group", group.default_parameters_json)
    if group.labels is not None:
        screen.line("Labels by default of the group: ", ", ".join(group.labels) or "none")
    if group.run_config is not None:
        _show_run_config(screen, group.run_config, "Run config by default of the group")


def _show_fields(screen: "Screen", fields: "Mapping[str, str]") -> None:
    """Show what there is, one line each; what is empty is left out."""
    for title, text in fields.items():
        if text:
            screen.line(f"  {title:<17} ", text)


def _show_json_members(screen: "Screen", title: str, text: str) -> None:
    from penstock.domain import json_text

    members = json_text.parse_object(text)
    if members:
        screen.line(f"{title}:")
        for name, value in members.items():
            screen.line(f"  {name:<17} ", json_text.canonical(value))


def _show_run_config(screen: "Screen", config: "RunConfig", title: str = "Run config") -> None:
    fields = {
        "working directory": config.working_directory,
        "image": config.image,
        **{f"needs {name}": value for name, value in config.resources.items()},
        **{f"sets {name}": value or '""' for name, value in config.environment.items()},
    }
    if any(fields.values()):
        screen.line(f"{title}:")
        _show_fields(screen, fields)


def _parent_text(run: "FlowRun", parent: "FlowRun | None") -> str:
    if parent is None:
        return run.parent_flow_run_id
    return f"{parent.name} of flow {parent.flow_name} ({parent.flow_run_id})"


def _policy_text(policy: "Policy") -> str:
    apart = f", each {_span(policy.retry_delay)} after a failure" if policy.max_retries and policy.retry_delay else ""
    return (
        f"priority {policy.priority}; retries {policy.max_retries}{apart}; "
        f"restarts when an agent is lost {policy.max_lost_restarts}; log level {policy.log_level}; "
        f"with its parent {policy.child_policy}"
    )


def _span(span: timedelta) -> str:
    return f"{span.total_seconds():,.15g} s"


def _command_text(arguments: "Sequence[str]") -> str:
    import shlex

    return shlex.join(arguments)
