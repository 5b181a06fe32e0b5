"""Scripted services and both forms of the client, so that each behaviour is tested once for both."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from penstock.client import AsyncClient, Client
from tests.client.scripted import ScriptedServices

# Calls the named verb of a client; of what it iterates over, makes a list.
Speak = Callable[..., Awaitable[Any]]


@pytest.fixture
async def services() -> AsyncIterator[ScriptedServices]:
    """Services that know nothing yet."""
    async with ScriptedServices() as running:
        yield running


@pytest.fixture(params=["blocking", "async"])
async def speak(request: pytest.FixtureRequest, services: ScriptedServices) -> AsyncIterator[Speak]:
    """Speak to those services through a client of either form."""
    if request.param == "async":
        async with AsyncClient(services.address) as client:

            async def speak_async(verb: str, *args: Any, **kwargs: Any) -> Any:
                answer = getattr(client, verb)(*args, **kwargs)
                return [item async for item in answer] if hasattr(answer, "__aiter__") else await answer

            yield speak_async
    else:
        with Client(services.address) as blocking:

            def speak_at_once(verb: str, *args: Any, **kwargs: Any) -> Any:
                answer = getattr(blocking, verb)(*args, **kwargs)
                return list(answer) if hasattr(answer, "__next__") else answer

            async def speak_in_thread(verb: str, *args: Any, **kwargs: Any) -> Any:
                return await asyncio.to_thread(speak_at_once, verb, *args, **kwargs)

            yield speak_in_thread
