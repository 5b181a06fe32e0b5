"""What the end of a body means for its run."""

import pytest

from penstock.agent.ending import failure, finish_request
from penstock.agent.output import Report
from penstock.domain.limits import FAILURE_CHARACTERS_MAX

RETURNED = Report(returned=True, result_json="1")
RAISED = Report(failure={"type": "ValueError", "message": "no", "traceback": "tb"})
SILENT = Report()


@pytest.mark.parametrize(
    ("code", "report", "must_return", "stopping", "outcome"),
    [
        (0, RETURNED, True, False, "succeeded"),
        (0, RETURNED, True, True, "succeeded"),
        (-11, RETURNED, True, False, "succeeded"),
        (0, SILENT, True, False, "failed"),
        (0, SILENT, False, False, "succeeded"),
        (0, SILENT, False, True, "succeeded"),
        (1, RAISED, True, False, "failed"),
        (1, RAISED, True, True, "stopped"),
        (3, SILENT, False, False, "failed"),
        (-15, SILENT, False, True, "stopped"),
        (-9, SILENT, True, False, "failed"),
    ],
)
def test_every_end_has_one_outcome(code: int, report: Report, must_return: bool, stopping: bool, outcome: str) -> None:
    """A function succeeds by returning, a program by its exit code; a stop counts unless the work was done before."""
    request = finish_request("run", 1, "e", code=code, report=report, must_return=must_return, stopping=stopping)

    assert outcome == request.WhichOneof("outcome")


@pytest.mark.parametrize(("code", "exit_code", "number"), [(0, 0, None), (3, 3, None), (-9, None, 9), (-64, None, 64)])
def test_a_failure_has_an_exit_code_or_a_signal(code: int, exit_code: int | None, number: int | None) -> None:
    """Never both, and zero is a code."""
    failed = finish_request("run", 1, "e", code=code, report=SILENT, must_return=True, stopping=False).failed

    assert exit_code == (failed.exit_code if failed.HasField("exit_code") else None)
    assert number == (failed.signal if failed.HasField("signal") else None)


def test_long_texts_are_cut_at_the_front() -> None:
    """The end of a traceback tells most."""
    told = failure("m" * FAILURE_CHARACTERS_MAX + "end", kind="k" * 300, traceback="t" * 99_999 + "last")

    assert (len(told.message), told.message.endswith("end")) == (FAILURE_CHARACTERS_MAX, True)
    assert (len(told.traceback), told.traceback.endswith("last")) == (FAILURE_CHARACTERS_MAX, True)
    assert len(told.type) == 255


def test_texts_hold_nothing_that_cannot_be_stored() -> None:
    """Zero characters and halves of surrogate pairs are replaced."""
    assert failure("a\0b\ud800c").message == "a\N{REPLACEMENT CHARACTER}b?c"
