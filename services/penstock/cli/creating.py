"""Creating one flow run as a command line asks, and saying in its own words why that is refused."""

import asyncio
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import typer

from penstock.cli.failures import CommandFailed, sentence_of
from penstock.client import (
    AsyncClient,
    CreatedFlowRun,
    CutOff,
    DeadlineExceeded,
    Flow,
    InvalidRequest,
    NewFlowRun,
    ParameterType,
    PenstockError,
)
from penstock.domain.lanes import AGENTLESS

# What the command line calls the fields of a creation.
OPTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "flow_id": "--id",
        "flow_group_id": "--id",
        "parameters_json": "--param/--param-file",
        "parameters": "--param",
        "context_json": "--context",
        "context": "--context",
        "labels": "--label",
        "name": "--run-name",
        "idempotency_key": "--idempotency-key",
        "scheduled_start_time": "--start-at",
        "start_delay": "--in",
        "policy.max_retries": "--retries",
        "policy.retry_delay": "--retry-delay",
        "retry_delay": "--retry-delay",
        "policy.priority": "--priority",
        "policy.log_level": "--log-level",
        "run_config": "--env/--working-directory/--image/--resource",
        "run_config.environment": "--env",
        "run_config.working_directory": "--working-directory",
        "run_config.image": "--image",
        "run_config.resources": "--resource",
    }
)


@dataclass(frozen=True, slots=True)
class Target:
    """What to run, as a person names it: the id of a flow or a group, or a name and perhaps its project."""

    flow_id: str = ""
    name: str = ""
    project: str = ""


async def look_up(client: AsyncClient, target: Target) -> Flow:
    """The flow that is meant."""
    words = {
        "id": f"--id {target.flow_id!r}",
        "name.name": f"--name {target.name!r}",
        "name.project_name": f"--project {target.project!r}",
    }
    try:
        if target.flow_id:
            return await client.look_up_flow(id=target.flow_id)
        return await client.look_up_flow(name=target.name, project=target.project)
    except PenstockError as error:
        raise CommandFailed(sentence_of(error, words)) from error


def aimed_at(flow: Flow, target: Target) -> NewFlowRun:
    """What to name in a creation.

    A name or a group's id means whichever version is live; under a key, also when that changes between two tries.
    """
    if flow.flow_id == target.flow_id.lower():
        return {"flow_id": flow.flow_id}
    return {"flow_group_id": flow.flow_group_id}


async def create(
    client: AsyncClient, flow: Flow, wish: NewFlowRun, texts: Mapping[str, str] = MappingProxyType({})
) -> CreatedFlowRun:
    """Create the run. `texts` are its parameters as they were given on the command line."""
    try:
        return await client.create_flow_run(**wish)
    except InvalidRequest as error:
        raise CommandFailed("\n".join([sentence_of(error, OPTIONS), *_hints(flow, wish, texts)])) from error
    except (DeadlineExceeded, CutOff) as error:
        raise CommandFailed(f"{error}\n{_doubt(wish)}") from error
    except asyncio.CancelledError:
        typer.echo(f"\n{_doubt(wish)}", err=True)
        raise
    except PenstockError as error:
        raise CommandFailed(sentence_of(error, OPTIONS)) from error


async def for_this_process(client: AsyncClient, flow: Flow, wish: NewFlowRun) -> NewFlowRun:
    """The same wish for a run that no agent takes: its labels, be they its flow's, and the reserved one.

    When this process is gone and the run with it, nobody would take it again: so it fails.
    """
    labels = wish.get("labels")
    if labels is None:
        group = await client.get_flow_group(flow.flow_group_id)
        labels = flow.labels if group.labels is None else group.labels
    return {**wish, "labels": [*labels, AGENTLESS], "max_lost_restarts": 0}


def demand_for_this_process(run: CreatedFlowRun) -> None:
    """Refuse to execute a run that was created before, for agents."""
    if AGENTLESS not in run.labels:
        raise CommandFailed(
            f"This idempotency key had already created flow run {run.flow_run_id}, for an agent to execute; "
            "it cannot be executed here."
        )


def _doubt(wish: NewFlowRun) -> str:
    """What to do when the answer to a creation never came."""
    again = (
        "The same command again makes no second one."
        if wish.get("idempotency_key") is not None
        else "Look with penstock get flow-runs; with --idempotency-key, a command may simply be repeated."
    )
    return f"The run may have been created all the same. {again}"


def _hints(flow: Flow, wish: NewFlowRun, texts: Mapping[str, str]) -> list[str]:
    """How to give as text what looked like JSON and was meant as text."""
    given = wish.get("parameters") or {}
    declared = {each.name for each in flow.parameters if each.type is ParameterType.STRING}
    return [
        f"To give {name!r} as text, quote it twice: --param {shlex.quote(name)}={shlex.quote(json.dumps(text))}"
        for name, text in texts.items()
        if name in declared and not isinstance(given.get(name), str)
    ]
