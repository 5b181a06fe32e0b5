"""A run as it happens: its states and its log, merged, until its end."""

import asyncio
from collections.abc import Iterator
from typing import Protocol

import typer

from penstock.cli.failures import EXIT_CANCELLED, EXIT_FAILED
from penstock.cli.json_output import to_json
from penstock.cli.screen import STYLES, Screen, clock_time, date_and_time
from penstock.client import AsyncClient, FlowRun, FlowRunState, LogLevel, LogLine, LogStream, PenstockError, Transition
from penstock.client.logs import QUIET_SECONDS_MAX


class Display(Protocol):
    """Where a run's states and lines are shown."""

    def state(self, step: Transition) -> None:
        """Show that the run stepped into a state."""
        ...

    def line(self, line: LogLine) -> None:
        """Show a line of its log."""
        ...

    def note(self, text: str) -> None:
        """Say something about the watching itself."""
        ...


class ForPeople:
    """Shows one line of text for each."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def state(self, step: Transition) -> None:
        # What a run failed of is told with its end, once; of an attempt that is made again it is told here.
        message = "" if step.state is FlowRunState.FAILED else step.message
        why = message or (f"attempt {step.attempt}" if step.attempt > 1 else "")
        if step.due_time is not None and step.due_time > step.create_time:
            why = "; ".join(filter(None, (why, f"due at {date_and_time(step.due_time)}")))
        self._screen.line(
            clock_time(step.create_time), "  ", (f"{step.state:<10}", STYLES.get(step.state, "")), " ", why
        )

    def line(self, line: LogLine) -> None:
        for number, parts in enumerate(rows_of(line)):
            self._screen.line(clock_time(line.time) if number == 0 else " " * 8, ("  │ ", "dim"), *parts)

    def note(self, text: str) -> None:
        self._screen.line((text, "yellow"))


class ForPrograms:
    """Shows one JSON document for each; `event` says what it is."""

    def state(self, step: Transition) -> None:
        typer.echo(to_json({"event": "state", "transition": step}))

    def line(self, line: LogLine) -> None:
        typer.echo(to_json({"event": "log", "line": line}))

    def note(self, text: str) -> None:
        typer.echo(to_json({"event": "note", "text": text}))


class ForNobody:
    """Shows nothing."""

    def state(self, step: Transition) -> None:
        pass

    def line(self, line: LogLine) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def rows_of(line: LogLine) -> Iterator[list[str | tuple[str, str]]]:
    """A log line as parts to show: its level, or where output without one was written, then what it says.

    What was logged in several lines, such as a traceback, makes several rows.
    """
    word = "stderr" if line.stream is LogStream.STDERR and line.level is LogLevel.UNKNOWN else ""
    word = line.level_name or (word if line.level is LogLevel.UNKNOWN else line.level)
    ghost = " (from an attempt that had lost its lease)" if line.superseded else ""
    first, *others = f"{line}{ghost}".split("\n")
    yield [(f"{word:<8} ", STYLES.get(line.level, "dim")), first]
    for other in others:
        yield [" " * 9, other]


async def follow_run(client: AsyncClient, flow_run_id: str, display: Display, *, logs: bool = True) -> FlowRun:
    """Show a run until its end, and return it as it is then. Its final state is shown after its last line."""
    final: Transition | None = None
    log = _Log(client, flow_run_id, display) if logs else None
    try:
        async for step in client.watch_flow_run(flow_run_id):
            if step.state.is_final:
                final = step
            else:
                display.state(step)
        if log is not None:
            await log.ended_or_quiet()
    finally:
        if log is not None:
            await log.close()
    if final is not None:
        display.state(final)
    # Waiting for what has happened returns at once, and unlike a single question outlives a service that restarts.
    return await client.wait_for_flow_run(flow_run_id)


def exit_code_of(state: FlowRunState) -> int:
    """How a command ends that watched a run to this state."""
    return {FlowRunState.SUCCEEDED: 0, FlowRunState.CANCELLED: EXIT_CANCELLED}.get(state, EXIT_FAILED)


class _Log:
    """The log of a run, being shown by a task."""

    def __init__(self, client: AsyncClient, flow_run_id: str, display: Display) -> None:
        self._lines_shown = 0
        self._display = display
        self._task = asyncio.create_task(self._show(client, flow_run_id))

    async def ended_or_quiet(self) -> None:
        """Wait for the end of the log, as long as lines keep coming."""
        while not self._task.done():
            before = self._lines_shown
            await asyncio.wait({self._task}, timeout=QUIET_SECONDS_MAX)
            if not self._task.done() and before == self._lines_shown:
                self._display.note("The run has ended; lines of its log may still be on their way.")
                return

    async def close(self) -> None:
        """Stop showing."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _show(self, client: AsyncClient, flow_run_id: str) -> None:
        try:
            async for line in client.follow_logs(flow_run_id):
                self._display.line(line)
                self._lines_shown += 1
        except PenstockError as error:
            # The states matter more than the lines: go on without these.
            self._display.note(f"The log cannot be followed: {error}")
