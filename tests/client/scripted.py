"""Services that answer as a test tells them to, on a real socket, and remember what they were asked."""

import uuid
from collections import deque
from collections.abc import Callable, Container, Mapping
from datetime import timedelta
from typing import Any

from flowrun.v1 import flow_run_pb2, log_pb2
from flowrun.v1 import flow_run_service_pb2 as run_verbs
from flowrun.v1 import log_service_pb2 as log_verbs
from flowrun.v1.flow_run_service_pb2_grpc import FlowRunServiceServicer, add_FlowRunServiceServicer_to_server
from flowrun.v1.flow_service_pb2_grpc import FlowServiceServicer, add_FlowServiceServicer_to_server
from flowrun.v1.log_service_pb2_grpc import LogServiceServicer, add_LogServiceServicer_to_server
from flowrun.v1.operator_service_pb2_grpc import OperatorServiceServicer, add_OperatorServiceServicer_to_server
from flowrun.v1.queue_service_pb2_grpc import QueueServiceServicer, add_QueueServiceServicer_to_server
from penstock.runtime.server import Server
from penstock.runtime.serving import Serving

RUN_ID = str(uuid.UUID(int=1))

# What a test makes an rpc do: given the request and the context, return the answer or raise a refusal.
Script = Callable[[Any, Any], Any]


class ScriptedServices:
    """All services that a client speaks to, or only those that are named, behind one address."""

    def __init__(self, *, token: str = "", port: int = 0, only: Container[str] = ()) -> None:
        self.scripts: dict[str, Script] = {}
        self.requests: deque[Any] = deque()
        self.metadata: deque[Mapping[str, Any]] = deque()
        self.deadlines: deque[float | None] = deque()
        self._server = Server(Serving(token=token), host="127.0.0.1", port=port)
        for base, add in (
            (FlowServiceServicer, add_FlowServiceServicer_to_server),
            (FlowRunServiceServicer, add_FlowRunServiceServicer_to_server),
            (LogServiceServicer, add_LogServiceServicer_to_server),
            (OperatorServiceServicer, add_OperatorServiceServicer_to_server),
            (QueueServiceServicer, add_QueueServiceServicer_to_server),
        ):
            if not only or base.__name__.removesuffix("Servicer") in only:
                self._server.add(add, self._servicer(base))

    @property
    def address(self) -> str:
        return self._server.address

    async def __aenter__(self) -> "ScriptedServices":
        await self._server.start()
        await self._server.set_serving(True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(timedelta(0))

    def _servicer(self, base: type) -> Any:
        rpcs = [name for name in vars(base) if name[0].isupper()]
        return type(base.__name__, (base,), {name: self._handler(name) for name in rpcs})()

    def _handler(self, rpc: str) -> Any:
        async def handle(_: Any, request: Any, context: Any) -> Any:
            if rpc not in self.scripts:
                raise NotImplementedError
            self.requests.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.deadlines.append(context.time_remaining())
            answer = self.scripts[rpc](request, context)
            return await answer if hasattr(answer, "__await__") else answer

        return handle


def a_flow_run(**fields: Any) -> flow_run_pb2.FlowRun:
    """A run as a server would describe it, but for what the test says."""
    message = flow_run_pb2.FlowRun(
        flow_run_id=RUN_ID,
        flow_name="river",
        name="quiet-otter",
        state=flow_run_pb2.FLOW_RUN_STATE_SCHEDULED,
        version=1,
        attempt=1,
        parameters_json='{"big": 123456789012345678901234567890, "small": 1.50}',
        context_json="{}",
    )
    message.create_time.FromJsonString("2026-03-01T10:00:00.123456Z")
    message.scheduled_start_time.FromJsonString("2026-03-01T10:00:00Z")
    message.MergeFrom(flow_run_pb2.FlowRun(**fields))
    return message


def a_step(version: int, state: int = flow_run_pb2.FLOW_RUN_STATE_RUNNING) -> run_verbs.WatchFlowRunResponse:
    """A message of a watch that brings the transition of this version."""
    message = run_verbs.WatchFlowRunResponse()
    message.transition.version = version
    message.transition.state = flow_run_pb2.FlowRunState.ValueType(state)
    message.transition.create_time.FromJsonString(f"2026-03-01T10:00:{version:02}Z")
    return message


def the_watch_end(**fields: Any) -> run_verbs.WatchFlowRunResponse:
    """The last message of a watch."""
    run = a_flow_run(state=flow_run_pb2.FLOW_RUN_STATE_SUCCEEDED, result_json='{"rows": 3}', **fields)
    return run_verbs.WatchFlowRunResponse(end=run_verbs.WatchEnd(flow_run=run))


def some_lines(*texts: str, first: int = 1) -> log_verbs.TailLogsResponse:
    """A message of a tail that brings these lines; its cursor is the position of the last one."""
    lines = [
        log_pb2.LogLine(position=position, sequence=position, text=text, level=log_pb2.LOG_LEVEL_INFO)
        for position, text in enumerate(texts, first)
    ]
    for line in lines:
        line.time.FromJsonString(f"2026-03-01T10:00:{line.position:02}Z")
    return log_verbs.TailLogsResponse(lines=log_verbs.TailLines(lines=lines), cursor=str(lines[-1].position))


def the_tail_end(cursor: str) -> log_verbs.TailLogsResponse:
    """The last message of a tail."""
    return log_verbs.TailLogsResponse(end=log_verbs.TailEnd(version=4), cursor=cursor)
