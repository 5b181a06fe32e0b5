"""The catalogue of refusals: which status code each becomes, how its details travel, how a client reads them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Final

from google.rpc import error_details_pb2, status_pb2
from grpc import RpcError, StatusCode

from flowrun.v1 import flow_run_service_pb2
from penstock.domain.errors import (
    AgentSilent,
    ChildrenLive,
    CredentialInvalid,
    ExecutionRefused,
    FlowArchived,
    FlowGroupNotFound,
    FlowNameAmbiguous,
    FlowNotFound,
    FlowRunFinal,
    FlowRunLive,
    FlowRunNotFound,
    InvalidRequest,
    KeyNotFound,
    KeyReused,
    LabelsMissing,
    LeaseLost,
    MoveRefused,
    NoLiveFlow,
    Overloaded,
    PageTokenInvalid,
    Refusal,
    SessionReplaced,
    Unavailable,
    VersionStale,
    Violation,
)

DOMAIN: Final = "flowrun.v1"

CODES: Final[Mapping[type[Refusal], StatusCode]] = MappingProxyType(
    {
        InvalidRequest: StatusCode.INVALID_ARGUMENT,
        PageTokenInvalid: StatusCode.INVALID_ARGUMENT,
        CredentialInvalid: StatusCode.UNAUTHENTICATED,
        FlowNotFound: StatusCode.NOT_FOUND,
        FlowGroupNotFound: StatusCode.NOT_FOUND,
        FlowRunNotFound: StatusCode.NOT_FOUND,
        KeyNotFound: StatusCode.NOT_FOUND,
        FlowArchived: StatusCode.FAILED_PRECONDITION,
        NoLiveFlow: StatusCode.FAILED_PRECONDITION,
        FlowNameAmbiguous: StatusCode.FAILED_PRECONDITION,
        MoveRefused: StatusCode.FAILED_PRECONDITION,
        FlowRunLive: StatusCode.FAILED_PRECONDITION,
        FlowRunFinal: StatusCode.FAILED_PRECONDITION,
        LabelsMissing: StatusCode.FAILED_PRECONDITION,
        KeyReused: StatusCode.ALREADY_EXISTS,
        LeaseLost: StatusCode.ABORTED,
        ExecutionRefused: StatusCode.ABORTED,
        VersionStale: StatusCode.ABORTED,
        SessionReplaced: StatusCode.ABORTED,
        AgentSilent: StatusCode.DEADLINE_EXCEEDED,
        Overloaded: StatusCode.RESOURCE_EXHAUSTED,
        ChildrenLive: StatusCode.UNAVAILABLE,
        Unavailable: StatusCode.UNAVAILABLE,
    }
)

# A status travels in HTTP/2 trailers. Many clients refuse more than 8 KiB of them, and then tell nothing of it.
_MESSAGE_BYTES_MAX: Final = 800
_METADATA_VALUE_BYTES_MAX: Final = 300
_VIOLATIONS_BYTES_MAX: Final = 2_000
_VIOLATION_BYTES_MAX: Final = 400

_DETAILS_KEY: Final = "grpc-status-details-bin"
_CODE_BY_NUMBER: Final = {code.value[0]: code for code in StatusCode}


@dataclass(frozen=True, slots=True)
class Explained:
    """An error of a call as its caller sees it. `reason` is empty when the error did not come from this contract."""

    code: StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    retry_after: timedelta | None = None


def status_of(refusal: Refusal) -> status_pb2.Status:
    """What a caller is told: a code to act on, a message for people, and the details that programs read."""
    code = CODES[type(refusal)]
    status = status_pb2.Status(code=code.value[0], message=_cut(str(refusal), _MESSAGE_BYTES_MAX))
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=refusal.reason(), domain=DOMAIN, metadata=_metadata_of(refusal))
    )
    if isinstance(refusal, InvalidRequest):
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=_fitting(refusal.violations)))
    if (wait := refusal.retry_after()) is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(wait)
        status.details.add().Pack(retry)
    return status


def refusal_to_proto(refusal: Refusal) -> flow_run_service_pb2.Refusal:
    """The same for one item among many, whose refusal travels inside an answer. Its violations stand in the message."""
    return flow_run_service_pb2.Refusal(
        code=CODES[type(refusal)].value[0],
        reason=refusal.reason(),
        message=_cut(str(refusal), _MESSAGE_BYTES_MAX),
        metadata={name: _cut(value, _METADATA_VALUE_BYTES_MAX) for name, value in refusal.metadata().items()},
    )


def refusal_details(error: RpcError) -> Explained:
    """What an error of a call says, whether it carries details or, from a proxy or a broken connection, just a code."""
    status = _status_in(error)
    if status is None:
        return Explained(code=_code_of(error), message=_text_of(error))
    explained = Explained(code=_CODE_BY_NUMBER.get(status.code, StatusCode.UNKNOWN), message=status.message)
    return _with_details(explained, status)


def _metadata_of(refusal: Refusal) -> dict[str, str]:
    # The violations travel as a BadRequest; saying them a third time would only fill the trailers.
    if isinstance(refusal, InvalidRequest):
        return {}
    return {name: _cut(value, _METADATA_VALUE_BYTES_MAX) for name, value in refusal.metadata().items()}


def _fitting(violations: Iterable[Violation]) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    left = _VIOLATIONS_BYTES_MAX
    waiting = list(violations)
    for number, violation in enumerate(waiting):
        path = _cut(violation.field, _VIOLATION_BYTES_MAX)
        description = _cut(violation.description, _VIOLATION_BYTES_MAX)
        left -= len(path.encode()) + len(description.encode())
        if left < 0:
            more = f"{len(waiting) - number} more violations are not listed; correct these first."
            yield error_details_pb2.BadRequest.FieldViolation(field="", description=more)
            return
        yield error_details_pb2.BadRequest.FieldViolation(field=path, description=description)


def _cut(text: str, bytes_max: int) -> str:
    encoded = text.encode()
    if len(encoded) <= bytes_max:
        return text
    return encoded[: bytes_max - len("…".encode())].decode(errors="ignore") + "…"


def _status_in(error: RpcError) -> status_pb2.Status | None:
    for key, value in _trailers_of(error):
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return None


def _trailers_of(error: Any) -> Iterable[tuple[str, str | bytes]]:
    return (error.trailing_metadata() or ()) if hasattr(error, "trailing_metadata") else ()


def _code_of(error: Any) -> StatusCode:
    code = error.code() if hasattr(error, "code") else None
    return code if isinstance(code, StatusCode) else StatusCode.UNKNOWN


def _text_of(error: Any) -> str:
    return (error.details() or "") if hasattr(error, "details") else str(error)


def _with_details(explained: Explained, status: status_pb2.Status) -> Explained:
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if not detail.Unpack(info) and not detail.Unpack(bad_request):
            detail.Unpack(retry)
    ours = info.domain == DOMAIN
    return Explained(
        code=explained.code,
        message=explained.message,
        reason=info.reason if ours else "",
        metadata=dict(info.metadata) if ours else {},
        violations=tuple(Violation(each.field, each.description) for each in bad_request.field_violations),
        retry_after=retry.retry_delay.ToTimedelta() if retry.HasField("retry_delay") else None,
    )
