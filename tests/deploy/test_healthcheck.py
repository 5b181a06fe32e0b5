"""healthcheck.py: what it says of a real service, and of none."""

import asyncio
import socket
import sys
from datetime import timedelta
from pathlib import Path

from penstock.runtime.server import Server
from penstock.runtime.serving import Serving

HEALTHCHECK = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


async def said_of(address: str) -> tuple[int | None, str]:
    """The exit code and the output of a health check."""
    checking = await asyncio.create_subprocess_exec(
        sys.executable, str(HEALTHCHECK), address, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await checking.communicate()
    return checking.returncode, output.decode().strip()


async def test_a_serving_process() -> None:
    """A process is healthy while it serves, and no longer once it drains; no token is needed to ask."""
    server = Server(Serving(token="secret"), host="127.0.0.1", port=0)
    await server.start()
    try:
        await server.set_serving(True)
        while_serving = await said_of(server.address)
        await server.set_serving(False)
        while_draining = await said_of(server.address)
    finally:
        await server.stop(timedelta(0))

    assert while_serving == (0, "serving")
    assert while_draining == (1, "not serving")


async def test_nobody_there() -> None:
    """Where nobody listens, nothing is healthy."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))

        said = await said_of(f"127.0.0.1:{bound.getsockname()[1]}")

    assert said == (1, "no answer")
