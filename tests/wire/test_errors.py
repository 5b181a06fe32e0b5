"""Tests of `penstock.wire.errors`."""

import inspect
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode

from penstock.domain import errors
from penstock.domain.errors import InvalidRequest, LeaseLost, Overloaded, Refusal, Violation
from penstock.domain.limits import BATCH_CREATE_MAX, MESSAGE_BYTES_MAX
from penstock.wire.errors import CODES, DOMAIN, Explained, refusal_details, refusal_to_proto, status_of


class Failed(grpc.RpcError):
    """An error of a call, as a stub raises it."""

    def __init__(self, code: StatusCode, details: str, trailers: Any) -> None:
        super().__init__()
        self._code, self._details, self._trailers = code, details, trailers

    def code(self) -> StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailers


def as_received(refusal: Refusal) -> Failed:
    status = status_of(refusal)
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    return Failed(CODES[type(refusal)], status.message, trailers)


def test_every_refusal_has_a_code() -> None:
    """The catalogue names each class of refusal and nothing else."""
    declared = {
        each
        for _, each in inspect.getmembers(errors, inspect.isclass)
        if issubclass(each, Refusal) and each is not Refusal
    }

    assert declared == set(CODES)


def test_a_refusal_travels_whole() -> None:
    """Code, message, reason and every dynamic part reach the caller."""
    received = refusal_details(as_received(LeaseLost(flow_run_id="a-run", fence=7)))

    assert received == Explained(
        code=StatusCode.ABORTED,
        message="Lease 7 on flow run a-run is no longer held; stop working on it.",
        reason="LEASE_LOST",
        metadata={"flow_run_id": "a-run", "fence": "7"},
    )


def test_all_violations_are_listed() -> None:
    """An invalid request is answered with each violation as a field and a sentence."""
    violations = (Violation("name", "is empty"), Violation("labels[3]", "is too long"))

    received = refusal_details(as_received(InvalidRequest(violations)))

    assert violations == received.violations
    assert received.reason == "INVALID_REQUEST"
    assert "name: is empty" in received.message


def test_a_wait_is_told() -> None:
    """A refusal that passes says how long to wait; another one does not."""
    assert timedelta(seconds=1.5) == refusal_details(as_received(Overloaded(wait=timedelta(seconds=1.5)))).retry_after
    assert refusal_details(as_received(LeaseLost(flow_run_id="a-run", fence=1))).retry_after is None


def test_many_violations_fit_into_the_trailers() -> None:
    """However much is wrong, the status stays small, and says how much it left out."""
    violations = tuple(Violation(f"requests[{number}].name", "is tööö long " * 20) for number in range(500))

    status = status_of(InvalidRequest(violations))
    received = refusal_details(as_received(InvalidRequest(violations)))

    assert status.ByteSize() < 4_000
    assert violations[0] == received.violations[0]
    left_out = 500 - len(received.violations) + 1
    assert received.violations[-1].description == f"{left_out} more violations are not listed; correct these first."


def test_a_long_message_is_cut_between_characters() -> None:
    """A long dynamic part is cut without breaking a character."""
    status = status_of(LeaseLost(flow_run_id="ü" * 5_000, fence=1))

    assert status.message.endswith("…")
    assert len(status.message.encode()) <= 800


def test_the_refusal_of_an_item_says_the_same() -> None:
    """Code, reason, message and metadata are those that a call of its own would have been refused with."""
    refusal = LeaseLost(flow_run_id="a-run", fence=7)
    received = refusal_details(as_received(refusal))

    told = refusal_to_proto(refusal)

    assert (received.code.value[0], received.reason, received.message) == (told.code, told.reason, told.message)
    assert received.metadata == dict(told.metadata)


def test_the_refusal_of_an_item_is_short() -> None:
    """A thousand of them travel in one message; what is wrong stands in the message, as far as it fits."""
    violations = tuple(Violation(f"field{number}", "\N{CUNEIFORM SIGN A}" * 100) for number in range(100))

    told = refusal_to_proto(InvalidRequest(violations))

    assert (3, "INVALID_REQUEST") == (told.code, told.reason)
    assert told.message.startswith("The request is invalid: field0: ")
    assert told.message.endswith("…")
    assert len(told.message.encode()) <= 800
    assert told.ByteSize() * BATCH_CREATE_MAX < MESSAGE_BYTES_MAX


def test_an_error_without_details_is_told_as_it_is() -> None:
    """What a proxy or a broken connection answers has a code and a text, and no reason."""
    bare = Failed(StatusCode.UNAVAILABLE, "connection refused", None)

    assert Explained(code=StatusCode.UNAVAILABLE, message="connection refused") == refusal_details(bare)


def test_an_error_that_is_no_call_is_unknown() -> None:
    """Even an error that knows nothing about itself is told."""
    assert Explained(code=StatusCode.UNKNOWN, message="odd") == refusal_details(grpc.RpcError("odd"))


def test_a_foreign_reason_is_not_ours() -> None:
    """An ErrorInfo of another domain lends us neither reason nor metadata."""
    status = status_of(LeaseLost(flow_run_id="a-run", fence=1))
    status.ClearField("details")
    foreign = error_details_pb2.ErrorInfo(reason="LEASE_LOST", domain="elsewhere", metadata={"fence": "1"})
    status.details.add().Pack(foreign)

    received = refusal_details(
        Failed(StatusCode.ABORTED, "", [("grpc-status-details-bin", status.SerializeToString())])
    )

    assert received.reason == ""
    assert received.metadata == {}
    assert foreign.domain != DOMAIN


@pytest.mark.parametrize("kind", sorted(CODES, key=str), ids=str)
def test_every_refusal_can_be_sent(kind: type[Refusal]) -> None:
    """Whatever its fields, a refusal becomes a status with its code and reason."""
    values: dict[str, Any] = {
        "violations": (Violation("name", "is empty"),),
        "wait": timedelta(seconds=1),
        "fence": 3,
        "projects": ("one", "two"),
        "differing_fields": ("labels",),
    }
    refusal = kind(**{name: values.get(name, "text") for name in inspect.signature(kind).parameters})

    received = refusal_details(as_received(refusal))

    assert CODES[kind] is received.code
    assert kind.reason() == received.reason
    assert str(refusal) == received.message
