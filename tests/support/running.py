"""A real server on a socket, in the test's own process."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

from penstock.runtime.server import Option, Server
from penstock.runtime.serving import Serving

# The generated `add_…Servicer_to_server`, and the servicer.
Service: TypeAlias = tuple[Callable[[Any, Any], None], object]


@contextlib.asynccontextmanager
async def running(*services: Service, token: str = "", options: Sequence[Option] = ()) -> AsyncIterator[str]:
    """Serve these on a free port of the loopback interface; yield the address."""
    server = Server(Serving(token=token), host="127.0.0.1", port=0, options=options)
    for add_to_server, servicer in services:
        server.add(add_to_server, servicer)
    await server.start()
    await server.set_serving(True)
    try:
        yield server.address
    finally:
        await server.stop(timedelta(0))
