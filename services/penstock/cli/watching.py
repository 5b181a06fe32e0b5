"""Watching a run that was created: to its end, or until its user lets go of it.

Ctrl-C on a terminal asks whether to let go of the run or to cancel it. Where nobody can be asked it lets go.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from signal import SIGINT
from typing import Final

import typer

from penstock.agent.terminal import has_foreground
from penstock.cli.failures import EXIT_LOST_CONTACT, CommandFailed, sentence_of
from penstock.cli.progress import Display, exit_code_of, follow_run
from penstock.cli.run_output import RunOutput
from penstock.client import AsyncClient, FlowRun, FlowRunState, LogLine, NotDue, PenstockError, Transition
from penstock.runtime.clock import SystemClock

EXIT_DETACHED: Final = 130
INPUT: Final = 0  # by its number, because Python has no object for an input that was closed
CANCEL_REASON: Final = "Ctrl-C at penstock run --watch"
QUESTION: Final = "\nDetach, or cancel the run? [d/c] "

# How long a due run may wait before its watcher is told why, and how often to look whether the reason is another.
EXPLAIN_SECONDS: Final = 5.0


async def watch(client: AsyncClient, flow_run_id: str, output: RunOutput) -> int:
    """Show a run until its end or until Ctrl-C, and return the exit code."""
    resume = f"The run goes on. See how it fares with: penstock logs {flow_run_id} --follow"
    try:
        ended = await _Watch(client, flow_run_id, output).to_its_end()
    except PenstockError as error:
        if error.passing:
            raise CommandFailed(f"Contact was lost: {sentence_of(error)}\n{resume}", EXIT_LOST_CONTACT) from error
        raise
    if ended is None:
        typer.echo(f"\nNot watching any more. {resume}", err=True)
        return EXIT_DETACHED
    output.ended(ended)
    return exit_code_of(ended.state)


class Gate:
    """A display that can be held back, while its user is asked something, and that remembers the last state."""

    def __init__(self, display: Display) -> None:
        self.last: Transition | None = None
        self._display = display
        self._held: list[Callable[[], None]] | None = None

    def state(self, step: Transition) -> None:
        self.last = step
        self._show(lambda: self._display.state(step))

    def line(self, line: LogLine) -> None:
        self._show(lambda: self._display.line(line))

    def note(self, text: str) -> None:
        self._show(lambda: self._display.note(text))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Show nothing meanwhile, and afterwards what was missed."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            for show in held:
                show()

    def _show(self, show: Callable[[], None]) -> None:
        if self._held is None:
            show()
        else:
            self._held.append(show)


class _Watch:
    """One watch."""

    def __init__(self, client: AsyncClient, flow_run_id: str, output: RunOutput) -> None:
        self._client = client
        self._flow_run_id = flow_run_id
        self._logs = output.logs
        self._display = Gate(output.display())
        self._left = asyncio.Event()
        self._question: asyncio.Task[None] | None = None
        self._is_cancelling = False

    async def to_its_end(self) -> FlowRun | None:
        """The run as it ended; None when its user has let go of it."""
        loop = asyncio.get_running_loop()
        following = asyncio.create_task(follow_run(self._client, self._flow_run_id, self._display, logs=self._logs))
        explaining = asyncio.create_task(explain_waiting(self._client, self._flow_run_id, self._display))
        leaving = asyncio.create_task(self._left.wait())
        loop.add_signal_handler(SIGINT, self._interrupted)
        try:
            await asyncio.wait({following, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return following.result() if following.done() else None
        finally:
            loop.remove_signal_handler(SIGINT)
            tasks = [following, explaining, leaving, *([self._question] if self._question else [])]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _interrupted(self) -> None:
        asking = self._question is not None and not self._question.done()
        if asking or self._is_cancelling or not _can_ask():
            self._left.set()
        else:
            self._question = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        with self._display.held():
            try:
                wants_cancel = await _wants_cancel()
            except asyncio.CancelledError:
                typer.echo(err=True)  # the question stays unanswered, and what follows gets a line of its own
                raise
        if not wants_cancel:
            self._left.set()
            return
        self._is_cancelling = True
        try:
            await self._client.cancel_flow_run(self._flow_run_id, reason=CANCEL_REASON)
            self._display.note("The run was asked to stop.")
        except PenstockError as error:
            self._is_cancelling = False
            self._display.note(f"The run could not be cancelled: {sentence_of(error)}")


async def explain_waiting(client: AsyncClient, flow_run_id: str, display: Gate) -> None:
    """Say why a run waits although it is due, and again whenever that changes. Endless; a watch ends it."""
    before: Transition | None = None
    told: list[str] = []
    while True:
        await asyncio.sleep(EXPLAIN_SECONDS)
        step = display.last
        if step is None or step is not before or not _is_due(step):
            before, told = step, []
            continue
        with contextlib.suppress(PenstockError):  # that a run is watched matters more than why it waits
            explanation = await client.explain_flow_run(flow_run_id)
            reasons = [str(each) for each in explanation.obstacles if not isinstance(each, NotDue)]
            if reasons != told and display.last is step:
                told = reasons
                for reason in reasons:
                    display.note(f"The run waits: {reason}")


def _is_due(step: Transition) -> bool:
    if step.state is not FlowRunState.SCHEDULED:
        return False
    return step.due_time is None or step.due_time <= SystemClock().now()


def _can_ask() -> bool:
    """Whether somebody sits at a terminal whose foreground this command has."""
    return has_foreground(INPUT) and os.isatty(2)


async def _wants_cancel() -> bool:
    import termios

    # What was typed before the question was no answer to it.
    termios.tcflush(INPUT, termios.TCIFLUSH)
    while True:
        typer.echo(QUESTION, err=True, nl=False)
        match (await _line_from_terminal()).strip().lower():
            case "c" | "cancel":
                return True
            case "d" | "detach" | "":
                return False


async def _line_from_terminal() -> str:
    """What is typed; empty when the input is closed."""
    loop = asyncio.get_running_loop()
    typed: asyncio.Future[bytes] = loop.create_future()

    def read() -> None:
        try:
            line = os.read(INPUT, 1024)
        except OSError:  # the terminal is gone
            line = b""
        if not typed.done():
            typed.set_result(line)

    loop.add_reader(INPUT, read)
    try:
        return (await typed).decode(errors="replace")
    finally:
        loop.remove_reader(INPUT)
