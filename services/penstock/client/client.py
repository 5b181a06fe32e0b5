"""The client, blocking and async: one line per verb and form, over the descriptions in the modules of the nouns.

Both keep connections open until they are closed and may be used as context managers. A `Client` may be shared by
threads; an `AsyncClient` belongs to the event loop in which it is first used. Every call has a deadline, bears the
token and the trace context, and fails with a `PenstockError`. Lists ask for pages as they are iterated. Followers
reconnect by themselves where they left off.
"""

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar

import grpc
from google.protobuf.message import Message
from opentelemetry.trace import SpanKind

from flowrun.v1.flow_run_service_pb2_grpc import FlowRunServiceStub
from flowrun.v1.flow_service_pb2_grpc import FlowServiceStub
from flowrun.v1.log_service_pb2_grpc import LogServiceStub
from flowrun.v1.operator_service_pb2_grpc import OperatorServiceStub
from penstock.client import agents, creations, explanations, flow_runs, flows, logs
from penstock.client.calls import Call, Ending, Following, Listing, Service
from penstock.client.errors import CutOff, PenstockError, error_of, invalid
from penstock.client.reconnection import PATIENCE, Reconnection, ended_early
from penstock.domain.limits import MESSAGE_BYTES_MAX
from penstock.runtime import telemetry
from penstock.runtime.channel import open_channel, open_sync_channel
from penstock.runtime.settings import ADDRESS_FORM, CREDENTIAL_FORM, ClientSettings, environment, is_address, is_token

P = ParamSpec("P")
T = TypeVar("T")

# No stream is left to itself for ever: at this age it is opened again from its cursor, unnoticed by its reader.
STREAM_AGE_MAX: Final = timedelta(minutes=15)

_STUBS: Final[dict[Service, Callable[[Any], Any]]] = {
    Service.FLOW: FlowServiceStub,
    Service.FLOW_RUN: FlowRunServiceStub,
    Service.LOG: LogServiceStub,
    Service.OPERATOR: OperatorServiceStub,
}


def _named_after(describe: Callable[..., Any], method: T) -> T:
    """Give a method the name, the text and the parameters of its description, for `help` and for editors."""
    signature = inspect.signature(describe)
    functools.update_wrapper(method, describe)  # type: ignore[arg-type]
    client = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[client, *signature.parameters.values()], return_annotation=inspect.Signature.empty
    )
    return method


def _described(describe: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Describe a call; a value that its field cannot hold is refused as a server would refuse it."""
    try:
        return describe(*args, **kwargs)
    except ValueError as error:
        raise invalid("request", f"cannot be sent: {error}.") from error


def _asking(describe: Callable[P, Call[T]]) -> "Callable[Concatenate[Client, P], T]":
    def ask(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return client.ask(_described(describe, *args, **kwargs))

    return _named_after(describe, ask)


def _listing(describe: Callable[P, Listing[T]]) -> "Callable[Concatenate[Client, P], Iterator[T]]":
    def list_all(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return client.list_all(describe(*args, **kwargs))

    return _named_after(describe, list_all)


def _following(describe: Callable[P, Following[T]]) -> "Callable[Concatenate[Client, P], Iterator[T]]":
    def follow(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return client.follow(describe(*args, **kwargs))

    return _named_after(describe, follow)


def _waiting(describe: Callable[P, Following[T]]) -> "Callable[Concatenate[Client, P], T]":
    def wait(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        (last,) = client.follow(describe(*args, **kwargs))
        return last

    return _named_after(describe, wait)


def _async_asking(describe: Callable[P, Call[T]]) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    async def ask(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await client.ask(_described(describe, *args, **kwargs))

    return _named_after(describe, ask)


def _async_listing(describe: Callable[P, Listing[T]]) -> "Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]":
    def list_all(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return client.list_all(describe(*args, **kwargs))

    return _named_after(describe, list_all)


def _async_following(describe: Callable[P, Following[T]]) -> "Callable[Concatenate[AsyncClient, P], AsyncIterator[T]]":
    def follow(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return client.follow(describe(*args, **kwargs))

    return _named_after(describe, follow)


def _async_waiting(
    describe: Callable[P, Following[T]],
) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    async def wait(client: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        (last,) = [item async for item in client.follow(describe(*args, **kwargs))]
        return last

    return _named_after(describe, wait)


class _Connections:
    """Where the services are, with one channel per address, opened when it is first needed."""

    def __init__(
        self,
        address: str | None = None,
        token: str | None = None,
        *,
        settings: ClientSettings | None = None,
        patience: timedelta = PATIENCE,
    ) -> None:
        if address and not is_address(address):
            raise invalid("address", f"must be {ADDRESS_FORM}, not {address!r}.")
        if token and not is_token(token):
            raise invalid("token", f"must be {CREDENTIAL_FORM}.")
        settings = settings or ClientSettings.load()
        addresses = (settings.flow_run_address, settings.log_address, settings.queue_address)
        flow_run, log, queue = (address,) * 3 if address else addresses
        self._addresses = {
            Service.FLOW: flow_run,
            Service.FLOW_RUN: flow_run,
            Service.LOG: log,
            Service.OPERATOR: queue,
        }
        self._token = settings.token if token is None else token
        self._timeout = settings.timeout.total_seconds()
        self._patience = patience
        self._channels: dict[str, Any] = {}
        self._stubs: dict[Service, Any] = {}
        self._opening = threading.Lock()

    def _method(self, service: Service, rpc: str, opening: Callable[..., Any]) -> Any:
        with self._opening:
            if service not in self._stubs:
                address = self._addresses[service]
                if address not in self._channels:
                    self._channels[address] = opening(address, token=self._token)
                self._stubs[service] = _STUBS[service](self._channels[address])
            return getattr(self._stubs[service], rpc)

    def _error(self, error: grpc.RpcError, service: Service) -> PenstockError:
        return error_of(error, self._addresses[service])


class Client(_Connections):
    """Speaks to the services of one installation, and blocks until they answer.

    Without arguments it is told by the environment where they are: PENSTOCK_ADDRESS, PENSTOCK_TOKEN. A follower that
    hears nothing for `patience` raises what keeps it from its server.
    """

    create_project = _asking(flows.create_project)
    list_projects = _listing(flows.list_projects)
    register_flow = _asking(flows.register_flow)
    get_flow = _asking(flows.get_flow)
    look_up_flow = _asking(flows.look_up_flow)
    list_flows = _listing(flows.list_flows)
    archive_flow = _asking(flows.archive_flow)
    unarchive_flow = _asking(flows.unarchive_flow)
    get_flow_group = _asking(flows.get_flow_group)
    update_flow_group = _asking(flows.update_flow_group)
    create_flow_run = _asking(creations.create_flow_run)
    batch_create_flow_runs = _asking(creations.batch_create_flow_runs)
    get_flow_run = _asking(flow_runs.get_flow_run)
    get_flow_run_by_key = _asking(flow_runs.get_flow_run_by_key)
    cancel_flow_run = _asking(flow_runs.cancel_flow_run)
    restart_flow_run = _asking(flow_runs.restart_flow_run)
    delete_flow_run = _asking(flow_runs.delete_flow_run)
    explain_flow_run = _asking(explanations.explain_flow_run)
    list_flow_runs = _listing(flow_runs.list_flow_runs)
    list_transitions = _listing(flow_runs.list_transitions)
    watch_flow_run = _following(flow_runs.watch_flow_run)
    wait_for_flow_run = _waiting(flow_runs.wait_for_flow_run)
    read_logs = _listing(logs.read_logs)
    follow_logs = _following(logs.follow_logs)
    list_agents = _listing(agents.list_agents)

    def ask(self, call: Call[T]) -> T:
        """Make a described call."""
        method = self._method(call.service, call.rpc, open_sync_channel)
        with _span_of(call):
            try:
                response = method(_sendable(call.request), timeout=self._timeout)
            except grpc.RpcError as error:
                raise self._error(error, call.service) from None
            return call.answer(response)

    def list_all(self, listing: Listing[T]) -> Iterator[T]:
        """Iterate over a described list, asking for its pages one by one."""
        token: str | None = ""
        while token is not None:
            page = self.ask(listing.page(token))
            yield from page.items
            token = page.next_page_token or None

    def follow(self, following: Following[T], ending: Ending | None = None) -> Iterator[T]:
        """Iterate over a described stream to its end, however often it breaks, or until another thread ends it."""
        method = self._method(following.service, following.rpc, open_sync_channel)
        cursor, reconnection, ending = following.cursor, Reconnection(self._patience), ending or Ending()
        while not ending.ended:
            request = _sendable(following.request(cursor))
            try:
                call = method(request, timeout=STREAM_AGE_MAX.total_seconds())
            except ValueError:
                # What a channel says that was closed.
                raise CutOff("The client was closed while it followed a stream.") from None
            ending.watch(call)
            broken: PenstockError = ended_early(self._addresses[following.service])
            try:
                for response in call:
                    reconnection.heard()
                    step = following.read(response, cursor)
                    cursor = step.cursor
                    yield from step.items
                    if step.ended:
                        return
            except grpc.RpcError as error:
                broken = self._error(error, following.service)
                # The call is its own error and so would refer to itself. Left to a collection at the interpreter's end,
                # it could wait there for ever for a lock that one of the transport's threads took along.
                error.__traceback__ = None
            finally:
                call.cancel()
            if not ending.ended:
                ending.pause(reconnection.pause_seconds(broken))

    def close(self) -> None:
        """Close all connections."""
        channels, self._channels, self._stubs = self._channels, {}, {}
        for channel in channels.values():
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_Connections):
    """Speaks to the services of one installation without blocking its event loop; otherwise as `Client`."""

    create_project = _async_asking(flows.create_project)
    list_projects = _async_listing(flows.list_projects)
    register_flow = _async_asking(flows.register_flow)
    get_flow = _async_asking(flows.get_flow)
    look_up_flow = _async_asking(flows.look_up_flow)
    list_flows = _async_listing(flows.list_flows)
    archive_flow = _async_asking(flows.archive_flow)
    unarchive_flow = _async_asking(flows.unarchive_flow)
    get_flow_group = _async_asking(flows.get_flow_group)
    update_flow_group = _async_asking(flows.update_flow_group)
    create_flow_run = _async_asking(creations.create_flow_run)
    batch_create_flow_runs = _async_asking(creations.batch_create_flow_runs)
    get_flow_run = _async_asking(flow_runs.get_flow_run)
    get_flow_run_by_key = _async_asking(flow_runs.get_flow_run_by_key)
    cancel_flow_run = _async_asking(flow_runs.cancel_flow_run)
    restart_flow_run = _async_asking(flow_runs.restart_flow_run)
    delete_flow_run = _async_asking(flow_runs.delete_flow_run)
    explain_flow_run = _async_asking(explanations.explain_flow_run)
    list_flow_runs = _async_listing(flow_runs.list_flow_runs)
    list_transitions = _async_listing(flow_runs.list_transitions)
    watch_flow_run = _async_following(flow_runs.watch_flow_run)
    wait_for_flow_run = _async_waiting(flow_runs.wait_for_flow_run)
    read_logs = _async_listing(logs.read_logs)
    follow_logs = _async_following(logs.follow_logs)
    list_agents = _async_listing(agents.list_agents)

    async def ask(self, call: Call[T]) -> T:
        """Make a described call."""
        method = self._method(call.service, call.rpc, open_channel)
        with _span_of(call):
            try:
                response = await method(_sendable(call.request), timeout=self._timeout)
            except grpc.RpcError as error:
                raise self._error(error, call.service) from None
            return call.answer(response)

    async def list_all(self, listing: Listing[T]) -> AsyncIterator[T]:
        """Iterate over a described list, asking for its pages one by one."""
        token: str | None = ""
        while token is not None:
            page = await self.ask(listing.page(token))
            for item in page.items:
                yield item
            token = page.next_page_token or None

    async def follow(self, following: Following[T]) -> AsyncIterator[T]:
        """Iterate over a described stream to its end, however often it breaks."""
        method = self._method(following.service, following.rpc, open_channel)
        cursor, reconnection = following.cursor, Reconnection(self._patience)
        while True:
            call = method(_sendable(following.request(cursor)), timeout=STREAM_AGE_MAX.total_seconds())
            broken: PenstockError = ended_early(self._addresses[following.service])
            try:
                async for response in call:
                    reconnection.heard()
                    step = following.read(response, cursor)
                    cursor = step.cursor
                    for item in step.items:
                        yield item
                    if step.ended:
                        return
            except grpc.RpcError as error:
                broken = self._error(error, following.service)
            finally:
                call.cancel()
            await asyncio.sleep(reconnection.pause_seconds(broken))

    async def close(self) -> None:
        """Close all connections."""
        channels, self._channels, self._stubs = self._channels, {}, {}
        for channel in channels.values():
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _sendable(request: Message) -> Message:
    """The request, unless it is larger than any server takes, which the transport would say in its own words."""
    if (size := request.ByteSize()) > MESSAGE_BYTES_MAX:
        raise invalid("request", f"is {size:,} bytes long, and {MESSAGE_BYTES_MAX:,} is the most that may be sent.")
    return request


@contextlib.contextmanager
def _span_of(call: Call[Any]) -> Iterator[None]:
    """The span that a call asks for. Where nobody records none is sent, so a service that records begins the trace.

    A trace that is there already goes on, recorded or not: that of this code, else the one this process was started in.
    """
    if not call.span:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not telemetry.current_traceparent():
            stack.enter_context(telemetry.attached(telemetry.context_from_environment(environment())))
        stack.enter_context(telemetry.tracer().start_as_current_span(call.span, kind=SpanKind.CLIENT))
        yield
