"""Tests of `penstock.domain.errors`."""

from datetime import timedelta

from penstock.domain.errors import FlowNameAmbiguous, InvalidRequest, LeaseLost, Overloaded, Unavailable, Violation


def test_a_refusal_speaks_by_its_fields() -> None:
    """The message holds every field, and the metadata are the fields as text."""
    lost = LeaseLost(flow_run_id="run-1", fence=7)

    assert str(lost) == "Lease 7 on flow run run-1 is no longer held; stop working on it."
    assert lost.metadata() == {"flow_run_id": "run-1", "fence": "7"}
    assert lost.reason() == "LEASE_LOST"


def test_lists_in_a_refusal() -> None:
    """Several values are listed with commas."""
    ambiguous = FlowNameAmbiguous(name="levels", projects=("water", "gas"))

    assert str(ambiguous) == "More than one flow is named 'levels'; say which project: water, gas."


def test_violations_in_words() -> None:
    """The message of an invalid request names each violation with its field."""
    invalid = InvalidRequest((Violation("name", "is required"), Violation("labels[3]", "is only white space")))

    assert str(invalid) == "The request is invalid: name: is required; labels[3]: is only white space"


def test_when_to_ask_again() -> None:
    """Only those refusals that pass by themselves say when to ask again."""
    assert timedelta(seconds=3) == Overloaded(wait=timedelta(seconds=3)).retry_after()
    assert timedelta(seconds=1) == Unavailable(detail="draining").retry_after()
    assert LeaseLost(flow_run_id="run-1", fence=7).retry_after() is None
