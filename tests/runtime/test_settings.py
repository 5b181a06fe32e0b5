"""Tests of `penstock.runtime.settings`."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from penstock.domain import limits
from penstock.runtime import settings
from penstock.runtime.settings import (
    ClientSettings,
    FlowRunSettings,
    KeeperSettings,
    LogSettings,
    QueueSettings,
    ServiceSettings,
    Settings,
    SettingsError,
)


@dataclass(frozen=True, slots=True)
class EveryKind(Settings):
    """One field of each type that a setting may have."""

    text: str = ""
    count: int = 1
    share: float = 0.5
    truth: bool = False
    maybe: bool | None = None
    span: timedelta = timedelta(seconds=1)
    place: Path = Path("here")
    other_place: Path | None = None


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "penstock.toml"


def test_without_anything_the_defaults_hold() -> None:
    """A process that is told nothing takes its own port and the contract's timings."""
    queue = QueueSettings.load({})

    assert (queue.host, queue.port) == ("127.0.0.1", 4711)
    assert queue.held_lease == limits.HELD_LEASE
    assert queue.sweep_interval == limits.SWEEP_INTERVAL
    assert queue.database_url == f"sqlite:///{queue.data_dir}/penstock.db"


def test_each_process_has_a_port_of_its_own() -> None:
    """The four services do not meet on one port."""
    kinds: tuple[type[ServiceSettings], ...] = (FlowRunSettings, QueueSettings, LogSettings, KeeperSettings)

    assert [kind.load({}).port for kind in kinds] == [4710, 4711, 4712, 4713]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("text", "some text", "some text"),
        ("count", "0", 0),
        ("share", "0.25", 0.25),
        ("truth", "TRUE", True),
        ("truth", "0", False),
        ("maybe", "no", False),
        ("maybe", "on", True),
        ("span", "0.5", timedelta(milliseconds=500)),
        ("place", "/some/where", Path("/some/where")),
        ("other_place", "~", Path.home()),
    ],
)
def test_a_variable_becomes_a_value(name: str, text: str, value: object) -> None:
    """The text of a variable is converted to the type of its field."""
    loaded = EveryKind.load({f"PENSTOCK_{name.upper()}": text})

    assert value == getattr(loaded, name)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("count", "many", "a whole number, 0 or more"),
        ("count", "-1", "a whole number, 0 or more"),
        ("count", "1.5", "a whole number, 0 or more"),
        ("share", "half", "a number"),
        ("share", "nan", "a number"),
        ("truth", "maybe", "true or false"),
        ("span", "soon", "a number of seconds above 0"),
        ("span", "0", "a number of seconds above 0"),
        ("span", "inf", "a number of seconds above 0"),
        ("span", "1e300", "a number of seconds above 0"),
    ],
)
def test_a_bad_value_is_named_with_what_is_expected(name: str, text: str, expected: str) -> None:
    """The error says which variable, what it should be and what it is."""
    with pytest.raises(SettingsError) as raised:
        EveryKind.load({f"PENSTOCK_{name.upper()}": text})

    assert f"PENSTOCK_{name.upper()} must be {expected}, not {text!r}." == str(raised.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [("PORT", "65536"), ("DATABASE_THREADS", "0"), ("LOG_LEVEL", "LOUD")],
)
def test_a_value_out_of_bounds_is_named(variable: str, text: str) -> None:
    """What no process could use is refused at the start."""
    with pytest.raises(SettingsError, match=f"PENSTOCK_{variable} must be "):
        QueueSettings.load({f"PENSTOCK_{variable}": text})


def test_the_environment_wins_over_the_file(config: Path) -> None:
    """A variable overrules the file; an empty one does not."""
    config.write_text("[queue]\nport = 5000\n")

    assert QueueSettings.load({"PENSTOCK_CONFIG": str(config), "PENSTOCK_PORT": "6000"}).port == 6000
    assert QueueSettings.load({"PENSTOCK_CONFIG": str(config), "PENSTOCK_PORT": ""}).port == 5000


def test_a_process_reads_its_table_then_the_top_level(config: Path) -> None:
    """What stands at the top level is for all; a process's own table overrules it and concerns nobody else."""
    config.write_text('log_level = "ERROR"\nheld_lease = 20\nreflection = false\n[queue]\nheld_lease = 2.5\n')

    queue, log = QueueSettings.load({}, config), LogSettings.load({}, config)

    assert queue.log_level == log.log_level == "ERROR"
    assert queue.reflection is False
    assert queue.held_lease == timedelta(seconds=2.5)
    assert log.held_lease == timedelta(seconds=20)


@pytest.mark.parametrize(
    ("content", "unknown"),
    [("portt = 1", "portt"), ("[queue]\nportt = 1", "queue.portt"), ("[queu]\nport = 1", "[queu]")],
)
def test_a_key_that_nobody_knows_is_refused(config: Path, content: str, unknown: str) -> None:
    """A misspelt key or table does not silently do nothing."""
    config.write_text(content)

    with pytest.raises(SettingsError) as raised:
        QueueSettings.load({}, config)

    assert f"{config} sets {unknown}, which no process knows; is it misspelt?" == str(raised.value)


def test_one_file_serves_all_processes(config: Path) -> None:
    """What another process's table holds is that process's affair."""
    config.write_text("[agent]\nslots = 3\n[queue]\nport = 1\n")

    assert QueueSettings.load({}, config).port == 1
    assert LogSettings.load({}, config).port == 4712


def test_a_bad_value_in_the_file_is_named(config: Path) -> None:
    """The error names the key and the file."""
    config.write_text('[queue]\nport = "high"\n')
    with pytest.raises(SettingsError, match=r"port in .*penstock.toml must be a whole number"):
        QueueSettings.load({}, config)

    config.write_text("[queue]\nport = [1]\n")
    with pytest.raises(SettingsError, match=r"port in .*penstock.toml must be one text, number, true or false"):
        QueueSettings.load({}, config)


def test_a_file_that_cannot_be_read_is_named(config: Path) -> None:
    """A file that is not there, or is no TOML, is an error and not an empty file."""
    with pytest.raises(SettingsError, match=r"penstock.toml, .* cannot be read: No such file"):
        QueueSettings.load({"PENSTOCK_CONFIG": str(config)})

    config.write_text("port == 1")
    with pytest.raises(SettingsError, match=r"penstock.toml, .* is not TOML"):
        QueueSettings.load({"PENSTOCK_CONFIG": str(config)})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.10", "example.com"])
def test_listening_for_others_needs_a_token(host: str) -> None:
    """Without a token a service listens on loopback only; the error names the variable that changes that."""
    with pytest.raises(SettingsError, match="as long as PENSTOCK_TOKEN is not set"):
        QueueSettings.load({"PENSTOCK_HOST": host})

    assert host == QueueSettings.load({"PENSTOCK_HOST": host, "PENSTOCK_TOKEN": "s3cret"}).host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    """On a loopback address a service may listen as it is."""
    assert host == QueueSettings.load({"PENSTOCK_HOST": host}).host


def test_reflection_is_for_loopback_unless_said() -> None:
    """The contract is shown on loopback only, unless the setting says otherwise."""
    elsewhere = {"PENSTOCK_HOST": "0.0.0.0", "PENSTOCK_TOKEN": "s3cret"}

    assert QueueSettings.load({}).with_reflection is True
    assert QueueSettings.load(elsewhere).with_reflection is False
    assert QueueSettings.load(elsewhere | {"PENSTOCK_REFLECTION": "true"}).with_reflection is True
    assert QueueSettings.load({"PENSTOCK_REFLECTION": "false"}).with_reflection is False


def test_the_token_is_not_shown() -> None:
    """Settings may be logged; the token in them may not."""
    environ = {"PENSTOCK_TOKEN": "s3cret"}

    assert "s3cret" not in repr(QueueSettings.load(environ))
    assert "s3cret" not in repr(ClientSettings.load(environ))


def test_a_configured_database_is_used() -> None:
    """A given URL is taken as it is."""
    url = "postgresql+psycopg://localhost/penstock"

    assert url == QueueSettings.load({"PENSTOCK_DATABASE": url}).database_url


def test_the_embedded_database_lies_in_the_data_directory() -> None:
    """Whoever moves the data directory moves the database."""
    assert QueueSettings.load({"PENSTOCK_DATA_DIR": "/srv/data"}).database_url == "sqlite:////srv/data/penstock.db"


def test_a_client_finds_the_services_by_default() -> None:
    """Told nothing, a client looks where the services listen by default."""
    client = ClientSettings.load({})

    assert client.flow_run_address == f"127.0.0.1:{FlowRunSettings.load({}).port}"
    assert client.queue_address == f"127.0.0.1:{QueueSettings.load({}).port}"
    assert client.log_address == f"127.0.0.1:{LogSettings.load({}).port}"


def test_one_address_stands_for_all() -> None:
    """PENSTOCK_ADDRESS is where everything is, except what has an address of its own."""
    client = ClientSettings.load({"PENSTOCK_ADDRESS": "gate:443", "PENSTOCK_LOG_ADDRESS": "logs:443"})

    assert (client.flow_run_address, client.queue_address, client.log_address) == ("gate:443", "gate:443", "logs:443")


@pytest.mark.parametrize(
    ("environ", "exported"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4317"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_exported_where_the_standard_says_so(environ: dict[str, str], exported: bool) -> None:
    """An endpoint switches exporting on; the standard switches turn it off again."""
    assert exported is settings.traces_are_exported(environ)


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1:1"), ("::1", "[::1]:1"), ("[::1]", "[::1]:1"), ("a.b", "a.b:1")]
)
def test_host_and_port_are_joined(host: str, address: str) -> None:
    """An IPv6 host is put in brackets, once."""
    assert address == settings.joined(host, 1)


def test_the_environment_is_handed_out_as_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for the environment gets it as it is now, and changes nobody else's."""
    monkeypatch.setenv("PENSTOCK_SOMETHING", "a")

    environ = settings.environment()
    environ["PENSTOCK_SOMETHING"] = "b"

    assert settings.environment()["PENSTOCK_SOMETHING"] == "a"


@pytest.mark.parametrize(
    "address",
    ["nonsense", "http://127.0.0.1:4710", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "a:b", "::1:4710", "a b:1"],
)
@pytest.mark.parametrize("name", ["ADDRESS", "FLOW_RUN_ADDRESS", "QUEUE_ADDRESS", "LOG_ADDRESS"])
def test_an_address_that_is_none_is_refused_by_its_variable(name: str, address: str) -> None:
    """Whoever set it is told which one it is, and what was expected."""
    with pytest.raises(SettingsError) as refused:
        ClientSettings.load({f"PENSTOCK_{name}": address})

    assert f"PENSTOCK_{name} must be HOST:PORT, such as 127.0.0.1:4710, not {address!r}." == str(refused.value)


@pytest.mark.parametrize(
    "address",
    ["localhost:1", "127.0.0.1:65535", "[::1]:4710", "[fe80::1%eth0]:1", "dns:///penstock:4710", "unix:/a.sock"],
)
def test_an_address_may_be_in_any_form_that_a_channel_takes(address: str) -> None:
    """Host and port, or one of gRPC's own schemes."""
    assert address == ClientSettings.load({"PENSTOCK_ADDRESS": address}).log_address


@pytest.mark.parametrize("token", ["geheim-ü", "read from a file\n", " ", "a\tb"])
@pytest.mark.parametrize("kind", [ClientSettings, FlowRunSettings])
def test_a_token_that_no_call_can_bear_is_refused_by_its_variable(kind: type[Settings], token: str) -> None:
    """Neither side may be told one; it is not shown, because messages are logged."""
    with pytest.raises(SettingsError) as refused:
        kind.load({"PENSTOCK_TOKEN": token})

    expected = "PENSTOCK_TOKEN must be printable ASCII characters without white space at its ends."
    assert expected == str(refused.value)
