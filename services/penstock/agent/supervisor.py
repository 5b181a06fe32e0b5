"""Stands over one run: `python -m penstock.agent.supervisor <run directory>`, with the token on its standard input.

A line to a terminal, for the code of the run, comes as an inherited descriptor behind the directory.

Starts the body first, while this process has one thread and no connection; then asks whether it may begin, keeps the
lease, carries the output away and reports the end. It belongs to no agent: it lives on when its agent is gone.
"""

import logging
import os
import signal
import sys
from pathlib import Path

from penstock.agent.body import start_body
from penstock.agent.exit_code import ExitCode
from penstock.agent.run_directory import STOP_SIGNALS, RunDirectory


def main() -> int:
    """Supervise the run of the directory that the command line names."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s: %(message)s")
    # What asks to stop waits until it is heeded: where there is an end to report, it shall be reported.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    directory = RunDirectory(Path(sys.argv[1]))
    terminal = int(sys.argv[2]) if sys.argv[2:] else None
    token = _read_token()
    if directory.take_charge() is None:
        logging.error("another supervisor stands over this run")
        return ExitCode.DROPPED
    assignment = directory.assignment(token)
    body = None
    if directory.recorded_exit() is None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # a body would inherit that
        try:
            body = start_body(assignment, directory, terminal)
        except OSError as error:
            logging.error("the run's process cannot be started: %s", error)
            return ExitCode.NOT_STARTED
    # Only now: this import starts threads, and a process with threads should not fork.
    from penstock.agent.supervision import supervise

    return supervise(assignment, directory, body)


def _read_token() -> str:
    """Take the one line of standard input, and leave nothing there for the processes that are started from here."""
    with open(0, "rb", closefd=False) as handed_over:
        token = handed_over.readline()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return token.decode().rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
