"""Launches a run as processes of this machine. Supervisors lead sessions of their own, so they outlive their agent."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from penstock.agent.exit_code import ExitCode
from penstock.agent.launchers import End, Ended, Launched, LaunchFailed
from penstock.agent.run_directory import DIRECTORY_MODE, Assignment, RunDirectory, is_locked, lock

# A supervisor that is no child of ours tells nobody when it ends.
_GLANCE_SECONDS: Final = 0.5

_ENDS: Final[dict[int, Ended]] = {
    ExitCode.REPORTED: Ended.REPORTED,
    ExitCode.NOT_STARTED: Ended.NOT_STARTED,
    ExitCode.DROPPED: Ended.DROPPED,
}


class ProcessLauncher:
    """Starts `python -m penstock.agent.supervisor` for each run."""

    def __init__(self, data_dir: Path, agent_id: str) -> None:
        self._data_dir = data_dir
        self._watching: set[asyncio.Task[None]] = set()
        agents = data_dir / "agents"
        agents.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
        # Held for the life of this process, so that no other agent adopts what is ours.
        self._lock_file = agents / agent_id
        self._lock = lock(self._lock_file)

    def close(self) -> None:
        """Let the next agent of this machine adopt what still runs."""
        for task in self._watching:
            task.cancel()
        self._lock_file.unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def start(self, assignment: Assignment) -> Launched:
        try:
            directory = RunDirectory.create(self._data_dir, assignment)
            return self._start_supervisor(directory, assignment)
        except OSError as error:
            raise LaunchFailed(f"The supervisor cannot be started: {error}") from error

    def stop(self, launched: Launched) -> None:
        launched.stop()

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

    def _start_supervisor(self, directory: RunDirectory, assignment: Assignment) -> Launched:
        with open(directory.output_file, "ab") as output:
            # Not a process of asyncio's: that would be killed when its transport is forgotten.
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "penstock.agent.supervisor", str(directory.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        launched = Launched(assignment, stop=process.terminate)
        self._watch(_watch_child(process, directory, launched))
        return launched

    def _adopt(self, directory: RunDirectory, assignment: Assignment, *, restart: bool = False) -> Launched:
        launched = Launched(assignment, stop=directory.terminate_supervisor)
        launched.started.set()
        self._watch(self._report_again(directory, launched) if restart else _watch_stranger(directory, launched))
        return launched

    async def _report_again(self, directory: RunDirectory, launched: Launched) -> None:
        """Start a supervisor that finds a recorded end, and so does nothing but report it."""
        try:
            reporter = self._start_supervisor(directory, launched.assignment)
        except OSError as error:
            launched.ended.set_result(End(Ended.UNREPORTED, str(error)))
            return
        launched.stop = reporter.stop
        launched.ended.set_result(await reporter.ended)

    def _watch(self, watching: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(watching)
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)


async def _watch_child(process: subprocess.Popen[bytes], directory: RunDirectory, launched: Launched) -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), process.stdout
    )
    try:
        while line := await reader.readline():
            if line.strip() == b"started":
                launched.started.set()
        code = await asyncio.to_thread(process.wait)  # it ends now: the pipe is closed by its end alone
    finally:
        transport.close()
    how = _ENDS.get(code)
    words = directory.last_words()
    if how is None:
        how = Ended.UNREPORTED if launched.started.is_set() else Ended.NOT_STARTED
        words = words or f"The supervisor ended with code {code}."
    if how is not Ended.UNREPORTED or directory.recorded_exit() is None:
        directory.remove()
    launched.ended.set_result(End(how, words))


async def _watch_stranger(directory: RunDirectory, launched: Launched) -> None:
    while is_locked(directory.lease_file):  # noqa: ASYNC110 - the lock of another process raises no event
        await asyncio.sleep(_GLANCE_SECONDS)
    how = Ended.UNREPORTED if directory.recorded_exit() is not None else Ended.REPORTED
    launched.ended.set_result(End(how, directory.last_words()))
