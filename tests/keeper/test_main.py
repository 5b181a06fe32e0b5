"""The keeper as a whole: a real process on a real database."""

import asyncio
import os
import signal
import sys
from datetime import timedelta

from penstock.domain.flow_run import ParentLease
from penstock.domain.ids import FlowRunId
from penstock.domain.state import State
from penstock.storage import logs
from penstock.storage.database import Database
from tests.keeper.test_orphans import adopt
from tests.log.scenes import a_started_run, key_of, some_lines, stored, write
from tests.queue.scenes import TENANT, ask_to_stop, at_work, cancel, create, held, register, run_of
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


async def until_no_log_is_left(database: Database, process: asyncio.subprocess.Process) -> None:
    """Until the lines of deleted logs are removed, or the process has ended, which it should not."""
    async with asyncio.timeout(60):
        while process.returncode is None:
            if not await database.read(logs.deleted_exist, TENANT):
                return
            await asyncio.sleep(0.02)
    raise AssertionError((await process.communicate())[1].decode())


async def test_it_rescues_until_it_is_told_to_stop(database: Database, database_url: str, clock: FakeClock) -> None:
    """Runs whose holder fell silent wait again, also one that fell silent meanwhile; children of a cancelled run are
    cancelled; lines of a deleted log are removed; SIGTERM ends it in good order."""
    clock.set_back(LONG_AGO)
    flow = await register(database)
    first = (await at_work(database, (await create(database, flow)).id)).lease
    parent = (await at_work(database, (await create(database, flow)).id)).lease
    child = await create(database, flow, parent=ParentLease(parent.flow_run_id, parent.fence))
    await ask_to_stop(database, parent)
    logged = await a_started_run(database)
    await write(database, key_of(logged), some_lines(3))
    await database.run(logs.remove, TENANT, logged.id)
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
        await until_no_log_is_left(database, process)
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
    assert [] == await stored(database, logged.id)


async def test_it_hears_of_runs_that_were_cancelled(database: Database, database_url: str) -> None:
    """Children of one that waited are cancelled at the hint, long before all are looked at again."""
    program = (
        "from datetime import timedelta; from penstock.keeper import orphans; from penstock.runtime import process\n"
        "orphans.THOROUGH_INTERVAL = orphans.THOROUGH_INTERVAL_MIN = timedelta(hours=1)\n"
        "from penstock.keeper.__main__ import main\n"
        "process.run(main())"
    )
    told = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PENSTOCK_DATABASE": database_url,
        "PENSTOCK_PORT": "0",
        "PENSTOCK_SWEEP_INTERVAL": "0.05",
    }
    flow = await register(database)
    # The leases of this clock are over long ago: that this one is expired shows that the keeper has begun.
    before = await at_work(database, (await create(database, flow)).id)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=dict(os.environ) | told, stderr=asyncio.subprocess.PIPE
    )
    try:
        await until_in(State.SCHEDULED, database, process, before.lease.flow_run_id)
        later = timedelta(days=365)
        parent = await create(database, flow, start_delay=later)
        child = await create(database, flow, start_delay=later)
        await database.run(adopt, child.id, parent.id)
        await cancel(database, parent.id)

        async with asyncio.timeout(60):
            while (await run_of(database, child.id)).state is not State.CANCELLED:
                # Said again and again, because at first it may not listen yet.
                await database.run(lambda tx: tx.hint.moved.add(parent.id))
                await asyncio.sleep(0.1)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
