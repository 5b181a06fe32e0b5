"""The gate that a program waits at."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.agent.body import body_environment, gated
from penstock.agent.run_directory import Assignment, RunDirectory
from tests.agent.waiting import is_gone, number_in

SCRIPT = 'echo "$TRACEPARENT/$TRACESTATE/$1"; cat; ls /proc/self/fd | wc -l'


@pytest.fixture
def start() -> Iterator[Any]:
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str]) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                gated(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def test_a_gate_that_opens_lets_the_program_begin(start: Any) -> None:
    """It gets its arguments and the trace, nothing on its input, and no descriptor of ours."""
    process = start(["sh", "-c", SCRIPT, "sh", "two words"])

    process.stdin.write("parent state=1\n")
    process.stdin.flush()

    assert process.stdout.read().splitlines() == ["parent/state=1/two words", "4"]
    assert process.wait(20) == 0


def test_a_gate_that_closes_lets_nothing_begin(start: Any) -> None:
    """The program is never executed."""
    process = start(["echo", "executed"])

    process.stdin.close()

    assert process.stdout.read() == ""
    assert process.wait(20) == 125


async def test_a_gate_that_closes_later_ends_the_group(start: Any, tmp_path: Path) -> None:
    """What the program started ends as well, also after the group was asked politely and did not listen."""
    witness = tmp_path / "witness"
    process = start(["sh", "-c", f"trap '' TERM; sleep 60 & echo $! > {witness}; wait"])
    process.stdin.write("parent\n")
    process.stdin.flush()
    child = await number_in(witness)

    os.killpg(process.pid, signal.SIGTERM)
    process.stdin.close()

    assert await is_gone(child)
    assert process.wait(20) == -9


def test_the_watcher_is_no_child_of_the_program(start: Any) -> None:
    """A program that waits for all of its children does not wait for ever."""
    process = start([sys.executable, "-c", "import os\ntry: os.wait()\nexcept ChildProcessError: print('alone')"])

    process.stdin.write("parent\n")
    process.stdin.flush()

    assert process.stdout.read() == "alone\n"


def test_the_environment_holds_the_run_and_not_the_agent(tmp_path: Path) -> None:
    """What the run config adds is there, but it cannot pretend to be another run; a token only if it is lent."""
    assignment = Assignment(
        flow_run_id="run",
        fence=2,
        attempt=1,
        flow_name="f",
        flow_run_name="n",
        agent_id="a",
        entry_point="",
        command=["true"],
        parameters_json="{}",
        context_json="{}",
        environment={"COLOUR": "blue", "PATH": "/own", "PENSTOCK_FENCE": "99"},
        working_directory="",
        log_level="INFO",
        flow_run_address="a:1",
        queue_address="a:2",
        log_address="a:3",
        token="secret",
        lease_end=0,
        lease_seconds=1,
        stop_grace_seconds=1,
        trace_context={},
    )
    inherited = {"PATH": "/bin", "HOME": "/home", "PENSTOCK_TOKEN": "secret", "PENSTOCK_DATA_DIR": "/data"}

    environment = body_environment(assignment, RunDirectory(tmp_path), inherited)

    assert (environment["COLOUR"], environment["PATH"], environment["HOME"]) == ("blue", "/own", "/home")
    assert environment["PENSTOCK_FENCE"] == "2"
    assert environment["PENSTOCK_FLOW_RUN_ADDRESS"] == "a:1"
    assert not {"PENSTOCK_TOKEN", "PENSTOCK_DATA_DIR"} & set(environment)
    assert "secret" not in repr(assignment)
    assert os.environ.get("COLOUR") != "blue"
    lent = body_environment(replace(assignment, lends_token=True), RunDirectory(tmp_path), inherited)
    assert {"PENSTOCK_TOKEN": "secret"} == {name: lent[name] for name in lent.keys() - environment.keys()}
