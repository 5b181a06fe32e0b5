"""Executing a run here, without an agent, and watching it meanwhile.

Ctrl-C and SIGTERM cancel the run and wait until it has ended. A second one kills its code, and leaves at once.
"""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from signal import SIGINT, SIGTERM, Signals
from typing import Final

import typer

from penstock.agent.agentless import Agentless, executing_here
from penstock.agent.settings import AgentSettings
from penstock.agent.terminal import own_terminal
from penstock.cli.failures import EXIT_FAILED, EXIT_LOST_CONTACT, CommandFailed, sentence_of
from penstock.cli.progress import Display, exit_code_of, follow_run
from penstock.cli.run_output import RunOutput
from penstock.client import AsyncClient, CreatedFlowRun, FlowRun, PenstockError
from penstock.client.reconnection import Reconnection
from penstock.runtime.settings import ClientSettings

EXIT_KILLED: Final = 130
CANCEL_REASON: Final = "Interrupted at penstock run --execute"
# How long to try to cancel a run at services that are away, before its code is ended all the same.
CANCEL_PATIENCE: Final = timedelta(seconds=5)
# How long a command that leaves at once still listens for the answer to its cancel.
LEAVING_SECONDS: Final = 1.0
# How long a supervisor whose run has ended may take to put its things away, before it is left to itself.
PUTTING_AWAY_SECONDS: Final = 5.0


async def execute_and_watch(client: AsyncClient, run: CreatedFlowRun, output: RunOutput) -> int:
    """Execute a run in this process's surroundings, show its states and lines, and return the exit code."""
    display = output.display()
    with _warnings_shown(display):
        async with executing_here(_settings(), run.flow_run_id, own_terminal()) as agentless:
            ended = await _Execution(client, run.flow_run_id, agentless, display).to_its_end(logs=output.logs)
    output.ended(ended)
    return exit_code_of(ended.state)


class _Execution:
    """One run that is executed and watched here."""

    def __init__(self, client: AsyncClient, flow_run_id: str, agentless: Agentless, display: Display) -> None:
        self._client = client
        self._id = flow_run_id
        self._agentless = agentless
        self._display = display
        self._cancelling: asyncio.Task[None] | None = None
        self._cancel_failed: PenstockError | None = None
        self._killed = asyncio.Event()

    async def to_its_end(self, *, logs: bool) -> FlowRun:
        """The run as it ended. Raises CommandFailed when this command has to leave it before."""
        executing = asyncio.create_task(self._agentless.serve())
        watching = asyncio.create_task(follow_run(self._client, self._id, self._display, logs=logs))
        killed = asyncio.create_task(self._killed.wait())
        with self._signals_heeded():
            try:
                ending = asyncio.create_task(self._end_of(executing, watching))
                await asyncio.wait({ending, killed}, return_when=asyncio.FIRST_COMPLETED)
                if killed.done():
                    raise await self._leave_at_once()
                return ending.result()
            finally:
                tasks = [task for task in (executing, watching, killed, ending, self._cancelling) if task is not None]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

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

    @contextlib.contextmanager
    def _signals_heeded(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (SIGINT, SIGTERM):
            loop.add_signal_handler(number, self._interrupted, number)
        try:
            yield
        finally:
            for number in (SIGINT, SIGTERM):
                loop.remove_signal_handler(number)

    def _interrupted(self, number: Signals) -> None:
        if number is SIGINT and sys.stderr.isatty():
            typer.echo(err=True)  # the terminal has shown the keys; what follows gets a line of its own
        if self._cancelling is None:
            self._display.note("Cancelling the run. A second Ctrl-C kills it and leaves at once.")
            self._cancelling = asyncio.create_task(self._cancel())
        else:
            self._killed.set()

    async def _cancel(self) -> None:
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
        assert self._cancelling is not None
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
    """What an agent of this machine would be told, with the services where this command finds them."""
    told = ClientSettings.load()
    return replace(
        AgentSettings.load(),
        flow_run_address=told.flow_run_address,
        queue_address=told.queue_address,
        log_address=told.log_address,
        token=told.token,
    )


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
