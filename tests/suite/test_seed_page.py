"""What users of the archived backend read about creating flow runs, example by example, with this product's words."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.suite.installation import Installation, installed
from tests.support.databases import Databases

HELLO = """
from penstock import flow

@flow
def hello_world(name: str = "World", **more):
    print(f"Hello, {name}!", more)
    return more
"""
PARENT = """
from penstock import flow
from penstock.tasks import create_flow_run, wait_for_flow_run

@flow
def parent_flow():
    # Create the child flow run, look up the flow by name
    child_run_id = create_flow_run(flow_name="hello-world")

    # Wait for the flow run to complete before considering this flow run done
    # This is optional, this flow could exit and leave the other one running
    wait_for_flow_run(child_run_id)
    return child_run_id
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def here(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Services, with the page's flow."""
    url = databases.fresh("sqlite")
    with installed(tmp_path_factory.mktemp("page"), url) as (here, _):
        here.flow("hello", HELLO)
        yield here
    databases.drop(url)


@pytest.fixture(scope="module")
def flow(here: Installation) -> dict[str, Any]:
    """The registered flow, which takes any parameter."""
    found = here.documents("get", "flows", "--name", "hello-world", "--project", "tests")
    return found[0]


def run_of(here: Installation, flow_run_id: str) -> dict[str, Any]:
    """The run as the command shows it."""
    return here.documents("get", "flow-run", flow_run_id)[0]


def test_cli_by_name(here: Installation) -> None:
    """`run --name` creates a run and returns at once."""
    (run,) = here.documents("run", "--name", "hello-world")

    assert ("hello-world", "SCHEDULED", {"name": "World"}) == (run["flow_name"], run["state"], run["parameters"])


def test_cli_by_the_id_of_a_flow_or_of_a_group(here: Installation, flow: dict[str, Any]) -> None:
    """`run --id` takes either."""
    runs = [here.documents("run", "--id", flow[each])[0] for each in ("flow_id", "flow_group_id")]

    assert [flow["flow_id"]] * 2 == [run["flow_id"] for run in runs]


def test_cli_name_in_two_projects(here: Installation) -> None:
    """A name that is not unique needs its project; the refusal names those that have it."""
    twin = "from penstock import flow\n@flow\ndef twin(): ...\n"
    (here.directory / "twin.py").write_text(twin)
    for project in ("east", "west"):
        here.succeed("register", "twin.py", "--project", project)

    refused = here.penstock("run", "--name", "twin")
    (run,) = here.documents("run", "--name", "twin", "--project", "west")

    assert (1, True, True) == (refused.returncode, "east" in refused.stderr, "west" in refused.stderr)
    assert "twin" == run["flow_name"]


def test_cli_watch(here: Installation) -> None:
    """`run --watch` shows the states and the log until the end."""
    with here.agent():
        shown = here.succeed("run", "--name", "hello-world", "--watch")

    assert all(word in shown for word in ("SCHEDULED", "RUNNING", "SUCCEEDED", "Hello, World!"))


def test_cli_local(here: Installation) -> None:
    """`run --path` and `run --module` need no backend."""
    nobody = {"PENSTOCK_ADDRESS": "127.0.0.1:9"}

    by_path = here.penstock("run", "--path", "hello.py", "--param", "a param with space=2", environ=nobody)
    by_module = here.penstock("run", "--module", "hello", environ=nobody)

    assert (0, 0) == (by_path.returncode, by_module.returncode), by_path.stderr + by_module.stderr
    assert "Hello, World! {'a param with space': 2}" in by_path.stdout


def test_cli_without_an_agent(here: Installation) -> None:
    """`run --execute` creates a run that no agent may claim, and executes it here."""
    events = here.documents("run", "--name", "hello-world", "--execute")

    assert ("SUCCEEDED", ["penstock:agentless"]) == tuple(events[-1]["flow_run"][each] for each in ("state", "labels"))


def test_python_client(here: Installation, flow: dict[str, Any]) -> None:
    """`client.create_flow_run(flow_id=…)`."""
    run = python(here, f"client.create_flow_run(flow_id={flow['flow_id']!r})")

    assert flow["flow_id"] == run["flow_id"]


def test_task(here: Installation) -> None:
    """A flow creates a run of another, found by its name, and waits for it; the child has its parent and its trace."""
    here.flow("parent", PARENT)

    with here.agent():
        events = here.documents("run", "--name", "parent-flow", "--watch")
    parent = events[-1]["flow_run"]
    child = run_of(here, parent["result"])

    assert ("SUCCEEDED", "SUCCEEDED") == (parent["state"], child["state"])
    assert parent["flow_run_id"] == child["parent_flow_run_id"]
    assert trace_of(parent) == trace_of(child)


def test_parameters(here: Installation, flow: dict[str, Any]) -> None:
    """From the command line and from Python; 2 stays 2."""
    (by_command,) = here.documents("run", "--id", flow["flow_id"], "--param", "a=2")
    by_client = python(here, f'client.create_flow_run(flow_id={flow["flow_id"]!r}, parameters={{"a": 2}})')

    assert {"a": 2, "name": "World"} == by_command["parameters"] == by_client["parameters"]


def test_flow_run_names(here: Installation, flow: dict[str, Any]) -> None:
    """Given, or generated."""
    name = "docs example hello-world"
    (by_command,) = here.documents("run", "--id", flow["flow_id"], "--run-name", name)
    by_client = python(here, f"client.create_flow_run(flow_id={flow['flow_id']!r}, flow_run_name={name!r})")
    (by_nobody,) = here.documents("run", "--id", flow["flow_id"])

    assert name == by_command["name"] == by_client["name"]
    assert 2 == len(by_nobody["name"].split("-"))


def test_start_times(here: Installation, flow: dict[str, Any]) -> None:
    """A run may be due later, and waits until then."""
    later = "scheduled_start_time=pendulum.now().add(minutes=10)"

    run = python(here, f"client.create_flow_run(flow_id={flow['flow_id']!r}, {later})")
    with here.agent():
        explained = here.succeed("explain", run["flow_run_id"])
        state = run_of(here, run["flow_run_id"])["state"]

    assert ("SCHEDULED", True) == (state, run["scheduled_start_time"] > run["create_time"])
    assert "due" in explained


def test_idempotency(here: Installation, flow: dict[str, Any]) -> None:
    """A key makes one run, however often and by whatever way it is used."""
    key = "do-not-create-two-runs"
    again = f"client.create_flow_run(flow_id={flow['flow_id']!r}, idempotency_key={key!r})"

    first, second = python(here, again), python(here, again)
    third = here.succeed("run", "--id", flow["flow_id"], "--idempotency-key", key, "--quiet")

    assert (True, False) == (first["created"], second["created"])
    assert first["flow_run_id"] == second["flow_run_id"] == third.strip()


def test_flow_groups_vs_flows(here: Installation) -> None:
    """A group's id means its live flow, whichever that is; an archived flow is refused, naming the live one."""
    here.flow("moving", "from penstock import flow\n@flow\ndef moving(): return 1\n")
    (first,) = here.documents("get", "flows", "--name", "moving")
    here.flow("moving", "from penstock import flow\n@flow\ndef moving(): return 2\n")
    (second,) = here.documents("get", "flows", "--name", "moving")

    (run,) = here.documents("run", "--id", first["flow_group_id"])
    refused = here.penstock("run", "--id", first["flow_id"])

    assert (second["flow_id"], 2) == (run["flow_id"], second["version"])
    assert 1 == refused.returncode
    assert second["flow_id"] in refused.stderr


def python(here: Installation, expression: str) -> dict[str, Any]:
    """What an expression in a program of the user's answers, as JSON."""
    script = here.directory / "program.py"
    script.write_text(
        "import pendulum\n"
        "from penstock import Client\n"
        "from penstock.cli.json_output import to_json\n"
        "client = Client()\n"
        f"print(to_json({expression}))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env=here.environ,
        cwd=here.directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def trace_of(run: dict[str, Any]) -> str:
    """The trace that a run belongs to."""
    trace_id: str = run["trace_context"]["traceparent"].split("-")[1]
    return trace_id
