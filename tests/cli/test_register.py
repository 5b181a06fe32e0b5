"""`penstock register`."""

import json
from pathlib import Path

import pytest

from flowrun.v1 import flow_pb2
from flowrun.v1 import flow_service_pb2 as verbs
from penstock.domain.errors import InvalidRequest, Violation
from tests.cli.command import penstock
from tests.client.scripted import ScriptedServices

SOURCE = """
from penstock import flow

@flow
def river(city: str, rows: int = 10):
    pass

@flow(name="other-river")
def other():
    pass
"""


@pytest.fixture
def registry(services: ScriptedServices) -> ScriptedServices:
    """Services that take every registration."""

    def register(request: verbs.RegisterFlowRequest, _: object) -> verbs.RegisterFlowResponse:
        flow = flow_pb2.Flow(flow_id="id", name=request.name, project_name=request.project_name, version=2)
        return verbs.RegisterFlowResponse(flow=flow, created=request.name != "other-river")

    services.scripts["RegisterFlow"] = register
    return services


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file with two flows."""
    path = tmp_path / "flows.py"
    path.write_text(SOURCE)
    return path


async def test_the_flows_of_a_file_are_registered(registry: ScriptedServices, source: Path) -> None:
    """Every flow in the file is registered, and the user told which version each is."""
    shown = await penstock("register", str(source), "--project", "water", PENSTOCK_ADDRESS=registry.address)

    assert 0 == shown.code
    assert [
        "Flow river is registered as version 2 in project water: id",
        "Flow other-river is unchanged, still version 2 in project water: id",
    ] == shown.out.splitlines()
    first = registry.requests[0]
    assert [("city", True), ("rows", False)] == [(each.name, each.required) for each in first.parameters]
    assert f"{source}:river" == first.entry_point.python


async def test_one_flow_of_a_file_is_registered(registry: ScriptedServices, source: Path) -> None:
    """A name chooses one of the flows; the answer may be a document."""
    options = ("--project", "water", "--name", "other-river", "--json")
    shown = await penstock("register", str(source), *options, PENSTOCK_ADDRESS=registry.address)

    assert ("other-river", False) == (json.loads(shown.out)["name"], json.loads(shown.out)["created"])
    assert 1 == len(registry.requests)


async def test_a_command_is_registered(registry: ScriptedServices) -> None:
    """A program is registered with its arguments as a shell would split them."""
    shown = await penstock(
        *("register", "--command", "sort -k '2 3'", "--name", "sorted", "--project", "water", "--label", "x"),
        PENSTOCK_ADDRESS=registry.address,
    )

    (request,) = registry.requests
    assert 0 == shown.code
    assert ["sort", "-k", "2 3"] == list(request.entry_point.command.arguments)
    assert ("sorted", ["x"], True) == (request.name, list(request.labels), request.accepts_extra_parameters)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["nothing.py", "--project", "water"], 1, "there is no file"),
        (["no_such_module", "--project", "water"], 1, "there is no module no_such_module"),
        (["json", "--project", "water"], 1, "defines no flows"),
        (["nothing.py"], 2, "--project NAME"),
        (["--project", "water"], 2, "Say what to register"),
        (["--command", "sort", "--project", "water"], 2, "A command needs a name"),
        (["--command", "'sort", "--name", "x", "--project", "water"], 2, "cannot be split"),
        (["x.py", "--command", "sort", "--name", "x", "--project", "water"], 2, "not both"),
        (["x.py", "--label", "x", "--project", "water"], 2, "--label goes with --command"),
    ],
)
async def test_what_cannot_be_registered_is_said(
    options: list[str], code: int, words: str, registry: ScriptedServices, tmp_path: Path
) -> None:
    """A user's mistake is one sentence on stderr, and nothing is registered."""
    refused = await penstock("register", *options, cwd=tmp_path, PENSTOCK_ADDRESS=registry.address)

    assert (code, "") == (refused.code, refused.out)
    assert words in refused.err
    assert not registry.requests


async def test_an_error_in_the_users_file_is_theirs(registry: ScriptedServices, tmp_path: Path) -> None:
    """A file that fails to import is reported by its own exception, in one line."""
    path = tmp_path / "broken.py"
    path.write_text("1 / 0")

    refused = await penstock("register", str(path), "--project", "water", PENSTOCK_ADDRESS=registry.address)

    assert 1 == refused.code
    assert "ZeroDivisionError: division by zero" in refused.err
    assert 1 == len(refused.err.splitlines())


async def test_a_name_that_is_not_there_is_answered_with_those_that_are(
    registry: ScriptedServices, source: Path
) -> None:
    """A mistyped flow name is refused by listing the flows of the file."""
    options = ("--project", "water", "--name", "rivr")
    refused = await penstock("register", str(source), *options, PENSTOCK_ADDRESS=registry.address)

    assert 1 == refused.code
    assert "has no flow 'rivr'; it has river, other-river" in refused.err


async def test_a_version_is_added_to_a_group(registry: ScriptedServices, source: Path) -> None:
    """--group says the group, in place of project and name, for a flow and for a command."""
    flow = await penstock("register", str(source), "--group", "g", "--name", "river", PENSTOCK_ADDRESS=registry.address)
    command = await penstock("register", "--command", "tar -c x", "--group", "g", PENSTOCK_ADDRESS=registry.address)

    assert (0, 0) == (flow.code, command.code)
    assert [("g", "", "")] * 2 == [(each.flow_group_id, each.project_name, each.name) for each in registry.requests]


async def test_a_group_takes_one_flow(registry: ScriptedServices, source: Path) -> None:
    """Several flows would be versions of each other."""
    refused = await penstock("register", str(source), "--group", "g", PENSTOCK_ADDRESS=registry.address)

    assert (2, "penstock: --group takes one flow, and there are several; say which with --name.\n") == (
        refused.code,
        refused.err,
    )
    assert not registry.requests


async def test_what_is_wrong_is_told_in_the_words_of_the_command(registry: ScriptedServices) -> None:
    """Of a command all is typed, so every field has an option's name."""

    def refuse(*_: object) -> None:
        raise InvalidRequest((Violation("name", "is long"), Violation("labels[1]", "holds a comma")))

    registry.scripts["RegisterFlow"] = refuse

    refused = await penstock(
        *("register", "--command", "tar", "--name", "x", "--project", "p"), PENSTOCK_ADDRESS=registry.address
    )

    assert ["  --name: is long", "  --label (no. 2): holds a comma"] == refused.err.splitlines()[1:]
