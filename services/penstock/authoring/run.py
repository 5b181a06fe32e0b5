"""What a flow's code may know about the run it is in, and where it logs to."""

import json
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from penstock.runtime.settings import environment


class NotInFlowRun(RuntimeError):
    """The code asked for the run it is in, and is in none."""


@dataclass(frozen=True, slots=True)
class CurrentFlowRun:
    """The run that this process executes.

    The fence rises with every attempt to execute the run and never repeats: who stores it beside what they write can
    refuse a writer that was overtaken.
    """

    id: str
    fence: int
    attempt: int
    name: str
    flow_name: str
    parameters: dict[str, Any]
    context: dict[str, Any]

    @property
    def logger(self) -> logging.Logger:
        """The flow's logger."""
        return logging.getLogger(self.flow_name)


@cache
def current_flow_run() -> CurrentFlowRun:
    """The run that this process executes; raises NotInFlowRun elsewhere."""
    told = environment()
    if "PENSTOCK_FLOW_RUN_ID" not in told:
        raise NotInFlowRun("this code is not executed by a flow run: it was called directly")
    return CurrentFlowRun(
        id=told["PENSTOCK_FLOW_RUN_ID"],
        fence=int(told["PENSTOCK_FENCE"]),
        attempt=int(told["PENSTOCK_ATTEMPT"]),
        name=told["PENSTOCK_FLOW_RUN_NAME"],
        flow_name=told["PENSTOCK_FLOW_NAME"],
        parameters=_object_in(told["PENSTOCK_PARAMETERS_FILE"]),
        context=_object_in(told["PENSTOCK_CONTEXT_FILE"]),
    )


class _Body:
    process: int | None = None


_body: Final = _Body()


def begin_body() -> None:
    """Note that this process is the body of its run."""
    _body.process = os.getpid()


def is_body() -> bool:
    """Whether this very process is the body of a run of a Python flow.

    What a body forks or starts is told of the run and is not its body; a command is none that we know from inside.
    """
    return _body.process == os.getpid()


def get_logger() -> logging.Logger:
    """The flow's logger: in a run, what it logs reaches the log of the run; elsewhere it is an ordinary logger."""
    try:
        return current_flow_run().logger
    except NotInFlowRun:
        return logging.getLogger("penstock.flow")


def _object_in(path: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content
