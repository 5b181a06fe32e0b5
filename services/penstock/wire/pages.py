"""Pages and cursors: where a list goes on, sealed so that only this installation can say so, and only for one query.

A token is a sort key and a signature. The signature covers the rpc and everything that the request asks but for its
page size and its token, so a token for another query, of another installation or made by hand is refused alike.
"""

import base64
import binascii
import hmac
import struct
from collections.abc import Sequence
from typing import Final, TypeAlias, TypeVar
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from pendulum import DateTime

from flowrun.v1 import flow_run_service_pb2, flow_service_pb2, log_service_pb2, operator_service_pb2
from penstock.domain.errors import PageTokenInvalid
from penstock.domain.ids import FlowRunId
from penstock.domain.limits import PAGE_BYTES_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX
from penstock.domain.queries import Page, PositionPage
from penstock.wire.checks import Checks
from penstock.wire.times import OutOfRange, to_time, to_timestamp

TimeAndId: TypeAlias = tuple[DateTime, UUID]
Position: TypeAlias = tuple[int]
ByTime: TypeAlias = (
    flow_service_pb2.ListProjectsRequest
    | flow_service_pb2.ListFlowsRequest
    | flow_run_service_pb2.ListFlowRunsRequest
    | operator_service_pb2.ListAgentsRequest
)
ByPosition: TypeAlias = flow_run_service_pb2.ListTransitionsRequest | log_service_pb2.ListLogsRequest
Item = TypeVar("Item", bound=Message)

_SIGNATURE_BYTES: Final = 16
_POSITION: Final = struct.Struct(">q")
_TIME_AND_ID: Final = struct.Struct(">qi16s")
_PAGING_FIELDS: Final = frozenset({"page_size", "page_token", "cursor"})


class PageTokens:
    """Seals sort keys with the installation's signing key, and opens what it sealed."""

    def __init__(self, signing_key: bytes) -> None:
        self._signing_key = signing_key

    def seal(self, key: TimeAndId | Position, query: Message) -> str:
        """The token that lets `query` go on after `key`."""
        packed = _pack(key)
        return base64.urlsafe_b64encode(self._signature(packed, query) + packed).rstrip(b"=").decode()

    def open(self, token: str, query: Message) -> TimeAndId | Position:
        """The key that was sealed for this very query; refuses any other token."""
        try:
            sealed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise PageTokenInvalid(detail="it is not a token") from None
        signature, packed = sealed[:_SIGNATURE_BYTES], sealed[_SIGNATURE_BYTES:]
        if not hmac.compare_digest(signature, self._signature(packed, query)):
            raise PageTokenInvalid(detail="it was made for another query or by another installation")
        return _unpack(packed)

    def _signature(self, packed: bytes, query: Message) -> bytes:
        asked = type(query)()
        asked.CopyFrom(query)
        for field in _PAGING_FIELDS.intersection(asked.DESCRIPTOR.fields_by_name):
            asked.ClearField(field)
        # The name ends with a NUL and the key's length goes before it, so no two triples sign the same bytes.
        signed = b"%s\0%d\0%s%s" % (
            asked.DESCRIPTOR.full_name.encode(),
            len(packed),
            packed,
            asked.SerializeToString(deterministic=True),
        )
        return hmac.digest(self._signing_key, signed, "sha256")[:_SIGNATURE_BYTES]


def page_size_of(checks: Checks, request: ByTime | ByPosition) -> int:
    """How many the caller wants at most: nothing said is a default, too much is cut, less than nothing is wrong."""
    if request.page_size < 0:
        checks.refuse("page_size", f"is {request.page_size}; it must not be negative")
    return min(request.page_size, PAGE_SIZE_MAX) or PAGE_SIZE_DEFAULT


def page_of(request: ByTime, checks: Checks, tokens: PageTokens) -> Page:
    """The page that is asked for, of a list ordered by a time and an id."""
    size = page_size_of(checks, request)
    if not request.page_token:
        return Page(size)
    match tokens.open(request.page_token, request):
        case (time, id_):
            return Page(size, (time, id_))
        case _:
            raise PageTokenInvalid(detail="it holds a key of another kind")


def position_page_of(request: ByPosition, checks: Checks, tokens: PageTokens) -> PositionPage:
    """The page that is asked for, of a list ordered by a position or a version."""
    size = page_size_of(checks, request)
    if not request.page_token:
        return PositionPage(size)
    return PositionPage(size, _position(tokens.open(request.page_token, request)))


def cursor_of(position: int, flow_run_id: FlowRunId, tokens: PageTokens) -> str:
    """Where a tail of this run goes on after a position."""
    return tokens.seal((position,), _tail_of(flow_run_id))


def position_of(cursor: str, flow_run_id: FlowRunId, tokens: PageTokens) -> int:
    """The position in a cursor of this run; 0 for the beginning. Refuses a cursor of another run."""
    return _position(tokens.open(cursor, _tail_of(flow_run_id))) if cursor else 0


def fitting(items: Sequence[Item]) -> Sequence[Item]:
    """The first items that one message can carry, and at least one of them."""
    left = PAGE_BYTES_MAX
    for index, item in enumerate(items):
        left -= item.ByteSize()
        if left < 0 and index:
            return items[:index]
    return items


def _tail_of(flow_run_id: FlowRunId) -> Message:
    # Made from the id, not taken from the request, so that an id spelled in capitals names the same run.
    return log_service_pb2.TailLogsRequest(flow_run_id=str(flow_run_id))


def _position(key: TimeAndId | Position) -> int:
    match key:
        case (position,):
            return position
        case _:
            raise PageTokenInvalid(detail="it holds a key of another kind")


def _pack(key: TimeAndId | Position) -> bytes:
    match key:
        case (position,):
            return _POSITION.pack(position)
        case (time, id_):
            timestamp = to_timestamp(time)
            return _TIME_AND_ID.pack(timestamp.seconds, timestamp.nanos, id_.bytes)


def _unpack(packed: bytes) -> TimeAndId | Position:
    try:
        if len(packed) == _POSITION.size:
            (position,) = _POSITION.unpack(packed)
            return (position,)
        seconds, nanos, id_bytes = _TIME_AND_ID.unpack(packed)
        return to_time(Timestamp(seconds=seconds, nanos=nanos)), UUID(bytes=id_bytes)
    except (struct.error, OutOfRange):
        raise PageTokenInvalid(detail="it holds a key of another kind") from None
