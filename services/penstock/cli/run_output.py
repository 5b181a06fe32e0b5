"""How `penstock run` shows what it does: to people, to programs, or as an id alone."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from penstock.cli.progress import Display
    from penstock.client import CreatedFlowRun, FlowRun


class RunOutput:
    """Shows one run: its creation, its progress and its end. `follows` says whether more than its creation is shown."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False, follows: bool = False, logs: bool = True) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.follows = follows
        self.logs = logs

    def created(self, run: "CreatedFlowRun", asked_start: datetime | timedelta | None = None) -> None:
        """Show the run that was created, now or before, and when it starts if a moment was asked."""
        if self.quiet:
            typer.echo(run.flow_run_id)
            if run.differing_fields:
                fields = ", ".join(run.differing_fields)
                typer.echo(f"penstock: This flow run was created before, and differs in: {fields}", err=True)
        elif self.as_json:
            from penstock.cli.json_output import to_json

            typer.echo(to_json({"event": "created", "flow_run": run}) if self.follows else to_json(run))
        else:
            self._describe(run, asked_start)

    def display(self) -> "Display":
        """Where the run is shown while it is watched."""
        from penstock.cli.progress import ForNobody, ForPeople, ForPrograms
        from penstock.cli.screen import Screen

        if self.quiet:
            return ForNobody()
        return ForPrograms() if self.as_json else ForPeople(Screen())

    def ended(self, run: "FlowRun") -> None:
        """Show how the run ended."""
        if self.quiet:
            return
        if self.as_json:
            from penstock.cli.json_output import to_json

            typer.echo(to_json({"event": "end", "flow_run": run}))
            return
        from penstock.cli.screen import STYLES, Screen
        from penstock.client import FlowRunState

        # A run that was cancelled still has the failure of an attempt before.
        how = f": {run.failure}" if run.state is FlowRunState.FAILED and run.failure else ""
        screen = Screen()
        screen.line(f"Flow run {run.name} ", (run.state.lower(), STYLES.get(run.state, "")), how or ".")
        if run.result_json is not None:
            screen.line("Result: ", run.result_json)

    def _describe(self, run: "CreatedFlowRun", asked_start: datetime | timedelta | None) -> None:
        from penstock.cli.screen import Screen

        screen = Screen()
        what = "Created" if run.created else "This idempotency key had already created"
        screen.line(f"{what} flow run {run.name} of flow {run.flow_name}.")
        for title, text in (
            ("id", run.flow_run_id),
            ("labels", ", ".join(run.labels)),
            ("parameters", run.parameters_json),
            ("context", "" if run.context_json == "{}" else run.context_json),
            ("starts at", _start(run, asked_start)),
            ("differs in", ", ".join(run.differing_fields)),
        ):
            if text:
                screen.line(f"  {title:<10} ", text)
        if not self.follows:
            screen.line(f"Follow it with: penstock logs {run.flow_run_id} --follow")


def _start(run: "CreatedFlowRun", asked: datetime | timedelta | None) -> str:
    from penstock.cli.start_times import shown

    if run.scheduled_start_time > run.create_time:
        return shown(run.scheduled_start_time)
    return f"once, for {shown(asked)} is past" if isinstance(asked, datetime) and run.created else ""
