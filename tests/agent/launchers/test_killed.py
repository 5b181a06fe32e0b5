"""Answering for a supervisor that was killed."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.agent.launchers import killed
from penstock.agent.launchers.killed import can_be_reported
from penstock.agent.run_directory import RunDirectory
from tests.agent.launchers.test_process import assignment_of
from tests.agent.small_services import SmallServices


@pytest.fixture
def directory(services: SmallServices, tmp_path: Path) -> RunDirectory:
    """The directory of a run whose supervisor is gone."""
    return RunDirectory.create(tmp_path, assignment_of(services.add_run(command=["true"]), services))


@pytest.fixture
def group() -> Iterator[subprocess.Popen[bytes]]:
    """A body that is still there."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


async def test_the_end_of_a_body_that_is_gone_is_recorded(
    directory: RunDirectory, group: subprocess.Popen[bytes]
) -> None:
    """As a failure of the execution that was started, which says what became of its supervisor."""
    directory.record_start("00000000-0000-0000-0000-000000000001", group.pid)
    group.kill()
    group.wait()

    assert await can_be_reported(directory, -9)

    recorded = json.loads(directory.recorded_exit() or "")
    assert "00000000-0000-0000-0000-000000000001" == recorded["executionId"]
    assert recorded["failed"]["message"].startswith("The supervisor of the run was ended by signal 9 (SIGKILL).")


async def test_a_body_that_lives_on_cannot_be_answered_for(
    directory: RunDirectory, group: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A successor could begin beside it, so the end is left to the lease."""
    monkeypatch.setattr(killed, "GONE_SECONDS_MAX", 0.05)
    directory.record_start("00000000-0000-0000-0000-000000000001", group.pid)

    assert not await can_be_reported(directory, -9)
    assert directory.recorded_exit() is None


async def test_what_nobody_asked_to_begin_has_no_end(directory: RunDirectory) -> None:
    """Only the execution that was started may end its lease, and here none is known."""
    assert not await can_be_reported(directory, -9)


async def test_an_end_that_was_recorded_before_stands(directory: RunDirectory) -> None:
    """Whatever killed the supervisor afterwards."""
    directory.record_exit('{"succeeded": {}}')

    assert await can_be_reported(directory, -9)
    assert '{"succeeded": {}}' == directory.recorded_exit()
