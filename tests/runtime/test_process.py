"""Tests of `penstock.runtime.process`: real processes, real signals."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.runtime.channel import open_channel
from tests.runtime.probe import Probe, served

PROGRAM = """
import asyncio, contextlib, sys
from datetime import timedelta
from penstock.domain.errors import Unavailable
from penstock.runtime.process import Process, configure_logging, run
from penstock.runtime.server import Server
from penstock.runtime.serving import Serving
from penstock.runtime.settings import QueueSettings

def say(*words):
    print(*words, flush=True)

async def endless():
    try:
        await asyncio.Event().wait()
    finally:
        say("background ended")

async def saying(words):
    say(words)

async def main():
    settings = QueueSettings.load()
    configure_logging(settings.log_level)
    server = Server(Serving(token=settings.token), host=settings.host, port=settings.port)
    process = Process("probe", server, grace=settings.drain_grace)
    process.in_background("endless", endless)
    process.on_drain(lambda: saying("first drain"))
    process.on_drain(lambda: saying("second drain"))
    process.at_end(lambda: saying("closed"))
    {more}
    return await process.serve_until_signalled()

raise SystemExit(run(main()))
"""


@contextlib.asynccontextmanager
async def running(more: str = "", **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of its own, that is gone afterwards whatever happened."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM.replace("{more}", more),
        env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PENSTOCK_PORT": "0"} | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def address_of(process: asyncio.subprocess.Process) -> str:
    """Wait until it says where it listens."""
    assert process.stderr is not None
    async for line in process.stderr:
        if b"listens on" in line:
            return line.decode().split()[-1]
    raise AssertionError("it never listened")


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_good_order(sent: signal.Signals) -> None:
    """It serves its health until the signal; then it drains, stops its background, closes, and exits with 0."""
    async with running() as process:
        async with open_channel(await address_of(process)) as channel:
            health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        process.send_signal(sent)
        code, out, err = await end_of(process)

    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert out.splitlines() == ["first drain", "second drain", "background ended", "closed"]
    assert code == 0
    assert "Traceback" not in err


async def test_a_drain_that_hangs_or_fails_holds_up_nothing() -> None:
    """Each step of the drain has the grace and no more; what fails is logged, and the exit code tells."""
    more = """
    async def hang():
        await asyncio.Event().wait()
    async def fail():
        raise KeyError("oops")
    process.on_drain(hang)
    process.on_drain(fail)
    process.on_drain(lambda: saying("last drain"))
    """
    async with running(more, PENSTOCK_DRAIN_GRACE="0.05") as process:
        await address_of(process)
        process.terminate()
        code, out, err = await end_of(process)

    assert out.splitlines() == ["first drain", "second drain", "last drain", "background ended", "closed"]
    assert err.count("draining failed") == 2
    assert code == 1


async def test_a_second_signal_hurries() -> None:
    """A drain that would take an hour is left at the second signal; background and database still end in order."""
    more = """
    async def hang():
        say("hanging")
        await asyncio.Event().wait()
    process.on_drain(hang)
    """
    async with running(more, PENSTOCK_DRAIN_GRACE="3600") as process:
        await address_of(process)
        process.terminate()
        assert process.stdout is not None
        while b"hanging" not in await process.stdout.readline():
            pass
        process.terminate()
        code, out, _ = await end_of(process)

    assert out.splitlines() == ["background ended", "closed"]
    assert code == 0


@pytest.mark.parametrize(("fate", "told"), [("raise KeyError('oops')", "KeyError: 'oops'"), ("return", "by itself")])
async def test_a_background_task_that_ends_takes_the_process_along(fate: str, told: str) -> None:
    """When an endless task raises, or returns, the process says which, drains, and exits with 1."""
    more = f"""
    async def dying():
        {fate}
    process.in_background("dying", dying)
    """
    async with running(more) as process:
        code, out, err = await end_of(process)

    assert code == 1
    assert out.splitlines() == ["first drain", "second drain", "background ended", "closed"]
    assert "dying ended by itself; the process ends with it" in err
    assert told in err


async def test_a_bad_setting_is_one_line() -> None:
    """What its user got wrong is said in one line, without a traceback, with exit code 2."""
    async with running(PENSTOCK_HELD_LEASE="long") as process:
        code, out, err = await end_of(process)

    assert code == 2
    assert out == ""
    assert err == "penstock: PENSTOCK_HELD_LEASE must be a number of seconds above 0, not 'long'.\n"


async def test_a_port_that_is_taken_is_one_line() -> None:
    """A port in use is named in one line; no background task was begun, and what was opened is closed."""
    async with served(Probe()) as server, running(PENSTOCK_PORT=str(server.port)) as process:
        code, out, err = await end_of(process)

    assert code == 2
    assert out == "closed\n"
    told = [line for line in err.splitlines() if line.startswith("penstock: ")]
    assert [
        f"penstock: Cannot listen on {server.address}: another process does, or this machine has no such address."
    ] == told
    assert "Traceback" not in err


async def test_a_refusal_at_the_start_is_one_line() -> None:
    """A database that cannot be used, say, is told as any refusal is."""
    async with running("raise Unavailable(detail='the database has another revision')") as process:
        code, _, err = await end_of(process)

    assert code == 2
    assert err == "penstock: This process cannot serve now: the database has another revision.\n"


async def test_a_mistake_at_the_start_has_its_traceback() -> None:
    """Our own mistake is logged in full, with exit code 1."""
    async with running("raise KeyError('oops')") as process:
        code, _, err = await end_of(process)

    assert code == 1
    assert "KeyError: 'oops'" in err


async def test_a_record_begins_at_the_margin_and_only_there() -> None:
    """Each record is a line with time, level, logger and message; its traceback is indented."""
    async with running("raise KeyError('oops')") as process:
        _, _, err = await end_of(process)

    first, *rest = err.splitlines()
    stamp, level, logger, *message = first.split()
    assert stamp.endswith("Z")
    assert (level, logger, " ".join(message)) == ("ERROR", "penstock.runtime.process", "the process failed")
    assert all(line.startswith("    ") for line in rest)


async def test_the_log_level_is_a_setting() -> None:
    """A quiet process says nothing of its ordinary life."""
    async with running("process.stop()", PENSTOCK_LOG_LEVEL="WARNING") as process:
        code, _, err = await end_of(process)

    assert code == 0
    assert err == ""
