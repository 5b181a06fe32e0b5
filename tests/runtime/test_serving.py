"""Tests of `penstock.runtime.serving`."""

import asyncio
import logging
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc import StatusCode
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind

from penstock.domain.errors import InvalidRequest, LeaseLost, Unavailable, Violation
from penstock.domain.ids import DEFAULT_TENANT
from penstock.runtime import telemetry
from penstock.runtime.serving import Serving, tenant_of
from penstock.wire.errors import refusal_details
from tests.runtime.probe import SERVICE, Probe, ProbeStub, called

HELLO = StringValue(value="hello")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


async def error_of_ask(stub: ProbeStub, **kwargs: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Ask(HELLO, **kwargs)
    return raised.value


async def error_of_watch(stub: ProbeStub, **kwargs: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in stub.Watch(HELLO, **kwargs):
            pass
    return raised.value


def raising(error: BaseException) -> Any:
    async def fail(request: Any, context: Any) -> None:
        raise error

    return fail


async def test_all_four_kinds_of_call_are_served() -> None:
    """Unary and streaming calls, in both directions, pass through their wrapping."""
    async with called(Probe()) as stub:
        asked = await stub.Ask(HELLO)
        watched = [each async for each in stub.Watch(HELLO)]
        sent = await stub.Send(iter([HELLO, HELLO]))
        talked = [each async for each in stub.Talk(iter([HELLO, HELLO]))]

    assert asked == HELLO
    assert watched == [HELLO]
    assert sent == StringValue(value="2")
    assert talked == [HELLO, HELLO]


async def test_a_handler_that_yields_is_served_too() -> None:
    """A servicer from elsewhere that yields its responses works like one that writes them."""

    async def yielding(requests: Any, context: Any) -> Any:
        async for request in requests:
            yield request

    async with called(Probe(Talk=yielding)) as stub:
        assert [each async for each in stub.Talk(iter([HELLO]))] == [HELLO]


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", "Basic s3cret", "s3cret", "Bearer s3cret2"])
async def test_without_the_token_nothing_is_answered(header: str | None) -> None:
    """A call without the token is UNAUTHENTICATED, whether it streams or not, and reaches no handler."""
    reached = []

    async def note(request: Any, context: Any) -> Any:
        reached.append(request)
        return request

    metadata = [("authorization", header)] if header else None
    async with called(Probe(Ask=note, Watch=note), serving=Serving(token="s3cret")) as stub:
        asked = refusal_details(await error_of_ask(stub, metadata=metadata))
        watched = refusal_details(await error_of_watch(stub, metadata=metadata))

    assert asked.code is watched.code is StatusCode.UNAUTHENTICATED
    assert asked.reason == watched.reason == "CREDENTIAL_INVALID"
    assert "s3cret" not in asked.message
    assert reached == []


@pytest.mark.parametrize("header", ["Bearer s3cret", "bearer s3cret"])
async def test_with_the_token_everything_is_answered(header: str) -> None:
    """The right token opens unary and streaming calls; how the scheme is spelt does not matter."""
    async with called(Probe(), serving=Serving(token="s3cret")) as stub:
        asked = await stub.Ask(HELLO, metadata=[("authorization", header)])
        watched = [each async for each in stub.Watch(HELLO, metadata=[("authorization", header)])]

    assert asked == HELLO
    assert watched == [HELLO]


async def test_a_token_that_nobody_asks_for_does_no_harm() -> None:
    """Without a configured token a call may bear one."""
    async with called(Probe(), token="anything") as stub:
        assert await stub.Ask(HELLO) == HELLO


async def test_a_refusal_reaches_the_caller_with_its_details() -> None:
    """Unary and streaming handlers raise a refusal; the caller reads code, reason, metadata and violations."""
    invalid = InvalidRequest((Violation("name", "is empty"),))
    lost = LeaseLost(flow_run_id="a-run", fence=2)
    async with called(Probe(Ask=raising(invalid), Watch=raising(lost))) as stub:
        asked = refusal_details(await error_of_ask(stub))
        watched = refusal_details(await error_of_watch(stub))

    assert asked.code is StatusCode.INVALID_ARGUMENT
    assert asked.violations == (Violation("name", "is empty"),)
    assert watched.code is StatusCode.ABORTED
    assert watched.metadata == {"flow_run_id": "a-run", "fence": "2"}


async def test_a_large_refusal_survives_the_trailers() -> None:
    """Hundreds of violations still arrive as INVALID_ARGUMENT, not as a broken call."""
    violations = tuple(Violation(f"requests[{number}].flow_id", "ist kein gültiger Schlüssel") for number in range(800))
    async with called(Probe(Ask=raising(InvalidRequest(violations)))) as stub:
        asked = refusal_details(await error_of_ask(stub))

    assert asked.code is StatusCode.INVALID_ARGUMENT
    assert len(asked.violations) > 10


async def test_a_refusal_out_of_a_task_group_is_a_refusal() -> None:
    """That a task group wraps what its tasks raise changes nothing for the caller."""

    async def in_a_group(request: Any, context: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(raising(Unavailable(detail="it drains"))(request, context))
            tasks.create_task(asyncio.Event().wait())

    async with called(Probe(Ask=in_a_group, Watch=in_a_group)) as stub:
        assert refusal_details(await error_of_ask(stub)).reason == "UNAVAILABLE"
        assert refusal_details(await error_of_watch(stub)).reason == "UNAVAILABLE"


async def test_a_mistake_beside_a_refusal_is_a_mistake() -> None:
    """A group that holds more than refusals is INTERNAL: the refusal may only be a consequence."""
    group = ExceptionGroup("two", [Unavailable(detail="it drains"), KeyError("oops")])

    async with called(Probe(Ask=raising(group))) as stub:
        assert (await error_of_ask(stub)).code() is StatusCode.INTERNAL


async def test_an_unexpected_failure_says_nothing_but_its_trace(caplog: pytest.LogCaptureFixture) -> None:
    """Our mistake is INTERNAL with the trace id; its text and stack are in the log, under the same id."""
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with caplog.at_level(logging.ERROR, logger="penstock.runtime.serving"):
        async with called(Probe(Ask=raising(ValueError("password=hunter2")))) as stub:
            error = await error_of_ask(stub, metadata=[("traceparent", TRACEPARENT)])

    assert error.code() is StatusCode.INTERNAL
    assert error.details() == f"Internal error; trace id {trace_id}."
    assert trace_id in caplog.text
    assert "hunter2" in caplog.text


async def test_an_untraced_failure_has_an_id_too(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reports an INTERNAL error can be found in the log, traced or not."""
    with caplog.at_level(logging.ERROR, logger="penstock.runtime.serving"):
        async with called(Probe(Watch=raising(RuntimeError("oops")))) as stub:
            details = str((await error_of_watch(stub)).details())

    assert len("Internal error; trace id .") + 32 == len(details)
    assert details.removeprefix("Internal error; trace id ").removesuffix(".") in caplog.text


async def test_what_is_not_built_is_unimplemented() -> None:
    """The generated base class raises NotImplementedError without being async; the caller is told which method."""

    def generated(request: Any, context: Any) -> None:
        context.set_code(StatusCode.UNIMPLEMENTED)
        context.set_details("Method not implemented!")
        raise NotImplementedError("Method not implemented!")

    async with called(Probe(Ask=generated, Talk=generated)) as stub:
        error = await error_of_ask(stub)
        with pytest.raises(grpc.aio.AioRpcError) as talked:
            await stub.Talk(iter([HELLO])).read()

    assert error.code() is talked.value.code() is StatusCode.UNIMPLEMENTED
    assert error.details() == f"{SERVICE}/Ask is not served by this version."


async def test_an_abort_of_the_handler_passes(caplog: pytest.LogCaptureFixture) -> None:
    """A servicer from elsewhere that aborts for itself is left alone, and nothing is logged about it."""

    async def aborting(request: Any, context: Any) -> None:
        await context.abort(StatusCode.NOT_FOUND, "no such thing")

    async with called(Probe(Ask=aborting)) as stub:
        error = await error_of_ask(stub)

    assert error.code() is StatusCode.NOT_FOUND
    assert error.details() == "no such thing"
    assert caplog.records == []


async def test_a_call_without_deadline_is_given_one() -> None:
    """Who sets no deadline waits as long as the default, and the handler is cancelled then."""
    cancelled = asyncio.Event()

    async def forever(request: Any, context: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    serving = Serving(token="", deadline=timedelta(milliseconds=50))
    async with called(Probe(Ask=forever), serving=serving) as stub:
        error = await error_of_ask(stub, timeout=None)

    assert error.code() is StatusCode.DEADLINE_EXCEEDED
    assert "0.05 s" in str(error.details())
    assert cancelled.is_set()


async def test_a_deadline_of_the_caller_counts() -> None:
    """Who sets a deadline longer than the default is not cut off by it."""

    async def slow(request: Any, context: Any) -> Any:
        await asyncio.sleep(0.1)
        return request

    async with called(Probe(Ask=slow), serving=Serving(token="", deadline=timedelta(milliseconds=1))) as stub:
        assert await stub.Ask(HELLO, timeout=20) == HELLO


async def test_a_timeout_of_the_handler_is_not_the_deadline() -> None:
    """A TimeoutError that the handler lets escape is a mistake, not a deadline."""
    async with called(Probe(Ask=raising(TimeoutError("a lock")))) as stub:
        error = await error_of_ask(stub, timeout=None)

    assert error.code() is StatusCode.INTERNAL


async def test_a_caller_that_leaves_cancels_its_handler(caplog: pytest.LogCaptureFixture) -> None:
    """When a caller goes away its handler is cancelled, and that is no error."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(request: Any, context: Any) -> None:
        try:
            while True:
                await context.write(request)
                begun.set()
                await asyncio.sleep(0)
        finally:
            ended.set()

    with caplog.at_level(logging.WARNING):
        async with called(Probe(Watch=endless)) as stub:
            call = stub.Watch(HELLO)
            await call.read()
            await begun.wait()
            call.cancel()
            async with asyncio.timeout(20):
                await ended.wait()

    assert caplog.records == []


async def test_the_callers_trace_is_current_in_the_handler() -> None:
    """With tracing off, unary and streaming handlers still see the caller's trace context; without one, none."""
    seen = []

    async def look(request: Any, context: Any) -> Any:
        seen.append(telemetry.current_traceparent())
        return request

    async with called(Probe(Ask=look, Watch=look)) as stub:
        await stub.Ask(HELLO, metadata=[("traceparent", TRACEPARENT)])
        _ = [each async for each in stub.Watch(HELLO, metadata=[("traceparent", TRACEPARENT)])]
        await stub.Ask(HELLO)

    assert seen == [TRACEPARENT, TRACEPARENT, ""]


async def test_a_unary_call_is_a_span_and_a_stream_is_none() -> None:
    """A sampled unary call is one SERVER span under its caller's; unsampled calls and streams are none."""
    spans = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    serving = Serving(token="", tracer=provider.get_tracer("test"))

    async with called(Probe(), serving=serving) as stub:
        await stub.Ask(HELLO, metadata=[("traceparent", TRACEPARENT)])
        await stub.Ask(HELLO, metadata=[("traceparent", UNSAMPLED)])
        _ = [each async for each in stub.Watch(HELLO, metadata=[("traceparent", TRACEPARENT)])]

    (span,) = spans.get_finished_spans()
    assert span.name == f"{SERVICE}/Ask"
    assert span.kind is SpanKind.SERVER
    assert span.parent is not None
    assert telemetry.trace_id_of(TRACEPARENT) == format(span.context.trace_id, "032x")
    assert format(span.parent.span_id, "016x") == TRACEPARENT.split("-")[2]


@pytest.mark.parametrize(
    ("error", "code", "failed"),
    [
        (LeaseLost(flow_run_id="a-run", fence=1), StatusCode.ABORTED, False),
        (Unavailable(detail="it drains"), StatusCode.UNAVAILABLE, True),
        (ValueError("oops"), StatusCode.INTERNAL, True),
    ],
)
async def test_a_span_says_how_its_call_ended(error: Exception, code: StatusCode, failed: bool) -> None:
    """The span bears the status code; only what is the server's own fault marks it as an error."""
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))

    async with called(Probe(Ask=raising(error)), serving=Serving(token="", tracer=provider.get_tracer("test"))) as stub:
        await error_of_ask(stub)

    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert code.value[0] == span.attributes["rpc.grpc.status_code"]
    assert failed is not span.status.is_ok


async def test_the_tenant_is_the_default_one() -> None:
    """Every call belongs to the default tenant."""

    async def whose(request: Any, context: Any) -> StringValue:
        return StringValue(value=str(tenant_of(context)))

    async with called(Probe(Ask=whose)) as stub:
        assert StringValue(value=str(DEFAULT_TENANT)) == await stub.Ask(HELLO)
