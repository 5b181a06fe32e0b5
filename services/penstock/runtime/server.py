"""A gRPC server with health, reflection, limits and handler wrapping."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from penstock.domain.limits import MESSAGE_BYTES_MAX
from penstock.runtime.serving import Serving
from penstock.runtime.settings import joined

Option = tuple[str, Any]

OPTIONS: Final[tuple[Option, ...]] = (
    # Both count the message alone, without its frame.
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # With the defaults a burst of three thousand openings loses a fifth of them.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
    # Agents and watchers ping through idle times; that is no attack.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    # Find callers that vanished without a word.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Two processes must not share a port by accident.
    ("grpc.so_reuseport", 0),
)


class BindFailed(Exception):
    """The address cannot be listened on."""

    def __init__(self, address: str) -> None:
        super().__init__(f"Cannot listen on {address}: another process does, or this machine has no such address.")


def make_server(options: Sequence[Option] = ()) -> grpc.aio.Server:
    """A bare grpc.aio server with our limits; `options` come last and win."""
    merged = dict(OPTIONS) | dict(options)
    return grpc.aio.server(options=list(merged.items()))


class Server:
    """One process's server. Add the servicers, start, and say when it is ready; health answers from the start."""

    def __init__(
        self, serving: Serving, *, host: str, port: int, reflection: bool = False, options: Sequence[Option] = ()
    ) -> None:
        self._serving = serving
        self._host = host
        self._port = port
        self._reflection = reflection
        self._server = make_server(options)
        self._health = health.aio.HealthServicer()
        self._service_names: list[str] = []

    @property
    def port(self) -> int:
        """The port asked for; once started, the one that is bound."""
        return self._port

    @property
    def address(self) -> str:
        return joined(self._host, self._port)

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        """Serve that servicer: `add_to_server` is the generated `add_…Servicer_to_server`."""
        registrar = self._serving.wrapping(self._server)
        add_to_server(servicer, registrar)
        self._service_names += registrar.service_names

    async def start(self) -> int:
        """Listen, NOT_SERVING yet, and return the port. Raises BindFailed."""
        # Probes come without a token.
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._serving.wrapping(self._server, guarded=False))
        if self._reflection:
            self._add_reflection()
        await self.set_serving(False)
        try:
            self._port = self._server.add_insecure_port(self.address)
        except RuntimeError as error:
            raise BindFailed(self.address) from error
        await self._server.start()
        return self._port

    async def set_serving(self, serving: bool) -> None:
        """Tell probes whether this process should be sent calls, as a whole and for each service."""
        status = health_pb2.HealthCheckResponse
        for name in ("", *self._service_names):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace: timedelta) -> None:
        """Take no more calls and wait for those under way, but no longer than `grace`; then cancel them."""
        await self._server.stop(grace.total_seconds())

    def _add_reflection(self) -> None:
        from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc  # most deployments never need it

        names = [*self._service_names, health.SERVICE_NAME, reflection.SERVICE_NAME]
        servicer = reflection.aio.ReflectionServicer(names)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self._serving.wrapping(self._server))
