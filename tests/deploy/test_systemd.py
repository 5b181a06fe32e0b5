"""systemd units: they start what exists, tell it what it reads, and confine it."""

import configparser
import re
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from penstock.storage import wakeups
from tests.deploy.settings import MIGRATIONS, PROCESSES, SERVICES, known_to

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = {path.stem: path for path in sorted(SYSTEMD.glob("*.service"))}
CONFINED = ("NoNewPrivileges=yes", "ProtectSystem=strict", "ProtectHome=yes", "CapabilityBoundingSet=", "UMask=0077")
# What sun_path holds on Linux, its end included.
SOCKET_PATH_BYTES_MAX = 108


def values(unit: str, name: str) -> list[str]:
    """All values that a unit gives a name, which it may give more than once."""
    return re.findall(rf"^{name}=(.*)$", UNITS[unit].read_text(), flags=re.MULTILINE)


def value(unit: str, name: str) -> str:
    (only,) = values(unit, name)
    return only


def module_of(unit: str) -> str:
    """The module that a unit starts."""
    found = re.fullmatch(r"/opt/penstock/bin/python -m (\S+)( \$\{PENSTOCK_DATABASE\})?", value(unit, "ExecStart"))
    assert found, f"{unit} starts something else"
    return found[1]


def variables_of(unit: str) -> Iterator[tuple[str, str]]:
    """What a unit tells its process: by its file, then by itself."""
    for line in (SYSTEMD / Path(value(unit, "EnvironmentFile")).name).read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, text = line.partition("=")
            yield name, text
    for each in values(unit, "Environment"):
        name, _, text = each.partition("=")
        yield name, text


def test_every_process_has_a_unit() -> None:
    """The migration, the four services and an agent are started, each by the unit that bears its name."""
    names = {module: f"penstock-{module.rpartition('.')[2].replace('_', '-')}" for module in PROCESSES}
    expected = {"penstock-migrate": MIGRATIONS, **{unit: module for module, unit in names.items()}}

    assert expected == {unit: module_of(unit) for unit in UNITS}


@pytest.mark.parametrize("unit", UNITS)
def test_syntax(unit: str) -> None:
    """A unit has the three sections of a service, and no stray text."""
    parser = configparser.RawConfigParser(strict=False, allow_no_value=False)
    parser.read(UNITS[unit])

    assert parser.sections() == ["Unit", "Service", "Install"]


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_started_exists(unit: str) -> None:
    """The module that a unit starts can be run."""
    assert find_spec(f"{module_of(unit)}.__main__")


@pytest.mark.parametrize("unit", UNITS)
def test_variables_are_known(unit: str) -> None:
    """A unit and its file set only variables that its process, or one that shares the file, reads."""
    known = known_to("penstock.agent") if unit == "penstock-agent" else known_to(*SERVICES)

    assert not {name for name, _ in variables_of(unit)} - known


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != "penstock-migrate"])
def test_settings_are_accepted(unit: str) -> None:
    """A process can be started with the file as it ships: on this machine, and without a token on loopback only."""
    settings = PROCESSES[module_of(unit)].load(dict(variables_of(unit)))

    assert getattr(settings, "host", "127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize("unit", UNITS)
def test_units_are_confined(unit: str) -> None:
    """No unit runs as root, gains rights, or writes but to its own directories."""
    lines = UNITS[unit].read_text().splitlines()

    assert value(unit, "User") != "root"
    assert not [each for each in CONFINED if each not in lines]


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != "penstock-agent"])
def test_doorbells_are_shared(unit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The services of one SQLite file wake each other below one directory that lasts, in spite of a private /tmp."""
    runtime = Path("/run") / value(unit, "RuntimeDirectory")
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        longest = runtime / wakeups.street(tmp_path / "penstock.db").relative_to(temporary) / "0123456789ab.bell"

    assert dict(variables_of(unit))["TMPDIR"] == str(runtime)
    assert value(unit, "RuntimeDirectoryPreserve") == "yes"
    assert len(str(longest)) < SOCKET_PATH_BYTES_MAX


@pytest.mark.parametrize("unit", [unit for unit in UNITS if unit != "penstock-agent"])
def test_state_is_where_the_services_look(unit: str) -> None:
    """The database that ships as the default lies in the one directory that the services may write to."""
    variables = dict(variables_of(unit))
    directory = f"/var/lib/{value(unit, 'StateDirectory')}"

    assert variables["PENSTOCK_DATA_DIR"] == directory
    assert variables["PENSTOCK_DATABASE"].startswith(f"sqlite:///{directory}/")


@pytest.mark.parametrize("module", SERVICES)
def test_services_follow_the_migration(module: str) -> None:
    """A service starts once the migration has succeeded, and is restarted with it."""
    (unit,) = (unit for unit in UNITS if module_of(unit) == module)

    assert value(unit, "Requires") == "penstock-migrate.service"
    assert "penstock-migrate.service" in value(unit, "After")


def test_the_agent_is_apart() -> None:
    """What a flow executes is another user than the services, with a directory of its own, and outlives its agent."""
    assert value("penstock-agent", "User") not in {value(unit, "User") for unit in UNITS if unit != "penstock-agent"}
    assert value("penstock-agent", "EnvironmentFile") != value("penstock-queue", "EnvironmentFile")
    assert dict(variables_of("penstock-agent"))["PENSTOCK_DATA_DIR"] == "/var/lib/penstock-agent"
    assert value("penstock-agent", "KillMode") == "process"
