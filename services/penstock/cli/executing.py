"""Executing a run here, without an agent, and watching it meanwhile.

Ctrl-C and SIGTERM cancel the run and wait until it has ended; so does the end of the terminal. A second one kills its
code, and leaves at once. All of that is in force before the run is created: nobody else would ever execute it.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from signal import SIGHUP, SIGINT, SIGTERM, Signals
from typing import Any, Final

import typer

from penstock.agent.agentless import Agentless, executing_here
from penstock.agent.settings import AgentSettings
from penstock.agent.terminal import own_terminal
from penstock.cli.creating import Target, aimed_at, create, demand_for_this_process, for_this_process, look_up
from penstock.cli.failures import EXIT_FAILED, EXIT_LOST_CONTACT, CommandFailed, sentence_of
from penstock.cli.progress import Display, exit_code_of, follow_run
from penstock.cli.run_output import RunOutput
from penstock.cli.watching import watch
from penstock.client import (
    AsyncClient,
    CreatedFlowRun,
    Flow,
    FlowRun,
    LogLine,
    NewFlowRun,
    PenstockError,
    Transition,
)
from penstock.client.reconnection import Reconnection
from penstock.runtime.settings import ClientSettings, environment

EXIT_KILLED: Final = 130
CANCEL_REASON: Final = "Interrupted at penstock run --execute"
# How long to try to cancel a run at services that are away, before its code is ended all the same.
CANCEL_PATIENCE: Final = timedelta(seconds=5)
# How long a command that leaves at once still listens for the answer to its cancel.
LEAVING_SECONDS: Final = 1.0
# How long a supervisor whose run has ended may take to put its things away, before it is left to itself.
PUTTING_AWAY_SECONDS: Final = 5.0


async def create_and_execute(
    client: AsyncClient, target: Target, wish: NewFlowRun, texts: Mapping[str, str], output: RunOutput
) -> int:
    """Create a run, execute it in this process's surroundings, show its states and lines, and return the exit code."""
    with _interruption() as interruption:
        async with executing_here(_settings(), own_terminal()) as agentless:
            run = await _created(client, target, wish, texts, interruption)
            _show(lambda: output.created(run, wish["scheduled_start_time"]))
            if not run.state.is_final:
                display = _Unfailing(output.display())
                with _warnings_shown(display):
                    execution = _Execution(client, run.flow_run_id, agentless, display, interruption)
                    ended = await execution.to_its_end(logs=output.logs)
                _show(lambda: output.ended(ended))
                return exit_code_of(ended.state)
    return await watch(client, run.flow_run_id, output)


class _Interruption:
    """What signals asked of this command: to end in good order, and then to leave at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurried = asyncio.Event()

    def signalled(self, number: Signals) -> None:
        if number is SIGINT and sys.stderr.isatty():
            _show(lambda: typer.echo(err=True))  # the terminal has shown the keys; what follows gets a line of its own
        if not self.asked.is_set():
            self.asked.set()
        elif number is not SIGHUP:  # of the end of a terminal one may hear twice
            self.hurried.set()


@contextlib.contextmanager
def _interruption() -> Iterator[_Interruption]:
    """Heed the signals meanwhile."""
    loop, interruption = asyncio.get_running_loop(), _Interruption()
    heeded = [SIGINT, SIGTERM]
    if signal.getsignal(SIGHUP) is not signal.SIG_IGN:  # as nohup would have it
        heeded.append(SIGHUP)
    for number in heeded:
        loop.add_signal_handler(number, interruption.signalled, number)
    try:
        yield interruption
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)


async def _created(
    client: AsyncClient, target: Target, wish: NewFlowRun, texts: Mapping[str, str], interruption: _Interruption
) -> CreatedFlowRun:
    """The run. Once its creation is under way, only a second signal keeps us from being told of it."""
    preparing = asyncio.create_task(_prepared(client, target, wish))
    await _done_or(preparing, interruption.asked)
    if interruption.asked.is_set():
        preparing.cancel()
        await asyncio.wait({preparing})
        raise CommandFailed("Interrupted, before a run was created.", EXIT_KILLED)
    flow, wish = preparing.result()
    creating = asyncio.create_task(create(client, flow, wish, texts))
    await _done_or(creating, interruption.asked)
    if not creating.done():
        _show(lambda: typer.echo("Waiting to be told of the run, to cancel it. A second signal leaves.", err=True))
        await _done_or(creating, interruption.hurried)
    if not creating.done():
        creating.cancel()
        await asyncio.wait({creating})
        raise SystemExit(EXIT_KILLED)
    run = creating.result()
    demand_for_this_process(run)
    return run


async def _prepared(client: AsyncClient, target: Target, wish: NewFlowRun) -> tuple[Flow, NewFlowRun]:
    flow = await look_up(client, target)
    return flow, await for_this_process(client, flow, {**wish, **aimed_at(flow, target)})


async def _done_or(task: "asyncio.Task[Any]", event: asyncio.Event) -> None:
    """Wait for the end of a task, or for an event before."""
    happening = asyncio.create_task(event.wait())
    await asyncio.wait({task, happening}, return_when=asyncio.FIRST_COMPLETED)
    happening.cancel()


class _Execution:
    """One run that is executed and watched here."""

    def __init__(
        self,
        client: AsyncClient,
        flow_run_id: str,
        agentless: Agentless,
        display: Display,
        interruption: _Interruption,
    ) -> None:
        self._client = client
        self._id = flow_run_id
        self._agentless = agentless
        self._display = display
        self._interruption = interruption
        self._cancelling = asyncio.create_task(self._cancel_when_asked())
        self._cancel_failed: PenstockError | None = None

    async def to_its_end(self, *, logs: bool) -> FlowRun:
        """The run as it ended. Raises CommandFailed when this command has to leave it before."""
        executing = asyncio.create_task(self._execute())
        watching = asyncio.create_task(follow_run(self._client, self._id, self._display, logs=logs))
        ending = asyncio.create_task(self._end_of(executing, watching))
        try:
            await _done_or(ending, self._interruption.hurried)
            if self._interruption.hurried.is_set():
                raise await self._leave_at_once()
            return ending.result()
        finally:
            tasks = (executing, watching, ending, self._cancelling)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _execute(self) -> None:
        if self._interruption.asked.is_set():
            await self._cancelling  # what was asked for before is not even begun
        await self._agentless.serve(self._id)

    async def _end_of(self, executing: "asyncio.Task[None]", watching: "asyncio.Task[FlowRun]") -> FlowRun:
        await asyncio.wait({executing, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            try:
                ended = watching.result()
            except PenstockError as error:
                if not error.passing:
                    raise
                # To execute it matters more than to watch it.
                self._display.note(f"Contact was lost: {sentence_of(error)} The run is executed here all the same.")
            else:
                await asyncio.wait({executing}, timeout=PUTTING_AWAY_SECONDS)
                return ended
        await self._executed(executing)
        return await self._watched(watching)

    async def _executed(self, executing: "asyncio.Task[None]") -> None:
        try:
            await executing
        except PenstockError as error:
            waits = f"The run waits, and no agent takes it. Cancel it with: penstock cancel {self._id}"
            raise CommandFailed(f"{sentence_of(error)}\n{waits}") from error
        if self._cancel_failed is not None:
            raise CommandFailed(
                f"The run could not be cancelled: {sentence_of(self._cancel_failed)}\n"
                f"Its code was stopped here. See what became of it with: penstock get flow-run {self._id}",
                EXIT_LOST_CONTACT if self._cancel_failed.passing else EXIT_FAILED,
            )

    async def _watched(self, watching: "asyncio.Task[FlowRun]") -> FlowRun:
        try:
            if watching.done():  # contact was lost
                return await self._client.wait_for_flow_run(self._id)
            return await watching
        except PenstockError as error:
            if not error.passing:
                raise
            see = f"See how the run has ended with: penstock get flow-run {self._id}"
            raise CommandFailed(f"Contact was lost: {sentence_of(error)}\n{see}", EXIT_LOST_CONTACT) from error

    async def _cancel_when_asked(self) -> None:
        await self._interruption.asked.wait()
        self._display.note("Cancelling the run. A second Ctrl-C kills it and leaves at once.")
        try:
            await self._ask_to_cancel(Reconnection(CANCEL_PATIENCE))
        except PenstockError as error:
            self._cancel_failed = error
        # Whoever stands over the run asks why it shall stop, and reports that.
        self._agentless.stop()

    async def _ask_to_cancel(self, reconnection: Reconnection) -> None:
        while True:
            try:
                await self._client.cancel_flow_run(self._id, reason=CANCEL_REASON)
                return
            except PenstockError as error:
                pause = reconnection.pause_seconds(error)
            await asyncio.sleep(pause)

    async def _leave_at_once(self) -> CommandFailed:
        """Kill the code of the run; the words for what becomes of the run."""
        # Killed before its cancel was heard, it would have failed, and might be tried again.
        await asyncio.wait({self._cancelling}, timeout=LEAVING_SECONDS)
        self._agentless.hurry()
        if not self._cancelling.done():
            fate = "Whether it could be cancelled is not known."
        elif self._cancel_failed is not None:
            fate = f"It could not be cancelled: {sentence_of(self._cancel_failed)}"
        else:
            fate = "It counts as cancelled as soon as that is reported, at the latest when its lease ends."
        return CommandFailed(
            f"The run was killed. {fate}\nSee what became of it with: penstock get flow-run {self._id}", EXIT_KILLED
        )


def _settings() -> AgentSettings:
    """What an agent of this machine would be told, with the services where this command finds them.

    How many runs it would take, and which, is of no concern here, and may not even be valid.
    """
    told = ClientSettings.load()
    return replace(
        AgentSettings.load({**environment(), "PENSTOCK_SLOTS": "1", "PENSTOCK_LABELS": ","}),
        flow_run_address=told.flow_run_address,
        queue_address=told.queue_address,
        log_address=told.log_address,
        token=told.token,
    )


def _show(show: Callable[[], None]) -> None:
    """Show something; what nobody can see any more is left out. To execute the run matters more than to show it."""
    try:
        show()
    except (OSError, SystemExit):  # the latter is what Rich makes of a broken pipe
        nothing = os.open(os.devnull, os.O_WRONLY)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:
                os.dup2(nothing, stream.fileno())
        os.close(nothing)


class _Unfailing:
    """A display whose terminal, or whoever reads it, may be gone."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def state(self, step: Transition) -> None:
        _show(lambda: self._display.state(step))

    def line(self, line: LogLine) -> None:
        _show(lambda: self._display.line(line))

    def note(self, text: str) -> None:
        _show(lambda: self._display.note(text))


@contextlib.contextmanager
def _warnings_shown(display: Display) -> Iterator[None]:
    """Show what the executing part warns of beside the run's own lines, and not across them."""
    logger = logging.getLogger("penstock.agent")
    handler = _Notes(display)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = True


class _Notes(logging.Handler):
    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.note(record.getMessage())
