"""What calls fail with."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta

import grpc
import pytest

from flowrun.v1.flow_service_pb2 import RegisterFlowRequest
from penstock.client import AsyncClient, Client, errors
from penstock.domain.errors import (
    ChildrenLive,
    CredentialInvalid,
    FlowArchived,
    FlowNameAmbiguous,
    FlowRunLive,
    FlowRunNotFound,
    InvalidRequest,
    KeyNotFound,
    KeyReused,
    LeaseLost,
    MoveRefused,
    NoLiveFlow,
    Overloaded,
    Refusal,
    SessionReplaced,
    Unavailable,
    VersionStale,
    Violation,
)
from penstock.runtime.settings import ClientSettings
from penstock.wire.errors import CODES
from tests.client.conftest import Speak
from tests.client.scripted import RUN_ID, ScriptedServices
from tests.support.running import running


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (InvalidRequest((Violation("name", "is too long."),)), errors.InvalidRequest),
        (CredentialInvalid("there is none"), errors.Unauthenticated),
        (FlowRunNotFound(RUN_ID), errors.NotFound),
        (MoveRefused(RUN_ID, "RUNNING", "SUBMITTED"), errors.Refused),
        (KeyReused("once", RUN_ID, ("labels",)), errors.KeyReused),
        (LeaseLost(RUN_ID, 3), errors.LeaseLost),
        (SessionReplaced("a"), errors.Superseded),
        (KeyNotFound("once", "flow group group"), errors.KeyNotFound),
        (FlowArchived("flow", "live"), errors.FlowArchived),
        (NoLiveFlow("group", ("last",)), errors.NoLiveFlow),
        (FlowNameAmbiguous("river", ("north", "south")), errors.FlowNameAmbiguous),
        (FlowRunLive(RUN_ID, "RUNNING"), errors.FlowRunLive),
        (VersionStale(RUN_ID, 4, 6), errors.VersionStale),
        (Overloaded(timedelta(seconds=2)), errors.Overloaded),
        (ChildrenLive(RUN_ID), errors.ChildrenLive),
        (Unavailable("the database is away"), errors.Unavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Refusal) else "",
)
async def test_a_refusal_arrives_whole(
    refusal: Refusal, kind: type[errors.PenstockError], speak: Speak, services: ScriptedServices
) -> None:
    """A refusal becomes the error of its kind, with the server's sentence, reason and data."""

    def refuse(*_: object) -> None:
        raise refusal

    services.scripts["GetFlowRun"] = refuse

    with pytest.raises(errors.PenstockError) as raised:
        await speak("get_flow_run", RUN_ID)

    assert kind is type(raised.value)
    assert str(refusal) == str(raised.value)
    assert (CODES[type(refusal)].name, refusal.reason()) == (raised.value.code, raised.value.reason)
    assert refusal.retry_after() == raised.value.retry_after
    if not isinstance(refusal, InvalidRequest):
        assert refusal.metadata() == raised.value.metadata


async def test_every_violation_arrives(speak: Speak, services: ScriptedServices) -> None:
    """All that is wrong with a request is listed."""

    def refuse(*_: object) -> None:
        raise InvalidRequest((Violation("name", "is too long."), Violation("labels[2]", "is empty.")))

    services.scripts["GetFlowRun"] = refuse

    with pytest.raises(errors.InvalidRequest) as raised:
        await speak("get_flow_run", RUN_ID)

    expected = [errors.Violation("name", "is too long."), errors.Violation("labels[2]", "is empty.")]
    assert expected == list(raised.value.violations)


async def test_a_call_that_is_not_served_says_so(speak: Speak) -> None:
    """An rpc that the server's version lacks is told from one that failed."""
    with pytest.raises(errors.NotServed, match=r"GetFlowRun is not served"):
        await speak("get_flow_run", RUN_ID)


def test_every_code_has_an_error() -> None:
    """No status that a refusal may have falls through to the error for a server's own mistakes."""
    assert set(CODES.values()) <= set(errors._BY_CODE)
    assert grpc.StatusCode.INTERNAL not in errors._BY_CODE


@pytest.mark.parametrize("form", ["Client", "AsyncClient"])
async def test_a_server_that_is_not_there_is_named(form: str, unused_tcp_port: int) -> None:
    """Without a server the error names the address where one was expected, and no library's words."""
    from penstock import client as forms

    address = f"127.0.0.1:{unused_tcp_port}"
    client = getattr(forms, form)(address)

    with pytest.raises(errors.Unavailable) as raised:
        await (client.get_flow_run(RUN_ID) if form == "AsyncClient" else asyncio.to_thread(client.get_flow_run, RUN_ID))

    assert f"No Penstock server answers at {address}." == str(raised.value)
    closing = client.close()
    if closing is not None:
        await closing


async def test_a_server_that_went_away_may_have_done_it(services: ScriptedServices) -> None:
    """A call whose answer is lost is not told as one that reached nobody, and a registration is not repeated."""
    relay = Relay(services.address)
    services.scripts["RegisterFlow"] = lambda *_: relay.cut()

    async with relay.at_work() as address, AsyncClient(address) as client:
        with pytest.raises(errors.Unavailable) as raised:
            await client.register_flow(Nothing(), project="p")

    expected = f"The Penstock server at {address} went away before it answered; what was asked may have been done."
    assert expected == str(raised.value)
    assert 1 == len(services.requests)


class Nothing:
    """What is registered where it does not matter."""

    def to_request(self, project: str) -> RegisterFlowRequest:
        return RegisterFlowRequest(project_name=project)


class Relay:
    """Stands between a client and its server, until it breaks all connections."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._writers: list[asyncio.StreamWriter] = []

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[str]:
        """Its own address."""
        listening = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        async with listening:
            yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
            self.cut()

    def cut(self) -> None:
        """Break what is connected, answers under way included."""
        for writer in self._writers:
            writer.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._server.split(":")
        onward, to_server = await asyncio.open_connection(host, int(port))
        self._writers += writer, to_server
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(self._copy(reader, to_server), self._copy(onward, writer))

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()


@pytest.mark.parametrize("form", ["Client", "AsyncClient"])
async def test_a_server_that_does_not_answer_is_left(form: str, services: ScriptedServices) -> None:
    """Every call has a deadline, which the settings say."""
    from penstock import client as forms

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    services.scripts["GetFlowRun"] = never
    settings = ClientSettings(address=services.address, timeout=timedelta(seconds=0.3))
    client = getattr(forms, form)(settings=settings)

    with pytest.raises(errors.DeadlineExceeded, match="did not answer in time"):
        await (client.get_flow_run(RUN_ID) if form == "AsyncClient" else asyncio.to_thread(client.get_flow_run, RUN_ID))

    (given,) = services.deadlines
    assert given is not None
    assert given < 1  # what travels is rounded, and the default is half a minute
    closing = client.close()
    if closing is not None:
        await closing


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"],
    ids=["an HTTP/1 server", "no HTTP server at all"],
)
@pytest.mark.slow
async def test_a_server_of_another_kind_is_told_apart(greeting: bytes) -> None:
    """Whoever mistook the address is told that something answers there, and that it is not what was looked for."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, AsyncClient(address) as client:
        with pytest.raises(errors.NotServed) as raised:
            await client.get_flow_run(RUN_ID)

    expected = f"What answers at {address} is no Penstock server, or none for this call: is the address the right one?"
    assert expected == str(raised.value)


async def test_a_service_of_another_contract_is_told_apart() -> None:
    """A gRPC server that has never heard of the call does not speak for itself."""
    async with running() as address, AsyncClient(address) as client:
        with pytest.raises(errors.NotServed, match=f"What answers at {address} is no Penstock server, or none for"):
            await client.get_flow_run(RUN_ID)


@pytest.mark.parametrize("form", [Client, AsyncClient])
@pytest.mark.parametrize(
    "address",
    ["nonsense", "http://127.0.0.1:4710", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "a:b", "::1:4710", "a b:1"],
)
def test_an_address_that_is_none_is_refused(form: type, address: str) -> None:
    """gRPC takes anything for an address, and says nothing that helps when nobody is there."""
    with pytest.raises(errors.InvalidRequest, match=r"address: must be HOST:PORT, such as 127\.0\.0\.1:4710, not '"):
        form(address)


@pytest.mark.parametrize("form", [Client, AsyncClient])
@pytest.mark.parametrize("token", ["geheim-ü", "read from a file\n", "\x00"])
def test_a_token_that_no_call_can_bear_is_refused(form: type, token: str) -> None:
    """And is not shown, because messages are logged."""
    with pytest.raises(errors.InvalidRequest, match="token: must be printable ASCII characters") as refused:
        form("127.0.0.1:4710", token)

    assert token not in str(refused.value)
