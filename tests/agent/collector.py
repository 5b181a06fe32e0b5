"""A collector of spans on a real socket."""

from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class Span:
    """What a test looks at."""

    service: str
    trace_id: str
    span_id: str
    parent_id: str


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes what exporters send. `spans` holds the last span of each name."""

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self.address = ""
        self._server = grpc.aio.server()

    async def __aenter__(self) -> "Collector":
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    async def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans[span.name] = Span(
                        names["service.name"], span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                    )
        return trace_service_pb2.ExportTraceServiceResponse()
