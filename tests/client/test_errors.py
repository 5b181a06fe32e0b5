"""What calls fail with."""

import asyncio
from datetime import timedelta

import grpc
import pytest

from penstock.client import errors
from penstock.domain.errors import (
    CredentialInvalid,
    FlowRunNotFound,
    InvalidRequest,
    KeyReused,
    LeaseLost,
    MoveRefused,
    Overloaded,
    Refusal,
    SessionReplaced,
    Unavailable,
    Violation,
)
from penstock.runtime.settings import ClientSettings
from penstock.wire.errors import CODES
from tests.client.conftest import Speak
from tests.client.scripted import RUN_ID, ScriptedServices


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
        (Overloaded(timedelta(seconds=2)), errors.Overloaded),
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
    assert given <= 0.3
    closing = client.close()
    if closing is not None:
        await closing
