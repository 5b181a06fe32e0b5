"""Tests of `penstock.runtime.channel`."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc import StatusCode

from penstock.domain.errors import LeaseLost, Overloaded, Refusal, Unavailable
from penstock.runtime import telemetry
from penstock.runtime.channel import REPEATABLE, open_channel, open_sync_channel, service_config
from penstock.runtime.serving import Serving
from tests.runtime.probe import SERVICE, Probe, ProbeStub, served

HELLO = StringValue(value="hello")
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Asked:
    """Notes what each call bore, and refuses the first few."""

    def __init__(self, *refusals: Refusal) -> None:
        self.metadata: list[dict[str, Any]] = []
        self.seconds_left: list[float | None] = []
        self._refusals = list(refusals)

    async def answer(self, request: Any, context: Any) -> Any:
        self.metadata.append(dict(context.invocation_metadata()))
        self.seconds_left.append(context.time_remaining())
        if self._refusals:
            raise self._refusals.pop(0)
        return request

    async def write(self, request: Any, context: Any) -> None:
        await context.write(await self.answer(request, context))


async def test_each_call_bears_token_and_trace() -> None:
    """Unary calls and streams, async and blocking, carry the credential and the trace current when they are made."""
    asked = Asked()
    probe = Probe(Ask=asked.answer, Watch=asked.write)

    def block(address: str) -> None:
        with open_sync_channel(address, token="s3cret") as channel, telemetry.attached(context):
            stub = ProbeStub(channel)
            assert stub.Ask(HELLO) == HELLO
            assert list(stub.Watch(HELLO)) == [HELLO]
            assert stub.Ask.future(HELLO).result() == HELLO
            assert stub.Ask.with_call(HELLO)[0] == HELLO

    context = telemetry.context_from(TRACEPARENT)
    async with served(probe, serving=Serving(token="s3cret")) as server:
        async with open_channel(server.address, token="s3cret") as channel:
            stub = ProbeStub(channel)
            with telemetry.attached(context):
                await stub.Ask(HELLO)
                _ = [each async for each in stub.Watch(HELLO)]
        await asyncio.to_thread(block, server.address)

    assert [each["traceparent"] for each in asked.metadata] == [TRACEPARENT] * 6
    assert [each["authorization"] for each in asked.metadata] == ["Bearer s3cret"] * 6


async def test_a_call_bears_the_trace_of_its_own_moment() -> None:
    """The trace context is that of the call, not of the channel's opening; without any, none is sent."""
    asked = Asked()
    async with served(Probe(Ask=asked.answer)) as server, open_channel(server.address) as channel:
        await ProbeStub(channel).Ask(HELLO, metadata=[("mine", "too")])
        with telemetry.attached(telemetry.context_from(TRACEPARENT)):
            await ProbeStub(channel).Ask(HELLO)

    assert "traceparent" not in asked.metadata[0]
    assert "authorization" not in asked.metadata[0]
    assert asked.metadata[0]["mine"] == "too"
    assert asked.metadata[1]["traceparent"] == TRACEPARENT


async def test_a_unary_call_has_a_deadline_and_a_stream_has_none() -> None:
    """A unary call gets the channel's deadline unless it brings its own; a stream lives as long as it may."""
    asked = Asked()
    probe = Probe(Ask=asked.answer, Watch=asked.write)
    async with served(probe) as server, open_channel(server.address, deadline=timedelta(seconds=100)) as channel:
        stub = ProbeStub(channel)
        await stub.Ask(HELLO)
        await stub.Ask(HELLO, timeout=1_000)
        _ = [each async for each in stub.Watch(HELLO)]

    by_default, by_itself, of_stream = asked.seconds_left
    assert by_default is not None
    assert by_itself is not None
    # The wire rounds long deadlines up by as much as a hundredth.
    assert by_default < 200 < by_itself
    assert of_stream is None


@pytest.mark.parametrize("times", [1, 3])
async def test_unavailable_is_repeated_where_that_is_safe(times: int) -> None:
    """A call that may be repeated survives up to three UNAVAILABLE answers unseen."""
    asked = Asked(*[Unavailable(detail="it drains")] * times)
    async with (
        served(Probe(Ask=asked.answer)) as server,
        open_channel(server.address, repeatable=[f"{SERVICE}/Ask"]) as channel,
    ):
        answer = await ProbeStub(channel).Ask(HELLO)

    assert answer == HELLO
    assert len(asked.metadata) == times + 1


@pytest.mark.parametrize(
    ("refusal", "repeatable", "code"),
    [
        (Unavailable(detail="it drains"), [], StatusCode.UNAVAILABLE),
        (LeaseLost(flow_run_id="a-run", fence=1), [f"{SERVICE}/Ask"], StatusCode.ABORTED),
        (Overloaded(wait=timedelta(seconds=1)), [f"{SERVICE}/Ask"], StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_nothing_else_is_repeated(refusal: Refusal, repeatable: list[str], code: StatusCode) -> None:
    """Neither a call that is not listed nor any other code is tried again by machinery."""
    asked = Asked(refusal)
    async with (
        served(Probe(Ask=asked.answer)) as server,
        open_channel(server.address, repeatable=repeatable) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ProbeStub(channel).Ask(HELLO)

    assert code is raised.value.code()
    assert len(asked.metadata) == 1


async def test_a_large_call_is_repeated_too() -> None:
    """A call of a megabyte is not silently excluded from being repeated."""
    asked = Asked(Unavailable(detail="it drains"))
    large = StringValue(value="x" * 1_000_000)
    async with (
        served(Probe(Ask=asked.answer)) as server,
        open_channel(server.address, repeatable=[f"{SERVICE}/Ask"]) as channel,
    ):
        assert large == await ProbeStub(channel).Ask(large)


async def test_a_proxy_for_the_web_is_not_asked_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy named in the environment does not come between processes of one machine."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)

    async with served(Probe()) as server, open_channel(server.address) as channel:
        assert await ProbeStub(channel).Ask(HELLO) == HELLO


async def test_a_channel_can_be_waited_for_and_closed() -> None:
    """The channel is a whole grpc.aio channel: its state can be asked for and waited for."""
    async with served(Probe()) as server:
        channel = open_channel(server.address)
        idle = channel.get_state(try_to_connect=True)
        await channel.wait_for_state_change(idle)
        await channel.channel_ready()
        ready = channel.get_state()
        await channel.close()

    assert idle is grpc.ChannelConnectivity.IDLE
    assert ready is grpc.ChannelConnectivity.READY


async def test_a_blocking_channel_tells_its_state() -> None:
    """The blocking channel is a whole one too: its readiness can be waited for."""

    def wait(address: str) -> None:
        with open_sync_channel(address) as channel:
            ready = grpc.channel_ready_future(channel)
            ready.result(timeout=20)
            channel.unsubscribe(print)

    async with served(Probe()) as server:
        await asyncio.to_thread(wait, server.address)


def test_streams_and_moves_without_fence_are_not_repeatable() -> None:
    """What may be repeated is a list of unary methods of this contract; no stream, no cancellation, no deletion, and no
    registration, which would make an older version live that somebody has replaced meanwhile."""
    methods = {each.partition("/")[2] for each in REPEATABLE}

    assert all(each.startswith("flowrun.v1.") for each in REPEATABLE)
    assert not methods & {"StreamFlowRuns", "WatchFlowRun", "TailLogs", "LeaseFlowRuns", "CancelFlowRun"}
    assert not methods & {"DeleteFlowRun", "RegisterFlow", "ArchiveFlow", "UnarchiveFlow", "UpdateFlowGroup"}


def test_the_service_config_names_service_and_method() -> None:
    """Each method is named in the form that grpc understands; an empty list repeats nothing."""
    (config,) = json.loads(service_config(["a.v1.B/C"]))["methodConfig"]

    assert config["name"] == [{"service": "a.v1.B", "method": "C"}]
    assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert json.loads(service_config([])) == {}
