"""`penstock run --batch`: create many runs from the lines of a file, so that what was cut off can be completed.

Every line has an idempotency key, its own or one made of the batch's id and what the line says. So sending the file
again under the same id creates what is missing and nothing twice, wherever lines were added or moved meanwhile.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

import typer

from penstock.cli.batch_lines import BadLine, Line, Problems, cut, read_lines, size_of
from penstock.cli.creating import Target, aimed_at, look_up
from penstock.cli.failures import EXIT_FAILED, EXIT_LOST_CONTACT, EXIT_MISUSED, CommandFailed, sentence_of
from penstock.cli.json_output import to_json
from penstock.cli.safe_text import safe
from penstock.client import (
    AsyncClient,
    CreatedFlowRun,
    CutOff,
    DeadlineExceeded,
    InvalidRequest,
    NewFlowRun,
    NotFound,
    Overloaded,
    PenstockError,
    Refused,
    Unavailable,
)
from penstock.client.reconnection import Reconnection
from penstock.domain.limits import BATCH_CREATE_MAX, PAGE_BYTES_MAX

# How long a server may stay away before the rest of a batch is left for later.
PATIENCE: Final = timedelta(seconds=30)
LISTED_MAX: Final = 20

# What a line calls the fields of a creation.
_MEMBERS: Final[Mapping[str, str]] = {
    "parameters_json": "parameters",
    "context_json": "context",
    "labels.labels": "labels",
    "policy.max_retries": "retries",
    "policy.retry_delay": "retry_delay",
    "policy.priority": "priority",
    "policy.log_level": "log_level",
    "scheduled_start_time": "start_at",
    "start_delay": "in",
}

Outcome = CreatedFlowRun | PenstockError


@dataclass(frozen=True, slots=True)
class Batch:
    """What the command line says of a batch."""

    source: str
    batch_id: str
    default: Target | None
    common: NewFlowRun
    quiet: bool
    as_json: bool

    @property
    def resume_command(self) -> str:
        """The command that completes this batch."""
        target = self.default or Target()
        options = {"--id": target.flow_id, "--name": target.name, "--project": target.project}
        flags = {"--refuse-different": self.common, "--quiet": self.quiet, "--json": self.as_json}
        words = ["penstock", "run", "--batch", self.source, "--resume", self.batch_id]
        words += [word for option, value in options.items() if value for word in (option, value)]
        words += [flag for flag, wanted in flags.items() if wanted]
        return shlex.join(words) + (" (with the same input)" if self.source == "-" else "")


def new_batch_id() -> str:
    """An id that no batch has had."""
    return secrets.token_hex(6)


def demand_batch_id(text: str) -> None:
    """Refuse what cannot be the id of a batch."""
    if not re.fullmatch(r"[\w.-]{1,200}", text, re.ASCII):
        raise CommandFailed(f"--resume {text!r} is not the id of a batch, which was shown when it began.", EXIT_MISUSED)


async def send_batch(client: AsyncClient, batch: Batch, patience: timedelta = PATIENCE) -> int:
    """Create the runs, and return the exit code."""
    lines = _lines_of(batch)
    typer.echo(
        f"Batch {batch.batch_id} of {len(lines):,} flow runs. Should it be cut off, complete it with:\n"
        f"  {batch.resume_command}",
        err=True,
    )
    items = await _aimed(client, lines)
    report = _Report(batch, [number for number, _, _ in items])
    sending = _Sending(client, patience)
    lost: PenstockError | None = None
    with report, _progress(batch, len(items)) as bar:
        for chunk in _chunks(items):
            outcomes, lost = await sending.send([wish for _, wish, _ in chunk])
            report.add([number for number, _, _ in chunk], outcomes)
            bar(len(chunk))
            if lost is not None:
                break
    return report.exit_code(lost)


def _lines_of(batch: Batch) -> list[Line]:
    with _opened(batch.source) as file:
        return read_lines(file, batch.default, f"batch:{batch.batch_id}:", batch.common)


@contextlib.contextmanager
def _opened(source: str) -> Iterator[Any]:
    if source == "-":
        if sys.stdin is None:
            raise CommandFailed("Standard input is closed, and --batch - reads it.", EXIT_MISUSED)
        yield sys.stdin.buffer
        return
    try:
        with open(source, "rb") as file:
            yield file
    except OSError as error:
        raise CommandFailed(f"Batch file {source} cannot be read: {error.strerror}.", EXIT_MISUSED) from error


_Item = tuple[int, NewFlowRun, int]  # a line's number, its wish with its target, and its size on the wire


async def _aimed(client: AsyncClient, lines: Sequence[Line]) -> list[_Item]:
    """The lines with their targets. Each name is looked up once, and none may be unknown."""
    targets: dict[Target, NewFlowRun | str] = {}
    problems, items = Problems(), []
    for line in lines:
        target = line.target
        if target is not None and target not in targets:
            try:
                targets[target] = aimed_at(await look_up(client, target), target)
            except CommandFailed as failed:
                if not isinstance(failed.__cause__, NotFound | Refused | InvalidRequest):
                    raise  # not an answer about this flow
                targets[target] = str(failed)
        aim = targets[target] if target is not None else {}
        try:
            if isinstance(aim, str):
                raise BadLine(aim)
            wish: NewFlowRun = {**line.wish, **aim}
            items.append((line.number, wish, size_of(wish)))
        except BadLine as bad:
            problems.add(line.number, str(bad))
    problems.refuse()
    return items


def _chunks(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """What fits into one call each, by number and by bytes."""
    chunk: list[_Item] = []
    total = 0
    for item in items:
        if chunk and (len(chunk) == BATCH_CREATE_MAX or total + item[2] > PAGE_BYTES_MAX):
            yield chunk
            chunk, total = [], 0
        chunk.append(item)
        total += item[2]
    yield chunk


class _Sending:
    """Sends, and sends again what a server could not take just then."""

    def __init__(self, client: AsyncClient, patience: timedelta) -> None:
        self._client = client
        self._patience = patience

    async def send(self, wishes: Sequence[NewFlowRun]) -> tuple[list[Outcome | None], PenstockError | None]:
        """What became of each, None where that is not known; and the error that ended the trying."""
        outcomes: list[Outcome | None] = [None] * len(wishes)
        waiting = list(range(len(wishes)))
        reconnection = Reconnection(self._patience)
        while waiting:
            answers = await self._answers([wishes[place] for place in waiting])
            for place, answer in zip(waiting, answers, strict=True):
                outcomes[place] = None if isinstance(answer, _PASSING) else answer
            passing = [answer for answer in answers if isinstance(answer, _PASSING)]
            if len(passing) < len(waiting):
                reconnection.heard()
            waiting = [place for place in waiting if outcomes[place] is None]
            try:
                if passing:
                    await asyncio.sleep(reconnection.pause_seconds(passing[0]))
            except PenstockError as error:
                return outcomes, error
        return outcomes, None

    async def _answers(self, wishes: list[NewFlowRun]) -> Sequence[Outcome]:
        try:
            return await self._client.batch_create_flow_runs(wishes)
        except _PASSING as error:
            return [error] * len(wishes)


# What is worth another try: the keys make that safe even where the first one may have been done.
_PASSING: Final = (Unavailable, Overloaded, DeadlineExceeded, CutOff)


@dataclass(slots=True)
class _Report:
    """What became of the lines: shown as it is known, and summed up at the end."""

    batch: Batch
    numbers: list[int]
    created: int = 0
    existed: int = 0
    differing: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    settled: int = 0

    def __enter__(self) -> "_Report":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # However it ends, its user learns how far it came.
        self._sum_up()

    def add(self, numbers: Sequence[int], outcomes: Sequence[Outcome | None]) -> None:
        """Note and show what became of these lines."""
        for number, outcome in zip(numbers, outcomes, strict=True):
            match outcome:
                case CreatedFlowRun():
                    self.created += outcome.created
                    self.existed += not outcome.created
                    if outcome.differing_fields:
                        fields = ", ".join(outcome.differing_fields)
                        self.differing.append(f"  line {number}: flow run {outcome.flow_run_id} differs in {fields}")
                case PenstockError():
                    self.refused.append(f"  line {number}: {outcome.reason or outcome.code}: {_in_words(outcome)}")
            self.settled += outcome is not None
            self._show(number, outcome)

    def exit_code(self, lost: PenstockError | None) -> int:
        """How the command ends; what contact was lost with is told."""
        if lost is not None:
            raise CommandFailed(f"Contact was lost: {sentence_of(lost)}", EXIT_LOST_CONTACT)
        return EXIT_FAILED if self.refused else 0

    def _show(self, number: int, outcome: Outcome | None) -> None:
        run = outcome if isinstance(outcome, CreatedFlowRun) else None
        if self.batch.quiet:
            # A line without a run gets an empty line, so that the n-th id belongs to the n-th line that is not blank.
            typer.echo(run.flow_run_id if run else "")
        elif self.batch.as_json:
            typer.echo(to_json(_document(number, outcome)))

    def _sum_up(self) -> None:
        unsent = len(self.numbers) - self.settled
        said = [f"Created {self.created:,} flow runs; {self.existed:,} existed already."]
        if self.differing:
            said += [
                f"Left as they are, although their lines ask something different now: {len(self.differing):,}:",
                *cut(self.differing, LISTED_MAX),
            ]
        if self.refused:
            said += [f"Refused {len(self.refused):,}:", *cut(self.refused, LISTED_MAX)]
        if unsent:
            said += [f"Not attempted, or without an answer: {unsent:,}. Complete the batch with:"]
            said += [f"  {self.batch.resume_command}"]
        # Where ids or documents are printed, nothing else is.
        for_programs = self.batch.quiet or self.batch.as_json
        for line in said:
            typer.echo(safe(line), err=for_programs)


# What a batch is told of its runs.
_TOLD: Final = (
    "flow_run_id",
    "flow_id",
    "flow_group_id",
    "flow_name",
    "name",
    "state",
    "version",
    "attempt",
    "fence",
    "scheduled_start_time",
    "create_time",
    "start_time",
    "finish_time",
    "created",
    "differing_fields",
)


def _document(number: int, outcome: Outcome | None) -> dict[str, Any]:
    match outcome:
        case CreatedFlowRun():
            told = {name: getattr(outcome, name) for name in _TOLD}
            return {"event": "created" if outcome.created else "existed", "line": number, "flow_run": told}
        case None:
            return {"event": "unsent", "line": number}
    refusal = {name: getattr(outcome, name) for name in ("code", "reason", "message", "metadata")}
    return {"event": "refused", "line": number, "refusal": refusal}


def _in_words(error: PenstockError) -> str:
    """The server's sentence, in which the fields are called as in the line."""
    if not isinstance(error, InvalidRequest):
        return str(error)
    fields = "|".join(map(re.escape, _MEMBERS))
    return re.sub(rf"\b({fields})(?=[:.\[])", lambda match: _MEMBERS[match[1]], str(error))


@contextlib.contextmanager
def _progress(batch: Batch, total: int) -> Iterator[Any]:
    """Something to call with how many lines were settled; a bar where somebody looks at standard error."""
    prints = batch.quiet or batch.as_json
    if not os.isatty(2) or (prints and os.isatty(1)):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Creating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)
