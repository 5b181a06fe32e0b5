"""What the processes may be told by their environment."""

from dataclasses import fields
from typing import Final

from penstock.agent.settings import AgentSettings
from penstock.runtime.settings import (
    PREFIX,
    FlowRunSettings,
    KeeperSettings,
    LogSettings,
    QueueSettings,
    ServiceSettings,
    Settings,
)

SERVICES: Final[dict[str, type[ServiceSettings]]] = {
    "penstock.flow_run": FlowRunSettings,
    "penstock.queue": QueueSettings,
    "penstock.log": LogSettings,
    "penstock.keeper": KeeperSettings,
}
PROCESSES: Final[dict[str, type[Settings]]] = {**SERVICES, "penstock.agent": AgentSettings}
MIGRATIONS: Final = "penstock.storage.migrations"

# Read by libraries: libpq, Python and OpenTelemetry.
FOREIGN: Final = frozenset({"PGPASSWORD", "TMPDIR", "OTEL_EXPORTER_OTLP_ENDPOINT"})


def known_to(*modules: str) -> frozenset[str]:
    """The names of the variables that these processes read."""
    named = {PREFIX + each.name.upper() for module in modules for each in fields(PROCESSES[module])}
    return FOREIGN | named
