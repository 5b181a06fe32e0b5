"""`penstock run --path` and `--module`: execute a flow here and now, without any server.

Each attempt is a process of its own, as it is under an agent, on this terminal: what the flow prints goes through as it
is, and a debugger can ask. What an attempt is told and what became of it travel in a directory of files, which neither
the flow nor what it starts can block.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from penstock.agent.terminal import has_foreground
from penstock.cli.failures import EXIT_FAILED, CommandFailed
from penstock.cli.safe_text import safe
from penstock.runtime.settings import environment

EXIT_TERMINATED = 128 + signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Assignment:
    """What an attempt is told."""

    source: str
    name: str
    parameters: dict[str, Any]
    log_level: str
    attempt: int
    quiet: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a flow that was found and may begin says about itself."""

    flow_name: str
    retries: int
    retry_delay_seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed."""

    type: str = ""
    message: str = ""
    traceback: str = ""
    exit_code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.type or self.message:
            return ": ".join(filter(None, (self.type, self.message)))
        if self.signal is not None:
            return f"It was ended by signal {self.signal}."
        return f"It exited with code {self.exit_code}."


@dataclass(frozen=True, slots=True)
class Ended:
    """How the last attempt ended."""

    flow_name: str
    state: str
    attempt: int
    result_json: str | None
    failure: Failure | None


class Exchange:
    """The directory in which an attempt and whoever started it leave each other what they know."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, what: str, content: dict[str, Any]) -> None:
        """Leave something, whole or not at all."""
        fresh = self.directory / f"{what}.new"
        fresh.write_text(json.dumps(content), encoding="utf-8")
        fresh.replace(self.directory / f"{what}.json")

    def read(self, what: str) -> dict[str, Any] | None:
        """What was left; None if nothing was."""
        with contextlib.suppress(FileNotFoundError):
            content: dict[str, Any] = json.loads((self.directory / f"{what}.json").read_text(encoding="utf-8"))
            return content
        return None

    def clear(self) -> None:
        """Forget everything."""
        for file in self.directory.iterdir():
            file.unlink()


def run_locally(
    path: str, module: str, name: str, parameters: dict[str, Any], *, quiet: bool, as_json: bool, log_level: str
) -> int:
    """Execute the flow in a file or a module, as often as it says, and return the command's exit code.

    Quiet shows nothing but what the flow itself prints, and on standard error why it failed. As JSON, standard output
    holds one document, and everything else, also what the flow prints, goes to standard error.
    """
    # A file is told from a module by the slash in it.
    source = module or str(Path(path).expanduser().resolve())
    with tempfile.TemporaryDirectory(prefix="penstock-") as directory, _Terminal() as terminal:
        exchange = Exchange(Path(directory))
        attempt = 1
        while True:
            assignment = Assignment(source, name, parameters, log_level.upper(), attempt, quiet, as_json)
            ended, plan = _execute(assignment, exchange, terminal)
            if ended.failure is None or attempt > plan.retries:
                return _tell(ended, assignment)
            _tell_of_retry(ended.failure, plan, assignment)
            time.sleep(plan.retry_delay_seconds)
            attempt += 1


def _execute(assignment: Assignment, exchange: Exchange, terminal: "_Terminal") -> tuple[Ended, Plan]:
    exchange.clear()
    exchange.write("assignment", asdict(assignment))
    code = terminal.run(exchange.directory)
    outcome = exchange.read("outcome") or {}
    if "refused" in outcome:
        raise CommandFailed(outcome["refused"], outcome["exit_code"])
    if "result_json" not in outcome:
        terminal.end_if_interrupted()
    plan = Plan(**(exchange.read("plan") or {"flow_name": assignment.name, "retries": 0, "retry_delay_seconds": 0}))
    if "result_json" in outcome:
        return Ended(plan.flow_name, "SUCCEEDED", assignment.attempt, outcome["result_json"], None), plan
    if "failure" in outcome:
        failure = Failure(**outcome["failure"])
    else:
        # It left without a word: by its own choice, or because something ended it.
        failure = Failure(signal=-code) if code < 0 else Failure(exit_code=code)
    return Ended(plan.flow_name, "FAILED", assignment.attempt, None, failure), plan


def _tell(ended: Ended, assignment: Assignment) -> int:
    if assignment.as_json:
        from penstock.cli.json_output import to_json

        typer.echo(to_json(ended))
    elif assignment.quiet:
        if ended.failure:
            typer.echo(safe(f"penstock: Flow run failed: {ended.failure}"), err=True)
    else:
        from penstock.cli.screen import STYLES, Screen

        screen = Screen()
        how = f": {ended.failure}" if ended.failure else "."
        screen.line("Flow run ", (ended.state.lower(), STYLES[ended.state]), how)
        if ended.result_json is not None:
            screen.line("Result: ", ended.result_json)
    return EXIT_FAILED if ended.failure else 0


def _tell_of_retry(failure: Failure, plan: Plan, assignment: Assignment) -> None:
    if assignment.quiet:
        return
    when = f"in {plan.retry_delay_seconds:g} s" if plan.retry_delay_seconds else "now"
    text = f"Attempt {assignment.attempt} of {plan.retries + 1} failed; the next one begins {when}. {failure}"
    # For programs only the end goes to standard output.
    typer.echo(safe(text), err=assignment.as_json)


class _Terminal:
    """Shares the terminal with the process that executes an attempt, and passes signals on to it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = False
        self._heard: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Terminal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._heed)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, directory: Path) -> int:
        """Execute one attempt to its end; return its exit code, or minus the signal's number."""
        with self._started(directory) as process:
            return process.wait()

    def end_if_interrupted(self) -> None:
        """End the command if a signal ended the attempt."""
        if signal.SIGTERM in self._heard:
            raise SystemExit(EXIT_TERMINATED)
        if self._heard:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def _started(self, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
        # Those who look for the run they are in shall not find one that executes this command.
        env = {name: value for name, value in environment().items() if name != "PENSTOCK_FLOW_RUN_ID"}
        module = ["-m", "penstock.cli.attempt", str(directory)]
        if sys.platform == "linux":
            module = ["-m", "penstock.cli.child", str(os.getpid()), *module[1:]]
        self._starting = True
        with _interrupts_held_back():
            process = subprocess.Popen([sys.executable, *module], env=env)  # noqa: S603 - a module of ours
        self._process, self._starting = process, False
        for number in self._heard:
            process.send_signal(number)
        try:
            yield process
        finally:
            self._process = None

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if self._process is None and not self._starting:
            self._heard.append(number)
            self.end_if_interrupted()
        self._heard.append(number)
        # Ctrl-C reaches the attempt by itself: the terminal tells everybody in its foreground.
        if self._process is not None and not (number == signal.SIGINT and has_foreground(0)):
            self._process.send_signal(number)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Keep a Ctrl-C until later: here until the end of the block, and in what is started in it until it asks for it.

    An interpreter that is interrupted while it begins shows the traceback of whatever it was importing.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
