"""The process launcher between real supervisors and services on a socket."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf import json_format

from flowrun.v1.flow_run_service_pb2 import FinishFlowRunRequest
from penstock.agent.launchers import Ended, process
from penstock.agent.launchers.process import ProcessLauncher
from penstock.agent.leases import lease_time
from penstock.agent.run_directory import Assignment, RunDirectory
from penstock.domain.errors import CredentialInvalid
from penstock.runtime.serving import Serving
from tests.agent import small_services
from tests.agent.small_services import TRACEPARENT, Run, SmallServices
from tests.agent.waiting import until

READS_ALL = """
cat "$(dirname "$PENSTOCK_PARAMETERS_FILE")"/*
env
if [ -r /proc/$PPID/environ ]; then tr '\\0' '\\n' </proc/$PPID/environ; fi
cat
"""


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[ProcessLauncher]:
    started = ProcessLauncher(tmp_path, "agent", token="s3cret")
    yield started
    started.close()


def assignment_of(run: Run, services: SmallServices) -> Assignment:
    lease = services.lease.total_seconds()
    return Assignment(
        flow_run_id=run.id,
        fence=run.fence,
        attempt=run.flow_run.attempt,
        flow_name=run.flow_run.flow_name,
        flow_run_name=run.flow_run.name,
        agent_id="an earlier agent",
        entry_point=run.flow.entry_point.python,
        command=list(run.flow.entry_point.command.arguments),
        parameters_json=run.flow_run.parameters_json,
        context_json=run.flow_run.context_json,
        environment={},
        working_directory="",
        log_level="INFO",
        flow_run_address=services.address,
        queue_address=services.address,
        log_address=services.address,
        token="s3cret",
        lease_end=lease_time() + lease,
        lease_seconds=lease,
        stop_grace_seconds=5.0,
        trace_context={"traceparent": TRACEPARENT},
    )


def ended_unreported(run: Run, services: SmallServices, data_dir: Path) -> RunDirectory:
    """What a supervisor leaves behind that could not report how its run ended."""
    directory = RunDirectory.create(data_dir, assignment_of(run, services))
    request = FinishFlowRunRequest(flow_run_id=run.id, fence=run.fence)
    request.succeeded.result_json = "1"
    directory.record_exit(json_format.MessageToJson(request))
    return directory


async def test_a_recorded_end_is_reported(services: SmallServices, launcher: ProcessLauncher, tmp_path: Path) -> None:
    """The next agent reports what an earlier supervisor could not, and forgets the run."""
    run = services.add_run(command=["false"], state="RUNNING")
    directory = ended_unreported(run, services, tmp_path)

    (found,) = launcher.find()
    end = await found.ended

    assert end.how is Ended.REPORTED
    assert run.state == "SUCCEEDED"
    assert not directory.path.exists()


async def test_a_recorded_end_outlives_a_report_that_fails(
    services: SmallServices, launcher: ProcessLauncher, tmp_path: Path
) -> None:
    """A run that has ended is not given back as if it had never begun, and its end is kept for the next agent."""

    def refuse(rpc: str, request: object) -> None:
        raise CredentialInvalid(detail="for a test")

    services.before = refuse
    directory = ended_unreported(services.add_run(command=["false"], state="RUNNING"), services, tmp_path)

    (found,) = launcher.find()
    end = await found.ended

    assert end.how is Ended.UNREPORTED
    assert directory.recorded_exit() is not None


async def test_a_recorded_end_that_nobody_wants_is_forgotten(
    services: SmallServices, launcher: ProcessLauncher, tmp_path: Path
) -> None:
    """A report that is refused for good, because the run went on elsewhere, is not made again."""
    run = services.add_run(command=["false"], state="RUNNING")
    directory = ended_unreported(run, services, tmp_path)
    run.lose_lease()

    (found,) = launcher.find()
    end = await found.ended

    assert end.how is Ended.DROPPED
    assert not directory.path.exists()


async def test_a_reporter_that_comes_second_leaves_the_directory_alone(
    services: SmallServices, launcher: ProcessLauncher, tmp_path: Path
) -> None:
    """Of two agents that find one recorded end, the later one takes nothing from the one that reports it."""
    directory = ended_unreported(services.add_run(command=["false"], state="RUNNING"), services, tmp_path)

    (found,) = launcher.find()
    assert directory.take_charge() is not None
    end = await found.ended

    assert end.how is Ended.UNREPORTED
    assert directory.recorded_exit() is not None


async def test_a_reporter_that_is_asked_to_stop_reports_all_the_same(
    services: SmallServices, launcher: ProcessLauncher, tmp_path: Path
) -> None:
    """A service that is back within the grace is told; also when that was asked before the reporter could listen."""
    services.away = {"FinishFlowRun"}
    run = services.add_run(command=["false"], state="RUNNING")
    directory = ended_unreported(run, services, tmp_path)

    (found,) = launcher.find()
    assert await until(lambda: (directory.path / "supervisor.pid").exists())
    found.stop()
    await services.until(lambda: "FinishFlowRun" in services.calls)
    found.hurry()
    services.away = set()
    end = await found.ended

    assert end.how is Ended.REPORTED
    assert run.state == "SUCCEEDED"


async def test_whatever_kills_reporters_ends_the_reporting(
    services: SmallServices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few are started, with pauses; then the end stays recorded, and the run is settled when its lease ends."""
    monkeypatch.setattr(process, "REPORTER_PAUSES", (0.0, 0.01, 0.01))
    started = ProcessLauncher(tmp_path, "agent", reports_killed=True)
    services.away = {"FinishFlowRun"}
    launched = await started.start(assignment_of(services.add_run(command=["sleep", "60"]), services))
    await launched.started.wait()
    directory = RunDirectory(next((tmp_path / "runs").iterdir()))
    killed: set[int] = set()

    def kill_the_next() -> bool:
        pid = int((directory.path / "supervisor.pid").read_text() or 0)
        if pid and pid not in killed:
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
        return launched.ended.done()

    assert await until(kill_the_next)
    end = await launched.ended
    started.close()

    assert 4 == len(killed)
    assert end.how is Ended.UNREPORTED
    assert directory.recorded_exit() is not None


async def test_an_end_is_known_even_if_watching_for_it_fails(
    services: SmallServices, launcher: ProcessLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for an end holds a slot, so a mistake of ours must not keep it waiting."""

    def fail(directory: RunDirectory) -> str:
        raise RuntimeError("for a test")

    monkeypatch.setattr(RunDirectory, "last_words", fail)
    launched = await launcher.start(assignment_of(services.add_run(command=["true"]), services))

    end = await launched.ended

    assert end.how is Ended.UNREPORTED
    assert "for a test" in end.words


async def test_the_code_of_a_run_finds_no_token(launcher: ProcessLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor has the token; no file, variable or input that the code can reach holds it."""
    monkeypatch.setenv("PENSTOCK_TOKEN", "s3cret")
    monkeypatch.setattr(small_services, "Serving", lambda token: Serving(token="s3cret"))
    async with SmallServices() as services:
        run = services.add_run(command=["sh", "-c", READS_ALL])

        launched = await launcher.start(assignment_of(run, services))
        end = await launched.ended

    assert end.how is Ended.REPORTED
    assert run.state == "SUCCEEDED"
    assert any(run.id in text for text in run.texts)
    assert [] == [text for text in run.texts if "s3cret" in text]
