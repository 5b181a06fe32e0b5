"""One trace per run, from the call that creates it to its last report, across all processes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Condition

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.suite.installation import installed
from tests.suite.test_whole_life import TIDE

pytestmark = pytest.mark.slow

ARRIVAL_SECONDS_MAX = 30


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps every span: trace, id, parent, service and name."""

    def __init__(self) -> None:
        self.spans: list[tuple[bytes, bytes, bytes, str, str]] = []
        self._arrived = Condition()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._arrived:
            for resource in request.resource_spans:
                names = {each.key: each.value.string_value for each in resource.resource.attributes}
                self.spans += [
                    (span.trace_id, span.span_id, span.parent_span_id, names["service.name"], span.name)
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait_for(self, *names: str) -> None:
        """Wait until spans of these names have arrived."""
        with self._arrived:
            seen = self._arrived.wait_for(lambda: set(names) <= {span[4] for span in self.spans}, ARRIVAL_SECONDS_MAX)
        assert seen, sorted({span[3:] for span in self.spans})


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
def test_a_run_is_one_connected_trace(tmp_path: Path, database_url: str, collector: tuple[Collector, str]) -> None:
    """Every span of the run's trace hangs below the client's one, over all processes, and its log lines bear its id."""
    spans, endpoint = collector
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "200"}

    with installed(tmp_path, database_url, environ) as (here, _):
        here.flow("tide", TIDE)
        with here.agent():
            events = here.documents("run", "--name", "tide", "--param", "station=sluice", "--watch")
            spans.wait_for("queue wait", "launch tide", "run tide", "flowrun.v1.FlowRunService/FinishFlowRun")
        lines = here.documents("logs", events[0]["flow_run"]["flow_run_id"])

    (root,) = [span for span in spans.spans if span[4] == "create flow run"]
    trace = [span for span in spans.spans if span[0] == root[0]]
    ids = {span[1] for span in trace}
    strays = [span[3:] for span in trace if span[2] not in ids and span is not root]
    services = {span[3] for span in trace}
    assert strays == []
    assert {"penstock-cli", "penstock-flow-run", "penstock-queue", "penstock-agent", "penstock-supervisor"} <= services
    assert {"queue wait", "launch tide", "run tide"} <= {span[4] for span in trace}
    assert {root[0].hex()} == {line["trace_id"] for line in lines}
