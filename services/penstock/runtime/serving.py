"""Wraps each handler once, when it is registered: who may call, the trace, the deadline, and what becomes of a failure.

Not an interceptor: grpc.aio's cost a tenth of the throughput before they do anything. Handlers are `async def`; those
that stream write with `context.write`. This is the only place that ends a call with an error.
"""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final, NoReturn, TypeAlias

import grpc
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Tracer

from penstock.domain.errors import CredentialInvalid, Refusal
from penstock.domain.ids import DEFAULT_TENANT, TenantId
from penstock.domain.limits import DEADLINE_DEFAULT
from penstock.runtime import telemetry
from penstock.wire.errors import CODES, status_of

Context = grpc.aio.ServicerContext[Any, Any]
Handle = Callable[[Any, Context], Awaitable[Any]]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"  # a text, because only its type stubs are generic

_LOGGER: Final = logging.getLogger(__name__)
# What OpenTelemetry counts as a server's own error; the others are the caller's.
_OUR_ERRORS: Final = frozenset(
    {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNKNOWN}
    | {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.DATA_LOSS}
)


def tenant_of(context: Context) -> TenantId:
    """Whose call this is. It follows from the credential, never from the request; there is one tenant so far."""
    return DEFAULT_TENANT


def internal_error(error: Exception, what: str) -> str:
    """Log an unexpected failure of `what`; what its caller is told of it, which finds it in the log."""
    trace_id = telemetry.trace_id_of(telemetry.current_traceparent() or telemetry.new_traceparent())
    _LOGGER.error("%s failed; trace id %s", what, trace_id, exc_info=error)
    trace.get_current_span().record_exception(error)
    return f"Internal error; trace id {trace_id}."


class Serving:
    """What surrounds every handler of one process."""

    def __init__(self, *, token: str, tracer: Tracer | None = None, deadline: timedelta = DEADLINE_DEFAULT) -> None:
        self._token = token.encode()
        self._tracer = tracer or telemetry.tracer()
        self._deadline_seconds = deadline.total_seconds()

    def wrapping(self, server: grpc.aio.Server, *, guarded: bool = True) -> "Registrar":
        """What to hand to `add_…Servicer_to_server` in place of the server. Unguarded services ask for no token."""
        return Registrar(self, server, guarded)

    def wrapped(self, method: str, handler: Handler, *, guarded: bool) -> Any:
        """The handler of `package.Service/Method` with everything around it."""
        kind = _KINDS[bool(handler.request_streaming), bool(handler.response_streaming)]
        handle = getattr(handler, kind)
        unary = kind == "unary_unary"
        around = self._unary(method, handle, guarded) if unary else self._streaming(method, handle, guarded)
        make: Callable[..., Any] = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(around, handler.request_deserializer, handler.response_serializer)

    def _unary(self, method: str, handle: Handle, guarded: bool) -> Handle:
        async def answer(request: Any, context: Context) -> Any:
            metadata = _metadata_of(context)
            if guarded:
                await self._admit(metadata, context)
            with self._span(method, metadata, guarded):
                try:
                    if context.time_remaining() is not None:
                        return await handle(request, context)
                    return await self._within_deadline(handle(request, context), context)
                except Exception as error:
                    await _fail(error, method, context)

        return answer

    def _streaming(self, method: str, handle: Handle, guarded: bool) -> Handle:
        async def answer(request: Any, context: Context) -> Any:
            metadata = _metadata_of(context)
            if guarded:
                await self._admit(metadata, context)
            # A stream may live for a quarter of an hour and serve many traces; a span of it would say nothing.
            with telemetry.attached(telemetry.context_of(metadata)):
                try:
                    return await _written(handle(request, context), context)
                except Exception as error:
                    await _fail(error, method, context)

        return answer

    async def _admit(self, metadata: Mapping[str, Any], context: Context) -> None:
        if not self._token:
            return
        scheme, _, credential = str(metadata.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer":
            await _refuse(CredentialInvalid(detail="there is none"), context)
        if not hmac.compare_digest(credential.strip().encode(), self._token):
            await _refuse(CredentialInvalid(detail="it is another one"), context)

    @contextlib.contextmanager
    def _span(self, method: str, metadata: Mapping[str, Any], guarded: bool) -> Iterator[None]:
        parent = telemetry.context_of(metadata)
        if not guarded:
            yield
            return
        span = self._tracer.start_span(method, context=parent, kind=SpanKind.SERVER, attributes=_attributes_of(method))
        # A refusal is an answer: it is written on the span where it is decided, not as an exception with its stack.
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            yield

    async def _within_deadline(self, answer: Awaitable[Any], context: Context) -> Any:
        """For callers that set no deadline: nothing may wait for ever."""
        try:
            async with asyncio.timeout(self._deadline_seconds) as deadline:
                return await answer
        except TimeoutError:
            if not deadline.expired():
                raise
            late = f"There was no answer within {self._deadline_seconds:g} s, the deadline of calls that bear none."
            await _abort(grpc.StatusCode.DEADLINE_EXCEEDED, late, context)


class Registrar:
    """Stands in for a server while servicers are added to it: every handler that passes through is wrapped."""

    def __init__(self, serving: Serving, server: grpc.aio.Server, guarded: bool) -> None:
        self._serving = serving
        self._server = server
        self._guarded = guarded
        self.service_names: list[str] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._server.add_generic_rpc_handlers([_WrappedGeneric(each, self._wrapped) for each in generic_rpc_handlers])

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Any]) -> None:
        self.service_names.append(service_name)
        wrapped = {name: self._wrapped(f"{service_name}/{name}", each) for name, each in method_handlers.items()}
        self._server.add_registered_method_handlers(service_name, wrapped)

    def _wrapped(self, method: str, handler: Handler) -> Any:
        return self._serving.wrapped(method, handler, guarded=self._guarded)


class _WrappedGeneric(grpc.GenericRpcHandler):
    """Finds handlers as the one it stands for does, and wraps each the first time it is asked for."""

    def __init__(self, handler: grpc.GenericRpcHandler, wrapped: Callable[[str, Any], Any]) -> None:
        self._handler = handler
        self._wrapped = wrapped
        self._found: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        path = handler_call_details.method
        if path not in self._found:
            handler = self._handler.service(handler_call_details)
            # Unknown paths are not remembered: callers could fill the memory with them.
            if handler is None:
                return None
            self._found[path] = self._wrapped(path.lstrip("/"), handler)
        return self._found[path]


_KINDS: Final = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def _metadata_of(context: Context) -> dict[str, Any]:
    return dict(context.invocation_metadata() or ())


def _attributes_of(method: str) -> dict[str, str]:
    service, _, name = method.partition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}


async def _written(outcome: Any, context: Context) -> Any:
    # The reflection servicer of grpcio is a generator; ours write for themselves.
    if not hasattr(outcome, "__aiter__"):
        return await outcome
    async for response in outcome:
        await context.write(response)
    return None


async def _fail(error: Exception, method: str, context: Context) -> NoReturn:
    cause = _cause_of(error)
    if isinstance(cause, grpc.aio.BaseError):
        raise cause
    if isinstance(cause, Refusal):
        await _refuse(cause, context)
    if isinstance(cause, NotImplementedError):
        await _abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served by this version.", context)
    await _abort(grpc.StatusCode.INTERNAL, internal_error(cause, method), context)


def _cause_of(error: Exception) -> Exception:
    """The one failure that decides the answer. A task group wraps even a single refusal in an ExceptionGroup."""
    leaves = list(_leaves_of(error))
    for leaf in leaves:
        # The call is over already: it was aborted, or its caller is gone.
        if isinstance(leaf, grpc.aio.BaseError):
            return leaf
    return leaves[0] if all(isinstance(leaf, Refusal) for leaf in leaves) or len(leaves) == 1 else error


def _leaves_of(error: Exception) -> Iterator[Exception]:
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from _leaves_of(each)
    else:
        yield error


async def _refuse(refusal: Refusal, context: Context) -> NoReturn:
    _note(trace.get_current_span(), CODES[type(refusal)], refusal.reason())
    await context.abort_with_status(rpc_status.to_status(status_of(refusal)))
    raise AssertionError("abort raises")


async def _abort(code: grpc.StatusCode, message: str, context: Context) -> NoReturn:
    _note(trace.get_current_span(), code, message)
    await context.abort(code, message)
    raise AssertionError("abort raises")


def _note(span: Span, code: grpc.StatusCode, why: str) -> None:
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    span.set_attribute("penstock.reason", why)
    if code in _OUR_ERRORS:
        span.set_status(trace.StatusCode.ERROR, why)
