"""One flow run, the whole way, through real processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.suite.installation import Background, Installation, descendants, installed
from tests.support.databases import KINDS, Databases

TIDE = """
import sys
from penstock import current_flow_run, flow, get_logger

@flow
def tide(station: str, readings: int = 3):
    get_logger().info("reading %s", station)
    for reading in range(readings):
        print("reading", reading)
    print("done", file=sys.stderr)
    return {"station": station, "fence": current_flow_run().fence}

@flow
def wreck():
    raise ValueError("no tide here")

@flow
def slow(gate: str):
    import pathlib, time
    print("waiting")
    while not pathlib.Path(gate).exists():
        time.sleep(0.05)
    return "through"
"""

pytestmark = pytest.mark.slow


@pytest.fixture(params=KINDS, scope="module")
def place(
    request: pytest.FixtureRequest, databases: Databases, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Installation, Background]]:
    """One installation for all tests of this file, once on each kind of database."""
    url = databases.fresh(request.param)
    with installed(tmp_path_factory.mktemp("place"), url) as (here, server):
        here.flow("tide", TIDE)
        yield here, server
    databases.drop(url)


def test_a_run_travels_the_whole_way(place: tuple[Installation, Background]) -> None:
    """Registered, created, queued, streamed to an agent, executed, logged, watched, finished."""
    here, _ = place

    with here.agent():
        events = here.documents("run", "--name", "tide", "--param", "station=harbour", "--watch")

    run = events[-1]["flow_run"]
    lines = here.documents("logs", run["flow_run_id"])
    assert ("SUCCEEDED", {"station": "harbour", "fence": 1}) == (run["state"], run["result"])
    assert ["reading harbour", "reading 0", "reading 1", "reading 2", "done"] == [line["text"] for line in lines]


def test_a_failure_of_a_run_is_data_and_an_exit_code(place: tuple[Installation, Background]) -> None:
    """The watching command exits with 1 and shows what the flow said."""
    here, _ = place

    with here.agent():
        done = here.penstock("run", "--name", "wreck", "--watch")

    assert done.returncode == 1
    assert "no tide here" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_flow_may_be_a_command(place: tuple[Installation, Background]) -> None:
    """A program in any language finds its parameters in a file and is logged line by line."""
    here, _ = place
    script = 'echo "got $(cat "$PENSTOCK_PARAMETERS_FILE")"; echo oops >&2'
    (here.directory / "shell.sh").write_text(script)
    here.succeed("register", "--command", f"sh {here.directory}/shell.sh", "--name", "shell", "--project", "tests")

    with here.agent():
        events = here.documents("run", "--name", "shell", "--watch")

    lines = here.documents("logs", events[-1]["flow_run"]["flow_run_id"])
    assert {("STDOUT", "got {}"), ("STDERR", "oops")} == {(line["stream"], line["text"]) for line in lines}


def test_runs_go_only_to_agents_that_bear_their_labels(place: tuple[Installation, Background]) -> None:
    """An agent without the label is offered nothing; one with it, and more, is."""
    here, _ = place
    run = here.succeed("run", "--name", "tide", "--param", "station=quay", "--label", "gpu", "--quiet").strip()

    with here.agent(name="plain"), here.agent("--label", "gpu", "--label", "big", name="labelled") as labelled:
        labelled.wait_for(run)

        plain = (here.directory / "plain.out").read_text()
    assert run not in plain


def test_services_that_die_do_not_disturb_a_running_body(
    place: tuple[Installation, Background], tmp_path: Path
) -> None:
    """All services are killed while a body runs; they come back, and the run ends as if nothing had happened."""
    here, server = place
    gate, run_name = tmp_path / "gate", "undisturbed"

    with here.agent() as agent:
        asked = ("--param", f"gate={gate}", "--run-name", run_name, "--quiet")
        run = here.succeed("run", "--name", "slow", *asked).strip()
        with here.background("watch", "logs", run, "--follow") as follow:
            follow.wait_for("waiting")
            for pid, command in descendants(server.process.pid).items():
                if "penstock." in command:
                    os.kill(pid, signal.SIGKILL)
            gate.touch()
            follow.wait_for_end(lambda: f"{agent.text}\n{server.text}")
        shown = here.documents("get", "flow-runs", "--name", run_name)

    assert [(run, "SUCCEEDED", 1)] == [(each["flow_run_id"], each["state"], each["attempt"]) for each in shown], (
        agent.text
    )


def test_sigterm_leaves_no_process_behind(tmp_path: Path, database_url: str) -> None:
    """The server and the agent end with code 0, and so does everything they started."""
    with installed(tmp_path, database_url) as (here, server), here.agent() as agent:
        here.flow("tide", TIDE)
        here.succeed("run", "--name", "tide", "--param", "station=pier", "--watch")
        started = descendants(server.process.pid) | descendants(agent.process.pid)

        codes = (agent.end(), server.end())

    assert codes == (0, 0), server.text
    assert len(started) >= 4
    assert not [command for pid, command in started.items() if _lives(pid)]


def test_the_same_key_makes_one_run(place: tuple[Installation, Background]) -> None:
    """The command prints the same id for the same idempotency key."""
    here, _ = place
    command = ("run", "--name", "tide", "--param", "station=lock", "--idempotency-key", "once", "--quiet")

    first, second = here.succeed(*command), here.succeed(*command)

    assert first == second


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
