"""What a call may fail with: one class per thing to do about it, whose text is the server's own sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar

import grpc

from flowrun.v1.flow_run_service_pb2 import Refusal
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


class KeyNotFound(NotFound):
    """The idempotency key has made no run of that target."""


class Refused(PenstockError):
    """The named thing exists and is in a state that does not allow this."""


class FlowRunLive(Refused):
    """The run has not ended, and what was asked may only be done to one that has."""


class FlowArchived(Refused):
    """The flow is archived; its group may have a live one."""


class NoLiveFlow(Refused):
    """Every flow of the group is archived."""


class FlowNameAmbiguous(Refused):
    """More than one flow has that name; their projects tell them apart."""


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


class VersionStale(Superseded):
    """The run has gone on since the version that the call shows."""


class Overloaded(PenstockError):
    """The server takes no more at the moment, and nothing was written; wait `retry_after`."""

    passing = True


class Unavailable(PenstockError):
    """No server answers, or it went away before it did, or cannot serve now."""

    passing = True


class ChildrenLive(Unavailable):
    """Children of the cancelled run are still to be cancelled with it; wait `retry_after`, and ask again."""


class DeadlineExceeded(PenstockError):
    """No answer came in time; what was asked may have been done all the same."""

    passing = True


class NotServed(PenstockError):
    """The server's version does not serve this call, or what answers is something else."""


class ServerFailed(PenstockError):
    """A mistake on the server's side."""


class CutOff(PenstockError):
    """The server, or something in between, ended the call."""

    passing = True


_BY_REASON: Mapping[str, type[PenstockError]] = {
    "CHILDREN_LIVE": ChildrenLive,
    "FLOW_ARCHIVED": FlowArchived,
    "FLOW_NAME_AMBIGUOUS": FlowNameAmbiguous,
    "FLOW_RUN_LIVE": FlowRunLive,
    "KEY_NOT_FOUND": KeyNotFound,
    "KEY_REUSED": KeyReused,
    "LEASE_LOST": LeaseLost,
    "NO_LIVE_FLOW": NoLiveFlow,
    "VERSION_STALE": VersionStale,
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


_CODE_BY_NUMBER: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


# What the transport says of a call that has reached nobody. Of any other it is not known what became of it.
_NEVER_SENT = (
    "failed to connect to all addresses",
    "connections to all backends failing",
    "errors resolving",
    "DNS resolution failed",
    "empty address list",
)


def error_of(error: grpc.RpcError, address: str) -> PenstockError:
    """What an error of a call to `address` means to its caller."""
    explained = refusal_details(error)
    kind = NotServed if _comes_from_others(explained) else _kind_of(explained.reason, explained.code)
    return kind(
        message=_sentence(explained, address),
        code=explained.code.name,
        reason=explained.reason,
        metadata=explained.metadata,
        violations=tuple(Violation(each.field, each.description) for each in explained.violations),
        retry_after=explained.retry_after,
    )


def refusal_of(message: Refusal) -> PenstockError:
    """What the refusal of one item means to its caller."""
    code = _CODE_BY_NUMBER.get(message.code, grpc.StatusCode.UNKNOWN)
    return _kind_of(message.reason, code)(
        message=message.message, code=code.name, reason=message.reason, metadata=dict(message.metadata)
    )


def invalid(field: str, description: str) -> InvalidRequest:
    """Refuse a request before it is sent, in the form in which a server would."""
    return all_invalid((Violation(field, description),))


def all_invalid(violations: Sequence[Violation]) -> InvalidRequest:
    """The same for several violations."""
    return InvalidRequest(
        message=f"The request is invalid: {'; '.join(f'{each.field}: {each.description}' for each in violations)}",
        code=grpc.StatusCode.INVALID_ARGUMENT.name,
        reason="INVALID_REQUEST",
        violations=tuple(violations),
    )


def _kind_of(reason: str, code: grpc.StatusCode) -> type[PenstockError]:
    return _BY_REASON.get(reason) or _BY_CODE.get(code, ServerFailed)


def _comes_from_others(explained: Explained) -> bool:
    """Whether the transport says that something answered, and that it was no server of this contract."""
    said = explained.message
    if explained.reason:
        return False
    if explained.code is grpc.StatusCode.UNAVAILABLE:
        return "Failed parsing HTTP/2" in said
    return said == "Method not found!" or said.startswith("Received http2 header with status")


def _sentence(explained: Explained, address: str) -> str:
    if explained.reason:
        return explained.message
    # Not our server's words: those of the transport, which name sockets and not what a person can do.
    if _comes_from_others(explained):
        return f"What answers at {address} is no Penstock server, or none for this call: is the address the right one?"
    if explained.code is grpc.StatusCode.UNAVAILABLE and explained.message.startswith(_NEVER_SENT):
        return f"No Penstock server answers at {address}."
    if explained.code is grpc.StatusCode.UNAVAILABLE:
        return f"The Penstock server at {address} went away before it answered; what was asked may have been done."
    if explained.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"The Penstock server at {address} did not answer in time."
    return explained.message or f"The Penstock server at {address} answered {explained.code.name}."
