"""`penstock explain`: why a flow run is not running."""

import re
from collections import deque
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.failures import told_plainly
from penstock.cli.which_run import Run, find_run

if TYPE_CHECKING:
    from penstock.client import Client, Explanation, FlowRun, Obstacle


def explain(
    run: Run,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reasons as one JSON document.")] = False,
) -> None:
    """Say why a flow run is not running.

    Everything that keeps it is told, by the rules that the queue itself follows.
    """
    with told_plainly():
        from penstock.client import Client

        with Client() as client:
            explanation = client.explain_flow_run(find_run(client, run).flow_run_id)
            before = [] if as_json else _what_went_before(client, explanation.flow_run)
        if as_json:
            from penstock.cli.json_output import to_json

            obstacles = [_document(each) for each in explanation.obstacles]
            typer.echo(to_json({"flow_run": explanation.flow_run, "obstacles": obstacles}))
            return
        from penstock.cli.screen import Screen

        screen = Screen()
        for sentence in [*_sentences(explanation), *before]:
            screen.line(sentence)


def _sentences(explanation: "Explanation") -> list[str]:
    return [str(each) for each in explanation.obstacles] or [_without_obstacles(explanation.flow_run)]


def _what_went_before(client: "Client", run: "FlowRun") -> list[str]:
    """Why the run waits again, where it was given back, lost or tried before; why it ended, where it failed."""
    from penstock.client import FlowRunState, TransitionCause

    if run.state is FlowRunState.FAILED:
        return [f"It failed: {run.failure}"] if run.failure else []
    if run.state is not FlowRunState.SCHEDULED or run.version == 1:
        return []
    (last,) = deque(client.list_transitions(run.flow_run_id), maxlen=1)
    words = {
        TransitionCause.RELEASED: "It was given back",
        TransitionCause.LOST: "It was lost",
        TransitionCause.RETRIED: "Its last attempt failed",
    }
    return [f"{words[last.cause]}: {last.message}"] if last.message and last.cause in words else []


def _without_obstacles(run: "FlowRun") -> str:
    from penstock.cli.screen import date_and_time
    from penstock.client import FlowRunState

    match run.state:
        case FlowRunState.RUNNING:
            return "It runs."
        case FlowRunState.SUBMITTED:
            return "It was taken, and is about to run."
        case FlowRunState.CANCELLING:
            return "It is being stopped."
        case FlowRunState.SCHEDULED:
            return "Nothing keeps it: it is being handed out."
    return f"It ended at {date_and_time(run.finish_time)}: {run.state}."


def _document(obstacle: "Obstacle") -> dict[str, Any]:
    kind = re.sub(r"(?<!^)(?=[A-Z])", "_", type(obstacle).__name__).upper()
    return {
        "kind": kind,
        "message": str(obstacle),
        **{each.name: getattr(obstacle, each.name) for each in fields(obstacle)},
    }
