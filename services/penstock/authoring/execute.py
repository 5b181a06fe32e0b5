"""The body of a run of a Python flow: `python -m penstock.authoring.execute <entry point> <records descriptor>`.

Behind these may stand one descriptor more: a line to a terminal.

Its standard input is the gate: user code begins only after a line came through it, which names the trace to go on
with. A gate that closes before means that the run must not begin; one that closes later, that the supervisor is gone.
"""

import logging
import os
import signal
import subprocess
import sys
from typing import Final

from penstock.authoring import loading, outcome
from penstock.authoring.records import Records, install
from penstock.authoring.run import begin_body, current_flow_run
from penstock.authoring.terminal import attach
from penstock.authoring.termination import Terminated, end_with_clean_up_at_sigterm
from penstock.runtime import telemetry
from penstock.runtime.lifeline import WATCH
from penstock.runtime.settings import environment

EXIT_NOT_BEGUN: Final = 125


def main() -> None:
    """Wait at the gate, execute the flow, say how it ended."""
    entry_point, records, terminal = sys.argv[1], Records(int(sys.argv[2])), [int(each) for each in sys.argv[3:]]
    trace_context = _pass_gate()
    if trace_context is None:
        os._exit(EXIT_NOT_BEGUN)
    begin_body()
    # As for a program started by hand: what is beside the author's code can be imported, not what is beside ours.
    sys.argv = [entry_point]
    end_with_clean_up_at_sigterm()
    if terminal:
        attach(*terminal)
    telemetry.configure("penstock-flow")
    try:
        with telemetry.attached(telemetry.context_from(*trace_context)):
            _execute(entry_point, records)
    except Terminated:
        logging.shutdown()
        _flush()
        # End by the signal itself, so that the supervisor sees what ended the body.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        _flush()
        telemetry.shutdown()


def _pass_gate() -> tuple[str, str] | None:
    """Wait for the line; None if the gate closed first."""
    line = b""
    while not line.endswith(b"\n"):
        if not (piece := os.read(0, 4096)):
            return None
        line += piece
    _end_with_supervisor()
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    traceparent, _, tracestate = line.decode("ascii").strip().partition(" ")
    os.environ["TRACEPARENT"], os.environ["TRACESTATE"] = traceparent, tracestate
    return traceparent, tracestate


def _end_with_supervisor() -> None:
    """Let the whole group end when the gate closes, whatever this process is busy with and whatever it starts."""
    # A body that was started by hand shares its group with whoever started it.
    if os.getpgrp() == os.getpid():
        subprocess.run(  # noqa: S603 - a text of ours
            ["/bin/sh", "-c", f"exec 3<&0 </dev/null; {WATCH}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )


def _execute(entry_point: str, records: Records) -> None:
    install(records, environment().get("PENSTOCK_LOG_LEVEL") or "INFO")
    run = current_flow_run()
    try:
        result = outcome.result_json(outcome.call(loading.load(entry_point), run.parameters))
    except SystemExit as end:
        if not isinstance(end, Terminated) and not end.code:
            records.write({"kind": "result", "json": None})
        raise
    except BaseException as error:  # noqa: BLE001 - whatever the author's code raises is how the run ended
        failure = outcome.failure_of(error)
        run.logger.error("The flow failed.\n%s", failure["traceback"].rstrip("\n"))
        records.write({"kind": "failure", **failure})
        raise SystemExit(1) from None
    records.write({"kind": "result", "json": result})


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


if __name__ == "__main__":
    main()
