"""A service of one method for each kind of call, whose behaviour a test provides, and a real server that serves it."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from penstock.runtime.channel import open_channel
from penstock.runtime.server import Option, Server
from penstock.runtime.serving import Serving

SERVICE = "probe.v1.ProbeService"


async def echo(request: Any, context: Any) -> Any:
    return request


async def stream(request: Any, context: Any) -> None:
    await context.write(request)


async def count(requests: Any, context: Any) -> StringValue:
    return StringValue(value=str(len([each async for each in requests])))


async def converse(requests: Any, context: Any) -> None:
    async for request in requests:
        await context.write(request)


@dataclass
class Probe:
    """What each method does."""

    Ask: Callable[[Any, Any], Any] = echo
    Watch: Callable[[Any, Any], Awaitable[None]] = stream
    Send: Callable[[Any, Any], Awaitable[Any]] = count
    Talk: Callable[[Any, Any], Any] = converse


def add_probe(servicer: Probe, server: Any) -> None:
    """Registers as generated code does."""
    codec = (StringValue.FromString, StringValue.SerializeToString)
    handlers = {
        "Ask": grpc.unary_unary_rpc_method_handler(servicer.Ask, *codec),
        "Watch": grpc.unary_stream_rpc_method_handler(servicer.Watch, *codec),
        "Send": grpc.stream_unary_rpc_method_handler(servicer.Send, *codec),
        "Talk": grpc.stream_stream_rpc_method_handler(servicer.Talk, *codec),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


class ProbeStub:
    """Calls it, through any channel."""

    def __init__(self, channel: Any) -> None:
        codec = (StringValue.SerializeToString, StringValue.FromString)
        self.Ask = channel.unary_unary(f"/{SERVICE}/Ask", *codec)
        self.Watch = channel.unary_stream(f"/{SERVICE}/Watch", *codec)
        self.Send = channel.stream_unary(f"/{SERVICE}/Send", *codec)
        self.Talk = channel.stream_stream(f"/{SERVICE}/Talk", *codec)


@contextlib.asynccontextmanager
async def served(
    probe: Probe,
    *,
    serving: Serving | None = None,
    reflection: bool = False,
    port: int = 0,
    options: Sequence[Option] = (),
) -> AsyncIterator[Server]:
    """A server on a socket of its own."""
    server = Server(serving or Serving(token=""), host="127.0.0.1", port=port, reflection=reflection, options=options)
    server.add(add_probe, probe)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(timedelta(0))


@contextlib.asynccontextmanager
async def called(probe: Probe, *, serving: Serving | None = None, token: str = "") -> AsyncIterator[ProbeStub]:
    """A stub on a channel to a server on a socket of its own."""
    async with served(probe, serving=serving) as server, open_channel(server.address, token=token) as channel:
        yield ProbeStub(channel)
