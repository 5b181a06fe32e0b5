"""What a call may fail with: one class per thing to do about it, whose text is the server's own sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar

import grpc

from penstock.wire.errors import Explained, refusal_details


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request: the field's path, and what is wrong in a sentence."""

    field: str
    description: str


@dataclass(eq=False)
class PenstockError(Exception):
    """A call that failed. `reason` says why in the contract's words and is empty when no server answered."""

    message: str
    code: str = ""
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[Violation] = ()
    retry_after: timedelta | None = None

    # Whether a follower that was cut off by this error should open its stream again.
    passing: ClassVar = False

    def __str__(self) -> str:
        return self.message


class InvalidRequest(PenstockError):
    """The request is wrong in itself; `violations` lists everything that is."""


class Unauthenticated(PenstockError):
    """The call bears no valid token."""


class PermissionDenied(PenstockError):
    """The token is valid and does not allow this."""


class NotFound(PenstockError):
    """The named thing does not exist."""


class Refused(PenstockError):
    """The named thing exists and is in a state that does not allow this."""


class AlreadyExists(PenstockError):
    """Something with this identity exists and differs from what was asked."""


class KeyReused(AlreadyExists):
    """The idempotency key has made a run that differs from what was asked now."""


class FlowRunDeleted(AlreadyExists):
    """The idempotency key made a run that was deleted since; the key never makes another."""


class Superseded(PenstockError):
    """Somebody else got there first: drop the work."""


class LeaseLost(Superseded):
    """The lease that the call shows is no longer held."""


class Overloaded(PenstockError):
    """The server takes no more at the moment, and nothing was written; wait `retry_after`."""

    passing = True


class Unavailable(PenstockError):
    """No server answers, or it cannot serve now."""

    passing = True


class DeadlineExceeded(PenstockError):
    """No answer came in time; what was asked may have been done all the same."""

    passing = True


class NotServed(PenstockError):
    """The server's version does not serve this call."""


class ServerFailed(PenstockError):
    """A mistake on the server's side."""


class CutOff(PenstockError):
    """The server, or something in between, ended the call."""

    passing = True


_BY_REASON: Mapping[str, type[PenstockError]] = {
    "KEY_REUSED": KeyReused,
    "LEASE_LOST": LeaseLost,
}

_BY_CODE: Mapping[grpc.StatusCode, type[PenstockError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.ABORTED: Superseded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNIMPLEMENTED: NotServed,
    grpc.StatusCode.CANCELLED: CutOff,
}


def error_of(error: grpc.RpcError, address: str) -> PenstockError:
    """What an error of a call to `address` means to its caller."""
    explained = refusal_details(error)
    kind = _BY_REASON.get(explained.reason) or _BY_CODE.get(explained.code, ServerFailed)
    return kind(
        message=_sentence(explained, address),
        code=explained.code.name,
        reason=explained.reason,
        metadata=explained.metadata,
        violations=tuple(Violation(each.field, each.description) for each in explained.violations),
        retry_after=explained.retry_after,
    )


def invalid(field: str, description: str) -> InvalidRequest:
    """Refuse a request before it is sent, in the form in which a server would."""
    return InvalidRequest(
        message=f"The request is invalid: {field}: {description}",
        code=grpc.StatusCode.INVALID_ARGUMENT.name,
        reason="INVALID_REQUEST",
        violations=(Violation(field, description),),
    )


def _sentence(explained: Explained, address: str) -> str:
    if explained.reason:
        return explained.message
    # Not our server's words: those of the transport, which name sockets and not what a person can do.
    if explained.code is grpc.StatusCode.UNAVAILABLE:
        return f"No Penstock server answers at {address}."
    if explained.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"The Penstock server at {address} did not answer in time."
    return explained.message or f"The Penstock server at {address} answered {explained.code.name}."
