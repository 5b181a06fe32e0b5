"""The keeper as a whole: a real process on a real database."""

import asyncio
import os
import signal
import sys
from datetime import timedelta

from penstock.domain.flow_run import ParentLease
from penstock.domain.ids import FlowRunId
from penstock.domain.state import State
from penstock.storage.database import Database
from tests.queue.scenes import ask_to_stop, at_work, create, held, register, run_of
from tests.support.fake_clock import FakeClock

LONG_AGO = timedelta(days=20 * 365)


async def until_in(state: State, database: Database, process: asyncio.subprocess.Process, run_id: FlowRunId) -> None:
    """Until that run is in that state, or the process has ended, which it should not."""
    async with asyncio.timeout(60):
        while process.returncode is None:
            if (await run_of(database, run_id)).state is state:
                return
            await asyncio.sleep(0.02)
    raise AssertionError((await process.communicate())[1].decode())


async def test_it_rescues_until_it_is_told_to_stop(database: Database, database_url: str, clock: FakeClock) -> None:
    """Runs whose holder fell silent wait again, also one that fell silent meanwhile; children of a cancelled run are
    cancelled; SIGTERM ends it in good order."""
    clock.set_back(LONG_AGO)
    flow = await register(database)
    first = (await at_work(database, (await create(database, flow)).id)).lease
    parent = (await at_work(database, (await create(database, flow)).id)).lease
    child = await create(database, flow, parent=ParentLease(parent.flow_run_id, parent.fence))
    await ask_to_stop(database, parent)
    told = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PENSTOCK_DATABASE": database_url,
        "PENSTOCK_PORT": "0",
        "PENSTOCK_SWEEP_INTERVAL": "0.05",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "penstock.keeper", env=dict(os.environ) | told, stderr=asyncio.subprocess.PIPE
    )
    try:
        await until_in(State.SCHEDULED, database, process, first.flow_run_id)
        await until_in(State.CANCELLED, database, process, child.id)
        # Accepted and no more: to the keeper its lease is over at once, so a start might come too late.
        second = await held(database, (await create(database, flow)).id)
        await until_in(State.SCHEDULED, database, process, second.flow_run_id)

        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()

    assert process.returncode == 0, said.decode()
