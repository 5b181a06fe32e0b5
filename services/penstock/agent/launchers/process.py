"""Launches a run as processes of this machine. Supervisors lead sessions of their own, so they outlive their agent."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Final

from penstock.agent.ending import how_it_ended
from penstock.agent.exit_code import ExitCode
from penstock.agent.launchers import End, Ended, Launched, LaunchFailed, killed
from penstock.agent.run_directory import DIRECTORY_MODE, HURRY, Assignment, RunDirectory, is_locked, lock
from penstock.agent.terminal import Terminal
from penstock.runtime.settings import SettingsError, environment

_LOGGER: Final = logging.getLogger("penstock.agent")

# How long to wait before each process that is started to answer for a supervisor that was killed. They are so many:
# whatever kills them all would kill the next one as well.
REPORTER_PAUSES: Final = (0.0, 1.0, 5.0)
# A supervisor that is no child of ours tells nobody when it ends.
_GLANCE_SECONDS: Final = 0.5

_ENDS: Final[dict[int, Ended]] = {
    ExitCode.REPORTED: Ended.REPORTED,
    ExitCode.NOT_STARTED: Ended.NOT_STARTED,
    ExitCode.DROPPED: Ended.DROPPED,
}


class ProcessLauncher:
    """Starts `python -m penstock.agent.supervisor` for each run.

    One that `reports_killed` answers for supervisors that are killed: it reports how their runs ended as soon as
    nothing is left of the process groups of these, where otherwise that is settled when the lease ends. Supervisors
    have a line to the terminal, if there is one, which is closed with the launcher.
    """

    def __init__(
        self,
        data_dir: Path,
        agent_id: str,
        *,
        token: str = "",
        terminal: Terminal | None = None,
        reports_killed: bool = False,
    ) -> None:
        self._data_dir = data_dir
        self._token = token
        self._terminal = terminal
        self._reports_killed = reports_killed
        self._watching: set[asyncio.Task[None]] = set()
        self._lock_file = data_dir / "agents" / agent_id
        try:
            for directory in (self._lock_file.parent, data_dir / "runs"):
                directory.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
            # Held for the life of this process, so that no other agent adopts what is ours.
            self._lock = lock(self._lock_file)
        except OSError as error:
            raise SettingsError(
                f"PENSTOCK_DATA_DIR must be a directory to write to, not {str(data_dir)!r}: {error.strerror}."
            ) from error

    def close(self) -> None:
        """Let the next agent of this machine adopt what still runs."""
        for task in self._watching:
            task.cancel()
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None
        self._lock_file.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def start(self, assignment: Assignment) -> Launched:
        try:
            directory = RunDirectory.create(self._data_dir, assignment)
            try:
                with self._terminal.lent() if self._terminal else contextlib.nullcontext() as terminal:
                    return self._start_supervisor(directory, assignment, terminal=terminal)
            except OSError:
                directory.remove()
                raise
        except OSError as error:
            raise LaunchFailed(f"The supervisor cannot be started: {error}") from error

    def stop(self, launched: Launched) -> None:
        launched.stop()

    def hurry(self, launched: Launched) -> None:
        launched.hurry()

    def find(self) -> list[Launched]:
        """Adopt the supervisors that still live, and forget the runs of those that died without a word."""
        found: list[Launched] = []
        for path in sorted((self._data_dir / "runs").glob("*")):
            directory = RunDirectory(path)
            try:
                assignment = directory.assignment()
            except (OSError, ValueError, TypeError):
                continue  # half made, or being removed
            if is_locked(self._data_dir / "agents" / assignment.agent_id):
                continue
            if is_locked(directory.lease_file):
                found.append(self._adopt(directory, assignment))
            elif directory.recorded_exit() is not None:
                found.append(self._adopt(directory, assignment, restart=True))
            else:
                directory.remove()
        return found

    def _start_supervisor(
        self, directory: RunDirectory, assignment: Assignment, *, terminal: int | None = None, reporters: int = 0
    ) -> Launched:
        """Start a supervisor with a line to the terminal, or one that reports as so many did before, itself counted."""
        passed = [] if terminal is None else [terminal]
        with open(directory.output_file, "ab") as output:
            # Not a process of asyncio's: that would be killed when its transport is forgotten.
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "penstock.agent.supervisor", str(directory.path), *map(str, passed)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={name: value for name, value in environment().items() if name != "PENSTOCK_TOKEN"},
                pass_fds=passed,
                start_new_session=True,
            )
        _hand_over(self._token, process)
        launched = Launched(assignment, stop=process.terminate, hurry=partial(process.send_signal, HURRY))
        if reporters:
            launched.started.set()
        self._watch(self._watch_child(process, directory, launched, reporters), launched)
        return launched

    def _adopt(self, directory: RunDirectory, assignment: Assignment, *, restart: bool = False) -> Launched:
        stop, hurry = (partial(directory.signal_supervisor, number) for number in (signal.SIGTERM, HURRY))
        launched = Launched(assignment, stop=stop, hurry=hurry)
        launched.started.set()
        watching = self._report_again(directory, launched) if restart else _watch_stranger(directory, launched)
        self._watch(watching, launched)
        return launched

    async def _report_again(self, directory: RunDirectory, launched: Launched, reporters: int = 0) -> None:
        """Start a supervisor that finds a recorded end, and so does nothing but report it, after so many others."""
        await asyncio.sleep(REPORTER_PAUSES[reporters])
        try:
            reporter = self._start_supervisor(directory, launched.assignment, reporters=reporters + 1)
        except OSError as error:
            launched.ended.set_result(End(Ended.UNREPORTED, str(error)))
            return
        launched.stop, launched.hurry = reporter.stop, reporter.hurry
        launched.ended.set_result(await reporter.ended)

    async def _watch_child(
        self, process: subprocess.Popen[bytes], directory: RunDirectory, launched: Launched, reporters: int
    ) -> None:
        code = await _ended(process, launched.started)
        begun, recorded = launched.started.is_set(), directory.recorded_exit() is not None
        how = _how_it_ended(code, begun=begun, recorded=recorded, led=directory.was_led_by(process.pid))
        cut_short = begun and how is Ended.UNREPORTED and (code < 0 or not recorded)
        answers = self._reports_killed and cut_short and reporters < len(REPORTER_PAUSES)
        if answers and await killed.can_be_reported(directory, code):
            await self._report_again(directory, launched, reporters)
            return
        words = "" if code < 0 else directory.last_words()
        keep = recorded and how is Ended.UNREPORTED
        if not keep and not is_locked(directory.lease_file):
            directory.remove()
        launched.ended.set_result(End(how, words or how_it_ended(code, "The supervisor")))

    def _watch(self, watching: Coroutine[Any, Any, None], launched: Launched) -> None:
        task = asyncio.create_task(watching)
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        task.add_done_callback(lambda done: _resolve(done, launched))


def _hand_over(token: str, process: subprocess.Popen[bytes]) -> None:
    """Tell a supervisor the token, where neither a file nor its environment shows it to the code of the run."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as standard_input:
        standard_input.write(f"{token}\n".encode())


def _resolve(watched: "asyncio.Task[None]", launched: Launched) -> None:
    """Whoever waits for an end learns one, even if watching for it failed: a slot depends on it."""
    if watched.cancelled() or (error := watched.exception()) is None:
        return
    _LOGGER.error("a supervisor is watched no more", exc_info=error)
    if not launched.ended.done():
        launched.ended.set_result(End(Ended.UNREPORTED, f"Watching the supervisor failed: {error!r}"))


async def _ended(process: subprocess.Popen[bytes], started: asyncio.Event) -> int:
    """Wait for the end of a supervisor; note meanwhile that it has started its run."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    try:
        while line := await reader.readline():
            if line.strip() == b"started":
                started.set()
        return await asyncio.to_thread(process.wait)  # it ends now: the pipe is closed by its end alone
    finally:
        transport.close()


def _how_it_ended(code: int, *, begun: bool, recorded: bool, led: bool) -> Ended:
    """What the exit code of a supervisor means; `led` unless another supervisor was in charge of its run."""
    how = _ENDS.get(code)
    if recorded and how is not Ended.REPORTED and not (how is Ended.DROPPED and led):
        # A run whose end is known was begun, and it is dropped only by the supervisor whose report was refused.
        return Ended.UNREPORTED
    if how is None:
        return Ended.UNREPORTED if begun else Ended.NOT_STARTED
    return how


async def _watch_stranger(directory: RunDirectory, launched: Launched) -> None:
    while is_locked(directory.lease_file):  # noqa: ASYNC110 - the lock of another process raises no event
        await asyncio.sleep(_GLANCE_SECONDS)
    how = Ended.UNREPORTED if directory.recorded_exit() is not None else Ended.REPORTED
    launched.ended.set_result(End(how, directory.last_words()))
