"""LogService: reads the request, calls one operation, writes the answer."""

from collections.abc import Iterator, Mapping
from contextlib import aclosing
from typing import TypeAlias

from flowrun.v1 import log_service_pb2 as pb
from flowrun.v1.log_service_pb2_grpc import LogServiceServicer
from penstock.domain.errors import FlowRunNotFound
from penstock.domain.ids import FlowRunId, TenantId
from penstock.domain.log import StoredLine, Writing
from penstock.log import operations
from penstock.log.operations import LogEnd, TailPage
from penstock.runtime.committer import Committer
from penstock.runtime.follow import Follower, Page
from penstock.runtime.serving import Context, tenant_of
from penstock.storage.database import Database
from penstock.wire import logs as wire
from penstock.wire.checks import Checks
from penstock.wire.pages import PageTokens, cursor_of, position_page_of

TailedPage: TypeAlias = Page[StoredLine, LogEnd]
Tails: TypeAlias = Follower[StoredLine, LogEnd]


class LogServicer(LogServiceServicer):
    """Serves logs. Writings share their commits with those that arrive meanwhile; of one producer, one at a time."""

    def __init__(
        self,
        database: Database,
        tokens: PageTokens,
        tails: Tails,
        *,
        writings: Committer[tuple[TenantId, Writing], int],
    ) -> None:
        self._database = database
        self._tokens = tokens
        self._tails = tails
        self._writings = writings

    async def WriteLogs(self, request: pb.WriteLogsRequest, context: Context) -> pb.WriteLogsResponse:
        writing = wire.writing_of(request)
        last_sequence = await self._writings.commit((tenant_of(context), writing), key=writing.key)
        return pb.WriteLogsResponse(last_sequence=last_sequence)

    async def ListLogs(self, request: pb.ListLogsRequest, context: Context) -> pb.ListLogsResponse:
        found = Checks()
        flow_run_id = FlowRunId(found.uuid("flow_run_id", request.flow_run_id))
        wanted = wire.log_filter_of(request, found)
        page = position_page_of(request, found, self._tokens)
        found.done()
        listed = await self._database.read(operations.list_logs, tenant_of(context), flow_run_id, wanted, page)
        token = self._tokens.seal((listed.lines[-1].position,), request) if listed.more else ""
        return pb.ListLogsResponse(lines=map(wire.stored_line_to_proto, listed.lines), next_page_token=token)

    async def TailLogs(  # type: ignore[override] # it writes; the stubs know only handlers that yield
        self, request: pb.TailLogsRequest, context: Context
    ) -> None:
        flow_run_id, position = wire.tailing_of(request, self._tokens)
        await self._database.read(operations.check_flow_run, tenant_of(context), flow_run_id)
        async with aclosing(self._tails.follow(flow_run_id, position)) as pages:
            async for page in pages:
                if page.items:
                    position = page.items[-1][0]
                for message in _messages(page):
                    message.cursor = cursor_of(position, flow_run_id, self._tokens)
                    await context.write(message)


async def look(
    database: Database, tenant: TenantId, positions: Mapping[FlowRunId, int]
) -> Mapping[FlowRunId, TailedPage]:
    """What the tails of a process ask for, all at once."""
    found = await database.read(operations.tail_pages, tenant, positions)
    return {flow_run_id: _page_of(each) for flow_run_id, each in found.items()}


def _page_of(found: TailPage | FlowRunNotFound) -> TailedPage:
    if isinstance(found, FlowRunNotFound):
        return Page(refusal=found)
    return Page([(stored.position, stored) for stored in found.lines], found.end)


def _messages(page: TailedPage) -> Iterator[pb.TailLogsResponse]:
    """The messages that a page becomes; one of nothing is a heartbeat."""
    if page.items:
        lines = pb.TailLines(lines=[wire.stored_line_to_proto(stored) for _, stored in page.items])
        yield pb.TailLogsResponse(lines=lines)
    match page.ended:
        case LogEnd(version=version, producers=producers):
            ends = map(wire.producer_end_to_proto, producers)
            yield pb.TailLogsResponse(end=pb.TailEnd(version=version, producers=ends))
        case None if not page.items:
            yield pb.TailLogsResponse(heartbeat=pb.TailHeartbeat())
