"""`python -m penstock.cli.attempt DIRECTORY`: one attempt of a local run, as the files in that directory say.

It is an ordinary program: it ends as Python ends, with the clean-up that the author's code asked for.
"""

import io
import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from penstock.authoring import loading, outcome
from penstock.authoring.flow import Flow
from penstock.authoring.flow import ParameterType as Declared
from penstock.authoring.run import get_logger
from penstock.authoring.termination import end_with_clean_up_at_sigterm
from penstock.cli.failures import EXIT_FAILED, EXIT_MISUSED
from penstock.cli.local import Assignment, Exchange, Plan
from penstock.cli.screen import STYLES, Screen, clock_time
from penstock.domain import json_text
from penstock.domain.errors import InvalidRequest
from penstock.domain.parameters import Parameter, ParameterType, check_given

EXIT_INTERRUPTED = 130


class Refused(Exception):
    """The attempt cannot begin. The text is for the user of the command."""

    def __init__(self, text: str, exit_code: int = EXIT_MISUSED) -> None:
        super().__init__(text)
        self.exit_code = exit_code


def main() -> None:
    """Find the flow, check what it was given, execute it, and leave how it ended."""
    exchange = Exchange(Path(sys.argv[1]))
    assignment = Assignment(**(exchange.read("assignment") or {}))
    end_with_clean_up_at_sigterm()
    if assignment.as_json:
        # One document goes to standard output when all is over, and nothing else.
        os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # In the order of what programs print that the flow starts.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.argv = [assignment.source]
    try:
        # Whoever started this has held it back until here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        _execute(assignment, exchange)
    except Refused as refused:
        exchange.write("outcome", {"refused": str(refused), "exit_code": refused.exit_code})
        raise SystemExit(refused.exit_code) from None
    except KeyboardInterrupt:
        # Who presses Ctrl-C again while this process ends wants it gone, not another traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise SystemExit(EXIT_INTERRUPTED) from None


def _execute(assignment: Assignment, exchange: Exchange) -> None:
    screen = Screen()
    flow = _find(assignment, screen)
    _check(flow, assignment.parameters)
    plan = Plan(flow.name, flow.policy.retries, flow.policy.delay.total_seconds())
    exchange.write("plan", asdict(plan))
    if not assignment.quiet:
        which = f", attempt {assignment.attempt}" if assignment.attempt > 1 else ""
        screen.line(f"Running flow {flow.name} locally{which}…")
    root = logging.getLogger()
    root.addHandler(logging.NullHandler() if assignment.quiet else _LinesHandler(screen))
    root.setLevel(assignment.log_level or (flow.policy.log_level or "INFO").upper())
    try:
        result_json = outcome.result_json(outcome.call(flow, assignment.parameters))
    except SystemExit as end:
        if not end.code:
            exchange.write("outcome", {"result_json": None})
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever the author's code raises is how the attempt ended
        failure = outcome.failure_of(error)
        get_logger().error("The flow failed.\n%s", failure["traceback"].rstrip("\n"))
        exchange.write("outcome", {"failure": failure})
        raise SystemExit(EXIT_FAILED) from None
    exchange.write("outcome", {"result_json": result_json})


def _find(assignment: Assignment, screen: Screen) -> Flow[..., Any]:
    try:
        found = [flow for _, flow in loading.discover(assignment.source)]
    except loading.ImportFailed as error:
        if not assignment.quiet:
            for line in outcome.failure_of(error)["traceback"].splitlines():
                screen.line(line)
        raise Refused(f"No flow was run: {error}", EXIT_FAILED) from None
    except loading.LoadingError as error:
        raise Refused(f"No flow was run: {error}") from None
    names = ", ".join(flow.name for flow in found)
    wanted = [flow for flow in found if assignment.name in ("", flow.name)]
    if not wanted:
        raise Refused(f"{assignment.source} has no flow {assignment.name!r}; it has {names}.")
    if len(wanted) > 1:
        if assignment.name:
            raise Refused(f"{assignment.source} has {len(wanted)} flows named {assignment.name!r}.")
        raise Refused(f"Found several flows in {assignment.source}: {names}; say which with --name.")
    return wanted[0]


def _check(flow: Flow[..., Any], given: dict[str, Any]) -> None:
    declared = [
        Parameter(
            each.name,
            ParameterType.ANY if each.type is Declared.UNSPECIFIED else ParameterType(each.type),
            each.required,
            each.default_json,
        )
        for each in flow.parameters
    ]
    try:
        check_given(declared, flow.accepts_extra_parameters, json_text.parse_object(json.dumps(given)))
    except InvalidRequest as error:
        wrong = [each.description for each in error.violations]
    except json_text.NotJson as error:
        wrong = [f"what it is given {error}"]
    else:
        return
    if len(wrong) == 1:
        raise Refused(f"Flow {flow.name} cannot be run: {wrong[0]}.")
    raise Refused("\n".join([f"Flow {flow.name} cannot be run:", *(f"  {each}" for each in wrong)]))


class _LinesHandler(logging.Handler):
    """Shows what loggers log, in the look of a run that is watched."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self._screen = screen
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = self.format(record).split("\n")
        except (TypeError, ValueError):
            self.handleError(record)  # an argument does not fit the message: said on stderr, as logging always does
            return
        time = clock_time(datetime.fromtimestamp(record.created, UTC))
        level = (f"{record.levelname:<8} ", STYLES.get(record.levelname, "dim"))
        for line in lines:
            self._screen.line(time, ("  │ ", "dim"), level, line)


if __name__ == "__main__":
    main()
