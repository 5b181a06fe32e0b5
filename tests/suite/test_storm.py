"""One key, a thousand callers, several replicas, and everything that may happen to them meanwhile: one run."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from sqlalchemy import func, select

from penstock.authoring.flow import Command
from penstock.cli.health import probe
from penstock.client import AsyncClient, CreatedFlowRun, FlowRunState, PenstockError
from penstock.storage.database import open_engine
from penstock.storage.schema import flow_runs, idempotency_keys, queue_entries, transitions
from tests.suite.installation import Installation, four_free_ports

CALLERS: Final = 1_000
AT_ONCE: Final = 200
# Every hundredth caller asks for something else under the same key.
ODD: Final = 100
REPLICAS: Final = {"postgres": 4, "sqlite": 3}
TRIES_MAX: Final = 50

pytestmark = pytest.mark.slow


async def test_a_storm_on_one_key_makes_one_run(tmp_path: Path, database_url: str, database_kind: str) -> None:
    """Every caller learns one id, though a version is registered half-way and a replica killed in between."""
    here = Installation(tmp_path, four_free_ports(), {})
    async with replicas(here, database_url, REPLICAS[database_kind]) as (clients, kill):
        group = (await clients[0].register_flow(tide(version=1), project="coast")).flow_group_id
        storm = Storm(clients, group)
        asking = [asyncio.create_task(storm.ask(caller)) for caller in range(CALLERS)]
        await storm.until_answered(CALLERS // 4)
        kill(1)
        await storm.until_answered(CALLERS // 2)
        second = await clients[0].register_flow(tide(version=2), project="coast")
        answers = await asyncio.gather(*asking)

    (flow_run_id,) = {answer.flow_run_id for answer in answers}
    # The one that was created may have been answered by the replica that died before its answer arrived.
    assert sum(answer.created for answer in answers) <= 1
    as_first = answers[0].parameters
    differing = {caller: () if asked(caller) == as_first else ("parameters",) for caller in range(CALLERS)}
    assert differing == {caller: answer.differing_fields for caller, answer in enumerate(answers)}
    assert (2, True) == (second.version, second.created)
    assert {FlowRunState.SCHEDULED} == {answer.state for answer in answers}
    assert storm.moved_on > 0, "the replica was killed while nobody waited for it"
    assert {"runs": 1, "steps": 1, "entries": 1, "keys": 1} == whole(database_url, flow_run_id)


class Storm:
    """Callers who each ask until somebody answers, one replica after the other."""

    def __init__(self, clients: list[AsyncClient], flow_group_id: str) -> None:
        self._clients = clients
        self._flow_group_id = flow_group_id
        self._room = asyncio.Semaphore(AT_ONCE)
        self._answered = 0
        self._progress = asyncio.Condition()
        self.moved_on = 0

    async def ask(self, caller: int) -> CreatedFlowRun:
        """Create the run, as any client would whose first server may be gone."""
        async with self._room:
            for attempt in range(TRIES_MAX):
                client = self._clients[(caller + attempt) % len(self._clients)]
                try:
                    answer = await client.create_flow_run(
                        flow_group_id=self._flow_group_id, parameters=asked(caller), idempotency_key="the-one"
                    )
                except PenstockError as error:
                    if not error.passing:
                        raise
                    self.moved_on += 1
                    continue
                async with self._progress:
                    self._answered += 1
                    self._progress.notify_all()
                return answer
        raise AssertionError(f"nobody answered caller {caller}")

    async def until_answered(self, callers: int) -> None:
        """Wait until that many have their answer."""
        async with self._progress:
            await self._progress.wait_for(lambda: self._answered >= callers)


def asked(caller: int) -> dict[str, int]:
    """What that caller wants the run to be given."""
    return {"height": 2 if caller % ODD == ODD // 2 else 1}


def tide(*, version: int) -> Command:
    """A flow of which each version differs from the others."""
    return Command(name="tide", arguments=["tide", str(version)])


def whole(database_url: str, flow_run_id: str) -> Counter[str]:
    """How much there is of the run, and of any other."""
    engine = open_engine(database_url, connections=1)
    try:
        with engine.connect() as conn:
            (run,) = conn.execute(select(flow_runs.c.flow_run_id)).scalars()
            (owner,) = conn.execute(select(queue_entries.c.flow_run_id)).scalars()
            by_key = idempotency_keys.c.target_kind != "request"
            keys = conn.execute(select(idempotency_keys.c.flow_run_id).where(by_key)).scalars().all()
            steps = conn.execute(select(func.count()).select_from(transitions)).scalar_one()
    finally:
        engine.dispose()
    assert {flow_run_id} == {str(run), str(owner), *map(str, keys)}
    return Counter(runs=1, entries=1, keys=len(keys), steps=steps)


@asynccontextmanager
async def replicas(
    here: Installation, database_url: str, count: int
) -> AsyncIterator[tuple[list[AsyncClient], Callable[[int], None]]]:
    """So many processes that serve flow runs on one database, a client of each, and a way to kill one at once."""
    async with AsyncExitStack() as stack:
        started = []
        for number in range(count):
            port = here.port_base + number
            environ = {**here.environ, "PENSTOCK_DATABASE": database_url, "PENSTOCK_PORT": str(port)}
            command = (sys.executable, "-m", "penstock.flow_run")
            started.append(stack.enter_context(here.running(f"replica-{number}", *command, environ=environ)))
        addresses = [f"127.0.0.1:{here.port_base + number}" for number in range(count)]
        for replica, address in zip(started, addresses, strict=True):
            async with asyncio.timeout(60):
                while not (await probe(address)).serving:
                    assert replica.process.poll() is None, replica.text
                    await asyncio.sleep(0.1)
        clients = [await stack.enter_async_context(AsyncClient(address)) for address in addresses]
        yield clients, lambda number: started[number].process.kill()
