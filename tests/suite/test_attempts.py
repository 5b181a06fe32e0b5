"""Retries, cancels and restarts of real runs: what a person sees of them, and what is left of their processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.suite.installation import Installation, installed
from tests.support.databases import KINDS, Databases

FLOWS = """
import os, pathlib, signal, subprocess, sys, time
from penstock import current_flow_run, flow
from penstock.tasks import create_flow_run

@flow(retries=2, retry_delay=0.1)
def third_time(lucky: int = 3):
    run = current_flow_run()
    print("attempt", run.attempt, "in process", os.getpid())
    if run.attempt < lucky:
        raise ValueError(f"not at attempt {run.attempt}")
    return run.attempt

@flow
def stubborn(pids: str):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path(pids).write_text(f"{os.getpid()} {child.pid}")
    print("here to stay")
    time.sleep(600)

@flow
def polite():
    print("waiting")
    try:
        time.sleep(600)
    finally:
        print("cleaned up")

@flow
def family():
    print("kept", create_flow_run(flow_name="polite", labels=["nobody"], child_policy="ABANDON"))
    print("goes", create_flow_run(flow_name="polite", labels=["nobody"]))
    print("all here")
    time.sleep(600)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(params=KINDS, scope="module")
def here(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """Services and the flows, once on each kind of database; bodies have a second to end."""
    url = databases.fresh(request.param)
    with installed(tmp_path_factory.mktemp("attempts"), url, {"PENSTOCK_STOP_GRACE": "1"}) as (here, _):
        here.flow("attempts", FLOWS)
        yield here
    databases.drop(url)


def steps_of(here: Installation, flow_run_id: str) -> list[tuple[str, str, int]]:
    """The state, the cause and the attempt of each step of a run."""
    (shown,) = here.documents("describe", "flow-run", flow_run_id)
    return [(step["state"], step["cause"], step["attempt"]) for step in shown["transitions"]]


def state_of(here: Installation, flow_run_id: str) -> str:
    """Where the run is in its life."""
    state: str = here.documents("get", "flow-run", flow_run_id)[0]["state"]
    return state


def attempt_steps(attempt: int, begins: str, ends: tuple[str, str, int]) -> list[tuple[str, str, int]]:
    """The steps of one attempt that was executed to its end."""
    onward = [("SUBMITTED", "ACCEPTED", attempt), ("RUNNING", "STARTED", attempt)]
    return [("SCHEDULED", begins, attempt), *onward, ends]


def test_a_failed_attempt_is_deployed_again_when_it_is_due(here: Installation) -> None:
    """Each attempt is a process of its own, and keeps its number, its cause and its lines apart."""
    with here.agent():
        events = here.documents("run", "--name", "third-time", "--watch")
    run = events[-1]["flow_run"]
    lines = here.documents("logs", run["flow_run_id"])
    said = [line["text"].split() for line in lines if line["text"].startswith("attempt")]

    assert ("SUCCEEDED", 3, 3) == (run["state"], run["attempt"], run["result"])
    assert [
        *attempt_steps(1, "CREATED", ("SCHEDULED", "RETRIED", 2))[:-1],
        *attempt_steps(2, "RETRIED", ("SCHEDULED", "RETRIED", 3))[:-1],
        *attempt_steps(3, "RETRIED", ("SUCCEEDED", "FINISHED", 3)),
    ] == steps_of(here, run["flow_run_id"])
    assert ["1", "2", "3"] == [words[1] for words in said]
    assert 3 == len({words[-1] for words in said}) == len({line["fence"] for line in lines})


def test_a_run_may_have_retries_of_its_own(here: Installation) -> None:
    """What the command says goes before what the flow says; once the retries are used up the run fails."""
    with here.agent():
        done = here.penstock("run", "--name", "third-time", "--retries", "1", "--retry-delay", "0s", "--watch")

    assert 1 == done.returncode
    assert "not at attempt 2" in done.stdout
    assert "attempt 3" not in done.stdout


def test_a_run_that_nobody_holds_is_cancelled_at_once(here: Installation) -> None:
    """Without any agent it is final when the command returns; to cancel it again changes nothing."""
    run = here.succeed("run", "--name", "polite", "--quiet").strip()

    here.succeed("cancel", run, "--reason", "a mistake")
    here.succeed("cancel", run)

    assert [("SCHEDULED", "CREATED", 1), ("CANCELLED", "CANCEL_ASKED", 1)] == steps_of(here, run)


def test_a_watcher_learns_of_the_cancel(here: Installation, tmp_path: Path) -> None:
    """The body is asked to end and cleans up; whoever watches exits with 3."""
    with here.agent(), here.background("watch", "run", "--name", "polite", "--run-name", "watched", "--watch") as watch:
        watch.wait_for("waiting")
        (run,) = here.documents("get", "flow-runs", "--name", "watched")
        here.succeed("cancel", run["flow_run_id"])
        code = watch.process.wait(60)

    assert (3, True) == (code, "cleaned up" in watch.text), watch.text
    assert ("CANCELLED", "FINISHED", 1) == steps_of(here, run["flow_run_id"])[-1]


def test_a_body_that_will_not_end_is_killed_with_all_it_started(here: Installation, tmp_path: Path) -> None:
    """After the grace its whole process group goes, and only then is the run CANCELLED."""
    pids = tmp_path / "pids"
    asked = ("--param", f"pids={pids}", "--run-name", "stuck", "--watch")
    with here.agent(), here.background("watch", "run", "--name", "stubborn", *asked) as watch:
        watch.wait_for("here to stay")
        (run,) = here.documents("get", "flow-runs", "--name", "stuck")
        here.succeed("cancel", run["flow_run_id"])
        assert 3 == watch.process.wait(60), watch.text
        living = [pid for pid in map(int, pids.read_text().split()) if lives(pid)]

    assert [] == living
    assert [("CANCELLING", "CANCEL_ASKED", 1), ("CANCELLED", "FINISHED", 1)] == steps_of(here, run["flow_run_id"])[-2:]


def test_children_follow_as_their_policy_says(here: Installation) -> None:
    """A cancelled parent takes along the children that go with it; one that is abandoned waits on."""
    with here.agent(), here.background("watch", "run", "--name", "family", "--run-name", "parent", "--watch") as watch:
        watch.wait_for("all here")
        (parent,) = here.documents("get", "flow-runs", "--name", "parent")
        here.succeed("cancel", parent["flow_run_id"])
        assert 3 == watch.process.wait(60), watch.text
        children = dict(line.split()[-2:] for line in watch.text.splitlines() if "kept" in line or "goes" in line)
        wait(here, children["goes"])

    assert [("SCHEDULED", "CREATED", 1), ("CANCELLED", "PARENT_CANCELLED", 1)] == steps_of(here, children["goes"])
    assert "SCHEDULED" == state_of(here, children["kept"])


def test_a_finished_run_is_attempted_again(here: Installation) -> None:
    """A restart keeps the id and the history, and gives back the retries."""
    with here.agent():
        failing = here.penstock("run", "--name", "third-time", "--param", "lucky=4", "--run-name", "again", "--watch")
        (run,) = here.documents("get", "flow-runs", "--name", "again")
        here.succeed("restart", run["flow_run_id"])
        again = wait(here, run["flow_run_id"])

    assert (1, "FAILED", 3) == (failing.returncode, run["state"], run["attempt"])
    assert ("SUCCEEDED", 4, 4) == (again["state"], again["attempt"], again["result"])
    assert ("SCHEDULED", "RESTARTED", 4) in steps_of(here, run["flow_run_id"])


def wait(here: Installation, flow_run_id: str) -> dict[str, Any]:
    """The run once it has ended."""
    script = here.directory / "wait.py"
    script.write_text(f"from penstock import Client\nClient().wait_for_flow_run({flow_run_id!r})\n")
    subprocess.run([sys.executable, str(script)], env=here.environ, check=True, timeout=120)
    return here.documents("get", "flow-run", flow_run_id)[0]


def lives(pid: int) -> bool:
    """Whether that process still runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return os.path.exists(f"/proc/{pid}")
