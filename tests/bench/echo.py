"""A bare grpc.aio server that gives back what it gets: what an rpc costs when it does nothing.

`python -m tests.bench.echo` prints its port and serves until it is told to stop.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc

METHOD: Final = "/penstock.bench.Echo/Echo"


async def echo(request: bytes, _context: object) -> bytes:
    """The request itself."""
    return request


async def serve() -> None:
    """Serve on a free port of the loopback interface until SIGTERM."""
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("penstock.bench.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    print(port, flush=True)
    await told.wait()
    await server.stop(grace=None)


@contextmanager
def echo_server() -> Iterator[str]:
    """Such a server as a process of its own; yields its address."""
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.communicate()


def echo_call(channel: grpc.aio.Channel) -> Any:
    """The method, to be called with bytes."""
    return channel.unary_unary(METHOD)


if __name__ == "__main__":
    asyncio.run(serve())
