"""A run that this process executes without an agent: real sockets, supervisors and bodies."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from penstock.agent import agentless
from penstock.agent.agentless import Agentless, executing_here
from penstock.agent.run_directory import is_locked
from penstock.agent.settings import AgentSettings
from penstock.client.errors import Refused, Unauthenticated
from penstock.domain.errors import CredentialInvalid, LabelsMissing
from tests.agent.small_services import Run, SmallServices
from tests.agent.waiting import is_gone, number_in

WAITING = """
import os, time
@flow
def example(witness):
    with open(witness, "w") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(60)
"""


class Here:
    """Executes runs in this process, and ends the supervisors that a failed test left behind."""

    def __init__(self, directory: Path, services: SmallServices) -> None:
        self.directory = directory
        self._services = services
        self.settings = AgentSettings(
            address=services.address, data_dir=directory / "data", name="mill", labels="not,ours", slots=7
        )

    def flow(self, body: str, **fields: Any) -> Run:
        """A run of a flow whose file holds that code."""
        file = self.directory / f"example_{len(self._services.runs)}.py"
        file.write_text(f"from penstock import current_flow_run, flow\n\n{body}")
        return self._services.add_run(python=f"{file}:example", **{"state": "SCHEDULED", **fields})

    def waiting(self) -> tuple[Run, Path]:
        """A run that goes on until it is ended, and the file that holds the process id of its code."""
        witness = self.directory / "witness"
        return self.flow(WAITING, parameters_json=json.dumps({"witness": str(witness)})), witness

    async def execute(self, run: Run) -> None:
        """Execute a run until it is final."""
        async with asyncio.timeout(40), executing_here(self.settings) as execution:
            await execution.serve(run.id)

    @contextlib.asynccontextmanager
    async def executing(self, run: Run) -> AsyncIterator["Executing"]:
        """The run while it is executed."""
        async with executing_here(self.settings) as execution:
            serving = asyncio.create_task(execution.serve(run.id))
            try:
                yield Executing(execution, serving)
            finally:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)

    def supervisor(self) -> int:
        """The process id of the only supervisor."""
        (file,) = self.directory.glob("data/runs/*/supervisor.pid")
        return int(file.read_text())

    def close(self) -> None:
        for path in self.directory.glob("data/runs/*"):
            if is_locked(path / "lease.json"):
                os.kill(int((path / "supervisor.pid").read_text()), signal.SIGKILL)


class Executing:
    """A run that is being executed."""

    def __init__(self, agentless: Agentless, serving: "asyncio.Task[None]") -> None:
        self.stop = agentless.stop
        self.hurry = agentless.hurry
        self._serving = serving

    async def ended(self) -> None:
        """Wait until nothing is left to execute."""
        async with asyncio.timeout(40):
            await self._serving


@pytest.fixture
def here(tmp_path: Path, services: SmallServices) -> Iterator[Here]:
    started = Here(tmp_path, services)
    yield started
    started.close()


async def test_only_the_environment_of_the_run_config_counts(
    services: SmallServices, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is executed where this process is, by its interpreter; what else was asked for is not even warned of."""
    monkeypatch.chdir(here.directory)
    run = here.flow(
        "import os, sys\n@flow\ndef example():\n    return [os.getcwd(), os.environ['COLOUR'], sys.executable]\n"
    )
    config = run.flow_run.run_config
    config.environment["COLOUR"] = "blue"
    config.working_directory, config.image = "/no/such/directory", "example/image"

    await here.execute(run)

    assert run.end is not None
    assert [str(here.directory), "blue", sys.executable] == json.loads(run.end.succeeded.result_json)
    assert run.texts == []


async def test_the_poll_names_the_run_and_claims_no_labels(services: SmallServices, here: Here) -> None:
    """It asks for one offer of this run, with one slot and no labels, whatever an agent of this machine is told."""
    run = here.flow("@flow\ndef example(): pass\n")

    await here.execute(run)

    first = services.polls[0]
    assert (run.id, 1, 30) == (first.flow_run_id, first.offers_max, first.wait.seconds)
    assert ("mill", 1, []) == (first.hello.name, first.hello.slots, list(first.hello.labels))
    assert first.hello.agent_id == run.agent_id


async def test_each_attempt_is_executed_here(services: SmallServices, here: Here) -> None:
    """A failed attempt with retries left is waited for, and its successor is executed as soon as it is due."""
    run = here.flow("@flow\ndef example():\n    if current_flow_run().attempt == 1:\n        raise ValueError\n")
    run.retries = 1

    async with here.executing(run) as executing:
        await services.until(lambda: run.flow_run.attempt == 2)
        assert run.state == "SCHEDULED"
        run.due = True
        await services.tell()
        await executing.ended()

    assert run.state == "SUCCEEDED"
    assert ["Start", "Start"] == [event for event in services.history if event == "Start"]


async def test_a_poll_that_brings_nothing_is_repeated(
    services: SmallServices, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start far away is slept out, one long poll after another."""
    monkeypatch.setattr(agentless, "LONG_POLL_MAX", timedelta(seconds=0.05))
    run = here.flow("@flow\ndef example(): pass\n")
    run.due = False

    async with here.executing(run) as executing:
        await services.until(lambda: len(services.polls) == 3)
        run.due = True
        await executing.ended()

    assert run.state == "SUCCEEDED"


async def test_a_cancelled_run_is_stopped_by_the_poll(services: SmallServices, here: Here) -> None:
    """The code is asked to end long before a renewal would tell, the end is confirmed, and nobody asks in a circle."""
    services.lease *= 10
    run, witness = here.waiting()

    async with here.executing(run) as executing:
        pid = await number_in(witness)
        run.state = "CANCELLING"
        await services.tell()
        await executing.ended()

    assert run.state == "CANCELLED"
    assert await is_gone(pid)
    # For the offer, for what is held, and for the end.
    assert 3 == len(services.polls)
    assert [run.id] == [lease.flow_run_id for lease in services.polls[1].hello.held]


async def test_a_run_whose_lease_was_lost_is_executed_again(services: SmallServices, here: Here) -> None:
    """What was lost is stopped; when the run waits again, this process takes it again."""
    services.lease *= 10
    run, witness = here.waiting()

    async with here.executing(run) as executing:
        first = await number_in(witness)
        witness.unlink()
        run.wait_again()
        await services.tell()
        second = await number_in(witness)
        run.state = "CANCELLING"
        await services.tell()
        await executing.ended()

    assert first != second
    assert await is_gone(first)
    assert run.state == "CANCELLED"


async def test_services_that_are_away_are_waited_for(
    services: SmallServices, here: Here, caplog: pytest.LogCaptureFixture
) -> None:
    """However often a poll fails, it is repeated, and that is said once."""
    services.away = {"LeaseFlowRuns"}
    run = here.flow("@flow\ndef example(): pass\n")

    async with here.executing(run) as executing:
        await services.until(lambda: len(services.polls) == 3)
        services.away = set()
        await executing.ended()

    assert run.state == "SUCCEEDED"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert ["This process cannot serve now: away for a test. Trying again."] == warnings


async def test_a_server_that_restarts_is_found_again(services: SmallServices, here: Here) -> None:
    """The run goes on meanwhile, and its end is still heard of."""
    run, witness = here.waiting()

    async with here.executing(run) as executing:
        await number_in(witness)
        await services.stop()
        await services.start()
        run.state = "CANCELLING"
        await services.tell()
        await executing.ended()

    assert run.state == "CANCELLED"


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (CredentialInvalid(detail="for a test"), Unauthenticated),
        (LabelsMissing(flow_run_id="r", missing=("x",)), Refused),
    ],
)
async def test_a_refusal_ends_the_waiting(
    services: SmallServices, here: Here, refusal: Exception, error: type[Exception]
) -> None:
    """A queue that will never hand the run out is not asked again."""

    def refuse(rpc: str, request: object) -> None:
        raise refusal

    services.before = refuse

    with pytest.raises(error):
        await here.execute(here.flow("@flow\ndef example(): pass\n"))

    assert 1 == len(services.polls)


@pytest.mark.parametrize("change", ["finish", "delete"])
async def test_a_run_that_is_over_is_not_executed(services: SmallServices, here: Here, change: str) -> None:
    """There is nothing to do for a run that is final, or that is no more."""
    run = here.flow("@flow\ndef example(): pass\n")
    if change == "finish":
        run.state = "CANCELLED"
    else:
        del services.runs[run.id]

    await here.execute(run)

    assert services.history == []


async def test_a_killed_supervisor_is_answered_for_at_once(services: SmallServices, here: Here) -> None:
    """The run fails under the execution that was started, as soon as its code is gone and not when the lease ends."""
    run, witness = here.waiting()

    async with here.executing(run) as executing:
        pid = await number_in(witness)
        os.kill(here.supervisor(), signal.SIGKILL)
        await executing.ended()

    assert run.end is not None
    assert run.execution_id == run.end.execution_id
    assert run.end.failed.message == (
        "The supervisor of the run was ended by signal 9 (SIGKILL). The code of the run was ended with it."
    )
    assert await is_gone(pid)
    assert run.closed
    assert [] == list(here.directory.glob("data/runs/*"))


async def test_an_end_that_a_killed_supervisor_had_recorded_is_reported(services: SmallServices, here: Here) -> None:
    """A run that had succeeded by then has succeeded."""
    services.away = {"FinishFlowRun"}
    run = here.flow("@flow\ndef example(): return 7\n")

    async with here.executing(run) as executing:
        await services.until(lambda: "FinishFlowRun" in services.calls)
        os.kill(here.supervisor(), signal.SIGKILL)
        services.away = set()
        await executing.ended()

    assert run.end is not None
    assert run.end.succeeded.result_json == "7"


async def test_a_supervisor_that_is_killed_before_it_began_gives_the_run_back(
    services: SmallServices, here: Here
) -> None:
    """Nothing was started, so the run waits again, and is executed here again."""
    services.away = {"StartFlowRun"}
    run = here.flow("@flow\ndef example(): return 7\n")

    async with here.executing(run) as executing:
        await services.until(lambda: "StartFlowRun" in services.calls)
        os.kill(here.supervisor(), signal.SIGKILL)
        await services.until(lambda: run.release_reasons)
        services.away = set()
        await executing.ended()

    assert run.state == "SUCCEEDED"
    assert "was ended by signal 9 (SIGKILL)" in run.release_reasons[0]


async def test_stopping_ends_what_is_executed(services: SmallServices, here: Here) -> None:
    """The supervisor ends the code and reports that; then there is nothing more to do here."""
    run, witness = here.waiting()

    async with here.executing(run) as executing:
        pid = await number_in(witness)
        executing.stop()
        await executing.ended()

    assert await is_gone(pid)
    assert run.state == "FAILED"


async def test_hurrying_leaves_no_grace(services: SmallServices, here: Here) -> None:
    """Code that does not listen is killed at once, whatever grace it has otherwise."""
    witness = here.directory / "witness"
    run = services.add_run(
        command=["sh", "-c", f"trap '' TERM; echo $$ > {witness}; while :; do sleep 1; done"], state="SCHEDULED"
    )
    here.settings = replace(here.settings, stop_grace=timedelta(minutes=10))

    async with here.executing(run) as executing:
        pid = await number_in(witness)
        executing.stop()
        executing.hurry()
        await executing.ended()

    assert await is_gone(pid)
    assert run.end is not None
    assert run.end.failed.signal == 9
