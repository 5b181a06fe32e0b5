"""Tests of `penstock.runtime.server`."""

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from penstock.domain.limits import MESSAGE_BYTES_MAX
from penstock.runtime.channel import open_channel
from penstock.runtime.server import BindFailed, Server, make_server
from penstock.runtime.serving import Serving
from tests.runtime.probe import SERVICE, Probe, ProbeStub, add_probe, served

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def of_size(size: int) -> StringValue:
    """A message that is exactly so many bytes on the wire: a tag, a length of four bytes, and text."""
    message = StringValue(value="x" * (size - 5))
    assert size == message.ByteSize()
    return message


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_health_follows_readiness(name: str) -> None:
    """A server answers NOT_SERVING until it is declared ready, and again once it is not."""
    async with served(Probe()) as server, open_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=name)

        seen = [(await health.Check(request)).status]
        await server.set_serving(True)
        seen.append((await health.Check(request)).status)
        await server.set_serving(False)
        seen.append((await health.Check(request)).status)

    assert seen == [NOT_SERVING, SERVING, NOT_SERVING]


async def test_health_needs_no_token_and_reflection_does() -> None:
    """Probes come without a token; what shows the contract wants one."""
    async with (
        served(Probe(), serving=Serving(token="s3cret"), reflection=True) as server,
        open_channel(server.address) as stranger,
    ):
        checked = await health_pb2_grpc.HealthStub(stranger).Check(health_pb2.HealthCheckRequest())
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await listed_services(stranger)

    assert checked.status == NOT_SERVING
    assert refused.value.code() is StatusCode.UNAUTHENTICATED


async def test_reflection_lists_the_services() -> None:
    """Where reflection is asked for, it names every service."""
    async with served(Probe(), reflection=True) as server, open_channel(server.address) as channel:
        assert {SERVICE, "grpc.health.v1.Health"} <= await listed_services(channel)


async def test_without_being_asked_for_there_is_no_reflection() -> None:
    """Where it is not asked for, the contract is not shown."""
    async with served(Probe()) as server, open_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await listed_services(channel)

    assert refused.value.code() is StatusCode.UNIMPLEMENTED


async def test_a_message_at_the_limit_passes_both_ways() -> None:
    """Four MiB exactly are taken and given; one byte more is refused as too much."""
    async with served(Probe()) as server, open_channel(server.address) as channel:
        echoed = await ProbeStub(channel).Ask(of_size(MESSAGE_BYTES_MAX))

    assert echoed.ByteSize() == MESSAGE_BYTES_MAX


async def test_a_message_beyond_the_limit_is_refused() -> None:
    """The server itself refuses a message of one byte more, whatever its sender thinks of limits."""
    options = [("grpc.max_send_message_length", -1)]
    async with served(Probe()) as server, grpc.aio.insecure_channel(server.address, options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ProbeStub(channel).Send(iter([of_size(MESSAGE_BYTES_MAX + 1)]))

    assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED


async def test_a_port_that_is_taken_is_named() -> None:
    """A second server on a port does not share it; the error says which address."""
    async with served(Probe()) as server:
        with pytest.raises(BindFailed, match=f"127.0.0.1:{server.port}: another process"):
            async with served(Probe(), port=server.port):
                pass


async def test_port_zero_is_some_free_port() -> None:
    """A server asked to choose a port says which it took."""
    async with served(Probe()) as server:
        assert server.port > 0
        assert server.address == f"127.0.0.1:{server.port}"


async def test_options_of_a_service_win() -> None:
    """A service may narrow what the house allows."""
    options = [("grpc.max_receive_message_length", 100)]
    async with served(Probe(), options=options) as server, open_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ProbeStub(channel).Ask(StringValue(value="x" * 101))

    assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED


async def test_stop_waits_for_calls_under_way() -> None:
    """A call that runs when the server stops is still answered, within the grace."""
    stopping = []

    async def slow(request: Any, context: Any) -> Any:
        stopping.append(asyncio.create_task(server.stop(timedelta(seconds=30))))
        await asyncio.sleep(0.05)
        return request

    server = Server(Serving(token=""), host="127.0.0.1", port=0)
    server.add(add_probe, Probe(Ask=slow))
    await server.start()
    async with open_channel(server.address) as channel:
        answer = await ProbeStub(channel).Ask(StringValue(value="x"))
    await stopping[0]

    assert answer == StringValue(value="x")


async def test_a_bare_server_has_the_limits_too() -> None:
    """`make_server` is a grpc.aio server that can be started and stopped by itself."""
    server = make_server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await server.stop(0)

    assert port > 0


async def listed_services(channel: Any) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    response = await call.read()
    return {each.name for each in response.list_services_response.service}
