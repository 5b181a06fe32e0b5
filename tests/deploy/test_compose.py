"""compose.yaml: it is valid, and it says of the processes what they say of themselves."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.settings import MIGRATIONS, PROCESSES, SERVICES, known_to

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
DOCUMENT = yaml.safe_load(COMPOSE.read_text())
# Each of our processes by its module, the third word of its command.
OURS: dict[str, Any] = {each["command"][2]: each for each in DOCUMENT["services"].values() if "command" in each}


def name_of(module: str) -> str:
    """The name under which a process is reached by the others."""
    (name,) = (name for name, each in DOCUMENT["services"].items() if each is OURS[module])
    return str(name)


def given(environment: Mapping[str, str], **variables: str) -> dict[str, str]:
    """An environment as compose hands it on when these variables are set."""
    return {
        name: re.sub(r"\$\{(\w+):[?-].*?\}", lambda found: variables.get(found[1], ""), value)
        for name, value in environment.items()
    }


def test_schema() -> None:
    """The file follows the schema of the compose specification, which ships with the checker."""
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout


def test_every_process_is_there() -> None:
    """The migration, the four services and an agent run, and nothing else of ours."""
    expected = {MIGRATIONS, *PROCESSES}

    assert expected == set(OURS)


@pytest.mark.parametrize("module", PROCESSES)
def test_variables_are_known(module: str) -> None:
    """A process is told only what it reads."""
    unknown = set(OURS[module]["environment"]) - known_to(module)

    assert not unknown


@pytest.mark.parametrize("module", SERVICES)
def test_services_accept_their_settings(module: str) -> None:
    """A service may listen for other containers, because it has a token, and is on the migrated database."""
    environment = given(OURS[module]["environment"], PENSTOCK_TOKEN="secret")

    settings = SERVICES[module].load(environment)

    migrated = OURS[MIGRATIONS]["command"][3]
    expected = ("0.0.0.0", "secret", migrated)
    assert expected == (settings.host, settings.token, settings.database_url)


@pytest.mark.parametrize("name", ["PENSTOCK_TOKEN", "POSTGRES_PASSWORD"])
def test_secrets_must_be_given(name: str) -> None:
    """A secret has no default: without it compose starts nothing and says what is missing."""
    used = re.findall(rf"\$\{{{name}([^}}]*)\}}", COMPOSE.read_text())

    assert used
    assert not [each for each in used if not each.startswith(":?")]


@pytest.mark.parametrize("module", SERVICES)
def test_services_are_probed_where_they_listen(module: str) -> None:
    """The health check of a service asks at its own port."""
    expected = f"127.0.0.1:{SERVICES[module]().port}"

    assert expected == OURS[module]["healthcheck"]["test"][-1]


@pytest.mark.parametrize("module", SERVICES)
def test_services_start_after_the_migration(module: str) -> None:
    """A service waits until the database has the schema of its version."""
    expected = {name_of(MIGRATIONS): {"condition": "service_completed_successfully"}}

    assert expected == OURS[module]["depends_on"]


def test_the_migration_waits_for_the_database() -> None:
    """The migration starts once PostgreSQL answers, and connects to it by the name it has here."""
    (name,) = OURS[MIGRATIONS]["depends_on"]

    assert "healthcheck" in DOCUMENT["services"][name]
    assert f"@{name}/" in OURS[MIGRATIONS]["command"][3]


def test_ports_are_published_on_this_machine_only() -> None:
    """What callers need is reached from this machine, without TLS from nowhere else."""
    published = [port for each in DOCUMENT["services"].values() for port in each.get("ports", ())]

    ports = [SERVICES[f"penstock.{each}"]().port for each in ("flow_run", "queue", "log")]
    expected = [f"127.0.0.1:{port}:{port}" for port in ports]
    assert expected == published


def test_the_agent_finds_the_services() -> None:
    """The agent is told each service's name and port, and waits for all of them."""
    called = {"FLOW_RUN": "penstock.flow_run", "QUEUE": "penstock.queue", "LOG": "penstock.log"}
    environment = OURS["penstock.agent"]["environment"]

    for name, module in called.items():
        expected = f"{name_of(module)}:{SERVICES[module]().port}"
        assert expected == environment[f"PENSTOCK_{name}_ADDRESS"]
        assert OURS["penstock.agent"]["depends_on"][name_of(module)] == {"condition": "service_healthy"}


@pytest.mark.parametrize("module", PROCESSES)
def test_spans_go_to_the_collector(module: str) -> None:
    """Every process sends its spans to where the collector receives them."""
    config = yaml.safe_load((DEPLOY / "collector.yaml").read_text())
    port = config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    expected = f"http://collector:{port}"

    assert "collector" in DOCUMENT["services"]
    assert expected == OURS[module]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"]


def test_mounted_files_exist() -> None:
    """Each file that a container is given is in this folder."""
    mounted = [
        volume.partition(":")[0]
        for each in DOCUMENT["services"].values()
        for volume in each.get("volumes", ())
        if volume.startswith(".")
    ]

    assert mounted
    assert not [path for path in mounted if not (DEPLOY / path).is_file()]


def test_volumes_are_declared() -> None:
    """Each named volume is declared once, and used."""
    used = {
        volume.partition(":")[0]
        for each in DOCUMENT["services"].values()
        for volume in each.get("volumes", ())
        if not volume.startswith(".")
    }

    assert used == set(DOCUMENT["volumes"])


@pytest.mark.parametrize("module", OURS)
def test_containers_have_no_privileges(module: str) -> None:
    """A container of ours can gain no rights, and all but the agent, whose flows may write, are read-only."""
    expected = (["ALL"], ["no-new-privileges:true"], module != "penstock.agent")

    assert expected == (OURS[module]["cap_drop"], OURS[module]["security_opt"], OURS[module].get("read_only", False))
