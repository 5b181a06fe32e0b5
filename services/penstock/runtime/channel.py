"""A gRPC channel with keepalive, deadlines and retry of UNAVAILABLE; each call bears token and trace context."""

import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

import grpc

from penstock.domain.limits import DEADLINE_DEFAULT, MESSAGE_BYTES_MAX
from penstock.runtime import telemetry
from penstock.runtime.settings import is_loopback

# What machinery may repeat: reads, calls that carry a fence, a version or a position, and creations, whose clients
# always send a request_id. RestartFlowRun names the final version. Left out is what, come late, would undo what others
# did meanwhile: RegisterFlow, CancelFlowRun, UnarchiveFlow. The repeat of a DeleteFlowRun would say that it found none.
REPEATABLE: Final[tuple[str, ...]] = (
    "flowrun.v1.FlowService/CreateProject",
    "flowrun.v1.FlowService/ListProjects",
    "flowrun.v1.FlowService/GetFlow",
    "flowrun.v1.FlowService/LookUpFlow",
    "flowrun.v1.FlowService/ListFlows",
    "flowrun.v1.FlowService/GetFlowGroup",
    "flowrun.v1.FlowRunService/CreateFlowRun",
    "flowrun.v1.FlowRunService/BatchCreateFlowRuns",
    "flowrun.v1.FlowRunService/GetFlowRun",
    "flowrun.v1.FlowRunService/GetFlowRunByKey",
    "flowrun.v1.FlowRunService/ListFlowRuns",
    "flowrun.v1.FlowRunService/ListTransitions",
    "flowrun.v1.FlowRunService/StartFlowRun",
    "flowrun.v1.FlowRunService/FinishFlowRun",
    "flowrun.v1.FlowRunService/RestartFlowRun",
    "flowrun.v1.QueueService/AcceptFlowRuns",
    "flowrun.v1.QueueService/RenewLeases",
    "flowrun.v1.QueueService/ReleaseFlowRuns",
    "flowrun.v1.LogService/WriteLogs",
    "flowrun.v1.LogService/ListLogs",
    "flowrun.v1.OperatorService/ListAgents",
    "flowrun.v1.OperatorService/GetQueueStats",
    "flowrun.v1.OperatorService/ListConcurrencyLimits",
    "flowrun.v1.OperatorService/ListDrains",
    "flowrun.v1.OperatorService/ExplainFlowRun",
)

_OPTIONS: Final[tuple[tuple[str, Any], ...]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # Calls larger than this buffer would silently not be repeated.
    ("grpc.per_rpc_retry_buffer_size", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A service that restarts is found again within seconds, not within two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
)


def service_config(repeatable: Sequence[str]) -> str:
    """What grpc may repeat by itself, as it wants to be told: UNAVAILABLE alone, four attempts, jittered waits."""
    names = [dict(zip(("service", "method"), each.split("/"), strict=True)) for each in repeatable]
    policy = {
        "maxAttempts": 4,
        "initialBackoff": "0.2s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return json.dumps({"methodConfig": [{"name": names, "retryPolicy": policy}]} if names else {})


def call_metadata(token: str) -> list[tuple[str, str]]:
    """What each call bears beside its request: the credential, and the context of the span it is made in."""
    metadata = list(telemetry.carrier().items())
    return [*metadata, ("authorization", f"Bearer {token}")] if token else metadata


def open_channel(
    address: str,
    *,
    token: str = "",
    deadline: timedelta | None = DEADLINE_DEFAULT,
    repeatable: Sequence[str] = REPEATABLE,
) -> grpc.aio.Channel:
    """A channel for `async` stubs. `deadline` is given to unary calls that bring none; streams have none."""
    return _AsyncChannel(grpc.aio.insecure_channel(address, options=_options(address, repeatable)), token, deadline)


def open_sync_channel(
    address: str,
    *,
    token: str = "",
    deadline: timedelta | None = DEADLINE_DEFAULT,
    repeatable: Sequence[str] = REPEATABLE,
) -> grpc.Channel:
    """The same for blocking stubs."""
    return _SyncChannel(grpc.insecure_channel(address, options=_options(address, repeatable)), token, deadline)


def _options(address: str, repeatable: Sequence[str]) -> list[tuple[str, Any]]:
    options = [*_OPTIONS, ("grpc.service_config", service_config(repeatable))]
    # A proxy that the environment names for the web cannot reach this machine's own loopback.
    return [*options, ("grpc.enable_http_proxy", 0)] if is_loopback(address.rpartition(":")[0]) else options


class _Calling:
    """A method of a channel that adds the metadata, and a deadline if one is missing, to each call."""

    def __init__(self, method: Any, token: str, seconds: float | None) -> None:
        self._method = method
        self._token = token
        self._seconds = seconds

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(*args, **self._completed(kwargs))

    def with_call(self, *args: Any, **kwargs: Any) -> Any:
        return self._method.with_call(*args, **self._completed(kwargs))

    def future(self, *args: Any, **kwargs: Any) -> Any:
        return self._method.future(*args, **self._completed(kwargs))

    def _completed(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        kwargs["metadata"] = (*(kwargs.get("metadata") or ()), *call_metadata(self._token))
        if self._seconds is not None:
            kwargs.setdefault("timeout", self._seconds)
        return kwargs


class _Methods:
    """Makes the methods of a channel, for the stubs. Not an interceptor: those slow each call of grpc.aio down."""

    def __init__(self, channel: Any, token: str, deadline: timedelta | None) -> None:
        self._channel = channel
        self._token = token
        self._seconds = None if deadline is None else deadline.total_seconds()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Calling(self._channel.unary_unary(*args, **kwargs), self._token, self._seconds)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Calling(self._channel.unary_stream(*args, **kwargs), self._token, None)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Calling(self._channel.stream_unary(*args, **kwargs), self._token, None)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Calling(self._channel.stream_stream(*args, **kwargs), self._token, None)


class _AsyncChannel(_Methods, grpc.aio.Channel):
    """A grpc.aio channel whose calls are completed."""

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        state: grpc.ChannelConnectivity = self._channel.get_state(try_to_connect)
        return state

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class _SyncChannel(_Methods, grpc.Channel):
    """A blocking channel whose calls are completed."""

    def close(self) -> None:
        self._channel.close()

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False
    ) -> None:
        self._channel.subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._channel.unsubscribe(callback)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
