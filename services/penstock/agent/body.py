"""The process that executes the code of a run, from the outside.

It is started before this process has any other thread, and waits at a gate: its standard input, which passes one line
that names the trace to go on with. It leads a process group of its own, which ends with it, and with its supervisor: a
watcher in the group sees the gate close. On Linux the kernel ends the leader even before that.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from penstock.agent.run_directory import Assignment, RunDirectory
from penstock.runtime.lifeline import WATCH
from penstock.runtime.settings import environment

_PR_SET_PDEATHSIG: Final = 1

# The gate is closed to the program itself, which finds nothing on its standard input.
_GATE: Final = (
    "read -r TRACEPARENT TRACESTATE || exit 125; export TRACEPARENT TRACESTATE; exec 3<&0 </dev/null; "
    f'{WATCH}; exec "$@" 3<&-'
)


class Body:
    """A started body: its gate, and the pipes that it writes to."""

    def __init__(self, process: subprocess.Popen[bytes], gate: int, records: int | None) -> None:
        self._process = process
        self._gate = gate
        self._signalling = threading.Lock()
        self._ended = False
        assert process.stdout is not None
        assert process.stderr is not None
        self.stdout = process.stdout.fileno()
        self.stderr = process.stderr.fileno()
        self.records = records

    @property
    def pid(self) -> int:
        return self._process.pid

    def open_gate(self, traceparent: str, tracestate: str) -> None:
        """Let the code begin. A body that is gone already says so by its end."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._gate, f"{traceparent} {tracestate}\n".encode("ascii"))

    def terminate(self) -> None:
        """Ask the body and its children to end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the body and its children."""
        self._signal(signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the end, end what the body left behind, and return the exit code, or minus the signal's number."""
        if hasattr(os, "waitid"):
            # The number of the group is ours as long as its leader is not reaped.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
            self.kill()
        else:
            self._process.wait()
        with self._signalling:
            self._ended = True
            return self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with self._signalling:
            if not self._ended:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, number)


def start_body(assignment: Assignment, directory: RunDirectory, terminal: int | None = None) -> Body:
    """Start the body of a run; it waits at its gate. Raises OSError if it cannot be started.

    A line to a terminal is for a Python flow alone: a program finds nothing on its input, here as under an agent.
    No other process keeps it: it ends with the body.
    """
    gate_out, gate_in = os.pipe()
    records_out, records_in = os.pipe() if assignment.entry_point else (None, None)
    lines = [] if terminal is None else [terminal]
    passed = [] if records_in is None else [records_in, *lines]
    try:
        process = subprocess.Popen(  # noqa: S603 - to execute what was registered is what an agent is for
            _arguments(assignment, passed),
            stdin=gate_out,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=assignment.working_directory or None,
            env=body_environment(assignment, directory, environment()),
            pass_fds=passed,
            start_new_session=True,
            preexec_fn=_end_with(os.getpid()) if sys.platform == "linux" else None,
        )
    finally:
        os.close(gate_out)
        for descriptor in {*passed, *lines}:
            os.close(descriptor)
    return Body(process, gate_in, records_out)


def gated(command: list[str]) -> list[str]:
    """The arguments that make a program wait at the gate. It must lead a process group: that ends with the gate."""
    return ["/bin/sh", "-c", _GATE, "penstock", *command]


def body_environment(assignment: Assignment, directory: RunDirectory, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of the body: the agent's without what is the agent's alone, such as a token that is not lent."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("PENSTOCK_")}
    lent = {"PENSTOCK_TOKEN": assignment.token} if assignment.lends_token and assignment.token else {}
    return {
        **kept,
        **lent,
        "PENSTOCK_FLOW_RUN_ADDRESS": assignment.flow_run_address,
        "PENSTOCK_QUEUE_ADDRESS": assignment.queue_address,
        "PENSTOCK_LOG_ADDRESS": assignment.log_address,
        **assignment.environment,
        "PENSTOCK_FLOW_RUN_ID": assignment.flow_run_id,
        "PENSTOCK_FENCE": str(assignment.fence),
        "PENSTOCK_ATTEMPT": str(assignment.attempt),
        "PENSTOCK_FLOW_NAME": assignment.flow_name,
        "PENSTOCK_FLOW_RUN_NAME": assignment.flow_run_name,
        "PENSTOCK_PARAMETERS_FILE": str(directory.parameters_file),
        "PENSTOCK_CONTEXT_FILE": str(directory.context_file),
        "PENSTOCK_LOG_LEVEL": assignment.log_level,
    }


def _arguments(assignment: Assignment, descriptors: Sequence[int]) -> list[str]:
    if assignment.command:
        return gated(list(assignment.command))
    return [sys.executable, "-m", "penstock.authoring.execute", assignment.entry_point, *map(str, descriptors)]


def _end_with(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the body. The library is loaded here, because a fork may hold no locks."""
    prctl = ctypes.CDLL(None).prctl

    def end_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(125)

    return end_with_parent
