"""Tests of `penstock.runtime.telemetry`."""

import asyncio
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb_grpc

from penstock.runtime import telemetry

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE_ID}-b7ad6b7169203331-00"


class Collector(pb_grpc.TraceServiceServicer):
    """A real OTLP collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return pb.ExportTraceServiceResponse()

    def spans(self) -> list[tuple[dict[str, str], Any]]:
        """Each span with the attributes of the process that sent it."""
        return [
            ({each.key: each.value.string_value for each in batch.resource.attributes}, span)
            for request in self.requests
            for batch in request.resource_spans
            for scope in batch.scope_spans
            for span in scope.spans
        ]


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[tuple[Collector, str]]:
    collector, server = Collector(), grpc.aio.server()
    pb_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def output_of(program: str, *, with_errors: bool = False, **environ: str) -> str:
    """What a Python process of its own prints, with or without what it warns of."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    paths = os.pathsep.join(filter(None, sys.path))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        env=inherited | {"PYTHONPATH": paths} | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT if with_errors else None,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


TRACED = """
from penstock.runtime import telemetry
telemetry.configure("penstock-probe")
telemetry.configure("another name")
with telemetry.tracer().start_as_current_span("work"):
    print(telemetry.current_traceparent())
telemetry.shutdown()
"""


async def test_spans_reach_the_collector_under_the_process_name() -> None:
    """With an endpoint, spans arrive at shutdown; neither OTEL_SERVICE_NAME nor a second call renames the process."""
    async with collecting() as (collector, endpoint):
        traceparent = await output_of(
            TRACED, with_errors=True, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_SERVICE_NAME="inherited"
        )

    ((resource, span),) = collector.spans()
    assert span.name == "work"
    assert telemetry.trace_id_of(traceparent.strip()) == span.trace_id.hex()
    assert resource["service.name"] == "penstock-probe"
    assert resource["service.namespace"] == "penstock"


async def test_the_sampler_is_the_standards() -> None:
    """OTEL_TRACES_SAMPLER decides what is recorded."""
    async with collecting() as (collector, endpoint):
        traceparent = await output_of(
            TRACED, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_TRACES_SAMPLER="parentbased_always_off"
        )

    assert int(traceparent.strip()[-2:], 16) & 1 == 0
    assert collector.spans() == []


async def test_without_an_endpoint_nothing_is_recorded() -> None:
    """Without an endpoint there is no span, and the SDK is not even imported."""
    program = TRACED + "import sys; print([each for each in sys.modules if each.startswith('opentelemetry.sdk')])"

    assert (await output_of(program)).split("\n") == ["", "[]", ""]


@pytest.mark.slow
async def test_a_dead_collector_does_not_hold_up_the_exit() -> None:
    """With a collector that accepts and never answers, shutdown gives up within its bound."""
    # The kernel completes the connections of a listener that takes none.
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    program = (
        "import time; from penstock.runtime import telemetry; telemetry.configure('probe')\n"
        "telemetry.tracer().start_span('work').end()\n"
        "began = time.monotonic(); telemetry.shutdown(); print(time.monotonic() - began)"
    )

    began = time.monotonic()
    took = float(await output_of(program, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}"))
    whole = time.monotonic() - began
    silent.close()

    # Left to itself the SDK would wait three times as long, and an exit that hung would show in the whole.
    assert took < 2 * telemetry.FLUSH_WAIT_MAX.total_seconds()
    assert whole < 10 * telemetry.FLUSH_WAIT_MAX.total_seconds()


def test_a_context_goes_into_a_map_and_comes_out() -> None:
    """What an offer or a row carries stands for the same span on the other side."""
    context = telemetry.context_from(TRACEPARENT, "vendor=value")

    with telemetry.attached(context):
        carried = telemetry.carrier()
        assert telemetry.current_traceparent() == TRACEPARENT

    assert carried == {"traceparent": TRACEPARENT, "tracestate": "vendor=value"}
    assert telemetry.carrier(telemetry.context_of(carried)) == carried
    assert telemetry.current_traceparent() == ""


async def test_a_context_goes_into_a_child_process() -> None:
    """A child process finds its parent's span in its environment."""
    program = (
        "import json; from penstock.runtime import settings, telemetry\n"
        "print(json.dumps(telemetry.carrier(telemetry.context_from_environment(settings.environment()))))"
    )
    environ = telemetry.child_environment(telemetry.context_from(TRACEPARENT, "vendor=value"))

    carried = json.loads(await output_of(program, **environ))

    assert environ == {"TRACEPARENT": TRACEPARENT, "TRACESTATE": "vendor=value"}
    assert carried == {"traceparent": TRACEPARENT, "tracestate": "vendor=value"}


@pytest.mark.parametrize("text", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01", TRACEPARENT[:-4]])
def test_what_is_no_traceparent_is_nothing(text: str) -> None:
    """A caller's bad traceparent is ignored, and leaves no context of anybody else's."""
    with telemetry.attached(telemetry.context_from(TRACEPARENT)), telemetry.attached(telemetry.context_from(text)):
        assert telemetry.current_traceparent() == ""

    assert telemetry.trace_id_of(text) == ""


def test_the_trace_id_is_in_the_traceparent() -> None:
    """Sampled or not, a traceparent names its trace."""
    assert telemetry.trace_id_of(TRACEPARENT) == telemetry.trace_id_of(UNSAMPLED) == TRACE_ID


def test_a_new_traceparent_is_one_that_nobody_records() -> None:
    """A made-up traceparent is valid, each is another, and none asks to be sampled."""
    made = [telemetry.new_traceparent() for _ in range(100)]

    assert len({telemetry.trace_id_of(each) for each in made} - {""}) == 100
    contexts = [trace.get_current_span(telemetry.context_from(each)).get_span_context() for each in made]
    assert not any(context.trace_flags.sampled for context in contexts)


async def test_speaking_rpc_imports_no_heavy_machinery() -> None:
    """What agents and bodies import at their start brings neither database, validation library, SDK nor exporter."""
    program = (
        "import sys, penstock.runtime.telemetry, penstock.runtime.channel, penstock.runtime.settings\n"
        "print(' '.join(sys.modules))"
    )

    loaded = set((await output_of(program)).split())

    assert "penstock.runtime.channel" in loaded
    unwanted = ("sqlalchemy", "pydantic", "platformdirs", "uvloop", "opentelemetry.sdk", "opentelemetry.exporter")
    assert [each for each in sorted(loaded) if each.startswith(unwanted)] == []
