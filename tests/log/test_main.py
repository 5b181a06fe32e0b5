"""The log process as a whole: a real process on a real database."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from flowrun.v1 import log_service_pb2 as pb
from flowrun.v1.log_service_pb2_grpc import LogServiceStub
from penstock.runtime.channel import open_channel
from penstock.storage.database import Database
from tests.log.scenes import a_started_run, finish, key_of, some_lines, write


@contextlib.asynccontextmanager
async def log_process(database_url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m penstock.log` on a free port, gone afterwards whatever happened."""
    told = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PENSTOCK_DATABASE": database_url,
        "PENSTOCK_PORT": "0",
        # So that only hints, of another process, can be why a tail goes on.
        "PENSTOCK_SWEEP_INTERVAL": "3600",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.log", env=dict(os.environ) | told, stderr=asyncio.subprocess.PIPE
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
    said: list[str] = []
    async for line in process.stderr:
        said.append(line.decode())
        if "listens on" in said[-1]:
            return said[-1].split()[-1]
    raise AssertionError("".join(said))


async def test_it_writes_and_tails_until_it_is_told_to_stop(database: Database, database_url: str) -> None:
    """Lines written here are tailed there, hinted at across processes; SIGTERM ends it in good order."""
    run = await a_started_run(database)

    async with log_process(database_url) as process:
        async with open_channel(await address_of(process)) as channel:
            stub: Any = LogServiceStub(channel)
            stream = stub.TailLogs(pb.TailLogsRequest(flow_run_id=str(run.id)))
            await write(database, key_of(run), some_lines(2))
            first = await stream.read()
            closing = pb.WriteLogsRequest(flow_run_id=str(run.id), fence=1, producer="supervisor", closed=True)
            answer = await stub.WriteLogs(closing)
            await finish(database, run)
            last = await stream.read()
        process.send_signal(signal.SIGTERM)
        code = await process.wait()

    assert [line.text for line in first.lines.lines] == ["line 1", "line 2"]
    assert answer.last_sequence == 2
    assert [each.closed for each in last.end.producers] == [True]
    assert code == 0


@pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)
async def test_it_refuses_a_database_without_its_schema(empty_database_url: str) -> None:
    """It ends with exit code 2 and one line that names the command to run."""
    async with log_process(empty_database_url) as process:
        assert process.stderr is not None
        said = (await process.stderr.read()).decode()
        code = await process.wait()

    assert code == 2
    assert len(said.splitlines()) == 1
    assert "python -m penstock.storage.migrations" in said
