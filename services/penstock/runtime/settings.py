"""One frozen dataclass per process, read once: from the environment, then from a TOML file, then the default.

The variable of a field is `PENSTOCK_` and its name in capitals; an empty variable counts as unset. The file is named by
`PENSTOCK_CONFIG`: a process looks in the table that bears its name, then at the top level.
Nothing else reads the environment.
"""

import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar, Final, Self, get_type_hints

from penstock.domain.limits import (
    DEADLINE_DEFAULT,
    HEARTBEAT_INTERVAL,
    HELD_LEASE,
    LOG_LEVELS,
    OFFER_LEASE,
    STREAM_AGE_MAX,
    SWEEP_INTERVAL,
)

PREFIX: Final = "PENSTOCK_"
ADDRESS_FORM: Final = "HOST:PORT, such as 127.0.0.1:4710"
CREDENTIAL_FORM: Final = "printable ASCII characters without white space at its ends"
FLOW_RUN_PORT: Final = 4710
QUEUE_PORT: Final = 4711
LOG_PORT: Final = 4712
KEEPER_PORT: Final = 4713


class SettingsError(Exception):
    """A setting cannot be used. The message names it and says what is expected."""


def _default_data_dir() -> Path:
    import platformdirs  # here, because those who never need the default should not pay for it

    return Path(platformdirs.user_data_dir("penstock"))


@dataclass(frozen=True, slots=True)
class Settings:
    """What every process may be told."""

    table: ClassVar[str] = ""

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ, toml_path: Path | None = None) -> Self:
        """Read every field; raise SettingsError for the first value that cannot be used."""
        in_file = _from_file(cls, environ, toml_path)
        kinds = get_type_hints(cls)
        given: dict[str, Any] = {}
        for each in fields(cls):
            text, place = environ.get(PREFIX + each.name.upper(), ""), PREFIX + each.name.upper()
            if not text and each.name in in_file:
                text, place = in_file[each.name]
            if text:
                given[each.name] = _converted(text, kinds[each.name], place)
        return cls(**given)


@dataclass(frozen=True, slots=True)
class ServiceSettings(Settings):
    """What a service is told. The timings are the contract's; tests shorten them."""

    database: str = ""
    data_dir: Path = field(default_factory=_default_data_dir)
    host: str = "127.0.0.1"
    port: int = 0
    token: str = field(default="", repr=False)
    reflection: bool | None = None
    database_threads: int = 4
    log_level: str = "INFO"
    offer_lease: timedelta = OFFER_LEASE
    held_lease: timedelta = HELD_LEASE
    heartbeat_interval: timedelta = HEARTBEAT_INTERVAL
    stream_age: timedelta = STREAM_AGE_MAX
    sweep_interval: timedelta = SWEEP_INTERVAL
    drain_grace: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        _demand(self.port <= 65_535, "PORT", "a port from 0 to 65535", self.port)
        _demand(self.database_threads >= 1, "DATABASE_THREADS", "at least 1", self.database_threads)
        _demand(self.log_level in LOG_LEVELS, "LOG_LEVEL", f"one of {', '.join(LOG_LEVELS)}", self.log_level)
        _demand_token(self.token)
        if not is_loopback(self.host) and not self.token:
            raise SettingsError(
                f"{PREFIX}HOST must be a loopback address, not {self.host!r}, as long as {PREFIX}TOKEN is not set: "
                "whoever reaches the port could do anything. Set a token, which every caller then sends."
            )

    @property
    def database_url(self) -> str:
        """Where the database is: as configured, or an SQLite file in the data directory."""
        return self.database or f"sqlite:///{self.data_dir.absolute() / 'penstock.db'}"

    @property
    def with_reflection(self) -> bool:
        """Whether the contract is shown to callers: as configured, or on loopback only."""
        return is_loopback(self.host) if self.reflection is None else self.reflection


@dataclass(frozen=True, slots=True)
class FlowRunSettings(ServiceSettings):
    """What `python -m penstock.flow_run` is told."""

    table: ClassVar[str] = "flow_run"
    port: int = FLOW_RUN_PORT


@dataclass(frozen=True, slots=True)
class QueueSettings(ServiceSettings):
    """What `python -m penstock.queue` is told."""

    table: ClassVar[str] = "queue"
    port: int = QUEUE_PORT


@dataclass(frozen=True, slots=True)
class LogSettings(ServiceSettings):
    """What `python -m penstock.log` is told."""

    table: ClassVar[str] = "log"
    port: int = LOG_PORT


@dataclass(frozen=True, slots=True)
class KeeperSettings(ServiceSettings):
    """What `python -m penstock.keeper` is told. It serves its health only."""

    table: ClassVar[str] = "keeper"
    port: int = KEEPER_PORT


@dataclass(frozen=True, slots=True)
class ClientSettings(Settings):
    """Where the services are, and how to speak to them. `address` stands for each that is not given by itself.

    The keeper is asked for nothing but its health.
    """

    table: ClassVar[str] = "client"
    address: str = ""
    flow_run_address: str = ""
    queue_address: str = ""
    log_address: str = ""
    keeper_address: str = ""
    token: str = field(default="", repr=False)
    timeout: timedelta = DEADLINE_DEFAULT

    def __post_init__(self) -> None:
        for name in ("address", "flow_run_address", "queue_address", "log_address", "keeper_address"):
            given = getattr(self, name)
            _demand(not given or is_address(given), name.upper(), ADDRESS_FORM, given)
        _demand_token(self.token)
        ports = {"flow_run": FLOW_RUN_PORT, "queue": QUEUE_PORT, "log": LOG_PORT, "keeper": KEEPER_PORT}
        for name, port in ports.items():
            given = getattr(self, f"{name}_address")
            object.__setattr__(self, f"{name}_address", given or self.address or f"127.0.0.1:{port}")


# Every table a file may have. The agent's settings are its own module's; the file is the same.
TABLES: Final = frozenset({"flow_run", "queue", "log", "keeper", "client", "agent"})


def environment() -> dict[str, str]:
    """The environment as it is now: to hand on to a child process, or to find in it what a run was told."""
    return dict(os.environ)


def traces_are_exported(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the standard OpenTelemetry variables name somewhere to send spans to."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environ.get(name) for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach that host."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_address(text: str) -> bool:
    """Whether a channel can be opened to it: host and port, or a name in one of gRPC's own schemes.

    gRPC itself takes anything, and a port that is missing for 443.
    """
    if text.startswith(_SCHEMES):
        return True
    matched = _HOST_AND_PORT.fullmatch(text)
    return matched is not None and 1 <= int(matched["port"]) <= 65_535


def is_token(text: str) -> bool:
    """Whether a call can bear it."""
    return text.isascii() and text.isprintable() and text == text.strip()


def joined(host: str, port: int) -> str:
    """Host and port as one address; an IPv6 host is put in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _from_file(cls: type[Settings], environ: Mapping[str, str], path: Path | None) -> dict[str, tuple[str, str]]:
    named = environ.get(PREFIX + "CONFIG", "")
    if path is None and not named:
        return {}
    path = path or Path(named)
    content = _parsed(path)
    _refuse_unknown_keys(cls, content, path)
    own = content.get(cls.table, {})
    found = {name: value for name, value in content.items() if not isinstance(value, dict)} | own
    return {name: (_as_text(value, f"{name} in {path}"), f"{name} in {path}") for name, value in found.items()}


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}, the file with the settings, cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}, the file with the settings, is not TOML: {error}.") from error


def _refuse_unknown_keys(cls: type[Settings], content: Mapping[str, Any], path: Path) -> None:
    """Of the file, judge what this process can: the top level, which tables there are, and what is in its own."""
    own = {each.name for each in fields(cls)}
    anywhere = own | {each.name for process in (ServiceSettings, ClientSettings) for each in fields(process)}
    unknown = [name for name, value in content.items() if not isinstance(value, dict) and name not in anywhere]
    unknown += [f"[{name}]" for name, value in content.items() if isinstance(value, dict) and name not in TABLES]
    unknown += [f"{cls.table}.{name}" for name in content.get(cls.table, {}) if name not in own]
    if unknown:
        raise SettingsError(f"{path} sets {unknown[0]}, which no process knows; is it misspelt?")


def _as_text(value: object, place: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise SettingsError(f"{place} must be one text, number, true or false, not {value!r}.")


def _converted(text: str, kind: Any, place: str) -> Any:
    convert, expected = _CONVERSIONS[kind]
    try:
        return convert(text)
    except ValueError as error:
        raise SettingsError(f"{place} must be {expected}, not {text!r}.") from error


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _truth(text: str) -> bool:
    lower = text.lower()
    if lower not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        raise ValueError(text)
    return lower in ("true", "1", "yes", "on")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _span(text: str) -> timedelta:
    try:
        span = timedelta(seconds=_number(text))
    except OverflowError as error:
        raise ValueError(text) from error
    if span <= timedelta(0):
        raise ValueError(text)
    return span


def _path(text: str) -> Path:
    return Path(text).expanduser()


_CONVERSIONS: Final[Mapping[Any, tuple[Callable[[str], Any], str]]] = {
    str: (str, "text"),
    int: (_count, "a whole number, 0 or more"),
    float: (_number, "a number"),
    bool: (_truth, "true or false"),
    bool | None: (_truth, "true or false"),
    timedelta: (_span, "a number of seconds above 0"),
    Path: (_path, "a path"),
    Path | None: (_path, "a path"),
}


_SCHEMES: Final = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "xds:")
_HOST_AND_PORT: Final = re.compile(r"([^\s:/@\[\]]+|\[[0-9A-Fa-f:.]+(%\w+)?\]):(?P<port>[0-9]{1,5})")


def _demand_token(token: str) -> None:
    # The token itself is a secret, and a message may be logged.
    if not is_token(token):
        raise SettingsError(f"{PREFIX}TOKEN must be {CREDENTIAL_FORM}.")


def _demand(holds: bool, name: str, expected: str, found: object) -> None:
    if not holds:
        raise SettingsError(f"{PREFIX}{name} must be {expected}, not {found!r}.")
