"""What the end of a body means for its run."""

import signal

from flowrun.v1 import flow_run_pb2, flow_run_service_pb2
from penstock.agent.output import Report, clean
from penstock.domain.limits import FAILURE_CHARACTERS_MAX, NAME_CHARACTERS_MAX, REASON_CHARACTERS_MAX

Finish = flow_run_service_pb2.FinishFlowRunRequest


def finish_request(
    flow_run_id: str,
    fence: int,
    execution_id: str,
    *,
    code: int,
    report: Report,
    must_return: bool,
    stopping: bool,
    ended_by_us: str = "",
) -> Finish:
    """Say how an attempt ended.

    `code` is the exit code, or minus the number of a signal. `must_return` holds for a flow that is a function: to exit
    without having returned is no success. `ended_by_us` is why the supervisor ended the body, if it did.
    """
    request = Finish(flow_run_id=flow_run_id, fence=fence, execution_id=execution_id)
    if report.returned or (code == 0 and not must_return and report.failure is None):
        # A function that returned has succeeded, even if its process stumbled on the way out.
        request.succeeded.SetInParent()
        if report.result_json is not None:
            request.succeeded.result_json = report.result_json
    elif stopping:
        request.stopped.message = how_it_ended(code)[:REASON_CHARACTERS_MAX]
    else:
        request.failed.CopyFrom(_failure(code, report, ended_by_us))
    return request


def failure(message: str, *, kind: str = "", traceback: str = "") -> flow_run_pb2.Failure:
    """A failure in words, cut to what is kept: at the front, because the end tells most."""
    return flow_run_pb2.Failure(
        type=clean(kind)[:NAME_CHARACTERS_MAX],
        message=clean(message)[-FAILURE_CHARACTERS_MAX:],
        traceback=clean(traceback)[-FAILURE_CHARACTERS_MAX:],
    )


def how_it_ended(code: int, who: str = "The process") -> str:
    """The end of a process in words."""
    if code >= 0:
        return f"{who} exited with code {code}."
    return f"{who} was ended by signal {-code} ({_signal_name(-code)})."


def _failure(code: int, report: Report, ended_by_us: str) -> flow_run_pb2.Failure:
    if report.failure is not None:
        told = failure(report.failure["message"], kind=report.failure["type"], traceback=report.failure["traceback"])
    elif ended_by_us:
        told = failure(f"{ended_by_us} {how_it_ended(code)}")
    elif code == 0:
        told = failure("The process exited with code 0 before the flow had returned.")
    else:
        told = failure(how_it_ended(code))
    if code >= 0:
        told.exit_code = code
    else:
        told.signal = -code
    return told


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
