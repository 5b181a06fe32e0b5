"""OpenTelemetry: set up once per process; trace context into and out of rows, offers and child processes.

Without an endpoint in the standard `OTEL_EXPORTER_OTLP_…` variables nothing is installed and nothing is imported beyond
the API; contexts still travel, so a caller's trace id reaches the log lines of its run.
"""

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from penstock.runtime import settings

FLUSH_WAIT_MAX: Final = timedelta(seconds=3)

_PROPAGATOR: Final = TraceContextTextMapPropagator()
_NOTHING: Final = Context()
_shutdowns: Final[list[Callable[[], None]]] = []


def configure(service_name: str) -> None:
    """Export this process's spans under that name, if the environment says where to. The first call counts."""
    if not settings.traces_are_exported() or _shutdowns:
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Given here, the name wins over OTEL_SERVICE_NAME, which all processes of one supervisor inherit alike.
    resource = Resource.create({"service.name": service_name, "service.namespace": "penstock"})
    exporter = OTLPSpanExporter()
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _shutdowns.append(lambda: _shut_down(provider.shutdown, exporter.shutdown))


def shutdown() -> None:
    """Send what is left. Gives up after FLUSH_WAIT_MAX, so that a collector that is away holds up no exit."""
    while _shutdowns:
        _shutdowns.pop()()


def tracer() -> Tracer:
    """The tracer of this project; before `configure`, or without an endpoint, one that records nothing."""
    return trace.get_tracer("penstock")


def current_traceparent() -> str:
    """The W3C traceparent of the current span; empty when there is none."""
    return carrier().get("traceparent", "")


def new_traceparent() -> str:
    """A traceparent nobody records, for `current_traceparent() or new_traceparent()`: every run has a trace id."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def trace_id_of(traceparent: str) -> str:
    """The trace id in a traceparent; empty when it is none."""
    span_context = trace.get_current_span(context_from(traceparent)).get_span_context()
    return trace.format_trace_id(span_context.trace_id) if span_context.is_valid else ""


def context_from(traceparent: str, tracestate: str = "") -> Context:
    """The context a traceparent stands for; an empty one when it is none."""
    return context_of({"traceparent": traceparent, "tracestate": tracestate})


def context_of(headers: Mapping[str, Any]) -> Context:
    """The context in a map with the W3C names: a row's columns, an offer's map, a call's metadata."""
    # Most calls of an untraced caller carry nothing: they should not pay for the parsing.
    if not headers.get("traceparent"):
        return _NOTHING
    return _PROPAGATOR.extract(headers, context=_NOTHING)


def carrier(context: Context | None = None) -> dict[str, str]:
    """The given or current context as a map with the W3C names; empty when there is no span."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, context)
    return headers


def child_environment(context: Context | None = None) -> dict[str, str]:
    """The given or current context as the variables TRACEPARENT and TRACESTATE, for a child process."""
    return {name.upper(): value for name, value in carrier(context).items()}


def context_from_environment(environ: Mapping[str, str]) -> Context:
    """The context a parent process left in TRACEPARENT and TRACESTATE."""
    return context_from(environ.get("TRACEPARENT", ""), environ.get("TRACESTATE", ""))


@contextlib.contextmanager
def attached(context: Context) -> Iterator[None]:
    """Make that context the current one for a while."""
    token = contexts.attach(context)
    try:
        yield
    finally:
        contexts.detach(token)


def _shut_down(flush: Callable[[], None], abandon: Callable[[], None]) -> None:
    # The SDK waits as long as its exporter retries: hence a thread that can be left behind.
    flushing = threading.Thread(target=flush, name="telemetry-flush", daemon=True)
    flushing.start()
    flushing.join(FLUSH_WAIT_MAX.total_seconds())
    if flushing.is_alive():
        abandon()
