"""`penstock run`: create a flow run, or many; watch it, execute it here, or run a flow without a backend.

This module is the table of the options and the choice between what they ask for. How each is done is told in
`creating`, `watching`, `executing`, `batch` and `local`.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from penstock.cli.contradictions import refuse_contradictions
from penstock.cli.failures import EXIT_MISUSED, CommandFailed, told_plainly
from penstock.cli.option_groups import options_given
from penstock.cli.run_output import RunOutput
from penstock.domain.limits import LOG_LEVELS, PRIORITY_MAX, RETRIES_MAX

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from penstock.client import LogLevel, NewFlowRun, RunConfig

_target = partial(typer.Option, rich_help_panel="What to run")
_input = partial(typer.Option, rich_help_panel="What the run is given")
_identity = partial(typer.Option, rich_help_panel="What the run is called")
_start = partial(typer.Option, rich_help_panel="When it starts")
_treatment = partial(typer.Option, rich_help_panel="How it is treated")
_config = partial(typer.Option, rich_help_panel="Its run config; any of these replaces the whole of the flow's own")
_following = partial(typer.Option, rich_help_panel="What happens next")
_output = partial(typer.Option, rich_help_panel="What is shown")
_many = partial(typer.Option, rich_help_panel="Many runs at once")


def run(
    ctx: typer.Context,
    flow_id: Annotated[str, _target("--id", "-i", metavar="ID", help="The flow, or the flow group.")] = "",
    name: Annotated[
        str,
        _target(
            "--name", "-n", metavar="NAME", help="The flow by its name; with --path or --module, which one of several."
        ),
    ] = "",
    project: Annotated[
        str, _target("--project", metavar="NAME", help="The project of that name, where several have it.")
    ] = "",
    path: Annotated[
        str,
        _target(
            "--path", "-p", metavar="FILE", help="The flow in this Python file, run here and now, without a backend."
        ),
    ] = "",
    module: Annotated[
        str, _target("--module", "-m", metavar="NAME", help="The same for a flow in an importable module.")
    ] = "",
    param: Annotated[
        list[str] | None,
        _input("--param", metavar="NAME=VALUE", help="A parameter; JSON, or else plain text. May be repeated."),
    ] = None,
    param_file: Annotated[
        Path | None,
        _input("--param-file", metavar="FILE", help="Parameters as a JSON object in a file; --param goes before it."),
    ] = None,
    context: Annotated[
        list[str] | None,
        _input("--context", metavar="NAME=VALUE", help="What it shall know beside its parameters. May be repeated."),
    ] = None,
    run_name: Annotated[
        str, _identity("--run-name", metavar="NAME", help="What to call it; two generated words otherwise.")
    ] = "",
    idempotency_key: Annotated[
        str | None,
        _identity("--idempotency-key", metavar="KEY", help="Create at most one run under this key; a repeat shows it."),
    ] = None,
    refuse_different: Annotated[
        bool, _identity("--refuse-different", help="Refuse a repeat of the key that asks for something different.")
    ] = False,
    start_at: Annotated[
        str,
        _start("--start-at", metavar="MOMENT", help="A moment in ISO 8601; local time unless it has an offset."),
    ] = "",
    start_in: Annotated[
        str, _start("--in", metavar="SPAN", help="So long after its creation: 90s, 10m, 1h30m, 2d.")
    ] = "",
    label: Annotated[
        list[str] | None,
        _treatment("--label", metavar="LABEL", help="A label, in place of the flow's own. May be repeated."),
    ] = None,
    no_labels: Annotated[bool, _treatment("--no-labels", help="No label, whatever the flow's own are.")] = False,
    priority: Annotated[
        int | None,
        _treatment(
            "--priority", metavar="NUMBER", min=0, max=PRIORITY_MAX, help="Higher goes first among runs that wait."
        ),
    ] = None,
    retries: Annotated[
        int | None,
        _treatment(
            "--retries", metavar="NUMBER", min=0, max=RETRIES_MAX, help="How often a failed run is tried again."
        ),
    ] = None,
    retry_delay: Annotated[
        str, _treatment("--retry-delay", metavar="SPAN", help="How long to wait before each try: 30s, 5m.")
    ] = "",
    log_level: Annotated[
        str, _treatment("--log-level", metavar="LEVEL", help=f"What its logger keeps: {', '.join(LOG_LEVELS)}.")
    ] = "",
    env: Annotated[
        list[str] | None,
        _config("--env", metavar="NAME=VALUE", help="A variable of its environment. May be repeated."),
    ] = None,
    working_directory: Annotated[str, _config("--working-directory", metavar="PATH", help="Where it is started.")] = "",
    image: Annotated[str, _config("--image", metavar="IMAGE", help="The container image it runs in.")] = "",
    resource: Annotated[
        list[str] | None, _config("--resource", metavar="NAME=VALUE", help="What it needs. May be repeated.")
    ] = None,
    watch: Annotated[
        bool, _following("--watch", "-w", help="Show its states and log until it ends; Ctrl-C lets go or cancels.")
    ] = False,
    execute: Annotated[
        bool, _following("--execute", help="Execute it in this terminal, without an agent; Ctrl-C cancels.")
    ] = False,
    no_logs: Annotated[bool, _following("--no-logs", help="Show only its states.")] = False,
    quiet: Annotated[bool, _output("--quiet", "-q", help="Print only the run's id.")] = False,
    as_json: Annotated[
        bool, _output("--json", help="Print JSON: the run; when it is watched, one document per event.")
    ] = False,
    batch: Annotated[
        str,
        _many(
            "--batch",
            metavar="FILE",
            help="Create a run for each line of a file (- for the input): a JSON object with flow, flow_id or "
            "flow_group_id, project, parameters, context, labels, name, start_at, in, idempotency_key, retries, "
            "retry_delay, priority, log_level, run_config. --id or --name says the flow of lines without one. "
            "--quiet prints the ids in order, an empty line for each that was refused; blank lines of the file count "
            "for nothing. A line whose idempotency_key had created a run with other input is shown with that run.",
        ),
    ] = "",
    resume: Annotated[
        str,
        _many(
            "--resume",
            metavar="ID",
            help="Complete the batch that was begun under this id. A line is known by what it says: it may be moved, "
            "and lines added; one that was edited is a new line, and gets a run beside that of the old one.",
        ),
    ] = "",
) -> None:
    """Create a flow run of a registered flow.

    Exits 0 when the run was created; with --watch, --execute, --path and --module 0 when it succeeded, 1 when it
    failed, 3 when it was cancelled, and 4 when contact to the server was lost: the run goes on whatever happens here.
    Letting go of a watch exits 130. A batch exits 1 when a line was refused; a line whose key had created a run with
    other input is refused only with --refuse-different.
    """
    refuse_contradictions(options_given(ctx))
    level = _level_of(log_level)
    target = {"flow_id": flow_id, "name": name, "project": project}
    common: NewFlowRun = _refusing_what_differs() if refuse_different else {}
    if batch:
        _end_with(_send_batch(batch, resume, target, common, quiet=quiet, as_json=as_json))
    parameters = _parameters(param or (), param_file, say_conflicts=not quiet)
    if path or module:
        from penstock.cli.local import run_locally

        sys.exit(run_locally(path, module, name, parameters, quiet=quiet, as_json=as_json, log_level=level))
    from penstock.cli.start_times import span_of, start_of

    wish: NewFlowRun = {
        **common,
        "parameters": parameters,
        "context": _values("context value", context or ()),
        "flow_run_name": run_name,
        "idempotency_key": idempotency_key,
        "scheduled_start_time": start_of(start_at, start_in),
        "labels": [] if no_labels else label,
        "priority": priority,
        "max_retries": retries,
        "retry_delay": span_of("--retry-delay", retry_delay) if retry_delay else None,
        "log_level": _level_of_client(level),
        "run_config": _run_config(env, working_directory, image, resource),
    }
    output = RunOutput(quiet=quiet, as_json=as_json, follows=watch or execute, logs=not no_logs)
    _end_with(_create(target, wish, _texts("parameter", param or ()), output, execute=execute))


def _end_with(work: "Coroutine[Any, Any, int]") -> NoReturn:
    import asyncio

    with told_plainly():
        from penstock.runtime import telemetry

        telemetry.configure("penstock-cli")
        try:
            sys.exit(asyncio.run(work))
        finally:
            telemetry.shutdown()


async def _create(
    target: "Mapping[str, str]",
    wish: "NewFlowRun",
    texts: "Mapping[str, str]",
    output: RunOutput,
    *,
    execute: bool,
) -> int:
    from penstock.cli.creating import Target, aimed_at, create, look_up
    from penstock.client import AsyncClient

    aim = Target(**target)
    async with AsyncClient() as client:
        if execute:
            from penstock.cli.executing import create_and_execute

            return await create_and_execute(client, aim, wish, texts, output)
        flow = await look_up(client, aim)
        run = await create(client, flow, {**wish, **aimed_at(flow, aim)}, texts)
        output.created(run, wish["scheduled_start_time"])
        if output.follows:
            from penstock.cli.watching import watch

            return await watch(client, run.flow_run_id, output)
        return 0


async def _send_batch(
    source: str, resumed: str, target: "Mapping[str, str]", common: "NewFlowRun", *, quiet: bool, as_json: bool
) -> int:
    from penstock.cli.batch import Batch, demand_batch_id, new_batch_id, send_batch
    from penstock.cli.creating import Target
    from penstock.client import AsyncClient

    if resumed:
        demand_batch_id(resumed)
    default = Target(**target) if any(target.values()) else None
    async with AsyncClient() as client:
        return await send_batch(client, Batch(source, resumed or new_batch_id(), default, common, quiet, as_json))


def _refusing_what_differs() -> "NewFlowRun":
    from penstock.client import KeyReuse

    return {"key_reuse": KeyReuse.REFUSE_IF_DIFFERENT}


def _level_of(word: str) -> str:
    if word and word.upper() not in LOG_LEVELS:
        raise CommandFailed(f"--log-level {word!r} is none; there are {', '.join(LOG_LEVELS)}.", EXIT_MISUSED)
    return word.upper()


def _level_of_client(level: str) -> "LogLevel | None":
    from penstock.client import LogLevel

    return LogLevel(level) if level else None


def _run_config(
    env: "Sequence[str] | None", working_directory: str, image: str, resource: "Sequence[str] | None"
) -> "RunConfig | None":
    """A whole run config where any part of one is given."""
    if not (env or working_directory or image or resource):
        return None
    from penstock.client import RunConfig

    return RunConfig(
        environment=_texts("variable", env or ()),
        working_directory=working_directory,
        image=image,
        resources=_texts("resource", resource or ()),
    )


def _parameters(param: "Sequence[str]", param_file: Path | None, *, say_conflicts: bool) -> dict[str, Any]:
    from penstock.cli.given import values_in_file

    in_file = values_in_file(param_file) if param_file else {}
    given = _values("parameter", param)
    both = sorted(in_file.keys() & given.keys())
    if both and say_conflicts:
        typer.echo(f"penstock: --param goes before --param-file for: {', '.join(both)}", err=True)
    return in_file | given


def _values(kind: str, given: "Sequence[str]") -> dict[str, Any]:
    from penstock.cli.given import values_of

    return values_of(kind, given)


def _texts(kind: str, given: "Sequence[str]") -> dict[str, str]:
    from penstock.cli.given import texts_of

    return texts_of(kind, given)
